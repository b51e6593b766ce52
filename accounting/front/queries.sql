-- name: is_front
-- Whether this database is a front.
SELECT EXISTS (SELECT FROM accounting.front);

-- name: find_source
-- The cells that have a source.
SELECT DISTINCT cell FROM cells.sources WHERE source = :source ORDER BY cell;

-- name: make_front
-- Makes this database a front.
INSERT INTO accounting.front DEFAULT VALUES ON CONFLICT DO NOTHING;

-- name: has_own_books
-- Whether anything was captured into this database.
SELECT EXISTS (SELECT FROM accounting.sources);

-- name: create_extension
-- Foreign tables over other Postgres servers.
CREATE EXTENSION IF NOT EXISTS postgres_fdw;

-- name: let_owner_use_extension
-- So that the owner of the schema may make foreign servers.
GRANT USAGE ON FOREIGN DATA WRAPPER postgres_fdw TO turn_accounting_owner;

-- name: become_owner
-- Takes the owner's role for this transaction.
SET LOCAL ROLE turn_accounting_owner;

-- name: read_cells
-- The cells of this front, by name.
SELECT cell_id, cell, url, revision, front_revision, joined_at FROM accounting.cells ORDER BY cell;

-- name: cell_password
-- The password of the front's login to a cell.
SELECT accounting.cell_password(:cell);

-- name: identity_key
-- The key of this installation.
SELECT identity_key FROM accounting.installation;

-- name: installation_uri
-- The name of this installation: a hash of its key.
SELECT reporting.feed_source();

-- name: database_collation
-- How this database sorts texts.
SELECT concat_ws(' ', datcollate, datctype, datlocprovider) FROM pg_database
WHERE datname = current_database();

-- name: read_membership
-- The front of this cell, and the cell's name there.
SELECT front, cell FROM accounting.membership;

-- name: has_users
-- Whether any name was made into a key.
SELECT EXISTS (SELECT FROM accounting.users) OR EXISTS (SELECT FROM accounting.sources);

-- name: set_identity_key
-- Gives this database the key of the installation. The owner may.
UPDATE accounting.installation SET identity_key = :key;

-- name: database_id
-- Which database of the installation this is.
SELECT database_id FROM accounting.installation;

-- name: set_database_id
-- Makes this another database than the one that it is a copy of. The owner may.
UPDATE accounting.installation SET database_id = gen_random_uuid() RETURNING database_id;

-- name: known_databases
-- The databases of the other cells, with their names, and of those that have left, without one.
SELECT database_id, cell FROM accounting.cells WHERE cell <> :cell
UNION ALL SELECT DISTINCT p.database_id, NULL FROM accounting.feed_positions p
WHERE NOT EXISTS (SELECT FROM accounting.cells n WHERE n.database_id = p.database_id);

-- name: joined_database
-- The database that joined under a name that has not left.
SELECT database_id FROM accounting.cells WHERE cell = :cell;

-- name: periods_in_cell
-- In a cell: its periods with usage, with the cutoffs of those that are closed. Usage after the last
-- period, which comes up to a minute before its own period, is named by its first day.
SELECT r.realm, p.period, true AS has_period, p.cutoff
FROM accounting.periods p JOIN accounting.realms r USING (realm_id)
WHERE EXISTS (
    SELECT FROM accounting.realm_usage_hourly h
    WHERE h.realm_id = p.realm_id AND h.starts_at >= p.starts_at AND h.starts_at < p.ends_at)
UNION ALL
SELECT r.realm, CAST(u.starts_at AT TIME ZONE 'UTC' AS date), false, NULL
FROM accounting.realms r
CROSS JOIN LATERAL (
    SELECT min(h.starts_at) AS starts_at FROM accounting.realm_usage_hourly h
    WHERE h.realm_id = r.realm_id AND h.starts_at >= coalesce(
        (SELECT max(p.ends_at) FROM accounting.periods p WHERE p.realm_id = r.realm_id), '-infinity')
) u
WHERE u.starts_at IS NOT NULL
ORDER BY 1, 2;

-- name: billed_of_database
-- The closings of a cell that are in the books of the front.
SELECT r.realm, b.period, b.cutoff
FROM accounting.billed_closings b
JOIN accounting.realms r USING (realm_id)
JOIN accounting.cells n USING (database_id)
WHERE n.cell = :cell;

-- name: join_front
-- Records the front of this cell.
INSERT INTO accounting.membership (front, cell) VALUES (:front, :cell)
ON CONFLICT (id) DO UPDATE SET front = excluded.front, cell = excluded.cell;

-- name: leave_front
-- Forgets the front of this cell.
DELETE FROM accounting.membership WHERE front = :front;

-- name: read_sources
-- The sources of this cell, with the numbers that are in the ids of their sessions.
SELECT source, source_id FROM accounting.sources
UNION SELECT former_name, source_id FROM accounting.former_source_names ORDER BY source;

-- name: sources_of_cells
-- What is known of the sources of all cells.
SELECT cell, source, source_id FROM accounting.sources_of_cells ORDER BY source, cell;

-- name: forget_sources_of_cell
-- Forgets the sources of a cell.
DELETE FROM accounting.sources_of_cells WHERE cell = :cell;

-- name: record_sources_of_cell
-- Records the sources of a cell.
INSERT INTO accounting.sources_of_cells (cell, source, source_id)
SELECT :cell, source, source_id
FROM unnest(CAST(:sources AS text[]), CAST(:source_ids AS smallint[])) AS s (source, source_id);

-- name: other_sources
-- What this cell knows of the sources of other cells.
SELECT cell, source, source_id FROM accounting.other_sources ORDER BY source, cell;

-- name: forget_other_sources
-- Forgets the sources of other cells.
DELETE FROM accounting.other_sources;

-- name: record_other_sources
-- Records the sources of other cells.
INSERT INTO accounting.other_sources (cell, source, source_id)
SELECT cell, source, source_id
FROM unnest(CAST(:cells AS text[]), CAST(:sources AS text[]), CAST(:source_ids AS smallint[]))
    AS s (cell, source, source_id)
ON CONFLICT DO NOTHING;

-- name: erasures_of_front
-- The newest erasure of each user.
SELECT user_key, max(erased_at) AS erased_at FROM accounting.erasures GROUP BY user_key
ORDER BY user_key;

-- name: carried_erasures
-- The newest erasure of each user that the front recorded and that was carried out in this cell.
SELECT user_key, max(of_front) AS of_front FROM accounting.erasures
WHERE of_front IS NOT NULL GROUP BY user_key;

-- name: free_cell_id
-- The smallest number that no cell of this front has.
SELECT min(n) FROM generate_series(1, 1023) n
WHERE n NOT IN (SELECT cell_id FROM accounting.cells);

-- name: add_cell
-- Records a cell, or what is new of it.
INSERT INTO accounting.cells (cell_id, cell, url, revision, front_revision, database_id)
VALUES (:cell_id, :cell, :url, :revision, :front_revision, :database_id)
ON CONFLICT (cell_id) DO UPDATE SET url = excluded.url,
    database_id = excluded.database_id, feed_retry_at = NULL;

-- name: forget_cell
-- Forgets a cell.
WITH forgotten AS (DELETE FROM accounting.sources_of_cells WHERE cell = :cell)
DELETE FROM accounting.cells WHERE cell = :cell;

-- name: log_no_passwords
-- Keeps the statements of this transaction out of the server's log, where the login may.
SELECT set_config(s.name, s.value, true)
FROM (VALUES ('log_statement', 'none'), ('log_min_duration_statement', '-1'),
    ('log_min_duration_sample', '-1'), ('log_transaction_sample_rate', '0'),
    ('log_min_error_statement', 'panic')) AS s (name, value)
WHERE has_parameter_privilege(s.name, 'SET');

-- name: has_server
-- Whether there is a foreign server of this name.
SELECT EXISTS (SELECT FROM pg_foreign_server WHERE srvname = :server);

