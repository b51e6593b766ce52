-- The functions of schema reporting that read private tables, for a front: over the views of its cells.
-- `turn-accounting front init` runs this file. Comments and grants stay as they are.

-- The query on the keys of sessions in all cells that a session reads: a SELECT for each, of the
-- newest that meet the condition. $1 is the limit. In conditions, realm_ids stands for those of the
-- cell: their numbers differ.
CREATE OR REPLACE FUNCTION accounting.newest_in_cells(
    of_realm text, relation text, condition text
)
RETURNS text
LANGUAGE plpgsql STABLE SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    c record;
    realm_ids integer[];
    branches text[] := '{}';
BEGIN
    FOR c IN SELECT n.cell FROM accounting.cells n WHERE accounting.reads_cell(n.cell) LOOP
        EXECUTE format('SELECT array_agg(r.realm_id) FROM %I.realm_numbers r'
            ' WHERE $1 IS NULL OR r.realm = $1', 'cell_' || c.cell) INTO realm_ids USING of_realm;
        IF realm_ids IS NOT NULL THEN
            branches := branches || format('(SELECT e.session_id, e.user_key, e.started_at'
                ' FROM %I.%I e WHERE %s ORDER BY e.started_at DESC, e.session_id DESC LIMIT $1)',
                'cell_' || c.cell, relation,
                replace(condition, 'realm_ids', quote_literal(realm_ids::text) || '::integer[]'));
        END IF;
    END LOOP;
    RETURN array_to_string(branches, ' UNION ALL ');
END
$$;

-- Of sessions without a user, it reads the newest two seconds, and longer spans until the page is full:
-- a cell sorts what a span has.
CREATE OR REPLACE FUNCTION reporting.session_page(
    of_realm text, of_user text, of_user_key uuid, since timestamptz, until timestamptz,
    is_live boolean, before_at timestamptz, before_id uuid, most integer
)
RETURNS TABLE (page_session_id uuid, page_user_key uuid)
LANGUAGE plpgsql STABLE SECURITY DEFINER ROWS 100 SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    keys uuid[];
    keys_by_username uuid[] := '{}';
    is_of_user boolean := of_user IS NOT NULL OR of_user_key IS NOT NULL;
    of_this_user text := 'true';
    from_at timestamptz := '-infinity';
    to_at timestamptz := coalesce(until, 'infinity');
    last_at timestamptz := coalesce(before_at, 'infinity');
    last_id uuid := coalesce(before_id, 'ffffffff-ffff-ffff-ffff-ffffffffffff');
    span interval := interval '2 seconds';
    span_from timestamptz;
    first_at timestamptz;
    query text;
    found_rows bigint;
