-- A front reads and bills many databases, its cells, as one: foreign tables over the views of schema
-- reporting in each cell, one schema for each, and views with the same names and columns over them.
-- The tables of a front's own usage stay empty.

-- One row if this database is a front. peaks_read_until: when it last asked its cells for the hours
-- whose peaks changed; peaks_compared_at: for all hours.
CREATE TABLE accounting.front (
    id boolean NOT NULL DEFAULT true CONSTRAINT front_has_one_row CHECK (id),
    initialized_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    peaks_read_until timestamptz NOT NULL DEFAULT '-infinity',
    peaks_compared_at timestamptz NOT NULL DEFAULT '-infinity',
    CONSTRAINT front_pkey PRIMARY KEY (id)
);
GRANT SELECT, UPDATE ON accounting.front TO turn_accounting_writer;

-- The cells of a front. The foreign server and the schema of a cell are named 'cell_' and its name.
-- url: without a password, which is in the user mapping. revision: of its schema, when its views were
-- imported; front_revision: of the front's own schema then. cell_id numbers what a cell numbers by
-- itself (see accounting.of_cell). adjustments_until: when its adjustments were last copied.
-- database_id: of the database that joined. bill_from: the first period that the front bills of it;
-- null: the first that it has. feed_failing_since, feed_retry_at, feed_error: null while its feed can be
-- read.
CREATE TABLE accounting.cells (
    cell_id smallint NOT NULL,
    cell text NOT NULL,
    url text NOT NULL,
    revision text NOT NULL,
    front_revision text NOT NULL,
    joined_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    adjustments_until timestamptz NOT NULL DEFAULT '-infinity',
    database_id uuid NOT NULL,
    bill_from date,
    feed_failing_since timestamptz,
    feed_retry_at timestamptz,
    feed_error text,
    CONSTRAINT cells_pkey PRIMARY KEY (cell_id),
    CONSTRAINT cell_is_unique UNIQUE (cell),
    CONSTRAINT database_is_one_cell UNIQUE (database_id),
    CONSTRAINT cell_has_a_short_name CHECK (cell ~ '^[a-z0-9][a-z0-9_-]{0,39}$'),
    CONSTRAINT cells_are_few CHECK (cell_id BETWEEN 1 AND 1023)
);
GRANT SELECT, UPDATE ON accounting.cells TO turn_accounting_writer;

-- Up to where the feed of a cell's database is forwarded, with what the feed was up to there
-- (reporting.feed_history): the newest position is the cursor. Older ones are kept, the fewer the
-- older, to find the newest that a restored cell still has. They stay when the cell leaves, so that it
-- goes on from there when it joins again, by whatever name.
CREATE TABLE accounting.feed_positions (
    database_id uuid NOT NULL,
    number bigint NOT NULL,
    seq bigint NOT NULL,
    history uuid NOT NULL,
    forwarded_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    CONSTRAINT feed_positions_pkey PRIMARY KEY (database_id, number)
);
GRANT SELECT, INSERT, DELETE ON accounting.feed_positions TO turn_accounting_writer;

-- The periods of which the feed of a cell's database was forwarded up to their period.closed. All that
-- was counted of them comes before that in the front's feed too.
CREATE TABLE accounting.forwarded_closings (
    database_id uuid NOT NULL,
    realm text NOT NULL,
    period date NOT NULL,
    seq bigint NOT NULL,
    CONSTRAINT forwarded_closings_pkey PRIMARY KEY (database_id, realm, period)
);
GRANT SELECT, INSERT, UPDATE, DELETE ON accounting.forwarded_closings TO turn_accounting_writer;

-- The hours of realms whose peaks over all cells are counted. counted_from: the version of each cell's
-- hour, by cell (see accounting.peak_versions).
CREATE TABLE accounting.front_peak_hours (
    realm text NOT NULL,
    starts_at timestamptz NOT NULL,
    counted_from jsonb NOT NULL,
    CONSTRAINT front_peak_hours_pkey PRIMARY KEY (realm, starts_at)
);
GRANT SELECT, INSERT, DELETE ON accounting.front_peak_hours TO turn_accounting_writer;