-- name: import_cell
-- Makes the foreign tables of a cell, and the views over them.
SELECT accounting.import_cell(:cell, :revision, :front_revision);

-- name: define_front_views
-- Defines the views over the cells.
SELECT accounting.define_front_views();

-- name: delete_stale_periods
-- Deletes the open periods that no cell has as they are here.
DELETE FROM accounting.periods p USING accounting.realms r
WHERE r.realm_id = p.realm_id AND p.closed_at IS NULL AND NOT EXISTS (
    SELECT FROM cells.closings c
    WHERE c.realm = r.realm AND c.period = p.period AND c.due_at = p.due_at
        AND (c.starts_at, c.ends_at, c.time_zone) = (p.starts_at, p.ends_at, p.time_zone));

-- name: take_up_periods
-- Adds the periods that cells have, each with the bounds of the first cell that has it.
INSERT INTO accounting.periods (realm_id, period, starts_at, ends_at, due_at, time_zone)
SELECT DISTINCT ON (r.realm_id, c.period)
    r.realm_id, c.period, c.starts_at, c.ends_at, c.due_at, c.time_zone
FROM cells.closings c JOIN accounting.realms r USING (realm)
ORDER BY r.realm_id, c.period, c.cell
ON CONFLICT DO NOTHING;

-- name: ready_periods
-- The periods that wait for nothing, the oldest first.
SELECT p.realm_id, p.period, r.realm, p.starts_at, p.ends_at, p.time_zone
FROM accounting.periods p JOIN accounting.realms r USING (realm_id)
WHERE p.closed_at IS NULL AND p.ends_at <= accounting.database_now()
    AND accounting.period_waits(p.realm_id, p.period) IS NULL
ORDER BY p.starts_at, p.realm_id;

-- name: is_ready
-- Whether a period is open and waits for nothing.
SELECT EXISTS (
    SELECT FROM accounting.periods p
    WHERE p.realm_id = :realm_id AND p.period = :period AND p.closed_at IS NULL
        AND accounting.period_waits(p.realm_id, p.period) IS NULL
);

-- name: create_lines_of_cells
-- The temporary table that read_lines_of_cells fills: the cells are read once.
CREATE TEMP TABLE IF NOT EXISTS lines_of_cells (LIKE cells.statements) ON COMMIT DELETE ROWS;

-- name: read_lines_of_cells
-- Reads the statement of a period in each cell that has one.
INSERT INTO lines_of_cells SELECT * FROM cells.statements
WHERE realm = :realm AND period = :period;

-- name: add_users_of_lines
-- Stores the names of the users of these lines, also of one who was erased and came back. Of an erased
-- user, only a cell that carried out the erasure has a name of after it.
WITH named AS (
    SELECT l.user_key, r.realm_id, r.realm, r.named_in_radacct,
        coalesce(max(l.user_id) FILTER (WHERE e.user_key IS NULL OR c.of_front >= e.erased_at), '')
            AS user_id
    FROM lines_of_cells l
    JOIN accounting.realms r USING (realm)
    LEFT JOIN (SELECT user_key, max(erased_at) AS erased_at FROM accounting.erasures GROUP BY 1) e
        USING (user_key)
    LEFT JOIN (SELECT cell, user_key, max(of_front) AS of_front FROM cells.erasures GROUP BY 1, 2) c
        USING (cell, user_key)
    WHERE NOT EXISTS (
        SELECT FROM accounting.users u WHERE u.user_key = l.user_key AND u.user_id <> '')
    GROUP BY l.user_key, r.realm_id, r.realm, r.named_in_radacct
)
INSERT INTO accounting.users (user_key, realm_id, user_id, radacct_suffix)
SELECT user_key, realm_id, user_id, accounting.radacct_suffix(user_id, realm, named_in_radacct)
FROM named ORDER BY user_key
ON CONFLICT (user_key) DO UPDATE SET
    user_id = excluded.user_id, radacct_suffix = excluded.radacct_suffix
WHERE users.user_id = '' AND excluded.user_id <> '';

-- name: write_statement_over_cells
-- Writes a statement of the front: one line for each user, with a digest of those of the cells.
INSERT INTO accounting.statements (
    user_key, realm_id, period,
    received_packets, received_bytes, sent_packets, sent_bytes,
    peer_received_packets, peer_received_bytes, peer_sent_packets, peer_sent_bytes,
    sessions_started, sessions_ended, session_microseconds, estimated_bytes, digest
)
SELECT l.user_key, :realm_id, l.period,
    sum(l.received_packets), sum(l.received_bytes), sum(l.sent_packets), sum(l.sent_bytes),
    sum(l.peer_received_packets), sum(l.peer_received_bytes),
    sum(l.peer_sent_packets), sum(l.peer_sent_bytes),
    sum(l.sessions_started), sum(l.sessions_ended), sum(l.session_seconds) * 1000000,
    sum(l.estimated_bytes),
    encode(sha256(convert_to(
        string_agg(l.cell || ' ' || l.digest, chr(10) ORDER BY l.cell COLLATE "C"), 'UTF8'
    )), 'hex')
FROM lines_of_cells l
GROUP BY l.user_key, l.period;

-- name: cutoffs_of_cells
-- The cutoff of each cell that closed a period.
SELECT cell, cutoff FROM cells.closings
WHERE realm = :realm AND period = :period AND closed_at IS NOT NULL;

-- name: mark_period_closed
-- Closes a period whose statement is written.
UPDATE accounting.periods SET closed_at = clock_timestamp(), cutoff = :cutoff
WHERE realm_id = :realm_id AND period = :period AND closed_at IS NULL;

-- name: copy_adjustments
-- Copies the adjustments of a closed period; without one, those of all that cells posted since a day
-- before the newest that was copied: one that was committed late is not missed. The name of the cell
-- is in the reason. posted_at is that of the copy, so that the order of posting never changes.
WITH copied AS MATERIALIZED (
    SELECT accounting.event_id('adjustment of a cell', n.database_id || ' ' || c.adjustment_id) AS id,
        r.realm_id, r.named_in_radacct, c.*
    FROM cells.adjustments c
    JOIN accounting.realms r USING (realm)
    JOIN accounting.periods p ON p.realm_id = r.realm_id AND p.period = c.period
    JOIN accounting.cells n USING (cell)
    WHERE p.closed_at IS NOT NULL AND CASE WHEN CAST(:period AS date) IS NULL
        THEN c.posted_at >= n.adjustments_until - interval '1 day'
        ELSE r.realm_id = :realm_id AND c.period = :period END
),
named AS (
    INSERT INTO accounting.users (user_key, realm_id, user_id, radacct_suffix)
    SELECT c.user_key, c.realm_id, c.user_id,
        accounting.radacct_suffix(c.user_id, c.realm, c.named_in_radacct)
    FROM (
        SELECT c.user_key, c.realm_id, c.realm, c.named_in_radacct, coalesce(max(c.user_id)
            FILTER (WHERE e.user_key IS NULL OR x.of_front >= e.erased_at), '') AS user_id
        FROM copied c
        LEFT JOIN (
            SELECT user_key, max(erased_at) AS erased_at FROM accounting.erasures GROUP BY 1
        ) e USING (user_key)
        LEFT JOIN (
            SELECT cell, user_key, max(of_front) AS of_front FROM cells.erasures GROUP BY 1, 2
        ) x USING (cell, user_key)
        GROUP BY c.user_key, c.realm_id, c.realm, c.named_in_radacct
    ) c
    ORDER BY c.user_key
    ON CONFLICT (user_key) DO UPDATE SET
        user_id = excluded.user_id, radacct_suffix = excluded.radacct_suffix
    WHERE users.user_id = '' AND excluded.user_id <> ''
),
seen AS (
    UPDATE accounting.cells n SET adjustments_until = greatest(n.adjustments_until, s.until)
    FROM (SELECT cell, max(posted_at) AS until FROM copied GROUP BY cell) s
    WHERE s.cell = n.cell AND s.until > n.adjustments_until AND CAST(:period AS date) IS NULL
)
INSERT INTO accounting.adjustments (
    adjustment_id, user_key, realm_id, period, posted_in,
    received_packets, received_bytes, sent_packets, sent_bytes,
    peer_received_packets, peer_received_bytes, peer_sent_packets, peer_sent_bytes,
    session_microseconds, reason, author, manual, posted_at
)
SELECT c.id, c.user_key, c.realm_id, c.period, (
        -- The cell's, unless the front has closed that already.
        SELECT coalesce(min(q.period) FILTER (WHERE q.closed_at IS NULL AND q.period >= c.posted_in),
            c.posted_in)
        FROM accounting.periods q WHERE q.realm_id = c.realm_id),
    c.received_packets, c.received_bytes, c.sent_packets, c.sent_bytes,
    c.peer_received_packets, c.peer_received_bytes, c.peer_sent_packets, c.peer_sent_bytes,
    c.session_seconds * 1000000, format('%s (cell %s)', c.reason, c.cell), c.author,
    c.author <> 'turn-accounting', clock_timestamp()