BEGIN
    IF of_user IS NULL THEN
        keys := ARRAY(SELECT of_user_key WHERE of_user_key IS NOT NULL);
    ELSE
        keys := ARRAY(SELECT DISTINCT u.user_key FROM cell.user_names u
            WHERE u.user_id = of_user AND (of_realm IS NULL OR u.realm = of_realm)
                AND (of_user_key IS NULL OR u.user_key = of_user_key));
        keys_by_username := ARRAY(SELECT DISTINCT k.user_key
            FROM reporting.possible_user_keys(of_user, of_realm) k (user_key)
            WHERE (of_user_key IS NULL OR k.user_key = of_user_key) AND k.user_key <> ALL (keys));
    END IF;
    IF is_of_user THEN
        of_this_user := 'e.user_key = ANY ($6) AND ($7 = ''{}'' OR e.user_key <> ALL ($7)'
            ' OR e.username = $8)';
    END IF;
    IF since IS NOT NULL AND NOT is_live THEN
        from_at := since;
    END IF;

    query := accounting.newest_in_cells(of_realm, 'session_keys', 'e.realm_id = ANY (realm_ids)'
        ' AND e.started_at >= $2 AND e.started_at < $3 AND e.started_at <= $4'
        ' AND (e.started_at, e.session_id) < ($4, $5)'
        || CASE WHEN is_live THEN ' AND e.ended_at IS NULL' ELSE '' END || ' AND ' || of_this_user);
    IF query = '' THEN
        RETURN;
    END IF;
    query := 'SELECT session_id, user_key FROM (' || query
        || ') p ORDER BY started_at DESC, session_id DESC LIMIT $1';
    IF is_live OR is_of_user THEN
        RETURN QUERY EXECUTE query USING most, from_at, to_at, last_at, last_id,
            keys || keys_by_username, keys_by_username, of_user;
        GET DIAGNOSTICS found_rows = ROW_COUNT;
    ELSE
        SELECT min(u.starts_at) - interval '1 day' INTO first_at
        FROM reporting.realm_usage_monthly u WHERE of_realm IS NULL OR u.realm = of_realm;
        first_at := greatest(from_at, least(first_at, accounting.database_now()));
        span_from := least(to_at, last_at, accounting.database_now());
        LOOP
            span_from := CASE WHEN span_from - span > first_at THEN span_from - span
                ELSE from_at END;
            EXECUTE 'SELECT count(*) FROM (' || query || ') c' INTO found_rows
            USING most, span_from, to_at, last_at, last_id, keys, keys_by_username, of_user;
            EXIT WHEN found_rows >= most OR span_from <= from_at;
            span := span * 4;
        END LOOP;
        RETURN QUERY EXECUTE query
        USING most, span_from, to_at, last_at, last_id, keys, keys_by_username, of_user;
    END IF;
    IF is_live OR since IS NULL OR found_rows >= most THEN
        RETURN;
    END IF;

    -- Those that were open at `since` and started before.
    query := accounting.newest_in_cells(of_realm, 'session_keys', 'e.realm_id = ANY (realm_ids)'
        ' AND e.session_id = ANY ($9) AND (e.ended_at IS NULL OR e.ended_at > $2)'
        ' AND e.started_at < $2 AND e.started_at < $3 AND e.started_at <= $4'
        ' AND (e.started_at, e.session_id) < ($4, $5) AND ' || of_this_user);
    RETURN QUERY EXECUTE 'SELECT session_id, user_key FROM (' || query
        || ') p ORDER BY started_at DESC, session_id DESC LIMIT $1'
    USING most - found_rows::integer, since, to_at, last_at, last_id,
        keys || keys_by_username, keys_by_username, of_user, ARRAY(
            SELECT c.session_id FROM cell.continued_sessions c
            WHERE c.starts_at > since - interval '2 hours' AND c.starts_at <= since
                AND (NOT is_of_user OR c.user_key = ANY (keys || keys_by_username))
            UNION
            SELECT s.session_id FROM reporting.sessions s
            WHERE s.started_at >= since - interval '2 hours' AND s.started_at < since
                AND s.ended_at > since AND (of_realm IS NULL OR s.realm = of_realm)
                AND (NOT is_of_user OR s.user_key = ANY (keys || keys_by_username))
            UNION
            SELECT s.session_id FROM reporting.sessions s
            WHERE s.ended_at IS NULL AND s.started_at < since
                AND (of_realm IS NULL OR s.realm = of_realm)
                AND (NOT is_of_user OR s.user_key = ANY (keys || keys_by_username))
        );
END
$$;

CREATE OR REPLACE FUNCTION reporting.usage_page(
    per text, of_realm text, bucket_starts_at timestamptz, after_user text, after_key uuid,
    most integer
)
RETURNS SETOF uuid
LANGUAGE plpgsql STABLE SECURITY DEFINER ROWS 100 SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    RETURN QUERY EXECUTE format($query$
        SELECT u.user_key FROM reporting.%I u
        WHERE u.realm = $1 AND u.starts_at = $2
            AND ($3 IS NULL OR (u.user_id, u.user_key) > ($3, $4))
        ORDER BY u.user_id, u.user_key LIMIT $5
    $query$, accounting.usage_view('user', per))
    USING of_realm, bucket_starts_at, after_user, after_key, most;
END
$$;

CREATE OR REPLACE FUNCTION accounting.usage_view(subject text, per text) RETURNS text
LANGUAGE sql IMMUTABLE
RETURN subject || '_usage_' || CASE per WHEN 'hour' THEN 'hourly' WHEN 'day' THEN 'daily'
    ELSE 'monthly' END;

CREATE OR REPLACE FUNCTION reporting.top_users(
    per text, of_realms text[], buckets_start_at timestamptz[], most integer
)
RETURNS TABLE (top_user_key uuid, top_starts_at timestamptz)
LANGUAGE plpgsql STABLE SECURITY DEFINER ROWS 100 SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    RETURN QUERY EXECUTE format($query$
        SELECT u.user_key, u.starts_at FROM reporting.%I u
        WHERE u.realm = ANY ($1) AND u.starts_at = ANY ($2)
            AND (u.realm, u.starts_at) IN (SELECT w.r, w.s FROM unnest($1, $2) w (r, s))
        ORDER BY u.received_bytes + u.sent_bytes DESC FETCH FIRST $3 ROWS WITH TIES
    $query$, accounting.usage_view('user', per)) USING of_realms, buckets_start_at, most;
END
$$;

CREATE OR REPLACE FUNCTION reporting.users_of_month(of_realm text, month_starts_at timestamptz)
RETURNS TABLE (users bigint, estimated_users bigint)
LANGUAGE sql STABLE SECURITY DEFINER ROWS 1 SET search_path = pg_catalog, pg_temp AS $$
    SELECT count(*), count(*) FILTER (WHERE u.estimated_bytes > 0)
    FROM reporting.user_usage_monthly u
    WHERE u.realm = of_realm AND u.starts_at = month_starts_at
$$;