-- The most sessions that were open at one moment of an hour over all cells, of a realm (with an empty
-- name), at a server or over a transport, where more than one cell had any. Where one alone had, its
-- own peak is that.
CREATE TABLE accounting.front_peaks (
    realm text NOT NULL,
    dimension text COLLATE "C" NOT NULL,
    name text COLLATE "C" NOT NULL,
    starts_at timestamptz NOT NULL,
    peak_sessions bigint NOT NULL,
    CONSTRAINT front_peaks_pkey PRIMARY KEY (realm, dimension, name, starts_at)
);
CREATE INDEX front_peaks_by_hour ON accounting.front_peaks (realm, starts_at);
GRANT SELECT, INSERT, DELETE ON accounting.front_peaks TO turn_accounting_writer;

-- The closings of cells that are in the books of the front, with the name of the cell when the first of
-- them was billed. A cell that was restored closes a period again, with another cutoff, and one that had
-- no usage of it may have closed it later than the front.
CREATE TABLE accounting.billed_closings (
    realm_id integer NOT NULL,
    period date NOT NULL,
    database_id uuid NOT NULL,
    cell text NOT NULL,
    cutoff text NOT NULL,
    CONSTRAINT billed_closings_pkey PRIMARY KEY (realm_id, period, database_id)
);
CREATE INDEX billed_closings_by_database ON accounting.billed_closings (database_id);
GRANT SELECT, INSERT, UPDATE ON accounting.billed_closings TO turn_accounting_writer;

-- The parts of the statements of a front: the lines of its cells, with the cells' names then. What was
-- billed of a cell is these and the adjustments that have its database. Append only, as statements.
CREATE TABLE accounting.statement_parts (
    realm_id integer NOT NULL,
    period date NOT NULL,
    user_key uuid NOT NULL,
    database_id uuid NOT NULL,
    cell text NOT NULL,
    received_packets bigint NOT NULL,
    received_bytes bigint NOT NULL,
    sent_packets bigint NOT NULL,
    sent_bytes bigint NOT NULL,
    peer_received_packets bigint NOT NULL,
    peer_received_bytes bigint NOT NULL,
    peer_sent_packets bigint NOT NULL,
    peer_sent_bytes bigint NOT NULL,
    sessions_started bigint NOT NULL,
    sessions_ended bigint NOT NULL,
    session_microseconds numeric NOT NULL,
    estimated_bytes bigint NOT NULL,
    digest text NOT NULL,
    CONSTRAINT statement_parts_pkey PRIMARY KEY (realm_id, period, user_key, database_id)
);
GRANT SELECT, INSERT ON accounting.statement_parts TO turn_accounting_writer;
CREATE TRIGGER parts_are_immutable BEFORE UPDATE OR DELETE ON accounting.statement_parts
    FOR EACH ROW EXECUTE FUNCTION accounting.refuse_change();
ALTER TABLE accounting.statement_parts ENABLE ALWAYS TRIGGER parts_are_immutable;
CREATE TRIGGER parts_are_kept BEFORE TRUNCATE ON accounting.statement_parts
    FOR EACH STATEMENT EXECUTE FUNCTION accounting.refuse_change();
ALTER TABLE accounting.statement_parts ENABLE ALWAYS TRIGGER parts_are_kept;
CREATE TRIGGER parts_come_before_the_close AFTER INSERT ON accounting.statement_parts
    REFERENCING NEW TABLE AS added
    FOR EACH STATEMENT EXECUTE FUNCTION accounting.check_statements();
ALTER TABLE accounting.statement_parts ENABLE ALWAYS TRIGGER parts_come_before_the_close;

-- The cells that the front bills a period of: since the first that it bills of them, and what it has
-- billed of their databases before they left and joined again.
CREATE VIEW accounting.billing_cells AS
SELECT n.cell, n.database_id, p.realm_id, p.period
FROM accounting.cells n CROSS JOIN accounting.periods p
WHERE (p.period >= n.bill_from) IS NOT FALSE OR EXISTS (
    SELECT FROM accounting.billed_closings b
    WHERE b.database_id = n.database_id AND b.realm_id = p.realm_id AND b.period = p.period);