FROM copied c
WHERE NOT EXISTS (
    SELECT FROM accounting.adjustments a
    WHERE a.adjustment_id = c.id AND a.user_key = c.user_key)
ORDER BY c.posted_at, c.id
RETURNING adjustment_id;

-- name: record_billed_closings
-- Records the closings of cells that the books of the front have now, of one period.
INSERT INTO accounting.billed_closings AS b (realm_id, period, database_id, cutoff)
SELECT CAST(:realm_id AS integer), c.period, n.database_id, c.cutoff
FROM cells.closings c JOIN accounting.cells n USING (cell)
WHERE c.realm = :realm AND c.period = :period AND c.closed_at IS NOT NULL
ON CONFLICT ON CONSTRAINT billed_closings_pkey DO UPDATE SET cutoff = excluded.cutoff
WHERE b.cutoff <> excluded.cutoff;

-- name: closed_anew
-- The closed periods of which a cell has another closing than the one that was billed.
SELECT DISTINCT p.realm_id, r.realm, p.period
FROM cells.closings c
JOIN accounting.cells n USING (cell)
JOIN accounting.realms r USING (realm)
JOIN accounting.periods p ON p.realm_id = r.realm_id AND p.period = c.period
LEFT JOIN accounting.billed_closings b ON b.realm_id = p.realm_id AND b.period = p.period
    AND b.database_id = n.database_id
WHERE p.closed_at IS NOT NULL AND c.closed_at IS NOT NULL AND b.cutoff IS DISTINCT FROM c.cutoff
ORDER BY p.realm_id, p.period;

-- name: periods_of_adjustments
-- The users' periods of these adjustments.
SELECT a.realm_id, r.realm, a.period, array_agg(DISTINCT a.user_key) AS user_keys
FROM accounting.adjustments a JOIN accounting.realms r USING (realm_id)
WHERE a.adjustment_id = ANY (CAST(:ids AS uuid[])) AND NOT a.manual
GROUP BY a.realm_id, r.realm, a.period
ORDER BY a.realm_id, a.period;

-- name: is_comparable
-- Whether all cells whose closings of a period were billed have joined and closed it now. A cell that
-- was restored closes it again later.
SELECT NOT EXISTS (
    SELECT FROM accounting.billed_closings b
    LEFT JOIN accounting.cells n USING (database_id)
    LEFT JOIN cells.closings c ON c.cell = n.cell AND c.realm = :realm AND c.period = :period
    WHERE b.realm_id = :realm_id AND b.period = :period AND c.closed_at IS NULL);

-- name: post_difference
-- Posts, of a closed period, what the cells have now and the front has not: statements and late usage
-- of both. Nothing, unless a cell was restored, or closed the period later than the front. Its id is a
-- function of what it says, as with late usage, and of how much was posted before.
WITH billed AS (
    SELECT user_key, 1 AS sign, received_packets, received_bytes, sent_packets, sent_bytes,
        peer_received_packets, peer_received_bytes, peer_sent_packets, peer_sent_bytes,
        session_seconds * 1000000 AS session_microseconds
    FROM cells.statements
    WHERE realm = :realm AND period = :period
        AND (CAST(:user_keys AS uuid[]) IS NULL OR user_key = ANY (CAST(:user_keys AS uuid[])))
    UNION ALL
    SELECT user_key, 1, received_packets, received_bytes, sent_packets, sent_bytes,
        peer_received_packets, peer_received_bytes, peer_sent_packets, peer_sent_bytes,
        session_seconds * 1000000
    FROM cells.adjustments
    WHERE realm = :realm AND period = :period AND author = 'turn-accounting'
        AND (CAST(:user_keys AS uuid[]) IS NULL OR user_key = ANY (CAST(:user_keys AS uuid[])))
    UNION ALL
    SELECT user_key, -1, received_packets, received_bytes, sent_packets, sent_bytes,
        peer_received_packets, peer_received_bytes, peer_sent_packets, peer_sent_bytes,
        session_microseconds
    FROM accounting.statements
    WHERE realm_id = :realm_id AND period = :period
        AND (CAST(:user_keys AS uuid[]) IS NULL OR user_key = ANY (CAST(:user_keys AS uuid[])))
    UNION ALL
    SELECT user_key, -1, received_packets, received_bytes, sent_packets, sent_bytes,
        peer_received_packets, peer_received_bytes, peer_sent_packets, peer_sent_bytes,
        session_microseconds
    FROM accounting.adjustments
    WHERE realm_id = :realm_id AND period = :period AND NOT manual
        AND (CAST(:user_keys AS uuid[]) IS NULL OR user_key = ANY (CAST(:user_keys AS uuid[])))
),
late AS (
    SELECT user_key,
        sum(sign * received_packets) AS received_packets, sum(sign * received_bytes) AS received_bytes,
        sum(sign * sent_packets) AS sent_packets, sum(sign * sent_bytes) AS sent_bytes,
        sum(sign * peer_received_packets) AS peer_received_packets,
        sum(sign * peer_received_bytes) AS peer_received_bytes,
        sum(sign * peer_sent_packets) AS peer_sent_packets,
        sum(sign * peer_sent_bytes) AS peer_sent_bytes,
        sum(sign * session_microseconds) AS session_microseconds,
        concat_ws(' ', count(*) FILTER (WHERE sign < 0),
            sum(received_packets) FILTER (WHERE sign < 0),
            sum(received_bytes) FILTER (WHERE sign < 0), sum(sent_packets) FILTER (WHERE sign < 0),
            sum(sent_bytes) FILTER (WHERE sign < 0),
            sum(peer_received_packets) FILTER (WHERE sign < 0),
            sum(peer_received_bytes) FILTER (WHERE sign < 0),
            sum(peer_sent_packets) FILTER (WHERE sign < 0),
            sum(peer_sent_bytes) FILTER (WHERE sign < 0),
            trim_scale(sum(session_microseconds) FILTER (WHERE sign < 0))) AS before
    FROM billed GROUP BY user_key
)
INSERT INTO accounting.adjustments (
    adjustment_id, user_key, realm_id, period, posted_in,
    received_packets, received_bytes, sent_packets, sent_bytes,
    peer_received_packets, peer_received_bytes, peer_sent_packets, peer_sent_bytes,
    session_microseconds, reason, author, manual, posted_at
)
SELECT accounting.event_id('late usage of cells', concat_ws(chr(10),
        to_char(o.period, 'YYYY-MM-DD'), l.user_key, l.before, concat_ws(' ',
            l.received_packets, l.received_bytes, l.sent_packets, l.sent_bytes,
            l.peer_received_packets, l.peer_received_bytes, l.peer_sent_packets, l.peer_sent_bytes,
            trim_scale(l.session_microseconds)), r.realm)),
    l.user_key, o.realm_id, o.period, (
        SELECT min(q.period) FROM accounting.periods q
        WHERE q.realm_id = o.realm_id AND q.closed_at IS NULL AND q.starts_at > o.starts_at),
    l.received_packets, l.received_bytes, l.sent_packets, l.sent_bytes,
    l.peer_received_packets, l.peer_received_bytes, l.peer_sent_packets, l.peer_sent_bytes,
    l.session_microseconds, 'late usage (of a cell that booked it anew)', 'turn-accounting', false,
    clock_timestamp()