CREATE OR REPLACE FUNCTION reporting.unattributed_hours(
    of_realm text, from_at timestamptz, to_at timestamptz
)
RETURNS TABLE (hour_starts_at timestamptz, bytes numeric)
LANGUAGE sql STABLE SECURITY DEFINER ROWS 1000 SET search_path = pg_catalog, pg_temp AS $$
    SELECT u.starts_at, sum(u.bytes) FROM cell.unattributed_keys u
    WHERE (of_realm IS NULL OR u.realm = of_realm)
        AND u.starts_at >= coalesce(from_at, '-infinity')
        AND u.starts_at < coalesce(to_at, 'infinity')
    GROUP BY u.starts_at
$$;

CREATE OR REPLACE FUNCTION reporting.unattributed_names(of_realm text, borders timestamptz[])
RETURNS TABLE (starts_at timestamptz, bytes numeric, names bigint, new_names bigint)
LANGUAGE sql STABLE SECURITY DEFINER ROWS 100 SET search_path = pg_catalog, pg_temp AS $$
    SELECT borders[b.bucket], sum(b.bytes), count(b.user_key),
        count(b.user_key) FILTER (WHERE b.bucket = b.first_bucket)
    FROM (
        SELECT u.user_key, width_bucket(u.starts_at, borders) AS bucket, sum(u.bytes) AS bytes,
            min(width_bucket(u.starts_at, borders)) OVER (PARTITION BY u.user_key)
                AS first_bucket
        FROM cell.unattributed_keys u
        WHERE u.realm = of_realm
            AND u.starts_at >= borders[1] AND u.starts_at < borders[cardinality(borders)]
        GROUP BY u.user_key, width_bucket(u.starts_at, borders)
    ) b
    GROUP BY b.bucket
$$;

CREATE OR REPLACE FUNCTION reporting.top_unattributed_names(
    of_realm text, from_at timestamptz, most integer
)
RETURNS TABLE (username text, bytes numeric, hours bigint, last_hour timestamptz)
LANGUAGE sql STABLE SECURITY DEFINER ROWS 100 SET search_path = pg_catalog, pg_temp AS $$
    SELECT coalesce(t.username, ''), t.bytes, t.hours, t.last_hour
    FROM (
        SELECT u.username, sum(u.bytes) AS bytes, count(DISTINCT u.starts_at) AS hours,
            max(u.starts_at) AS last_hour
        FROM cell.unattributed_keys u
        WHERE u.realm = of_realm AND u.starts_at >= from_at AND u.user_key IS NOT NULL
        GROUP BY u.user_key, u.username
    ) t
    ORDER BY t.bytes DESC, t.username LIMIT most
$$;

CREATE OR REPLACE FUNCTION reporting.recent_traffic(
    of_source text, since timestamptz,
    after_epoch integer, after_position bigint, to_epoch integer, to_position bigint, most integer
)
RETURNS TABLE (
    realm text, user_id text, user_key uuid, session_id uuid, confirmed boolean,
    received_at timestamptz, received_bytes bigint, sent_bytes bigint, covered_from timestamptz
)
LANGUAGE sql STABLE SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
    WITH newest AS MATERIALIZED (
        SELECT n.* FROM (
            SELECT t.epoch, t.position, t.database, t.realm, t.username, t.user_id, t.user_key,
                t.allocation_id, t.received_at, t.report <> 'interim' AS has_status, t.side,
                CASE WHEN t.report = 'interim' THEN t.received_bytes ELSE 0 END AS received_bytes,
                CASE WHEN t.report = 'interim' THEN t.sent_bytes ELSE 0 END AS sent_bytes
            FROM reporting.traffic_reports t
            WHERE t.source = of_source AND t.received_at >= since
                AND (t.epoch, t.position) > (after_epoch, after_position)
                AND (t.epoch, t.position) <= (to_epoch, to_position)
            UNION ALL
            SELECT a.epoch, a.position, a.database, a.realm, a.username, a.user_id, a.user_key,
                a.allocation_id, a.received_at, true, 'client', 0, 0
            FROM reporting.allocation_events a
            WHERE a.source = of_source AND a.received_at >= since
                AND (a.epoch, a.position) > (after_epoch, after_position)
                AND (a.epoch, a.position) <= (to_epoch, to_position)
        ) n
        ORDER BY n.epoch DESC, n.position DESC
        LIMIT most
    ), seconds AS (
        SELECT n.database, n.realm, n.username, n.user_id, n.user_key, n.allocation_id,
            max(n.received_at) AS received_at, bool_or(n.has_status) AS has_status,
            sum(n.received_bytes)::bigint AS received_bytes, sum(n.sent_bytes)::bigint AS sent_bytes
        FROM newest n
        WHERE n.has_status OR n.side = 'client'
        GROUP BY n.database, n.realm, n.username, n.user_id, n.user_key, n.allocation_id,
            date_bin('1 second', n.received_at, since)
    ), live AS MATERIALIZED (
        SELECT s.session_id, s.database, s.username, s.realm, s.allocation_id
        FROM reporting.sessions s
        WHERE s.ended_at IS NULL AND s.source = of_source
            AND s.user_key = ANY (ARRAY(SELECT DISTINCT t.user_key FROM seconds t))
    )
    SELECT t.realm, t.user_id, t.user_key, e.session_id,
        e.session_id IS NOT NULL OR bool_or(t.has_status) OVER (
            PARTITION BY t.database, t.realm, t.username, t.allocation_id),
        t.received_at, t.received_bytes, t.sent_bytes,
        (SELECT CASE WHEN count(*) < most THEN since ELSE min(n.received_at) END FROM newest n)
    FROM seconds t
    LEFT JOIN live e USING (database, realm, username, allocation_id)
