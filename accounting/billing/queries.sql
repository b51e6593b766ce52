-- name: first_usage
-- The first hour with usage of each realm, read from the start of the table's key.
SELECT r.realm_id, h.starts_at
FROM accounting.realms r
CROSS JOIN LATERAL (
    SELECT starts_at FROM accounting.realm_usage_hourly
    WHERE realm_id = r.realm_id ORDER BY starts_at LIMIT 1
) h;

-- name: ready_periods
-- The periods that wait for nothing, the oldest first.
SELECT p.realm_id, p.period
FROM accounting.periods p
WHERE p.closed_at IS NULL AND accounting.period_waits(p.realm_id, p.period) IS NULL
ORDER BY p.starts_at, p.realm_id;

-- name: sources_behind
-- The sources that a period closes without: retired or excluded, and not settled beyond its due
-- time.
SELECT s.source
FROM accounting.sources s
LEFT JOIN accounting.settle_watermarks t USING (source_id)
JOIN accounting.periods p ON p.realm_id = :realm_id AND p.period = :period
WHERE (s.retired_at IS NOT NULL OR s.source = ANY (CAST(:excluded AS text[])))
    AND (least(s.captured_until, t.settled_until) > p.due_at) IS NOT TRUE
ORDER BY s.source;

-- name: write_statement
-- Writes the statement of a period that is about to close: its lines as they are now, each with the
-- digest that domain.statements.line_digest() computes too.
INSERT INTO accounting.statements (
    user_key, realm_id, period,
    received_packets, received_bytes, sent_packets, sent_bytes,
    peer_received_packets, peer_received_bytes, peer_sent_packets, peer_sent_bytes,
    sessions_started, sessions_ended, session_microseconds, estimated_bytes, digest
)
SELECT user_key, realm_id, period,
    received_packets, received_bytes, sent_packets, sent_bytes,
    peer_received_packets, peer_received_bytes, peer_sent_packets, peer_sent_bytes,
    sessions_started, sessions_ended, session_microseconds, estimated_bytes,
    encode(sha256(convert_to(concat_ws(chr(10), to_char(period, 'YYYY-MM-DD'), user_key,
        received_packets, received_bytes, sent_packets, sent_bytes,
        peer_received_packets, peer_received_bytes, peer_sent_packets, peer_sent_bytes,
        sessions_started, sessions_ended, session_microseconds, estimated_bytes,
        CAST(:cutoff AS text), realm), 'UTF8')), 'hex')
FROM accounting.open_period_lines
WHERE realm_id = :realm_id AND period = :period;

-- name: create_dequeued_periods
-- The temporary table that dequeue_periods fills; emptied when the transaction ends.
CREATE TEMP TABLE IF NOT EXISTS dequeued_periods (
    realm_id integer, period date, user_key uuid
) ON COMMIT DELETE ROWS;

-- name: dequeue_periods
-- Moves at most :limit entries of periods_to_adjust to the temporary table, without duplicates.
WITH dequeued AS (
    DELETE FROM accounting.periods_to_adjust
    WHERE ctid = ANY (ARRAY(SELECT ctid FROM accounting.periods_to_adjust LIMIT :limit))
    RETURNING realm_id, period, user_key
)
INSERT INTO dequeued_periods SELECT DISTINCT realm_id, period, user_key FROM dequeued;

