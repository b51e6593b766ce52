-- name: cells_and_realms
-- The cells and the realms, for work that is done for each alone.
SELECT n.cell, r.realm FROM accounting.cells n CROSS JOIN accounting.realms r ORDER BY n.cell, r.realm;

-- name: delete_stale_periods
-- Deletes the open periods that no cell has as they are here; not those that no cell has otherwise and
-- in which an adjustment is posted, which is billed when they close.
DELETE FROM accounting.periods p USING accounting.realms r
WHERE r.realm_id = p.realm_id AND p.closed_at IS NULL AND NOT EXISTS (
    SELECT FROM cells.closings c JOIN accounting.cells n USING (cell)
    WHERE c.realm = r.realm AND c.period = p.period AND c.due_at = p.due_at
        AND (c.starts_at, c.ends_at, c.time_zone) = (p.starts_at, p.ends_at, p.time_zone)
        AND (c.period >= n.bill_from) IS NOT FALSE)
    AND (
        NOT EXISTS (
            SELECT FROM accounting.adjustments a
            WHERE a.realm_id = p.realm_id AND a.posted_in = p.period)
        OR EXISTS (
            SELECT FROM cells.closings c JOIN accounting.cells n USING (cell)
            WHERE c.realm = r.realm AND c.period = p.period
                AND (c.period >= n.bill_from) IS NOT FALSE));

-- name: take_up_periods
-- Adds the periods that cells have, each with the bounds of the first cell that has it; of one cell or
-- realm, if they are given.
INSERT INTO accounting.periods (realm_id, period, starts_at, ends_at, due_at, time_zone)
SELECT DISTINCT ON (r.realm_id, c.period)
    r.realm_id, c.period, c.starts_at, c.ends_at, c.due_at, c.time_zone
FROM cells.closings c
JOIN accounting.cells n USING (cell)
JOIN accounting.realms r USING (realm)
WHERE (c.period >= n.bill_from) IS NOT FALSE
    AND (CAST(:cell AS text) IS NULL OR c.cell = :cell)
    AND (CAST(:realm AS text) IS NULL OR c.realm = :realm)
ORDER BY r.realm_id, c.period, c.cell
ON CONFLICT DO NOTHING;

-- name: ready_periods
-- The periods that wait for nothing, the oldest first.
SELECT p.realm_id, p.period, r.realm
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
-- Reads the statement of a period in each cell that has one, or in one cell.
WITH read_before AS (DELETE FROM lines_of_cells)
INSERT INTO lines_of_cells
SELECT s.* FROM cells.statements s
JOIN accounting.billing_cells w
    ON w.cell = s.cell AND w.realm_id = :realm_id AND w.period = :period
WHERE s.realm = :realm AND s.period = :period
    AND (CAST(:cell AS text) IS NULL OR s.cell = :cell);