$$;

-- It reads all reports of the session's key in a span at once, and spans that grow until some come.
CREATE OR REPLACE FUNCTION reporting.session_reports(
    of_session uuid, after_at timestamptz, after_epoch integer, after_position bigint,
    most integer, most_scanned integer
)
RETURNS TABLE (
    source text, epoch integer, "position" bigint, received_at timestamptz, time_estimated boolean,
    event text, side text, lifetime integer, transport text, client_address text,
    server_address text, received_packets bigint, received_bytes bigint, sent_packets bigint,
    sent_bytes bigint, scanned_until timestamptz
)
LANGUAGE plpgsql STABLE SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    s record;
    span_from timestamptz;
    span_to timestamptz;
    span interval := interval '1 minute';
    spans integer := 0;
    found_rows bigint := 0;
    row_count bigint;
BEGIN
    SELECT e.source, e.database, e.realm, e.username, e.user_key, e.allocation_id, e.started_at,
        e.last_seen_at INTO s
    FROM reporting.sessions e WHERE e.session_id = of_session;
    IF NOT FOUND THEN
        RETURN;
    END IF;
    span_from := greatest(s.started_at, after_at);
    WHILE span_from <= s.last_seen_at LOOP
        IF spans >= 4 THEN
            RETURN QUERY SELECT NULL::text, NULL::integer, NULL::bigint, NULL::timestamptz,
                NULL::boolean, NULL::text, NULL::text, NULL::integer, NULL::text, NULL::text,
                NULL::text, NULL::bigint, NULL::bigint, NULL::bigint, NULL::bigint, span_from;
            RETURN;
        END IF;
        span_to := least(span_from + span, s.last_seen_at + interval '1 microsecond');
        RETURN QUERY
        SELECT s.source, r.epoch, r.position, r.received_at, r.time_estimated, r.event, r.side,
            r.lifetime, r.transport, r.client_address, r.server_address, r.received_packets,
            r.received_bytes, r.sent_packets, r.sent_bytes, NULL::timestamptz
        FROM (
            SELECT a.epoch, a.position, a.received_at, a.time_estimated, a.event,
                NULL::text AS side, a.lifetime, a.transport, a.client_address, a.server_address,
                0::bigint AS received_packets, 0::bigint AS received_bytes,
                0::bigint AS sent_packets, 0::bigint AS sent_bytes
            FROM reporting.allocation_events a
            WHERE a.source = s.source AND a.database = s.database AND a.realm = s.realm
                AND a.username = s.username AND a.user_key = s.user_key
                AND a.allocation_id = s.allocation_id
                AND a.received_at >= span_from AND a.received_at < span_to
            UNION ALL
            SELECT t.epoch, t.position, t.received_at, t.time_estimated, t.report,
                t.side, NULL, NULL, NULL, NULL, t.received_packets, t.received_bytes,
                t.sent_packets, t.sent_bytes
            FROM reporting.traffic_reports t
            WHERE t.source = s.source AND t.database = s.database AND t.realm = s.realm
                AND t.username = s.username AND t.user_key = s.user_key
                AND t.allocation_id = s.allocation_id
                AND t.received_at >= span_from AND t.received_at < span_to
        ) r
        WHERE after_at IS NULL OR (r.received_at, r.epoch, r.position)
            > (after_at, after_epoch, after_position)
        ORDER BY r.received_at, r.epoch, r.position
        LIMIT most - found_rows;
        GET DIAGNOSTICS row_count = ROW_COUNT;
        found_rows := found_rows + row_count;
        IF found_rows >= most THEN
            RETURN;
        END IF;
        spans := spans + 1;
        span_from := span_to;
        span := span * 6;
    END LOOP;
END
$$;