GRANT SELECT ON accounting.billing_cells TO turn_accounting_writer;

-- The present and former names and the numbers of the sources of each cell, when the job `share` read
-- them last.
CREATE TABLE accounting.sources_of_cells (
    cell text NOT NULL,
    source text NOT NULL,
    source_id smallint NOT NULL,
    CONSTRAINT sources_of_cells_pkey PRIMARY KEY (cell, source)
);
GRANT SELECT, INSERT, DELETE ON accounting.sources_of_cells TO turn_accounting_writer;

-- In a cell: the front that it belongs to, and the name that it has there. front: its feed_source().
CREATE TABLE accounting.membership (
    id boolean NOT NULL DEFAULT true CONSTRAINT cell_is_of_one_front CHECK (id),
    front text NOT NULL,
    cell text NOT NULL,
    joined_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    CONSTRAINT membership_pkey PRIMARY KEY (id)
);
GRANT SELECT, INSERT, UPDATE, DELETE ON accounting.membership TO turn_accounting_writer;

-- A number that a cell gave (of a gap, say), unique over all cells of a front.
CREATE FUNCTION accounting.of_cell(cell_id smallint, number bigint) RETURNS bigint
LANGUAGE sql IMMUTABLE PARALLEL SAFE RETURN number * 1024 + cell_id;

-- Whether a session reads this cell: all but those named in its setting
-- turn_accounting.without_cells, by commas. It is IMMUTABLE so that the planner drops the cells that
-- are left out before it connects to them; the setting is made when a session starts, and kept.
CREATE FUNCTION accounting.reads_cell(cell text) RETURNS boolean
LANGUAGE sql IMMUTABLE PARALLEL SAFE SET search_path = pg_catalog, pg_temp AS $$
    SELECT cell <> ALL (string_to_array(
        coalesce(current_setting('turn_accounting.without_cells', true), ''), ','))
$$;

-- The password with which the front logs in to a cell; null if it needs none. For the jobs and
-- commands that work in cells themselves.
CREATE FUNCTION accounting.cell_password(of_cell text) RETURNS text
LANGUAGE sql STABLE SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
    SELECT o.option_value
    FROM pg_user_mappings m CROSS JOIN LATERAL pg_options_to_table(m.umoptions) o
    WHERE m.srvname = 'cell_' || of_cell AND m.usename = current_user AND o.option_name = 'password'
$$;
REVOKE ALL ON FUNCTION accounting.cell_password(text) FROM PUBLIC;
GRANT EXECUTE ON FUNCTION accounting.cell_password(text) TO turn_accounting_writer;

-- How this database sorts texts: its locale, and the version of the system's data of it. The name of a
-- locale of ICU or of Postgres itself is in a column whose name differs by version. Of C there is none.
CREATE FUNCTION cell.database_collation() RETURNS text
LANGUAGE sql STABLE SET search_path = pg_catalog, pg_temp AS $$
    SELECT concat_ws(' ', d.datcollate, d.datctype, d.datlocprovider,
        coalesce(to_jsonb(d) ->> 'datlocale', to_jsonb(d) ->> 'daticulocale'),
        to_jsonb(d) ->> 'daticurules',
        'version ' || pg_database_collation_actual_version(d.oid))
    FROM pg_database d WHERE d.datname = current_database()
$$;