FROM late l
CROSS JOIN accounting.periods o JOIN accounting.realms r USING (realm_id)
WHERE o.realm_id = :realm_id AND o.period = :period
    AND (l.received_packets, l.received_bytes, l.sent_packets, l.sent_bytes,
        l.peer_received_packets, l.peer_received_bytes, l.peer_sent_packets, l.peer_sent_bytes,
        l.session_microseconds) IS DISTINCT FROM (0, 0, 0, 0, 0, 0, 0, 0, 0)
RETURNING adjustment_id;

-- name: known_periods
-- The realms, each with its periods.
SELECT r.realm, p.period FROM accounting.realms r LEFT JOIN accounting.periods p USING (realm_id);

-- name: periods_of_cell
-- The periods of a realm, or of all, in a cell.
SELECT r.realm, p.period FROM accounting.realms r LEFT JOIN accounting.periods p USING (realm_id)
WHERE CAST(:realm AS text) IS NULL OR r.realm = :realm;

-- name: check_statements
-- The lines of the front that are not the sum of the cells' lines, by number, and those whose digest
-- is not that of the cells' digests. Not of periods that a cell closed which has left, or which closed
-- them again after it was restored: of those, only what was billed in all can be compared.
WITH closed AS (
    SELECT p.realm_id, r.realm, p.period
    FROM accounting.periods p JOIN accounting.realms r USING (realm_id)
    WHERE p.closed_at IS NOT NULL
        AND (CAST(:realm AS text) IS NULL OR r.realm = :realm)
        AND (CAST(:period AS date) IS NULL OR p.period = :period)
        AND NOT EXISTS (
            SELECT FROM json_object_keys(CAST(p.cutoff AS json) -> 'cells') k (cell)
            WHERE k.cell NOT IN (SELECT cell FROM accounting.cells))
        AND NOT EXISTS (
            SELECT FROM accounting.billed_closings b JOIN accounting.cells n USING (database_id)
            WHERE b.realm_id = p.realm_id AND b.period = p.period
                AND CAST(b.cutoff AS jsonb)
                    IS DISTINCT FROM CAST(p.cutoff AS jsonb) -> 'cells' -> n.cell)
), of_front AS (
    SELECT c.realm, c.period, s.user_key, n.number, n.value
    FROM closed c JOIN accounting.statements s USING (realm_id, period)
    CROSS JOIN LATERAL (VALUES
        ('received_packets', s.received_packets::text), ('received_bytes', s.received_bytes::text),
        ('sent_packets', s.sent_packets::text), ('sent_bytes', s.sent_bytes::text),
        ('peer_received_packets', s.peer_received_packets::text),
        ('peer_received_bytes', s.peer_received_bytes::text),
        ('peer_sent_packets', s.peer_sent_packets::text),
        ('peer_sent_bytes', s.peer_sent_bytes::text),
        ('sessions_started', s.sessions_started::text),
        ('sessions_ended', s.sessions_ended::text),
        ('session_seconds', trim_scale(s.session_microseconds * 0.000001)::text),
        ('estimated_bytes', s.estimated_bytes::text), ('digest', s.digest)
    ) n (number, value)
), of_cells AS (
    SELECT l.realm, l.period, l.user_key, n.number, n.value
    FROM (
        SELECT realm, period, user_key,
            sum(received_packets) AS received_packets, sum(received_bytes) AS received_bytes,
            sum(sent_packets) AS sent_packets, sum(sent_bytes) AS sent_bytes,
            sum(peer_received_packets) AS peer_received_packets,
            sum(peer_received_bytes) AS peer_received_bytes,
            sum(peer_sent_packets) AS peer_sent_packets, sum(peer_sent_bytes) AS peer_sent_bytes,
            sum(sessions_started) AS sessions_started, sum(sessions_ended) AS sessions_ended,
            sum(session_seconds) AS session_seconds, sum(estimated_bytes) AS estimated_bytes,
            encode(sha256(convert_to(
                string_agg(cell || ' ' || digest, chr(10) ORDER BY cell COLLATE "C"), 'UTF8'
            )), 'hex') AS digest
        FROM cells.statements
        WHERE (CAST(:realm AS text) IS NULL OR realm = :realm)
            AND (CAST(:period AS date) IS NULL OR period = :period)
        GROUP BY realm, period, user_key
    ) l
    JOIN closed USING (realm, period)
    CROSS JOIN LATERAL (VALUES
        ('received_packets', l.received_packets::text), ('received_bytes', l.received_bytes::text),
        ('sent_packets', l.sent_packets::text), ('sent_bytes', l.sent_bytes::text),
        ('peer_received_packets', l.peer_received_packets::text),
        ('peer_received_bytes', l.peer_received_bytes::text),
        ('peer_sent_packets', l.peer_sent_packets::text),
        ('peer_sent_bytes', l.peer_sent_bytes::text),
        ('sessions_started', l.sessions_started::text),
        ('sessions_ended', l.sessions_ended::text),
        ('session_seconds', trim_scale(l.session_seconds)::text),
        ('estimated_bytes', l.estimated_bytes::text), ('digest', l.digest)
    ) n (number, value)
)
SELECT realm, period, user_key, number AS "column", f.value AS booked, c.value AS recomputed,
    CASE WHEN f.value IS NULL THEN 'missing' WHEN c.value IS NULL THEN 'unfounded'
        ELSE 'differs' END AS kind
FROM of_front f FULL JOIN of_cells c USING (realm, period, user_key, number)
WHERE f.value IS DISTINCT FROM c.value
ORDER BY realm, period, user_key, number;

-- name: check_adjustments
-- The adjustments that one of both has and the other has not, or with other figures. Those that a
-- person posted on the front are its own, and those of a cell that has left can't be compared; nor can
-- those of a user's period of which a restored cell booked something again.
WITH of_cells AS (
    SELECT accounting.event_id('adjustment of a cell', n.database_id || ' ' || c.adjustment_id) AS id,
        c.realm, c.period, c.user_key, c.cell,
        concat_ws(' ', c.received_packets, c.received_bytes, c.sent_packets, c.sent_bytes,
            c.peer_received_packets, c.peer_received_bytes, c.peer_sent_packets,
            c.peer_sent_bytes, trim_scale(c.session_seconds)) AS figures
    FROM cells.adjustments c
    JOIN accounting.cells n USING (cell)
    JOIN accounting.realms r USING (realm)
    JOIN accounting.periods p ON p.realm_id = r.realm_id AND p.period = c.period
    WHERE p.closed_at IS NOT NULL
        AND (CAST(:realm AS text) IS NULL OR c.realm = :realm)
        AND (CAST(:period AS date) IS NULL OR c.period = :period)
), of_front AS (
    SELECT a.adjustment_id AS id, r.realm, a.period, a.user_key,
        substring(a.reason FROM '\(cell ([a-z0-9_-]+)\)$') AS cell,
        concat_ws(' ', a.received_packets, a.received_bytes, a.sent_packets, a.sent_bytes,
            a.peer_received_packets, a.peer_received_bytes, a.peer_sent_packets,
            a.peer_sent_bytes, trim_scale(a.session_microseconds * 0.000001)) AS figures
    FROM accounting.adjustments a JOIN accounting.realms r USING (realm_id)
    WHERE (NOT a.manual OR EXISTS (SELECT FROM of_cells c WHERE c.id = a.adjustment_id))
        AND (CAST(:realm AS text) IS NULL OR r.realm = :realm)
        AND (CAST(:period AS date) IS NULL OR a.period = :period)
)
SELECT coalesce(f.realm, c.realm) AS realm, coalesce(f.period, c.period) AS period,
    coalesce(f.user_key, c.user_key) AS user_key, id::text AS "column",
    f.figures AS booked, c.figures AS recomputed,
    CASE WHEN f.figures IS NULL THEN 'missing' WHEN c.figures IS NULL THEN 'unfounded'
        ELSE 'differs' END AS kind