-- The cells whose rules of a realm are not those of the front in a time: it clips when they hold from.
CREATE OR REPLACE FUNCTION accounting.cells_with_other_rules(
    of_realm text, since timestamptz, until timestamptz
) RETURNS SETOF text
LANGUAGE sql STABLE SET search_path = pg_catalog, pg_temp AS $$
    WITH rules AS (
        SELECT NULL AS cell, l.holds_from, l.time_zone, l.anchor_day, l.grace_seconds,
            l.username_rule, l.separator
        FROM accounting.realms r JOIN accounting.realm_rules l USING (realm_id)
        WHERE r.realm = of_realm
        UNION ALL
        SELECT c.cell, c.holds_from, c.time_zone, c.anchor_day, c.grace_seconds,
            c.username_rule, c.separator
        FROM cells.realm_rules c WHERE c.realm = of_realm
    ),
    spans AS (
        SELECT u.*, lead(u.holds_from) OVER (PARTITION BY u.cell ORDER BY u.holds_from) AS ends_at
        FROM rules u
    ),
    lists AS (
        SELECT s.cell, array_agg((greatest(s.holds_from, since), s.time_zone, s.anchor_day,
            s.grace_seconds, s.username_rule, s.separator)::text ORDER BY s.holds_from) AS list
        FROM spans s
        WHERE s.holds_from < until AND (s.ends_at > since) IS NOT FALSE
        GROUP BY s.cell
    )
    SELECT c.cell FROM lists c
    WHERE c.cell IS NOT NULL
        AND c.list IS DISTINCT FROM (SELECT f.list FROM lists f WHERE f.cell IS NULL)
$$;

-- What a period of the front waits for: its end, the close of a cell that has it, that the feed is
-- forwarded up to that (what was counted of a period comes before its period.closed), and that the
-- cells that have no usage of the realm are settled beyond it. Null when its statement can be written.
-- excluded_sources: on a front, the cells that are not waited for.
CREATE OR REPLACE FUNCTION accounting.period_waits(
    of_realm integer, of_period date, excluded_sources text[] DEFAULT '{}'
) RETURNS text
LANGUAGE sql STABLE SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
    WITH waited AS (
        SELECT w.cell, w.database_id FROM accounting.billing_cells w
        WHERE w.realm_id = of_realm AND w.period = of_period AND w.cell <> ALL (excluded_sources)
    )
    SELECT CASE WHEN accounting.database_now() < p.ends_at THEN 'its end' ELSE (
        SELECT string_agg(w.wait, '; ' ORDER BY w.rank, w.wait) FROM (
            SELECT 1, format('cell ''%s'', which does not answer', n.cell)
            FROM accounting.cells n WHERE NOT accounting.reads_cell(n.cell)
            UNION ALL
            SELECT 1, format('cell ''%s'': %s', c.cell, coalesce(c.waits_for, 'its close'))
            FROM cells.closings c JOIN waited USING (cell)
            WHERE accounting.reads_cell(c.cell)
                AND c.realm = r.realm AND c.period = p.period AND c.closed_at IS NULL
            UNION ALL
            SELECT 2, format('cell ''%s'': its feed up to the close', c.cell)
            FROM cells.closings c JOIN waited n USING (cell)
            WHERE accounting.reads_cell(c.cell)
                AND c.realm = r.realm AND c.period = p.period AND c.closed_at IS NOT NULL
                AND NOT EXISTS (
                    SELECT FROM accounting.forwarded_closings f
                    WHERE f.database_id = n.database_id AND f.realm = r.realm
                        AND f.period = p.period)
            UNION ALL
            SELECT DISTINCT 1, format('cell ''%s'': its close', u.cell)
            FROM cells.realm_usage_hourly u JOIN waited USING (cell)
            WHERE accounting.reads_cell(u.cell)
                AND u.realm = r.realm AND u.starts_at >= p.starts_at AND u.starts_at < p.ends_at
                AND NOT EXISTS (
                    SELECT FROM cells.closings c
                    WHERE accounting.reads_cell(c.cell)
                        AND c.cell = u.cell AND c.realm = r.realm AND c.period = p.period)
            UNION ALL
            SELECT 2, format('cell ''%s'': it has other bounds, by other rules', c.cell)
            FROM cells.closings c JOIN waited USING (cell)
            WHERE accounting.reads_cell(c.cell) AND c.realm = r.realm AND c.period = p.period
                AND (c.starts_at, c.ends_at, c.time_zone)
                    IS DISTINCT FROM (p.starts_at, p.ends_at, p.time_zone)
            UNION ALL
            SELECT 2, format('cell ''%s'': it has other rules', w.cell)
            FROM accounting.cells_with_other_rules(r.realm, p.starts_at, p.ends_at) c (cell)
            JOIN waited w USING (cell)
            UNION ALL
            SELECT 3, format('cell ''%s'': source ''%s'' %s (retire it if it is gone)', s.cell,
                s.source, coalesce('settled until ' || to_char(
                    least(s.captured_until, s.settled_until) AT TIME ZONE 'UTC',
                    'YYYY-MM-DD HH24:MI:SS"Z"'), 'not settled yet'))
            FROM cells.source_progress s JOIN waited USING (cell)
            WHERE accounting.reads_cell(s.cell) AND s.retired_at IS NULL
                AND (least(s.captured_until, s.settled_until) > p.due_at) IS NOT TRUE
                AND NOT EXISTS (
                    SELECT FROM cells.closings c
                    WHERE accounting.reads_cell(c.cell)
                        AND c.cell = s.cell AND c.realm = r.realm AND c.period = p.period)
            UNION ALL
            SELECT 3, format('cell ''%s'': the roll-up', u.cell)
            FROM cells.pending_usage u JOIN waited USING (cell)
            WHERE accounting.reads_cell(u.cell)
                AND u.realm = r.realm AND u.starts_at >= p.starts_at AND u.starts_at < p.ends_at
            UNION ALL
            SELECT 4, 'period ' || to_char(max(b.period), 'YYYY-MM-DD') FROM accounting.periods b
            WHERE b.realm_id = p.realm_id AND b.starts_at < p.starts_at AND b.closed_at IS NULL
            HAVING count(*) > 0
        ) w (rank, wait)) END
    FROM accounting.periods p JOIN accounting.realms r USING (realm_id)
    WHERE p.realm_id = of_realm AND p.period = of_period AND p.closed_at IS NULL