-- What a front asks of a cell to see whether it answers, and how it is: one row. installation: a hash
-- of its key. database_id: of this database. front, member: null in an installation that is no cell. captured_until, settled_until:
-- the least of the sources in service; null if one has none, or there is no source. collation: see
-- cell.database_collation().
CREATE VIEW cell.status AS
SELECT a.version_num::text AS revision, reporting.feed_source() AS installation,
    (SELECT i.database_id FROM accounting.installation i) AS database_id, m.front, m.cell AS member, clock_timestamp() AS clock,
    extract(epoch FROM accounting.database_now() - s.captured_until)::float8 AS captured_lag,
    extract(epoch FROM accounting.database_now() - s.settled_until)::float8 AS settled_lag,
    s.sources::integer AS sources, s.open_gaps::integer AS open_gaps,
    (SELECT count(*) FROM accounting.job_runs j WHERE j.failures_in_a_row >= 3)::integer
        AS failing_jobs,
    cell.database_collation() AS collation
FROM accounting.alembic_version a
LEFT JOIN accounting.membership m ON true
CROSS JOIN (
    SELECT count(*) AS sources,
        CASE WHEN bool_and(c.captured_until IS NOT NULL) THEN min(c.captured_until) END
            AS captured_until,
        CASE WHEN bool_and(t.settled_until IS NOT NULL) THEN min(t.settled_until) END
            AS settled_until,
        count(*) FILTER (WHERE EXISTS (
            SELECT FROM accounting.capture_gaps g
            WHERE g.source_id = c.source_id AND g.to_at IS NULL)) AS open_gaps
    FROM accounting.sources c LEFT JOIN accounting.settle_watermarks t USING (source_id)
    WHERE c.retired_at IS NULL
) s;

-- The cells of a front, with the revisions and the databases that joined; no rows in another database.
-- For readers, who look which of them answer.
CREATE FUNCTION cell.joined() RETURNS TABLE (cell text, revision text, database_id uuid)
LANGUAGE sql STABLE SECURITY DEFINER SET search_path = pg_catalog, pg_temp
AS $$ SELECT c.cell, c.revision, c.database_id FROM accounting.cells c ORDER BY c.cell $$;
REVOKE ALL ON FUNCTION cell.joined() FROM PUBLIC;
GRANT EXECUTE ON FUNCTION cell.joined() TO turn_accounting_reader, turn_accounting_writer;

-- The status of one cell of a front, read in the cell; an error of SQLSTATE 08001 if it does not answer.
CREATE FUNCTION cell.status_of(of_cell text) RETURNS SETOF cell.status
LANGUAGE plpgsql STABLE SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    IF EXISTS (SELECT FROM accounting.cells c WHERE c.cell = of_cell) THEN
        RETURN QUERY EXECUTE format('SELECT * FROM %I.status', 'cell_' || of_cell);
    END IF;
END
$$;
REVOKE ALL ON FUNCTION cell.status_of(text) FROM PUBLIC;
GRANT EXECUTE ON FUNCTION cell.status_of(text) TO turn_accounting_reader, turn_accounting_writer;

-- How a view of a front comes about. 'rows': those of all cells. 'sums': one row for each key, whose
-- other columns are added up. All other views are of the front's own tables.
CREATE FUNCTION accounting.front_view_kind(of_view text) RETURNS text
LANGUAGE sql IMMUTABLE AS $$
    SELECT CASE
        WHEN of_view IN (
            'sources', 'capture_gaps', 'rejected_messages', 'rejected_message_counts',
            'allocation_events', 'traffic_reports', 'sessions', 'radacct', 'unattributed_usage'
        ) THEN 'rows'
        WHEN of_view ~ '^(user|realm|server|transport)_usage_(hourly|daily|monthly)$'
            OR of_view = 'rates' THEN 'sums'
    END
$$;

-- Whether a column of a 'sums' view is added up over cells; the others are its key. Peaks are not
-- added up: see accounting.peak_over_cells.
CREATE FUNCTION accounting.is_summed(column_name text) RETURNS boolean
LANGUAGE sql IMMUTABLE
RETURN column_name ~ '_(packets|bytes|sessions|started|ended|seconds)$|_[15]m$';

-- In a front: what all cells have, with the names of the cells. For its jobs; readers have reporting.
CREATE SCHEMA cells;
GRANT USAGE ON SCHEMA cells TO turn_accounting_writer;
ALTER DEFAULT PRIVILEGES IN SCHEMA cells GRANT SELECT ON TABLES TO turn_accounting_writer;