FROM of_front f FULL JOIN of_cells c USING (id)
WHERE f.figures IS DISTINCT FROM c.figures
    AND (c.cell IS NOT NULL OR f.cell IN (SELECT cell FROM accounting.cells))
    AND NOT EXISTS (
        SELECT FROM accounting.adjustments a JOIN accounting.realms r USING (realm_id)
        WHERE r.realm = coalesce(f.realm, c.realm) AND a.period = coalesce(f.period, c.period)
            AND a.user_key = coalesce(f.user_key, c.user_key)
            AND a.reason = 'late usage (of a cell that booked it anew)')
ORDER BY realm, period, id;

-- name: check_billed
-- The users' periods of which the cells have billed in all, in statements and late usage, otherwise
-- than the front. Not of periods that a cell closed which has left, or has not closed again yet.
WITH billed AS (
    SELECT realm, period, user_key, 1 AS sign, received_bytes, sent_bytes, peer_received_bytes,
        peer_sent_bytes, session_seconds
    FROM cells.statements
    UNION ALL
    SELECT realm, period, user_key, 1, received_bytes, sent_bytes, peer_received_bytes,
        peer_sent_bytes, session_seconds
    FROM cells.adjustments WHERE author = 'turn-accounting'
    UNION ALL
    SELECT r.realm, s.period, s.user_key, -1, s.received_bytes, s.sent_bytes,
        s.peer_received_bytes, s.peer_sent_bytes, s.session_microseconds * 0.000001
    FROM accounting.statements s JOIN accounting.realms r USING (realm_id)
    UNION ALL
    SELECT r.realm, a.period, a.user_key, -1, a.received_bytes, a.sent_bytes,
        a.peer_received_bytes, a.peer_sent_bytes, a.session_microseconds * 0.000001
    FROM accounting.adjustments a JOIN accounting.realms r USING (realm_id) WHERE NOT a.manual
), sums AS (
    SELECT realm, period, user_key,
        concat_ws(' ', sum(received_bytes) FILTER (WHERE sign = -1),
            sum(sent_bytes) FILTER (WHERE sign = -1),
            sum(peer_received_bytes) FILTER (WHERE sign = -1),
            sum(peer_sent_bytes) FILTER (WHERE sign = -1),
            trim_scale(sum(session_seconds) FILTER (WHERE sign = -1))) AS booked,
        concat_ws(' ', sum(received_bytes) FILTER (WHERE sign = 1),
            sum(sent_bytes) FILTER (WHERE sign = 1),
            sum(peer_received_bytes) FILTER (WHERE sign = 1),
            sum(peer_sent_bytes) FILTER (WHERE sign = 1),
            trim_scale(sum(session_seconds) FILTER (WHERE sign = 1))) AS recomputed
    FROM billed
    WHERE (CAST(:realm AS text) IS NULL OR realm = :realm)
        AND (CAST(:period AS date) IS NULL OR period = :period)
    GROUP BY realm, period, user_key
    HAVING (sum(sign * received_bytes), sum(sign * sent_bytes), sum(sign * peer_received_bytes),
        sum(sign * peer_sent_bytes), sum(sign * session_seconds)) IS DISTINCT FROM (0, 0, 0, 0, 0)
)
SELECT s.realm, s.period, s.user_key, '' AS "column", s.booked, s.recomputed, 'differs' AS kind
FROM sums s JOIN accounting.realms r USING (realm)
JOIN accounting.periods p ON p.realm_id = r.realm_id AND p.period = s.period
WHERE p.closed_at IS NOT NULL AND NOT EXISTS (
    SELECT FROM accounting.billed_closings b
    LEFT JOIN accounting.cells n USING (database_id)
    LEFT JOIN cells.closings c ON c.cell = n.cell AND c.realm = s.realm AND c.period = s.period
    WHERE b.realm_id = p.realm_id AND b.period = p.period AND c.closed_at IS NULL)
ORDER BY s.realm, s.period, s.user_key;

-- name: cells_to_forward
-- The cells by name; those whose feed could not be read are last, the one that waits longest first, and
-- not before the time of the next attempt.
SELECT cell, feed_failing_since IS NOT NULL AS is_failing FROM accounting.cells
WHERE feed_retry_at IS NULL OR feed_retry_at <= clock_timestamp()
ORDER BY feed_failing_since IS NOT NULL, feed_retry_at, cell;

-- name: limit_statements
-- Ends a statement of this transaction that takes longer: a cell may hang.
SELECT set_config('statement_timeout', :milliseconds, true);

-- name: common_position
-- Up to where the feed of a cell is forwarded, if the cell still has that; else the newest position that
-- it has.
SELECT number, seq, is_newest FROM accounting.common_position(:cell);

-- name: create_events_of_cell
-- The temporary table that read_events_of_cell fills.
CREATE TEMP TABLE IF NOT EXISTS events_of_cell (
    seq bigint, event_id uuid, type text, realm text, payload jsonb
) ON COMMIT DELETE ROWS;

-- name: read_events_of_cell
-- Reads the next events of a cell.
WITH events AS (
    INSERT INTO events_of_cell SELECT * FROM accounting.feed_of_cell(:cell, :seq, :limit)
    RETURNING seq
)
SELECT count(*) AS events, max(seq) AS last_seq FROM events;

-- name: missing_realms
-- The realms of these events that the front does not know.
SELECT DISTINCT e.realm FROM events_of_cell e
WHERE NOT EXISTS (SELECT FROM accounting.realms r WHERE r.realm = e.realm)
    AND NOT (e.realm = '' AND e.type IN ('source.trouble', 'webhook.disabled'));

-- name: take_up_realms_of_cell
-- Adds realms that one cell has.
INSERT INTO accounting.realms (realm, realm_bytes, client_addresses, named_in_radacct)
SELECT DISTINCT c.realm, c.realm_bytes, c.client_addresses,
    c.named_in_radacct OR EXISTS (SELECT FROM accounting.realms r WHERE NOT r.named_in_radacct)
FROM cells.realm_rules c WHERE c.cell = :cell AND c.realm = ANY (CAST(:realms AS text[]))
ON CONFLICT DO NOTHING;

-- name: take_up_rules_of_cell
-- Adds the rules that one cell has of realms that have none here.
INSERT INTO accounting.realm_rules (
    realm_id, holds_from, time_zone, anchor_day, grace_seconds, username_rule, separator
)
SELECT r.realm_id, c.holds_from, c.time_zone, c.anchor_day, c.grace_seconds, c.username_rule,
    c.separator
FROM cells.realm_rules c JOIN accounting.realms r USING (realm)
WHERE c.cell = :cell AND c.realm = ANY (CAST(:realms AS text[]))
    AND NOT EXISTS (SELECT FROM accounting.realm_rules l WHERE l.realm_id = r.realm_id);

-- name: missing_users
-- The users of these events that the front does not know, or knows without a name.
SELECT DISTINCT CAST(e.payload ->> 'user_key' AS uuid) FROM events_of_cell e
WHERE e.payload ->> 'user_key' IS NOT NULL AND NOT EXISTS (
    SELECT FROM accounting.users u
    WHERE u.user_key = CAST(e.payload ->> 'user_key' AS uuid) AND u.user_id <> '');

