-- name: first_usage
-- Where the usage of each realm begins, along the key of its hours.
SELECT r.realm_id, h.starts_at
FROM accounting.realms r
CROSS JOIN LATERAL (
    SELECT starts_at FROM accounting.realm_usage_hourly
    WHERE realm_id = r.realm_id ORDER BY starts_at LIMIT 1
) h;

-- name: passed_sources
-- The sources that a period closes without, though they were behind its end and grace: those that
-- are retired, and those that it was told not to wait for.
SELECT s.source
FROM accounting.sources s
LEFT JOIN accounting.settle_watermarks t USING (source_id)
JOIN accounting.periods p ON p.realm_id = :realm_id AND p.period = :period
WHERE (s.retired_at IS NOT NULL OR s.source = ANY (CAST(:without AS text[])))
    AND (least(s.captured_until, t.settled_until) > p.due_at) IS NOT TRUE
ORDER BY s.source;

-- name: post_adjustments
-- Posts what the staged users' hours in closed periods hold more, or less, than their statement and
-- the usage adjustments so far. Nothing where nothing differs: run twice, it is posted once.
INSERT INTO accounting.adjustments (
    adjustment_id, user_key, realm_id, period, posted_in,
    received_packets, received_bytes, sent_packets, sent_bytes,
    peer_received_packets, peer_received_bytes, peer_sent_packets, peer_sent_bytes,
    session_microseconds,
    reason, author, manual
)
SELECT gen_random_uuid(), m.user_key, m.realm_id, m.period, o.period,
    h.received_packets - coalesce(l.received_packets, 0) - a.received_packets,
    h.received_bytes - coalesce(l.received_bytes, 0) - a.received_bytes,
    h.sent_packets - coalesce(l.sent_packets, 0) - a.sent_packets,
    h.sent_bytes - coalesce(l.sent_bytes, 0) - a.sent_bytes,
    h.peer_received_packets - coalesce(l.peer_received_packets, 0) - a.peer_received_packets,
    h.peer_received_bytes - coalesce(l.peer_received_bytes, 0) - a.peer_received_bytes,
    h.peer_sent_packets - coalesce(l.peer_sent_packets, 0) - a.peer_sent_packets,
    h.peer_sent_bytes - coalesce(l.peer_sent_bytes, 0) - a.peer_sent_bytes,
    h.session_microseconds - coalesce(l.session_microseconds, 0) - a.session_microseconds,
    'late usage', 'turn-accounting', false
FROM staged_touched_periods m
JOIN accounting.periods p ON p.realm_id = m.realm_id AND p.period = m.period
CROSS JOIN LATERAL (
    SELECT b.period FROM accounting.periods b
    WHERE b.realm_id = p.realm_id AND b.starts_at > p.starts_at AND b.closed_at IS NULL
    ORDER BY b.starts_at LIMIT 1
) o
CROSS JOIN LATERAL (
    SELECT coalesce(sum(received_packets), 0) AS received_packets, coalesce(sum(received_bytes), 0) AS received_bytes,
        coalesce(sum(sent_packets), 0) AS sent_packets, coalesce(sum(sent_bytes), 0) AS sent_bytes,
        coalesce(sum(peer_received_packets), 0) AS peer_received_packets, coalesce(sum(peer_received_bytes), 0) AS peer_received_bytes,
        coalesce(sum(peer_sent_packets), 0) AS peer_sent_packets, coalesce(sum(peer_sent_bytes), 0) AS peer_sent_bytes,
        coalesce(sum(session_microseconds), 0) AS session_microseconds
    FROM accounting.user_usage_hourly
    WHERE user_key = m.user_key AND starts_at >= p.starts_at AND starts_at < p.ends_at
) h
LEFT JOIN accounting.statements l
    ON l.user_key = m.user_key AND l.realm_id = m.realm_id AND l.period = m.period