-- name: post_late_usage
-- Posts the late usage of the dequeued periods: a user's hours minus the statement line and the late
-- usage posted so far, in the first open period afterwards. Where both are equal it posts nothing.
-- The id is a function of what was billed before and of the figures, so that it is the same when they
-- are posted again after a restore. The count keeps apart a difference that came, went and came again.
WITH late AS (
    SELECT d.realm_id, d.period, d.user_key,
        sum(u.sign * u.received_packets) AS received_packets,
        sum(u.sign * u.received_bytes) AS received_bytes,
        sum(u.sign * u.sent_packets) AS sent_packets,
        sum(u.sign * u.sent_bytes) AS sent_bytes,
        sum(u.sign * u.peer_received_packets) AS peer_received_packets,
        sum(u.sign * u.peer_received_bytes) AS peer_received_bytes,
        sum(u.sign * u.peer_sent_packets) AS peer_sent_packets,
        sum(u.sign * u.peer_sent_bytes) AS peer_sent_bytes,
        sum(u.sign * u.session_microseconds) AS session_microseconds,
        concat_ws(' ', count(u.posted),
            sum(u.received_packets) FILTER (WHERE u.sign < 0),
            sum(u.received_bytes) FILTER (WHERE u.sign < 0),
            sum(u.sent_packets) FILTER (WHERE u.sign < 0),
            sum(u.sent_bytes) FILTER (WHERE u.sign < 0),
            sum(u.peer_received_packets) FILTER (WHERE u.sign < 0),
            sum(u.peer_received_bytes) FILTER (WHERE u.sign < 0),
            sum(u.peer_sent_packets) FILTER (WHERE u.sign < 0),
            sum(u.peer_sent_bytes) FILTER (WHERE u.sign < 0),
            trim_scale(sum(u.session_microseconds) FILTER (WHERE u.sign < 0))) AS billed
    FROM dequeued_periods d
    JOIN accounting.periods p USING (realm_id, period)
    CROSS JOIN LATERAL (
        SELECT 1 AS sign, NULL::uuid AS posted, received_packets, received_bytes, sent_packets, sent_bytes,
            peer_received_packets, peer_received_bytes, peer_sent_packets, peer_sent_bytes,
            session_microseconds
        FROM accounting.user_usage_hourly
        WHERE user_key = d.user_key AND starts_at >= p.starts_at AND starts_at < p.ends_at
        UNION ALL
        SELECT -1, NULL, received_packets, received_bytes, sent_packets, sent_bytes,
            peer_received_packets, peer_received_bytes, peer_sent_packets, peer_sent_bytes,
            session_microseconds
        FROM accounting.statements
        WHERE user_key = d.user_key AND realm_id = d.realm_id AND period = d.period
        UNION ALL
        SELECT -1, adjustment_id, received_packets, received_bytes, sent_packets, sent_bytes,
            peer_received_packets, peer_received_bytes, peer_sent_packets, peer_sent_bytes,
            session_microseconds
        FROM accounting.adjustments
        WHERE realm_id = d.realm_id AND period = d.period AND user_key = d.user_key AND NOT manual
    ) u
    GROUP BY d.realm_id, d.period, d.user_key
)
INSERT INTO accounting.adjustments (
    adjustment_id, user_key, realm_id, period, posted_in,
    received_packets, received_bytes, sent_packets, sent_bytes,
    peer_received_packets, peer_received_bytes, peer_sent_packets, peer_sent_bytes,
    session_microseconds,
    reason, author, manual
)
SELECT accounting.event_id('late usage', concat_ws(chr(10),
        to_char(period, 'YYYY-MM-DD'), user_key, billed, concat_ws(' ',
            received_packets, received_bytes, sent_packets, sent_bytes,
            peer_received_packets, peer_received_bytes, peer_sent_packets, peer_sent_bytes,
            trim_scale(session_microseconds)), realm)),
    user_key, realm_id, period, (
        SELECT min(o.period)
        FROM accounting.periods c
        JOIN accounting.periods o ON o.realm_id = c.realm_id AND o.starts_at > c.starts_at
        WHERE c.realm_id = late.realm_id AND c.period = late.period AND o.closed_at IS NULL
    ),
    received_packets, received_bytes, sent_packets, sent_bytes,
    peer_received_packets, peer_received_bytes, peer_sent_packets, peer_sent_bytes,
    session_microseconds,
    'late usage', 'turn-accounting', false
FROM late JOIN accounting.realms USING (realm_id)
WHERE (received_packets, received_bytes, sent_packets, sent_bytes,
    peer_received_packets, peer_received_bytes, peer_sent_packets, peer_sent_bytes,
    session_microseconds) IS DISTINCT FROM (0, 0, 0, 0, 0, 0, 0, 0, 0)
RETURNING adjustment_id;

-- name: fetch_adjustments
-- Reads adjustments, and what was billed of their line before: its statement line and the late usage
-- posted earlier. Nothing of that for a manual adjustment, which is no usage.
SELECT a.*, b.*
FROM accounting.adjustments a
CROSS JOIN LATERAL (
    SELECT
        coalesce(sum(u.received_packets), 0) AS before_received_packets,
        coalesce(sum(u.received_bytes), 0) AS before_received_bytes,
        coalesce(sum(u.sent_packets), 0) AS before_sent_packets,
        coalesce(sum(u.sent_bytes), 0) AS before_sent_bytes,
        coalesce(sum(u.peer_received_packets), 0) AS before_peer_received_packets,
        coalesce(sum(u.peer_received_bytes), 0) AS before_peer_received_bytes,
        coalesce(sum(u.peer_sent_packets), 0) AS before_peer_sent_packets,
        coalesce(sum(u.peer_sent_bytes), 0) AS before_peer_sent_bytes,
        coalesce(sum(u.session_microseconds), 0) AS before_session_microseconds
    FROM (
        SELECT received_packets, received_bytes, sent_packets, sent_bytes,
            peer_received_packets, peer_received_bytes, peer_sent_packets, peer_sent_bytes,
            session_microseconds
        FROM accounting.statements
        WHERE user_key = a.user_key AND realm_id = a.realm_id AND period = a.period
        UNION ALL
        SELECT received_packets, received_bytes, sent_packets, sent_bytes,
            peer_received_packets, peer_received_bytes, peer_sent_packets, peer_sent_bytes,
            session_microseconds
        FROM accounting.adjustments
        WHERE realm_id = a.realm_id AND period = a.period AND user_key = a.user_key
            AND NOT manual AND (posted_at, adjustment_id) < (a.posted_at, a.adjustment_id)
    ) u
    WHERE NOT a.manual
) b
WHERE a.adjustment_id = ANY (CAST(:ids AS uuid[]))
ORDER BY a.posted_at, a.adjustment_id;

-- name: statement_figures
-- A hash of a statement's figures, line by line, without the cutoff that its digests contain.
SELECT encode(sha256(coalesce(string_agg(sha256(convert_to(concat_ws(' ',
    user_key, received_packets, received_bytes, sent_packets, sent_bytes,
    peer_received_packets, peer_received_bytes, peer_sent_packets, peer_sent_bytes,
    sessions_started, sessions_ended, trim_scale(session_microseconds), estimated_bytes
), 'UTF8')), '' ORDER BY user_key), '')), 'hex')
FROM accounting.statements WHERE realm_id = :realm_id AND period = :period;