-- The views that a front reads of a cell.
CREATE VIEW accounting.views_of_cells AS
SELECT c.oid AS view_id, n.nspname AS schema_name, c.relname AS view_name,
    CASE WHEN n.nspname = 'cell' THEN 'rows' ELSE accounting.front_view_kind(c.relname) END AS kind
FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
WHERE n.nspname IN ('cell', 'reporting') AND c.relkind = 'v';

-- Fails for a view that a cell does not have: what it has would be missing without a word. Volatile, so
-- that it fails when the cell is read, and not while a query is planned.
CREATE FUNCTION accounting.raise_missing_view(of_cell text, of_view text) RETURNS boolean
LANGUAGE plpgsql VOLATILE PARALLEL SAFE SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    RAISE EXCEPTION 'cell ''%'' has no view "%" yet', of_cell, of_view USING
        HINT = 'Upgrade it with `turn-accounting db upgrade`; the job `share` of the front follows.';
END
$$;

-- What a view reads of all cells: a SELECT for each, which also has the cell's name. A column that an
-- older cell lacks is null there; a view that it lacks is an error. Without cells: no rows.
CREATE FUNCTION accounting.union_of_cells(of_view oid) RETURNS text
LANGUAGE sql STABLE SET search_path = pg_catalog, pg_temp AS $$
    WITH columns AS (
        SELECT v.relname AS view_name, a.attname AS name, a.attnum AS place,
            format('NULL::%s%s AS %I', format_type(a.atttypid, a.atttypmod),
                CASE WHEN a.attcollation = 'pg_catalog."C"'::regcollation
                    THEN ' COLLATE "C"' ELSE '' END,
                a.attname) AS missing
        FROM pg_class v JOIN pg_attribute a ON a.attrelid = v.oid AND a.attnum > 0
        WHERE v.oid = of_view
    )
    SELECT coalesce(string_agg(b.branch, ' UNION ALL ' ORDER BY b.cell_id), (
        SELECT format('SELECT NULL::text AS cell, %s WHERE false',
            string_agg(m.missing, ', ' ORDER BY m.place))
        FROM columns m))
    FROM (
        SELECT n.cell_id, format('SELECT %L AS cell, %s %s', n.cell,
            string_agg(CASE
                WHEN f.attname IS NULL THEN m.missing
                WHEN m.view_name = 'capture_gaps' AND m.name = 'gap_id'
                    THEN format('accounting.of_cell(%s::smallint, f.gap_id) AS gap_id', n.cell_id)
                ELSE format('f.%I', m.name)
            END, ', ' ORDER BY m.place),
            CASE WHEN t.id IS NULL
                THEN format('WHERE accounting.raise_missing_view(%L, %L)', n.cell, m.view_name)
                ELSE format('FROM %I.%I f', 'cell_' || n.cell, m.view_name) END) AS branch
        FROM accounting.cells n
        CROSS JOIN columns m
        CROSS JOIN LATERAL (SELECT to_regclass(
            format('%I.%I', 'cell_' || n.cell, m.view_name)) AS id) t
        LEFT JOIN pg_attribute f
            ON f.attrelid = t.id AND f.attname = m.name AND f.attnum > 0 AND NOT f.attisdropped
        GROUP BY n.cell_id, n.cell, m.view_name, t.id
    ) b
$$;

-- The peak of a bucket over all cells, in a view by realm, server or transport: the highest of its
-- hours. In an hour that is not counted yet that is the highest of the cells' own peaks.
CREATE FUNCTION accounting.peak_over_cells(of_dimension text) RETURNS text
LANGUAGE sql STABLE
RETURN format('greatest(max(u.peak_sessions), (SELECT max(p.peak_sessions)'
    ' FROM accounting.front_peaks p WHERE p.realm = u.realm AND p.dimension = %L AND p.name = %s'
    ' AND p.starts_at >= u.starts_at AND p.starts_at < u.ends_at)) AS peak_sessions',
    of_dimension,
    CASE of_dimension WHEN 'server' THEN 'u.server_address' WHEN 'transport' THEN 'u.transport'
        ELSE '''''' END);