-- name: take_up_users_of_cell
-- Stores the names of users of one cell: endpoints of webhooks may bill by name. Those of erased users
-- as in add_users_of_lines.
WITH named AS (
    SELECT u.user_key, u.realm, CASE WHEN NOT EXISTS (
        SELECT FROM accounting.erasures e
        WHERE e.user_key = u.user_key AND NOT EXISTS (
            SELECT FROM cells.erasures c
            WHERE c.cell = :cell AND c.user_key = e.user_key AND c.of_front >= e.erased_at)
    ) THEN u.user_id ELSE '' END AS user_id
    FROM cells.user_names u
    WHERE u.cell = :cell AND u.user_key = ANY (CAST(:user_keys AS uuid[]))
)
INSERT INTO accounting.users (user_key, realm_id, user_id, radacct_suffix)
SELECT u.user_key, r.realm_id, u.user_id,
    accounting.radacct_suffix(u.user_id, r.realm, r.named_in_radacct)
FROM named u JOIN accounting.realms r USING (realm)
ON CONFLICT (user_key) DO UPDATE SET
    user_id = excluded.user_id, radacct_suffix = excluded.radacct_suffix
WHERE users.user_id = '' AND excluded.user_id <> '';

-- name: forward_events
-- Enqueues the events that were read of a cell, in their order. The id is a function of that in the
-- cell and of its database: two cells may count the same of a user's hour. Not what the front posts
-- itself. created_at is that of the front: its feed is nearly in the order of that.
INSERT INTO accounting.feed_outbox (event_id, type, realm_id, payload)
SELECT accounting.event_id('event of a cell', n.database_id || ' ' || e.event_id), e.type,
    CASE WHEN e.realm <> '' OR e.type NOT IN ('source.trouble', 'webhook.disabled')
        THEN r.realm_id END,
    e.payload || jsonb_build_object('cell', n.cell)
FROM events_of_cell e
JOIN accounting.cells n ON n.cell = :cell
LEFT JOIN accounting.realms r USING (realm)
WHERE e.type NOT IN ('period.closed', 'adjustment.posted')
ORDER BY e.seq;

-- name: record_closings
-- Records the periods that the cell closed, among the events that were read.
INSERT INTO accounting.forwarded_closings AS f (database_id, realm, period, seq)
SELECT n.database_id, e.payload ->> 'realm', CAST(e.payload ->> 'period' AS date), max(e.seq)
FROM events_of_cell e JOIN accounting.cells n ON n.cell = :cell
WHERE e.type = 'period.closed'
GROUP BY 1, 2, 3
ON CONFLICT ON CONSTRAINT forwarded_closings_pkey DO UPDATE SET seq = excluded.seq;

-- name: forget_positions
-- Forgets what a restored cell has no more.
DELETE FROM accounting.feed_positions p USING accounting.cells n
WHERE n.cell = :cell AND p.database_id = n.database_id AND p.number > :number;

-- name: forget_closings
-- Forgets the closed periods that a restored cell has not closed yet.
DELETE FROM accounting.forwarded_closings f USING accounting.cells n
WHERE n.cell = :cell AND f.database_id = n.database_id AND f.seq > :seq;

-- name: write_position
-- Moves the cursor of a cell, and keeps the position that it had.
INSERT INTO accounting.feed_positions (database_id, number, seq, history)
SELECT n.database_id, :number, :seq, accounting.feed_history_of_cell(n.cell, :seq)
FROM accounting.cells n WHERE n.cell = :cell;

-- name: thin_positions
-- Deletes positions, so that about 64 are left of those that are between n and 2n steps old: after a
-- restore, a thirtieth more than what the cell lost is read again at the most.
DELETE FROM accounting.feed_positions p USING accounting.cells n
WHERE n.cell = :cell AND p.database_id = n.database_id
    AND (p.number & -p.number) * 64 < :number - p.number;

-- name: record_readable
-- Records that a cell's feed can be read; a row if it could not before.
UPDATE accounting.cells SET feed_failing_since = NULL, feed_retry_at = NULL, feed_error = NULL
WHERE cell = :cell AND feed_failing_since IS NOT NULL RETURNING cell;

-- name: record_unreadable
-- Records why a cell's feed can't be read, and when it is tried again; returns what was recorded before.
WITH before AS (SELECT feed_error FROM accounting.cells WHERE cell = :cell)
UPDATE accounting.cells SET feed_failing_since = coalesce(feed_failing_since, clock_timestamp()),
    feed_retry_at = clock_timestamp() + make_interval(secs => :pause_seconds), feed_error = :error
WHERE cell = :cell RETURNING (SELECT before.feed_error FROM before);

-- name: peaks_to_read
-- Since when the cells are asked for hours whose peaks changed, and the time now. Since ever, and all
-- are compared, if that was not done for a day. An hour more than since the last time: a cell's clock
-- may differ, and a transaction may commit late.
SELECT clock_timestamp()::text AS now, p.is_all,
    CASE WHEN p.is_all THEN '-infinity' ELSE f.peaks_read_until - interval '1 hour' END::text AS since
FROM accounting.front f
CROSS JOIN LATERAL (
    SELECT f.peaks_compared_at < clock_timestamp() - interval '1 day' AS is_all
) p;

-- name: peaks_were_read
-- Records up to when the hours whose peaks changed are counted.
UPDATE accounting.front SET peaks_read_until = CAST(:now AS timestamptz),
    peaks_compared_at = CASE WHEN :is_all THEN CAST(:now AS timestamptz) ELSE peaks_compared_at END;

-- name: compare_all_peaks
-- Makes the next run compare all hours of all cells.
UPDATE accounting.front SET peaks_compared_at = '-infinity';

-- name: forget_peaks_of_cell
-- Deletes the hours that were counted with a cell; the next run counts them without it.
WITH compared AS (
    UPDATE accounting.front SET peaks_compared_at = '-infinity'
),
deleted AS (
    DELETE FROM accounting.front_peak_hours WHERE jsonb_exists(counted_from, :cell)
    RETURNING realm, starts_at
)
DELETE FROM accounting.front_peaks p USING deleted d
WHERE p.realm = d.realm AND p.starts_at = d.starts_at;

-- name: changed_peak_hours
-- In a cell: the hours whose peaks changed since a time.
SELECT realm, starts_at, version::text FROM cell.peak_hours
WHERE changed_at >= CAST(:since AS timestamptz);

-- name: hours_to_count
-- Of these hours of a cell, those that were not counted with these versions.
SELECT t.realm, t.starts_at
FROM unnest(CAST(:realms AS text[]), CAST(:starts AS timestamptz[]), CAST(:versions AS text[]))
    AS t (realm, starts_at, version)
LEFT JOIN accounting.front_peak_hours h ON h.realm = t.realm AND h.starts_at = t.starts_at
WHERE h.counted_from ->> CAST(:cell AS text) IS DISTINCT FROM t.version;

-- name: vanished_peak_hours
-- The hours that were counted with a cell, and are not among those that it has.
SELECT h.realm, h.starts_at FROM accounting.front_peak_hours h
WHERE jsonb_exists(h.counted_from, CAST(:cell AS text)) AND NOT EXISTS (
    SELECT FROM unnest(CAST(:realms AS text[]), CAST(:starts AS timestamptz[])) AS t (realm, starts_at)
    WHERE t.realm = h.realm AND t.starts_at = h.starts_at);

-- name: peak_hours_of_cell
-- In a cell: the versions and ends of these hours, as far as it has them.
SELECT t.number, h.version::text, h.ends_at, h.has_slices, h.is_changing
FROM unnest(
    CAST(:numbers AS integer[]), CAST(:realms AS text[]), CAST(:starts AS timestamptz[])
) AS t (number, realm, starts_at)
JOIN cell.peak_hours h ON h.realm = t.realm AND h.starts_at = t.starts_at;

-- name: peak_names_of_cell
-- In a cell: by what the sessions of these hours are counted.
SELECT DISTINCT t.number, s.dimension, s.name
FROM unnest(
    CAST(:numbers AS integer[]), CAST(:realms AS text[]), CAST(:starts AS timestamptz[])
) AS t (number, realm, starts_at)
JOIN cell.realm_numbers r ON r.realm = t.realm
JOIN cell.peak_slices s ON s.realm_id = r.realm_id AND s.starts_at = t.starts_at
WHERE s.session_peak <> 0 OR s.session_delta <> 0;