$$;

-- The names that a cell still has of users whom the front erased: they are not stored again. A cell that
-- carried out the newest erasure of a user only has a name of after it.
CREATE OR REPLACE VIEW accounting.erased_names AS
SELECT n.cell, e.user_key
FROM (
    SELECT user_key, max(erased_at) AS erased_at FROM accounting.erasures GROUP BY user_key
) e
CROSS JOIN accounting.cells n
WHERE NOT EXISTS (
    SELECT FROM cells.erasures c
    WHERE c.cell = n.cell AND c.user_key = e.user_key AND c.of_front >= e.erased_at);
GRANT SELECT ON accounting.erased_names TO turn_accounting_writer;

-- What the statements would be now: of the cells that have not closed, and of those that have, while
-- the front has not.
CREATE OR REPLACE VIEW reporting.statement_previews AS
SELECT u.realm, u.period, u.user_id, u.user_key,
    sum(u.received_packets)::bigint AS received_packets,
    sum(u.received_bytes)::bigint AS received_bytes,
    sum(u.sent_packets)::bigint AS sent_packets,
    sum(u.sent_bytes)::bigint AS sent_bytes,
    sum(u.peer_received_packets)::bigint AS peer_received_packets,
    sum(u.peer_received_bytes)::bigint AS peer_received_bytes,
    sum(u.peer_sent_packets)::bigint AS peer_sent_packets,
    sum(u.peer_sent_bytes)::bigint AS peer_sent_bytes,
    sum(u.sessions_started)::bigint AS sessions_started,
    sum(u.sessions_ended)::bigint AS sessions_ended,
    sum(u.session_seconds) AS session_seconds,
    sum(u.estimated_bytes)::bigint AS estimated_bytes,
    NULL::text AS cutoff, NULL::timestamptz AS closed_at, NULL::text AS digest
FROM (
    SELECT * FROM cells.statement_previews
    UNION ALL
    SELECT * FROM cells.statements
) u
JOIN accounting.realms r USING (realm)
JOIN accounting.periods p ON p.realm_id = r.realm_id AND p.period = u.period AND p.closed_at IS NULL
JOIN accounting.billing_cells w
    ON w.cell = u.cell AND w.realm_id = p.realm_id AND w.period = p.period
WHERE accounting.reads_cell(u.cell)
GROUP BY u.realm, u.period, u.user_id, u.user_key;

-- A query on what is limited of a realm's users in a span: a SELECT for each cell, with a row for each
-- user that meets the condition and the rest, and with what else is selected. may_lack: without the cells that the session leaves out.
CREATE OR REPLACE FUNCTION accounting.limited_in_cells(
    of_realm text, of_level text, since timestamptz, until timestamptz, selected text,
    condition text, rest text, may_lack boolean
)
RETURNS text
LANGUAGE sql STABLE SET search_path = pg_catalog, pg_temp AS $$
    SELECT string_agg(format('(SELECT f.user_key%s FROM %I.limited_usage f'
        ' WHERE f.realm = %L AND f.level = %L AND f.starts_at >= %L AND f.starts_at < %L%s'
        ' GROUP BY f.user_key%s)',
        selected, 'cell_' || n.cell, of_realm, of_level, since, until, condition, rest), ' UNION ALL '
        ORDER BY n.cell_id)
    FROM accounting.cells n
    WHERE NOT may_lack OR accounting.reads_cell(n.cell)
$$;

-- What a limit counts, from the sums of a query as above.
CREATE OR REPLACE FUNCTION accounting.limited_sum(measure text, direction text) RETURNS text
LANGUAGE sql IMMUTABLE AS $$
    SELECT CASE measure WHEN 'sessions' THEN 'sum(f.sessions_started)'
        WHEN 'session_seconds' THEN 'sum(f.session_microseconds)'
        ELSE CASE direction WHEN 'received' THEN 'sum(f.received_bytes)'
            WHEN 'sent' THEN 'sum(f.sent_bytes)'
            ELSE 'sum(f.received_bytes) + sum(f.sent_bytes)' END END