-- Fails for a sum over cells that does not fit its column, with the names of the cells that have such a
-- number. Volatile, as the function above.
CREATE FUNCTION accounting.raise_out_of_range(of_view text, of_column text) RETURNS bigint
LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    of_cells text;
BEGIN
    EXECUTE format('SELECT string_agg(DISTINCT quote_literal(u.cell), '', '') FROM cells.%I u'
        ' WHERE u.%I NOT BETWEEN -4611686018427387904 AND 4611686018427387904', of_view, of_column)
    INTO of_cells;
    RAISE EXCEPTION 'a sum of "%" over the cells is out of range', of_column
        USING ERRCODE = 'numeric_value_out_of_range',
            DETAIL = format('In "%s", the number of cell %s is impossible.', of_view, of_cells);
END
$$;

-- Defines the views of a front over the cells that it has: in schema cells the rows of all cells with
-- the names of the cells, for the front's own jobs, and over them those of cell and reporting, whose
-- comments and grants stay. A sum is null where a cell that has rows of it lacks the column.
CREATE FUNCTION accounting.define_front_views() RETURNS void
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    v record;
BEGIN
    FOR v IN
        SELECT w.schema_name, w.view_name, w.kind, accounting.union_of_cells(w.view_id) AS rows,
            string_agg(CASE
                WHEN w.kind = 'rows' OR NOT accounting.is_summed(a.attname)
                    THEN format('u.%I', a.attname)
                WHEN a.attname = 'peak_sessions'
                    THEN accounting.peak_over_cells(split_part(w.view_name, '_', 1))
                WHEN a.atttypid = 'bigint'::regtype
                    THEN format('CASE WHEN count(*) = count(u.%1$I) THEN CASE'
                        ' WHEN sum(u.%1$I) BETWEEN -9223372036854775808 AND 9223372036854775807'
                        ' THEN sum(u.%1$I)::bigint ELSE accounting.raise_out_of_range(%2$L, %1$L)'
                        ' END END AS %1$I', a.attname, w.view_name)
                ELSE format('CASE WHEN count(*) = count(u.%1$I) THEN sum(u.%1$I)::%2$s END AS %1$I',
                    a.attname, format_type(a.atttypid, a.atttypmod))
            END, ', ' ORDER BY a.attnum) AS columns,
            string_agg(format('u.%I', a.attname), ', ' ORDER BY a.attnum)
                FILTER (WHERE NOT accounting.is_summed(a.attname)) AS keys
        FROM accounting.views_of_cells w
        JOIN pg_attribute a ON a.attrelid = w.view_id AND a.attnum > 0
        GROUP BY w.view_id, w.schema_name, w.view_name, w.kind
    LOOP
        EXECUTE format('CREATE OR REPLACE VIEW cells.%I AS %s', v.view_name, v.rows);
        IF v.kind IS NOT NULL THEN
            EXECUTE format('CREATE OR REPLACE VIEW %I.%I AS SELECT %s FROM cells.%I u'
                ' WHERE accounting.reads_cell(u.cell)%s',
                v.schema_name, v.view_name, v.columns, v.view_name,
                CASE WHEN v.kind = 'sums' THEN ' GROUP BY ' || v.keys ELSE '' END);
        END IF;
    END LOOP;
END
$$;

-- The next events of the feed of one cell. It reads the foreign table itself, so that the cell gets
-- the limit, and no other cell is asked.
CREATE FUNCTION accounting.feed_of_cell(of_cell text, after_seq bigint, most bigint)
RETURNS TABLE (seq bigint, event_id uuid, type text, realm text, payload jsonb)
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    RETURN QUERY EXECUTE format(
        'SELECT f.seq, f.event_id, f.type, f.realm, f.payload FROM %I.feed f'
        ' WHERE f.seq > $1 ORDER BY f.seq LIMIT $2', 'cell_' || of_cell) USING after_seq, most;