-- name: peak_slices_of_cell
-- In a cell: slices of these hours, each as its start, delta and peak in Postgres' binary format, one
-- behind the other.
SELECT t.number, s.dimension, s.name, string_agg(
    timestamptz_send(s.slice_at) || int8send(s.session_delta) || int8send(s.session_peak), '')
FROM (
    SELECT DISTINCT k.number, k.realm, k.starts_at FROM unnest(
        CAST(:numbers AS integer[]), CAST(:realms AS text[]), CAST(:starts AS timestamptz[])
    ) AS k (number, realm, starts_at)
) t
JOIN cell.realm_numbers r ON r.realm = t.realm
JOIN cell.peak_slices s ON s.realm_id = r.realm_id AND s.starts_at = t.starts_at
WHERE (t.number, s.dimension, s.name) IN (
    SELECT k.number, k.dimension, k.name FROM unnest(
        CAST(:numbers AS integer[]), CAST(:dimensions AS text[]), CAST(:names AS text[])
    ) AS k (number, dimension, name))
GROUP BY t.number, s.dimension, s.name;

-- name: peak_steps_of_cell
-- In a cell: the starts and ends of sessions in these spans, as read_slice_steps.
SELECT t.number, t.starts_at, greatest(
        t.starts_at, date_bin(make_interval(secs => :slice_seconds), e.started_at, 'epoch')
    ) AS slice_at, e.server_address, e.transport, false AS is_end,
    string_agg(timestamptz_send(e.started_at), '') AS times
FROM unnest(
    CAST(:numbers AS integer[]), CAST(:realms AS text[]), CAST(:starts AS timestamptz[]),
    CAST(:froms AS timestamptz[]), CAST(:untils AS timestamptz[])
) AS t (number, realm, starts_at, from_at, to_at)
JOIN cell.realm_numbers r ON r.realm = t.realm
CROSS JOIN LATERAL (
    SELECT s.started_at, s.ended_at, s.server_address, s.transport FROM cell.session_spans s
    WHERE s.realm_id = r.realm_id AND s.started_at >= t.from_at AND s.started_at < t.to_at
    OFFSET 0
) e
WHERE e.ended_at IS NULL OR e.ended_at > e.started_at
GROUP BY t.number, t.starts_at, slice_at, e.server_address, e.transport
UNION ALL
SELECT t.number, t.starts_at, greatest(
        t.starts_at, date_bin(make_interval(secs => :slice_seconds), e.ended_at, 'epoch')
    ) AS slice_at, e.server_address, e.transport, true, string_agg(timestamptz_send(e.ended_at), '')
FROM unnest(
    CAST(:numbers AS integer[]), CAST(:realms AS text[]), CAST(:starts AS timestamptz[]),
    CAST(:froms AS timestamptz[]), CAST(:untils AS timestamptz[])
) AS t (number, realm, starts_at, from_at, to_at)
JOIN cell.realm_numbers r ON r.realm = t.realm
CROSS JOIN LATERAL (
    SELECT s.started_at, s.ended_at, s.server_address, s.transport FROM cell.session_spans s
    WHERE s.realm_id = r.realm_id AND s.ended_at >= t.from_at AND s.ended_at < t.to_at
    OFFSET 0
) e
WHERE e.ended_at > greatest(e.started_at, t.starts_at)
GROUP BY t.number, t.starts_at, slice_at, e.server_address, e.transport;

-- name: carried_in_cell
-- In a cell: how many sessions were open when these hours started.
SELECT t.number, c.server_address, c.transport, count(*)
FROM unnest(
    CAST(:numbers AS integer[]), CAST(:realms AS text[]), CAST(:starts AS timestamptz[])
) AS t (number, realm, starts_at)
JOIN cell.realm_numbers r ON r.realm = t.realm
JOIN cell.carried_sessions c ON c.realm_id = r.realm_id AND c.starts_at = t.starts_at
GROUP BY t.number, c.server_address, c.transport;

-- name: delete_peaks
-- Deletes what was counted of these hours.
WITH hours AS MATERIALIZED (
    SELECT realm, starts_at
    FROM unnest(CAST(:realms AS text[]), CAST(:starts AS timestamptz[])) AS t (realm, starts_at)
),
deleted AS (
    DELETE FROM accounting.front_peak_hours h USING hours t
    WHERE h.realm = t.realm AND h.starts_at = t.starts_at
)
DELETE FROM accounting.front_peaks p USING hours t
WHERE p.realm = t.realm AND p.starts_at = t.starts_at;

-- name: insert_peak_hours
-- Records from what these hours were counted.
INSERT INTO accounting.front_peak_hours (realm, starts_at, counted_from)
SELECT t.realm, t.starts_at, CAST(t.counted_from AS jsonb) FROM unnest(
    CAST(:realms AS text[]), CAST(:starts AS timestamptz[]), CAST(:counted_from AS text[])
) AS t (realm, starts_at, counted_from)
WHERE t.counted_from <> '{}';

-- name: insert_peaks
-- Inserts the peaks of hours.
INSERT INTO accounting.front_peaks (realm, dimension, name, starts_at, peak_sessions)
SELECT * FROM unnest(
    CAST(:realms AS text[]), CAST(:dimensions AS text[]), CAST(:names AS text[]),
    CAST(:starts AS timestamptz[]), CAST(:peaks AS bigint[]));

-- name: counted_peak_hours
-- The hours that were counted after one of them, in order.
SELECT realm, starts_at, counted_from::text FROM accounting.front_peak_hours
WHERE (realm, starts_at) > (:after_realm, CAST(:after_start AS timestamptz))
    AND realm = coalesce(CAST(:realm AS text), realm)
ORDER BY realm, starts_at LIMIT :most;

-- name: stored_peaks
-- The peaks that were counted of these hours.
SELECT t.number, p.dimension, p.name, p.peak_sessions
FROM unnest(
    CAST(:numbers AS integer[]), CAST(:realms AS text[]), CAST(:starts AS timestamptz[])
) AS t (number, realm, starts_at)
JOIN accounting.front_peaks p ON p.realm = t.realm AND p.starts_at = t.starts_at;

-- name: has_limits
-- Whether the usage of any realm is limited.
SELECT EXISTS (SELECT FROM accounting.limits);

-- name: limited_realms
-- The realms with limits.
SELECT r.realm_id, r.realm FROM accounting.realms r
WHERE EXISTS (SELECT FROM accounting.limits l WHERE l.realm_id = r.realm_id);

-- name: has_other_cells
-- Whether the cells are others than those whose usage was compared with the limits.
SELECT EXISTS (
    SELECT FROM accounting.cells c FULL JOIN accounting.limit_cells l USING (cell_id, joined_at)
    WHERE c.cell_id IS NULL OR l.cell_id IS NULL
);

-- name: waiting_limits
-- The realms whose limits wait.
SELECT realm_id FROM accounting.waiting_limits;

-- name: let_limits_wait
-- Sets the realms whose limits wait.
WITH others AS (
    DELETE FROM accounting.waiting_limits
    WHERE realm_id <> ALL (CAST(:realm_ids AS integer[]))
)
INSERT INTO accounting.waiting_limits
SELECT unnest(CAST(:realm_ids AS integer[])) ON CONFLICT DO NOTHING;

-- name: changed_hours
-- The hours of realms that changed in any cell since the limits were compared with them.
SELECT DISTINCT h.realm, h.starts_at
FROM cells.changed_hours h
JOIN accounting.cells c USING (cell)
JOIN accounting.limit_cells l USING (cell_id)
WHERE h.changed_at > (SELECT min(changed_until) FROM accounting.limit_cells)
    AND h.changed_at > l.changed_until;

-- name: last_changes
-- Reads when an hour changed last in each cell.
SELECT c.cell_id, c.joined_at, coalesce(h.changed_at, 'epoch') AS changed_until
FROM cells.last_change h JOIN accounting.cells c USING (cell);