$$;

-- Whether so many users have limits of their own that those are looked for as if everyone had them.
CREATE OR REPLACE FUNCTION accounting.limits_many_users(of_realm_id integer, of_per text)
RETURNS boolean
LANGUAGE sql STABLE AS $$
    SELECT count(*) > 1000 FROM (
        SELECT FROM accounting.limits l
        WHERE l.realm_id = of_realm_id AND l.per = of_per AND l.whom = 'user' LIMIT 1001) m
$$;

-- The query on the users who may have reached a limit in a bucket: those who have, in one of n cells, at
-- least an nth of the lowest threshold. Null if there is no such limit, or no cell.
CREATE OR REPLACE FUNCTION accounting.limit_candidates_query(
    of_realm_id integer, of_per text, since timestamptz, until timestamptz
)
RETURNS text
LANGUAGE sql STABLE SET search_path = pg_catalog, pg_temp AS $$
    SELECT 'SELECT DISTINCT user_key FROM (' || accounting.limited_in_cells(r.realm,
        CASE of_per WHEN 'period' THEN 'day' ELSE of_per END, since, until, '', '',
        ' HAVING ' || c.condition, false) || ') u'
    FROM accounting.realms r
    CROSS JOIN LATERAL (
        SELECT string_agg(format('(%s) * %s >= %s', accounting.limited_sum(l.measure, l.direction),
            100 * (SELECT count(*) FROM accounting.cells), l.needed), ' OR ') AS condition
        FROM (
            SELECT l.measure, l.direction, min(l.amount::numeric * l.thresholds[1])
                * CASE l.measure WHEN 'session_seconds' THEN 1000000 ELSE 1 END AS needed
            FROM accounting.limits l
            WHERE l.realm_id = of_realm_id AND l.per = of_per AND l.set_at < until AND (
                l.whom = 'every_user'
                OR l.whom = 'user' AND accounting.limits_many_users(of_realm_id, of_per))
            GROUP BY l.measure, l.direction
        ) l
    ) c
    WHERE r.realm_id = of_realm_id
$$;

-- The users who may have reached a limit in a bucket. Few users with limits of their own are all looked
-- at.
CREATE OR REPLACE FUNCTION accounting.limit_candidates(
    of_realm_id integer, of_per text, since timestamptz, until timestamptz
)
RETURNS SETOF uuid
LANGUAGE plpgsql STABLE SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    query text := accounting.limit_candidates_query(of_realm_id, of_per, since, until);
BEGIN
    IF query IS NOT NULL THEN
        RETURN QUERY EXECUTE query;
    END IF;
    RETURN QUERY SELECT l.user_key FROM accounting.limits l
        WHERE l.realm_id = of_realm_id AND l.per = of_per AND l.whom = 'user'
            AND NOT accounting.limits_many_users(of_realm_id, of_per);
END
$$;
REVOKE ALL ON FUNCTION accounting.limit_candidates(integer, text, timestamptz, timestamptz)
    FROM PUBLIC;
GRANT EXECUTE ON FUNCTION accounting.limit_candidates(integer, text, timestamptz, timestamptz)
    TO turn_accounting_writer;

-- How much of each limit is used in all cells in the bucket that runs now.
CREATE OR REPLACE VIEW reporting.limit_usage AS
SELECT l.limit_id, r.realm, l.whom,
    CASE WHEN l.whom <> 'realm' THEN coalesce(u.user_id, '') END AS user_id, t.user_key,
    l.measure, l.direction, l.per, l.amount, b.starts_at, b.ends_at, b.time_zone, c.usage,
    trunc(100 * c.usage / l.amount, 1) AS percent
FROM accounting.limits l
JOIN accounting.realms r USING (realm_id)
CROSS JOIN LATERAL accounting.limit_bucket_now(l.realm_id, l.per) b
CROSS JOIN LATERAL (
    SELECT NULL::uuid AS user_key, sum(g.received_bytes) AS received_bytes,
        sum(g.sent_bytes) AS sent_bytes, sum(g.sessions_started) AS sessions_started,
        sum(g.session_microseconds) AS session_microseconds
    FROM cells.limited_realm_usage g
    WHERE l.whom = 'realm' AND accounting.reads_cell(g.cell) AND g.realm = r.realm
        AND g.level = CASE l.per WHEN 'period' THEN 'day' ELSE l.per END
        AND g.starts_at >= b.starts_at AND g.starts_at < b.ends_at
    HAVING count(*) > 0
    UNION ALL
    SELECT g.user_key, sum(g.received_bytes), sum(g.sent_bytes), sum(g.sessions_started),
        sum(g.session_microseconds)
    FROM cells.limited_usage g
    WHERE l.whom <> 'realm' AND accounting.reads_cell(g.cell) AND g.realm = r.realm
        AND g.level = CASE l.per WHEN 'period' THEN 'day' ELSE l.per END
        AND g.starts_at >= b.starts_at AND g.starts_at < b.ends_at
        AND (l.user_key IS NULL OR g.user_key = l.user_key)
    GROUP BY g.user_key
) t
CROSS JOIN LATERAL (
    SELECT accounting.limited_usage(l.measure, l.direction, t.received_bytes, t.sent_bytes,
        t.sessions_started, t.session_microseconds) AS usage
) c
LEFT JOIN (
    SELECT n.realm, n.user_key, max(n.user_id) AS user_id FROM cell.user_names n
    GROUP BY n.realm, n.user_key
) u ON u.realm = r.realm AND u.user_key = t.user_key;

