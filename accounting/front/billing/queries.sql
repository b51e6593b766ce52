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