-- name: store_last_changes
-- Stores up to which changes of the cells the limits are compared.
WITH now AS (
    SELECT * FROM unnest(
        CAST(:cell_ids AS smallint[]), CAST(:joined AS timestamptz[]),
        CAST(:changed AS timestamptz[])
    ) AS n (cell_id, joined_at, changed_until)
),
gone AS (
    DELETE FROM accounting.limit_cells WHERE cell_id NOT IN (SELECT cell_id FROM now)
)
INSERT INTO accounting.limit_cells AS l (cell_id, joined_at, changed_until)
SELECT cell_id, joined_at, changed_until FROM now
ON CONFLICT (cell_id) DO UPDATE SET
    joined_at = excluded.joined_at, changed_until = excluded.changed_until
WHERE (l.joined_at, l.changed_until) <> (excluded.joined_at, excluded.changed_until);

-- name: other_calendars
-- The cells that would put usage of these realms into other days, months or periods than the front.
SELECT DISTINCT realm, cell
FROM (
    SELECT r.realm, c.cell, l.holds_from, l.time_zone, l.anchor_day
    FROM accounting.realms r
    JOIN accounting.realm_rules l USING (realm_id)
    JOIN (
        SELECT DISTINCT realm, cell FROM cells.realm_rules
        WHERE realm = ANY (CAST(:realms AS text[]))
    ) c USING (realm)
) f
FULL JOIN (
    SELECT realm, cell, holds_from, time_zone, anchor_day FROM cells.realm_rules
    WHERE realm = ANY (CAST(:realms AS text[]))
) c USING (realm, cell, holds_from, time_zone, anchor_day)
WHERE f IS NULL OR c IS NULL
ORDER BY realm, cell;

-- name: hours_of_cells
-- The hours in which a realm has usage in any cell.
SELECT DISTINCT starts_at FROM cells.realm_usage_hourly
WHERE realm = :realm AND starts_at >= :since;

-- name: staged_limit_buckets
-- The staged buckets.
SELECT realm_id, per, starts_at, ends_at FROM staged_limit_buckets
ORDER BY realm_id, per, starts_at;

-- name: stage_candidates
-- Stages the users who may have reached a limit in a bucket.
INSERT INTO staged_limit_users
SELECT :realm_id, c, :starts_at
FROM accounting.limit_candidates(
    :realm_id, :per, CAST(:starts_at AS timestamptz), CAST(:ends_at AS timestamptz)
) c;

-- name: stage_one_user
-- Stages one user in the staged buckets.
INSERT INTO staged_limit_users
SELECT realm_id, CAST(:user_key AS uuid), starts_at FROM staged_limit_buckets;

-- name: stage_reached_states
-- Stages the users who have reached something in the staged buckets: they may have it no longer.
INSERT INTO staged_limit_users
SELECT s.realm_id, s.user_key, s.starts_at
FROM staged_limit_buckets b
JOIN accounting.limit_states s ON s.realm_id = b.realm_id AND s.starts_at = b.starts_at
WHERE s.cleared_at IS NULL AND s.user_key <> CAST(:realm_key AS uuid);

-- name: create_staged_cell_usage
-- Scratch table for the sums over all cells, by user and bucket.
CREATE TEMP TABLE IF NOT EXISTS staged_cell_usage (
    realm_id integer, user_key uuid, level text, starts_at timestamptz, counted_until timestamptz,
    received_bytes numeric, sent_bytes numeric, sessions_started numeric,
    session_microseconds numeric
) ON COMMIT DELETE ROWS;

-- name: staged_sums
-- The buckets of the staged checks that are to be summed, by length of the usage that they consist of.
SELECT DISTINCT c.realm_id, r.realm, c.level, c.starts_at, c.counted_until,
    c.user_key = CAST(:realm_key AS uuid) AS is_of_realm
FROM staged_limit_checks c JOIN accounting.realms r USING (realm_id)
WHERE c.counted_until > c.starts_at
ORDER BY c.realm_id, c.level, c.starts_at;

-- name: sum_users
-- Sums the usage of the users of the staged checks of a bucket over all cells.
INSERT INTO staged_cell_usage
SELECT :realm_id, u.user_key, :level, :starts_at, :counted_until,
    sum(u.received_bytes), sum(u.sent_bytes), sum(u.sessions_started), sum(u.session_microseconds)
FROM cells.limited_usage u
WHERE u.realm = :realm AND u.level = :level
    AND u.starts_at >= :starts_at AND u.starts_at < :counted_until
    AND u.user_key = ANY (ARRAY(
        SELECT DISTINCT c.user_key FROM staged_limit_checks c
        WHERE c.realm_id = :realm_id AND c.level = :level AND c.starts_at = :starts_at
            AND c.counted_until = :counted_until
    ))
GROUP BY u.user_key;

-- name: sum_realm
-- Sums the usage of a realm in a bucket over all cells.
INSERT INTO staged_cell_usage
SELECT :realm_id, CAST(:realm_key AS uuid), :level, :starts_at, :counted_until,
    sum(u.received_bytes), sum(u.sent_bytes), sum(u.sessions_started), sum(u.session_microseconds)
FROM cells.limited_realm_usage u
WHERE u.realm = :realm AND u.level = :level
    AND u.starts_at >= :starts_at AND u.starts_at < :counted_until;

-- name: count_staged_sums
-- Stages what is compared with limits, from the sums over all cells.
INSERT INTO staged_limit_usage
SELECT c.limit_id, c.realm_id, c.user_key, c.starts_at, c.ends_at, c.time_zone,
    accounting.limited_usage(l.measure, l.direction, coalesce(s.received_bytes, 0),
        coalesce(s.sent_bytes, 0), coalesce(s.sessions_started, 0),
        coalesce(s.session_microseconds, 0))
FROM staged_limit_checks c
LEFT JOIN staged_cell_usage s USING (realm_id, user_key, level, starts_at, counted_until)
JOIN accounting.limits l USING (limit_id);

-- name: clear_staged_limits
-- Deletes what is staged, so that more can be staged in the same transaction.
WITH users AS (DELETE FROM staged_limit_users),
buckets AS (DELETE FROM staged_limit_buckets),
checks AS (DELETE FROM staged_limit_checks),
usage AS (DELETE FROM staged_limit_usage)
DELETE FROM staged_cell_usage;

-- name: users_of_limits
-- The users without a name here whose staged usage reaches something.
SELECT DISTINCT g.user_key
FROM staged_limit_usage g
JOIN accounting.limits l USING (limit_id)
WHERE l.whom <> 'realm' AND g.usage * 100 >= CAST(l.amount AS numeric) * l.thresholds[1]
    AND NOT EXISTS (SELECT FROM accounting.users u WHERE u.user_key = g.user_key);

-- name: add_users_of_cells
-- Stores the names of users as the cells know them; of erased users as in add_users_of_lines.
INSERT INTO accounting.users (user_key, realm_id, user_id, radacct_suffix)
SELECT n.user_key, n.realm_id, n.user_id,
    accounting.radacct_suffix(n.user_id, n.realm, n.named_in_radacct)
FROM (
    SELECT n.user_key, r.realm_id, r.realm, r.named_in_radacct,
        coalesce(max(n.user_id) FILTER (WHERE NOT EXISTS (
            SELECT FROM accounting.erasures e
            WHERE e.user_key = n.user_key AND NOT EXISTS (
                SELECT FROM cells.erasures c
                WHERE c.cell = n.cell AND c.user_key = e.user_key AND c.of_front >= e.erased_at)
        )), '') AS user_id
    FROM cells.user_names n JOIN accounting.realms r USING (realm)
    WHERE n.user_key = ANY (CAST(:user_keys AS uuid[]))
    GROUP BY n.user_key, r.realm_id, r.realm, r.named_in_radacct
) n
ON CONFLICT DO NOTHING;