END
$$;
REVOKE ALL ON FUNCTION accounting.feed_of_cell(text, bigint, bigint) FROM PUBLIC;
GRANT EXECUTE ON FUNCTION accounting.feed_of_cell(text, bigint, bigint) TO turn_accounting_writer;

-- What the feed of a cell is up to a number, as reporting.feed_history says it there; null beyond its
-- end. It fails in another database than the one that joined.
CREATE FUNCTION accounting.feed_history_of_cell(of_cell text, of_seq bigint) RETURNS uuid
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    batch record;
BEGIN
    EXECUTE format('SELECT b.database_id, b.history FROM %I.feed_batches b'
        ' WHERE b.last_seq >= $1 ORDER BY b.last_seq LIMIT 1', 'cell_' || of_cell)
    INTO batch USING of_seq;
    IF batch.database_id <> (
        SELECT n.database_id FROM accounting.cells n WHERE n.cell = of_cell
    ) THEN
        RAISE EXCEPTION 'cell ''%'' is another database than the one that joined', of_cell
            USING ERRCODE = 'object_not_in_prerequisite_state';
    END IF;
    RETURN batch.history;
END
$$;
REVOKE ALL ON FUNCTION accounting.feed_history_of_cell(text, bigint) FROM PUBLIC;
GRANT EXECUTE ON FUNCTION accounting.feed_history_of_cell(text, bigint) TO turn_accounting_writer;

-- The newest position that a cell still has; number 0: none. It asks the cell for one after the other.
CREATE FUNCTION accounting.common_position(
    of_cell text, OUT number bigint, OUT seq bigint, OUT is_newest boolean
)
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    p record;
BEGIN
    is_newest := true;
    FOR p IN
        SELECT f.number, f.seq, f.history
        FROM accounting.feed_positions f JOIN accounting.cells n USING (database_id)
        WHERE n.cell = of_cell ORDER BY f.number DESC
    LOOP
        IF accounting.feed_history_of_cell(of_cell, p.seq) = p.history THEN
            number := p.number;
            seq := p.seq;
            RETURN;
        END IF;
        is_newest := false;
    END LOOP;
    number := 0;
    seq := 0;
END
$$;
REVOKE ALL ON FUNCTION accounting.common_position(text) FROM PUBLIC;
GRANT EXECUTE ON FUNCTION accounting.common_position(text) TO turn_accounting_writer;

-- Imports the views of a cell as foreign tables, with the columns that they have there, and defines the
-- views of the front over them. The views keep their comments and grants, so the tables that were
-- imported before are only dropped when no view reads them any more.
CREATE FUNCTION accounting.import_cell(of_cell text, cell_revision text, own_revision text)
RETURNS void
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    local_schema text := 'cell_' || of_cell;
    former_schema text := local_schema || ' (former)';
    remote record;
BEGIN
    IF to_regnamespace(quote_ident(local_schema)) IS NOT NULL THEN
        EXECUTE format('ALTER SCHEMA %I RENAME TO %I', local_schema, former_schema);
    END IF;
    EXECUTE format('CREATE SCHEMA %I', local_schema);
    FOR remote IN
        SELECT v.schema_name, string_agg(quote_ident(v.view_name), ', ') AS views
        FROM accounting.views_of_cells v GROUP BY v.schema_name
    LOOP
        EXECUTE format('IMPORT FOREIGN SCHEMA %I LIMIT TO (%s) FROM SERVER %I INTO %I',
            remote.schema_name, remote.views, local_schema, local_schema);
    END LOOP;
    UPDATE accounting.cells SET revision = cell_revision, front_revision = own_revision
    WHERE cell = of_cell;
    PERFORM accounting.define_front_views();
    EXECUTE format('DROP SCHEMA IF EXISTS %I CASCADE', former_schema);
END
$$;
REVOKE ALL ON FUNCTION accounting.import_cell(text, text, text) FROM PUBLIC;
GRANT EXECUTE ON FUNCTION accounting.import_cell(text, text, text) TO turn_accounting_writer;