-- name: add_users_of_lines
-- Stores the names of the users of these lines, also of one who was erased and came back.
WITH named AS (
    SELECT l.user_key, r.realm_id, r.realm, r.named_in_radacct,
        coalesce(max(l.user_id) FILTER (WHERE e.user_key IS NULL), '') AS user_id
    FROM lines_of_cells l
    JOIN accounting.realms r USING (realm)
    LEFT JOIN accounting.erased_names e USING (cell, user_key)
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

-- name: write_statement_parts
-- Writes what the lines of that statement are the sum of.
INSERT INTO accounting.statement_parts (
    realm_id, period, user_key, database_id, cell,
    received_packets, received_bytes, sent_packets, sent_bytes,
    peer_received_packets, peer_received_bytes, peer_sent_packets, peer_sent_bytes,
    sessions_started, sessions_ended, session_microseconds, estimated_bytes, digest
)
SELECT :realm_id, l.period, l.user_key, n.database_id, l.cell,
    l.received_packets, l.received_bytes, l.sent_packets, l.sent_bytes,
    l.peer_received_packets, l.peer_received_bytes, l.peer_sent_packets, l.peer_sent_bytes,
    l.sessions_started, l.sessions_ended, l.session_seconds * 1000000, l.estimated_bytes, l.digest
FROM lines_of_cells l JOIN accounting.cells n USING (cell);

-- name: cutoffs_of_cells
-- The cutoff of each cell that closed a period.
SELECT c.cell, c.cutoff
FROM cells.closings c
JOIN accounting.billing_cells w
    ON w.cell = c.cell AND w.realm_id = :realm_id AND w.period = :period
WHERE c.realm = :realm AND c.period = :period AND c.closed_at IS NOT NULL;

-- name: mark_period_closed
-- Closes a period whose statement is written.
UPDATE accounting.periods SET closed_at = clock_timestamp(), cutoff = :cutoff
WHERE realm_id = :realm_id AND period = :period AND closed_at IS NULL;

-- name: copy_adjustments
-- Copies the adjustments of a closed period; without one, those that the cells, or one of them, posted
-- since a day before the last time: one that was committed late is not missed. Of one realm, the next
-- time is not later. The name of the cell is in the reason. posted_at is that of the copy, so that the
-- order of posting never changes. Returns also those that were copied before and whose user has a
-- difference: a restored cell has posted them again, and the difference may have taken them back.
WITH copied AS MATERIALIZED (
    SELECT accounting.event_id('adjustment of a cell', n.database_id || ' ' || c.adjustment_id) AS id,
        r.realm_id, r.named_in_radacct, n.database_id, c.*
    FROM cells.adjustments c
    JOIN accounting.realms r USING (realm)
    JOIN accounting.periods p ON p.realm_id = r.realm_id AND p.period = c.period
    JOIN accounting.cells n USING (cell)
    JOIN accounting.billing_cells w
        ON w.cell = c.cell AND w.realm_id = p.realm_id AND w.period = p.period
    WHERE p.closed_at IS NOT NULL
        AND (CAST(:cell AS text) IS NULL OR c.cell = :cell)
        AND (CAST(:realm AS text) IS NULL OR c.realm = :realm)
        AND (CAST(:period AS date) IS NULL OR c.period = :period)
        AND (CAST(:period AS date) IS NOT NULL OR c.posted_at >= (
            SELECT min(m.adjustments_until) - interval '1 day' FROM accounting.cells m))
),
named AS (
    INSERT INTO accounting.users (user_key, realm_id, user_id, radacct_suffix)
    SELECT c.user_key, c.realm_id, c.user_id,
        accounting.radacct_suffix(c.user_id, c.realm, c.named_in_radacct)
    FROM (
        SELECT c.user_key, c.realm_id, c.realm, c.named_in_radacct,
            coalesce(max(c.user_id) FILTER (WHERE e.user_key IS NULL), '') AS user_id
        FROM copied c LEFT JOIN accounting.erased_names e USING (cell, user_key)
        GROUP BY c.user_key, c.realm_id, c.realm, c.named_in_radacct
    ) c
    ORDER BY c.user_key
    ON CONFLICT (user_key) DO UPDATE SET
        user_id = excluded.user_id, radacct_suffix = excluded.radacct_suffix
    WHERE users.user_id = '' AND excluded.user_id <> ''
),
seen AS (
    UPDATE accounting.cells SET adjustments_until = clock_timestamp()
    WHERE (CAST(:cell AS text) IS NULL OR cell = :cell)
        AND CAST(:realm AS text) IS NULL AND CAST(:period AS date) IS NULL
),
posted AS (
    INSERT INTO accounting.adjustments (
        adjustment_id, user_key, realm_id, period, posted_in,
        received_packets, received_bytes, sent_packets, sent_bytes,
        peer_received_packets, peer_received_bytes, peer_sent_packets, peer_sent_bytes,
        session_microseconds, reason, author, manual, posted_at, database_id
    )
    SELECT c.id, c.user_key, c.realm_id, c.period, (
            -- The cell's, unless the front has closed that already.
            SELECT coalesce(min(q.period) FILTER (WHERE q.closed_at IS NULL AND q.period >= c.posted_in),
                c.posted_in)
            FROM accounting.periods q WHERE q.realm_id = c.realm_id),
        c.received_packets, c.received_bytes, c.sent_packets, c.sent_bytes,
        c.peer_received_packets, c.peer_received_bytes, c.peer_sent_packets, c.peer_sent_bytes,
        c.session_seconds * 1000000, format('%s (cell %s)', c.reason, c.cell), c.author,
        c.author <> 'turn-accounting', clock_timestamp(), c.database_id
    FROM copied c
    WHERE NOT EXISTS (
        SELECT FROM accounting.adjustments a
        WHERE a.adjustment_id = c.id AND a.user_key = c.user_key)
    ORDER BY c.posted_at, c.id
    RETURNING adjustment_id
)
SELECT adjustment_id, true AS is_new FROM posted
UNION ALL
SELECT c.id, false FROM copied c
WHERE EXISTS (
    SELECT FROM accounting.adjustments a
    WHERE a.adjustment_id = c.id AND a.user_key = c.user_key)
    AND EXISTS (
        SELECT FROM accounting.adjustments a
        WHERE a.realm_id = c.realm_id AND a.period = c.period AND a.user_key = c.user_key
            AND a.database_id = c.database_id AND a.reason LIKE 'late usage (difference to cell %');

-- name: record_billed_closings
-- Records the closings of cells, or of one, that the books of the front have now, of one period.
INSERT INTO accounting.billed_closings AS b (realm_id, period, database_id, cell, cutoff)
SELECT w.realm_id, w.period, w.database_id, w.cell, c.cutoff
FROM cells.closings c
JOIN accounting.billing_cells w
    ON w.cell = c.cell AND w.realm_id = :realm_id AND w.period = :period
WHERE c.realm = :realm AND c.period = :period AND c.closed_at IS NOT NULL
    AND (CAST(:cell AS text) IS NULL OR c.cell = :cell)
ON CONFLICT ON CONSTRAINT billed_closings_pkey DO UPDATE SET cutoff = excluded.cutoff
WHERE b.cutoff <> excluded.cutoff;

-- name: closed_anew
-- The closings of cells that are not in the books of the front, of periods that it has closed; of one
-- cell or realm, if they are given.
SELECT w.cell, w.database_id, p.realm_id, r.realm, p.period
FROM cells.closings c
JOIN accounting.realms r USING (realm)
JOIN accounting.periods p ON p.realm_id = r.realm_id AND p.period = c.period
JOIN accounting.billing_cells w
    ON w.cell = c.cell AND w.realm_id = p.realm_id AND w.period = p.period
LEFT JOIN accounting.billed_closings b ON b.realm_id = p.realm_id AND b.period = p.period
    AND b.database_id = w.database_id
WHERE p.closed_at IS NOT NULL AND c.closed_at IS NOT NULL AND b.cutoff IS DISTINCT FROM c.cutoff
    AND (CAST(:cell AS text) IS NULL OR c.cell = :cell)
    AND (CAST(:realm AS text) IS NULL OR c.realm = :realm)
ORDER BY w.cell, p.realm_id, p.period;

-- name: periods_of_adjustments
-- The users' periods of cells of these adjustments.
SELECT n.cell, n.database_id, a.realm_id, r.realm, a.period, array_agg(DISTINCT a.user_key) AS user_keys
FROM accounting.adjustments a
JOIN accounting.realms r USING (realm_id)
JOIN accounting.cells n USING (database_id)
WHERE a.adjustment_id = ANY (CAST(:ids AS uuid[])) AND NOT a.manual
GROUP BY n.cell, n.database_id, a.realm_id, r.realm, a.period
ORDER BY n.cell, a.realm_id, a.period;

-- name: post_difference
-- Posts, of a closed period, what a cell has now and was not billed of it: its statement and late usage.
-- Nothing, unless it was restored, or closed the period later than the front. Its id is a function of
-- what it says, as with late usage, and of how much was posted before.
WITH billed AS (
    SELECT user_key, 1 AS sign, received_packets, received_bytes, sent_packets, sent_bytes,
        peer_received_packets, peer_received_bytes, peer_sent_packets, peer_sent_bytes,
        session_seconds * 1000000 AS session_microseconds
    FROM cells.statements
    WHERE cell = :cell AND realm = :realm AND period = :period
        AND (CAST(:user_keys AS uuid[]) IS NULL OR user_key = ANY (CAST(:user_keys AS uuid[])))
    UNION ALL
    SELECT user_key, 1, received_packets, received_bytes, sent_packets, sent_bytes,
        peer_received_packets, peer_received_bytes, peer_sent_packets, peer_sent_bytes,
        session_seconds * 1000000
    FROM cells.adjustments
    WHERE cell = :cell AND realm = :realm AND period = :period AND author = 'turn-accounting'
        AND (CAST(:user_keys AS uuid[]) IS NULL OR user_key = ANY (CAST(:user_keys AS uuid[])))
    UNION ALL
    SELECT user_key, -1, received_packets, received_bytes, sent_packets, sent_bytes,
        peer_received_packets, peer_received_bytes, peer_sent_packets, peer_sent_bytes,
        session_microseconds
    FROM accounting.statement_parts
    WHERE realm_id = :realm_id AND period = :period AND database_id = :database_id
        AND (CAST(:user_keys AS uuid[]) IS NULL OR user_key = ANY (CAST(:user_keys AS uuid[])))
    UNION ALL
    SELECT user_key, -1, received_packets, received_bytes, sent_packets, sent_bytes,
        peer_received_packets, peer_received_bytes, peer_sent_packets, peer_sent_bytes,
        session_microseconds
    FROM accounting.adjustments
    WHERE realm_id = :realm_id AND period = :period AND database_id = :database_id AND NOT manual
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
    session_microseconds, reason, author, manual, posted_at, database_id
)
SELECT accounting.event_id('late usage of cells', concat_ws(chr(10),
        :database_id, to_char(o.period, 'YYYY-MM-DD'), l.user_key, l.before, concat_ws(' ',
            l.received_packets, l.received_bytes, l.sent_packets, l.sent_bytes,
            l.peer_received_packets, l.peer_received_bytes, l.peer_sent_packets, l.peer_sent_bytes,
            trim_scale(l.session_microseconds)), r.realm)),
    l.user_key, o.realm_id, o.period, (
        SELECT min(q.period) FROM accounting.periods q
        WHERE q.realm_id = o.realm_id AND q.closed_at IS NULL AND q.starts_at > o.starts_at),
    l.received_packets, l.received_bytes, l.sent_packets, l.sent_bytes,
    l.peer_received_packets, l.peer_received_bytes, l.peer_sent_packets, l.peer_sent_bytes,
    l.session_microseconds, format('late usage (difference to cell %s)', :cell), 'turn-accounting',
    false, clock_timestamp(), CAST(:database_id AS uuid)
FROM late l
CROSS JOIN accounting.periods o JOIN accounting.realms r USING (realm_id)
WHERE o.realm_id = :realm_id AND o.period = :period
    AND (l.received_packets, l.received_bytes, l.sent_packets, l.sent_bytes,
        l.peer_received_packets, l.peer_received_bytes, l.peer_sent_packets, l.peer_sent_bytes,
        l.session_microseconds) IS DISTINCT FROM (0, 0, 0, 0, 0, 0, 0, 0, 0)
RETURNING adjustment_id;

-- name: check_lines
-- The lines of the front that are not the sum of their parts, by number, or whose digest is not that of
-- the digests of their parts.
WITH of_front AS (
    SELECT realm_id, period, user_key, received_packets, received_bytes, sent_packets, sent_bytes,
        peer_received_packets, peer_received_bytes, peer_sent_packets, peer_sent_bytes,
        sessions_started, sessions_ended,
        trim_scale(session_microseconds * 0.000001) AS session_seconds, estimated_bytes, digest
    FROM accounting.statements
), of_parts AS (
    SELECT realm_id, period, user_key, sum(received_packets) AS received_packets,
        sum(received_bytes) AS received_bytes, sum(sent_packets) AS sent_packets,
        sum(sent_bytes) AS sent_bytes, sum(peer_received_packets) AS peer_received_packets,
        sum(peer_received_bytes) AS peer_received_bytes, sum(peer_sent_packets) AS peer_sent_packets,
        sum(peer_sent_bytes) AS peer_sent_bytes, sum(sessions_started) AS sessions_started,
        sum(sessions_ended) AS sessions_ended,
        trim_scale(sum(session_microseconds) * 0.000001) AS session_seconds,
        sum(estimated_bytes) AS estimated_bytes, encode(sha256(convert_to(
            string_agg(cell || ' ' || digest, chr(10) ORDER BY cell COLLATE "C"), 'UTF8'
        )), 'hex') AS digest
    FROM accounting.statement_parts
    GROUP BY realm_id, period, user_key
)
SELECT r.realm, b.period, b.user_key, n.key AS "column", n.value AS booked, o.value AS recomputed,
    CASE WHEN n.value IS NULL THEN 'missing' WHEN o.value IS NULL THEN 'unfounded'
        ELSE 'differs' END AS kind
FROM (
    SELECT realm_id, period, user_key, to_jsonb(f) AS booked, to_jsonb(p) AS recomputed
    FROM of_front f FULL JOIN of_parts p USING (realm_id, period, user_key)
    WHERE to_jsonb(f) IS DISTINCT FROM to_jsonb(p)
) b
JOIN accounting.realms r USING (realm_id)
CROSS JOIN LATERAL jsonb_each_text(coalesce(b.booked, b.recomputed)) k
CROSS JOIN LATERAL (SELECT k.key, b.booked ->> k.key AS value) n
CROSS JOIN LATERAL (SELECT b.recomputed ->> k.key AS value) o
WHERE n.value IS DISTINCT FROM o.value AND k.key NOT IN ('realm_id', 'period', 'user_key')
    AND (CAST(:realm AS text) IS NULL OR r.realm = :realm)
    AND (CAST(:period AS date) IS NULL OR b.period = :period)
ORDER BY realm, period, user_key, "column";

-- name: check_parts
-- The parts of statements that are not the lines of the cells, by number. Not of a cell that has left,
-- nor of one that has closed the period again: of those, only what was billed in all can be compared.
WITH closed AS (
    SELECT p.realm_id, r.realm, p.period, b.database_id, n.cell
    FROM accounting.periods p
    JOIN accounting.realms r USING (realm_id)
    JOIN accounting.billed_closings b USING (realm_id, period)
    JOIN accounting.cells n USING (database_id)
    JOIN cells.closings c ON c.cell = n.cell AND c.realm = r.realm AND c.period = p.period
    WHERE p.closed_at IS NOT NULL
        AND CAST(c.cutoff AS jsonb) = CAST(p.cutoff AS jsonb) -> 'cells' -> b.cell
        AND (CAST(:realm AS text) IS NULL OR r.realm = :realm)
        AND (CAST(:period AS date) IS NULL OR p.period = :period)
), of_front AS (
    SELECT c.cell, c.realm, s.period, s.user_key, s.received_packets, s.received_bytes,
        s.sent_packets, s.sent_bytes, s.peer_received_packets, s.peer_received_bytes,
        s.peer_sent_packets, s.peer_sent_bytes, s.sessions_started, s.sessions_ended,
        trim_scale(s.session_microseconds * 0.000001) AS session_seconds, s.estimated_bytes, s.digest
    FROM closed c JOIN accounting.statement_parts s USING (realm_id, period, database_id)
), of_cells AS (
    SELECT s.cell, s.realm, s.period, s.user_key, s.received_packets, s.received_bytes,
        s.sent_packets, s.sent_bytes, s.peer_received_packets, s.peer_received_bytes,
        s.peer_sent_packets, s.peer_sent_bytes, s.sessions_started, s.sessions_ended,
        trim_scale(s.session_seconds) AS session_seconds, s.estimated_bytes, s.digest
    FROM cells.statements s JOIN closed c USING (cell, realm, period)
    WHERE (CAST(:realm AS text) IS NULL OR s.realm = :realm)
        AND (CAST(:period AS date) IS NULL OR s.period = :period)
)
SELECT b.realm, b.period, b.user_key, n.key AS "column", n.value AS booked, o.value AS recomputed,
    CASE WHEN n.value IS NULL THEN 'missing' WHEN o.value IS NULL THEN 'unfounded'
        ELSE 'differs' END AS kind
FROM (
    SELECT realm, period, user_key, to_jsonb(f) AS booked, to_jsonb(c) AS recomputed
    FROM of_front f FULL JOIN of_cells c USING (cell, realm, period, user_key)
    WHERE to_jsonb(f) IS DISTINCT FROM to_jsonb(c)
) b
CROSS JOIN LATERAL jsonb_each_text(coalesce(b.booked, b.recomputed)) k
CROSS JOIN LATERAL (SELECT k.key, b.booked ->> k.key AS value) n
CROSS JOIN LATERAL (SELECT b.recomputed ->> k.key AS value) o
WHERE n.value IS DISTINCT FROM o.value AND k.key NOT IN ('cell', 'realm', 'period', 'user_key')
ORDER BY realm, period, user_key, "column";

-- name: check_adjustments
-- The adjustments that a cell has and the front has not, or the other way round, or with other figures.
-- Not of a cell that has left, nor of a user's period of a cell of which the front posted a difference.
WITH of_cells AS (
    SELECT accounting.event_id('adjustment of a cell', w.database_id || ' ' || c.adjustment_id) AS id,
        c.realm, c.period, c.user_key, w.database_id,
        concat_ws(' ', c.received_packets, c.received_bytes, c.sent_packets, c.sent_bytes,
            c.peer_received_packets, c.peer_received_bytes, c.peer_sent_packets,
            c.peer_sent_bytes, trim_scale(c.session_seconds)) AS figures
    FROM cells.adjustments c
    JOIN accounting.realms r USING (realm)
    JOIN accounting.periods p ON p.realm_id = r.realm_id AND p.period = c.period
    JOIN accounting.billing_cells w
        ON w.cell = c.cell AND w.realm_id = p.realm_id AND w.period = p.period
    WHERE p.closed_at IS NOT NULL
        AND (CAST(:realm AS text) IS NULL OR c.realm = :realm)
        AND (CAST(:period AS date) IS NULL OR c.period = :period)
), of_front AS (
    SELECT a.adjustment_id AS id, r.realm, a.period, a.user_key, a.database_id,
        concat_ws(' ', a.received_packets, a.received_bytes, a.sent_packets, a.sent_bytes,
            a.peer_received_packets, a.peer_received_bytes, a.peer_sent_packets,
            a.peer_sent_bytes, trim_scale(a.session_microseconds * 0.000001)) AS figures
    FROM accounting.adjustments a
    JOIN accounting.realms r USING (realm_id)
    JOIN accounting.cells n USING (database_id)
    WHERE (NOT a.manual OR EXISTS (SELECT FROM of_cells c WHERE c.id = a.adjustment_id))
        AND (CAST(:realm AS text) IS NULL OR r.realm = :realm)
        AND (CAST(:period AS date) IS NULL OR a.period = :period)
)
SELECT realm, period, user_key, id::text AS "column",
    f.figures AS booked, c.figures AS recomputed,
    CASE WHEN f.figures IS NULL THEN 'missing' WHEN c.figures IS NULL THEN 'unfounded'
        ELSE 'differs' END AS kind
FROM of_front f FULL JOIN of_cells c USING (id, realm, period, user_key, database_id)
WHERE f.figures IS DISTINCT FROM c.figures
    AND NOT EXISTS (
        SELECT FROM accounting.adjustments a JOIN accounting.realms r USING (realm_id)
        WHERE r.realm = coalesce(f.realm, c.realm) AND a.period = coalesce(f.period, c.period)
            AND a.user_key = coalesce(f.user_key, c.user_key)
            AND a.database_id = coalesce(f.database_id, c.database_id)
            AND a.reason LIKE 'late usage (difference to cell %')
ORDER BY realm, period, id;

-- name: check_billed
-- The users' periods of which a cell has billed in all, in its statement and late usage, otherwise than
-- was billed of it. Not of a cell that has left, or has not closed the period again yet.
WITH closed AS (
    SELECT w.cell, w.database_id, w.realm_id, r.realm, w.period
    FROM accounting.billing_cells w
    JOIN accounting.realms r USING (realm_id)
    JOIN accounting.periods p USING (realm_id, period)
    JOIN cells.closings c ON c.cell = w.cell AND c.realm = r.realm AND c.period = w.period
    WHERE p.closed_at IS NOT NULL AND c.closed_at IS NOT NULL
        AND (CAST(:realm AS text) IS NULL OR r.realm = :realm)
        AND (CAST(:period AS date) IS NULL OR w.period = :period)
), billed AS (
    SELECT cell, realm, period, user_key, 1 AS sign, received_bytes, sent_bytes, peer_received_bytes,
        peer_sent_bytes, session_seconds
    FROM cells.statements
    UNION ALL
    SELECT cell, realm, period, user_key, 1, received_bytes, sent_bytes, peer_received_bytes,
        peer_sent_bytes, session_seconds
    FROM cells.adjustments WHERE author = 'turn-accounting'
    UNION ALL
    SELECT n.cell, r.realm, s.period, s.user_key, -1, s.received_bytes, s.sent_bytes,
        s.peer_received_bytes, s.peer_sent_bytes, s.session_microseconds * 0.000001
    FROM accounting.statement_parts s
    JOIN accounting.cells n USING (database_id)
    JOIN accounting.realms r USING (realm_id)
    UNION ALL
    SELECT n.cell, r.realm, a.period, a.user_key, -1, a.received_bytes, a.sent_bytes,
        a.peer_received_bytes, a.peer_sent_bytes, a.session_microseconds * 0.000001
    FROM accounting.adjustments a
    JOIN accounting.cells n USING (database_id)
    JOIN accounting.realms r USING (realm_id)
    WHERE NOT a.manual
)
SELECT realm, period, user_key, '' AS "column",
    concat_ws(' ', sum(received_bytes) FILTER (WHERE sign = -1),
        sum(sent_bytes) FILTER (WHERE sign = -1),
        sum(peer_received_bytes) FILTER (WHERE sign = -1),
        sum(peer_sent_bytes) FILTER (WHERE sign = -1),
        trim_scale(sum(session_seconds) FILTER (WHERE sign = -1))) AS booked,
    concat_ws(' ', sum(received_bytes) FILTER (WHERE sign = 1),
        sum(sent_bytes) FILTER (WHERE sign = 1),
        sum(peer_received_bytes) FILTER (WHERE sign = 1),
        sum(peer_sent_bytes) FILTER (WHERE sign = 1),
        trim_scale(sum(session_seconds) FILTER (WHERE sign = 1))) AS recomputed,
    'differs' AS kind
FROM billed JOIN closed USING (cell, realm, period)
WHERE (CAST(:realm AS text) IS NULL OR realm = :realm)
    AND (CAST(:period AS date) IS NULL OR period = :period)
GROUP BY cell, realm, period, user_key
HAVING (sum(sign * received_bytes), sum(sign * sent_bytes), sum(sign * peer_received_bytes),
    sum(sign * peer_sent_bytes), sum(sign * session_seconds)) IS DISTINCT FROM (0, 0, 0, 0, 0)
ORDER BY realm, period, user_key;