CROSS JOIN LATERAL (
    SELECT coalesce(sum(received_packets), 0) AS received_packets, coalesce(sum(received_bytes), 0) AS received_bytes,
        coalesce(sum(sent_packets), 0) AS sent_packets, coalesce(sum(sent_bytes), 0) AS sent_bytes,
        coalesce(sum(peer_received_packets), 0) AS peer_received_packets, coalesce(sum(peer_received_bytes), 0) AS peer_received_bytes,
        coalesce(sum(peer_sent_packets), 0) AS peer_sent_packets, coalesce(sum(peer_sent_bytes), 0) AS peer_sent_bytes,
        coalesce(sum(session_microseconds), 0) AS session_microseconds
    FROM accounting.adjustments
    WHERE realm_id = m.realm_id AND period = m.period AND user_key = m.user_key AND NOT manual
) a
WHERE (h.received_packets, h.received_bytes, h.sent_packets, h.sent_bytes, h.peer_received_packets,
    h.peer_received_bytes, h.peer_sent_packets, h.peer_sent_bytes, h.session_microseconds) IS DISTINCT FROM (
    coalesce(l.received_packets, 0) + a.received_packets, coalesce(l.received_bytes, 0) + a.received_bytes,
    coalesce(l.sent_packets, 0) + a.sent_packets, coalesce(l.sent_bytes, 0) + a.sent_bytes,
    coalesce(l.peer_received_packets, 0) + a.peer_received_packets, coalesce(l.peer_received_bytes, 0) + a.peer_received_bytes,
    coalesce(l.peer_sent_packets, 0) + a.peer_sent_packets, coalesce(l.peer_sent_bytes, 0) + a.peer_sent_bytes,
    coalesce(l.session_microseconds, 0) + a.session_microseconds)
RETURNING adjustment_id;

-- name: ready_periods
-- The periods that wait for nothing, the oldest first.
SELECT p.realm_id, p.period
FROM accounting.periods p
WHERE p.closed_at IS NULL AND accounting.period_waits(p.realm_id, p.period) IS NULL
ORDER BY p.starts_at, p.realm_id;

-- name: stage_touched_periods
-- A scratch table for the marks of closed periods that one run of adjusting takes.
CREATE TEMP TABLE IF NOT EXISTS staged_touched_periods (
    realm_id integer, period date, user_key uuid
) ON COMMIT DELETE ROWS;

-- name: take_touched_periods
-- Takes marks of touched closed periods: at most :limit of them, removed here and staged once each.
WITH taken AS (
    DELETE FROM accounting.periods_to_adjust
    WHERE ctid = ANY (ARRAY(SELECT ctid FROM accounting.periods_to_adjust LIMIT :limit))
    RETURNING realm_id, period, user_key
)
INSERT INTO staged_touched_periods SELECT DISTINCT realm_id, period, user_key FROM taken;

-- name: write_statements
-- Writes the lines of a closing period: the sums of its hours, each with the digest over realm,
-- period, user_key, all numbers and the cutoff, as model.statements.digest() computes it.
INSERT INTO accounting.statements (
    user_key, realm_id, period,
    received_packets, received_bytes, sent_packets, sent_bytes,
    peer_received_packets, peer_received_bytes, peer_sent_packets, peer_sent_bytes,
    sessions_started, sessions_ended, session_microseconds, estimated_bytes, digest
)
SELECT u.user_key, u.realm_id, u.period,
    u.received_packets, u.received_bytes, u.sent_packets, u.sent_bytes,
    u.peer_received_packets, u.peer_received_bytes, u.peer_sent_packets, u.peer_sent_bytes,
    u.sessions_started, u.sessions_ended, u.session_microseconds, u.estimated_bytes,
    encode(sha256(convert_to(concat_ws(chr(10), to_char(u.period, 'YYYY-MM-DD'), u.user_key,
        u.received_packets, u.received_bytes, u.sent_packets, u.sent_bytes,
        u.peer_received_packets, u.peer_received_bytes, u.peer_sent_packets, u.peer_sent_bytes,
        u.sessions_started, u.sessions_ended, u.session_microseconds, u.estimated_bytes,
        CAST(:cutoff AS text), r.realm), 'UTF8')), 'hex')
FROM (
    SELECT h.user_key, p.realm_id, p.period,
        sum(h.received_packets)::bigint AS received_packets, sum(h.received_bytes)::bigint AS received_bytes,
        sum(h.sent_packets)::bigint AS sent_packets, sum(h.sent_bytes)::bigint AS sent_bytes,
        sum(h.peer_received_packets)::bigint AS peer_received_packets, sum(h.peer_received_bytes)::bigint AS peer_received_bytes,
        sum(h.peer_sent_packets)::bigint AS peer_sent_packets, sum(h.peer_sent_bytes)::bigint AS peer_sent_bytes,
        sum(h.sessions_started)::bigint AS sessions_started, sum(h.sessions_ended)::bigint AS sessions_ended,
        round(sum(h.session_microseconds)) AS session_microseconds, sum(h.estimated_bytes)::bigint AS estimated_bytes
    FROM accounting.periods p
    JOIN accounting.user_usage_hourly h
        ON h.realm_id = p.realm_id AND h.starts_at >= p.starts_at AND h.starts_at < p.ends_at
    WHERE p.realm_id = :realm_id AND p.period = :period
    GROUP BY h.user_key, p.realm_id, p.period
) u
JOIN accounting.realms r USING (realm_id);