-- Of a limit of every user: the first of each cell have a sum over all cells that bounds what the first
-- of all have. A user who has more has at least an nth of it in one of n cells.
CREATE OR REPLACE FUNCTION reporting.nearest_to_limit(of_limit integer, most integer)
RETURNS SETOF reporting.limit_usage
LANGUAGE plpgsql STABLE SECURITY DEFINER ROWS 100 SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    l record;
    counted text;
    sums text;
    keys uuid[];
    lowest numeric;
BEGIN
    SELECT w.*, r.realm, b.starts_at, b.ends_at, b.time_zone,
        CASE w.per WHEN 'period' THEN 'day' ELSE w.per END AS level INTO l
    FROM accounting.limits w
    JOIN accounting.realms r USING (realm_id)
    CROSS JOIN LATERAL accounting.limit_bucket_now(w.realm_id, w.per) b
    WHERE w.limit_id = of_limit;
    IF l.limit_id IS NULL
        OR NOT EXISTS (SELECT FROM accounting.cells n WHERE accounting.reads_cell(n.cell))
    THEN
        RETURN;
    END IF;
    IF l.whom <> 'every_user' THEN
        RETURN QUERY SELECT * FROM reporting.limit_usage v WHERE v.limit_id = of_limit;
        RETURN;
    END IF;
    counted := accounting.limited_sum(l.measure, l.direction);
    sums := format(', %s AS counted', counted);
    IF most IS NOT NULL THEN
        EXECUTE 'SELECT array_agg(DISTINCT user_key) FROM (' || accounting.limited_in_cells(
            l.realm, l.level, l.starts_at, l.ends_at, sums, '',
            ' ORDER BY counted DESC LIMIT ' || most, true) || ') u' INTO keys;
        EXECUTE 'SELECT CASE WHEN count(*) >= $2 THEN min(counted) END FROM ('
            'SELECT sum(counted) AS counted FROM (' || accounting.limited_in_cells(
                l.realm, l.level, l.starts_at, l.ends_at, sums, ' AND f.user_key = ANY ($1)', '',
                true)
            || ') u GROUP BY user_key ORDER BY 1 DESC LIMIT $2) p' INTO lowest USING keys, most;
        IF lowest IS NOT NULL THEN
            EXECUTE 'SELECT array_agg(DISTINCT user_key) FROM (' || accounting.limited_in_cells(
                l.realm, l.level, l.starts_at, l.ends_at, '', '', format(' HAVING (%s) * %s >= %s',
                    counted, (SELECT count(*) FROM accounting.cells), lowest), true)
                || ') u' INTO keys;
        END IF;
    END IF;
    RETURN QUERY EXECUTE format($query$
        WITH nearest AS MATERIALIZED (
            SELECT user_key, sum(counted) * CASE WHEN $4 = 'session_seconds' THEN 0.000001
                ELSE 1 END AS usage
            FROM (%s) u
            GROUP BY user_key ORDER BY usage DESC, user_key LIMIT $12
        )
        SELECT $1, $2, $3, coalesce(n.user_id, ''), p.user_key, $4, $5, $6, $7, $8, $9, $10,
            p.usage, trunc(100 * p.usage / $7, 1)
        FROM nearest p
        LEFT JOIN (
            SELECT u.user_key, max(u.user_id) AS user_id FROM cell.user_names u
            WHERE u.realm = $2 AND u.user_key = ANY (ARRAY(SELECT user_key FROM nearest))
            GROUP BY u.user_key
        ) n USING (user_key)
        ORDER BY p.usage DESC, p.user_key
        $query$, accounting.limited_in_cells(l.realm, l.level, l.starts_at, l.ends_at, sums,
            CASE WHEN lowest IS NULL THEN '' ELSE ' AND f.user_key = ANY ($11)' END, '', true))
    USING l.limit_id, l.realm, l.whom, l.measure, l.direction, l.per, l.amount, l.starts_at,
        l.ends_at, l.time_zone, keys, most;
END
$$;
