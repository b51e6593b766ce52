-- Tells the feed of the staged lives that ended, or whose end or sums are others than were told.
-- Before they are written: the stored row is what was told last.
-- OFFSET 0: each life goes to its stored row by the key, also where statistics, made before the first
-- end, have the planner believe that there is no end to be joined.
WITH ended AS (
    SELECT s.ctid AS place, coalesce(e.ends, 0) + 1 AS number
    FROM staged_sessions s LEFT JOIN LATERAL (
        SELECT * FROM accounting.sessions e WHERE e.session_id = s.session_id OFFSET 0
    ) e ON e.user_key = s.user_key
    WHERE s.ended_at IS NOT NULL AND s.vouched AND (
        e.ends > 0 AND e.vouched AND (
            e.ended_at, e.end_cause, e.client_totals > 0, e.estimated, e.disputed,
            e.received_packets, e.received_bytes, e.sent_packets, e.sent_bytes,
            e.peer_received_packets, e.peer_received_bytes, e.peer_sent_packets, e.peer_sent_bytes
        ) IS NOT DISTINCT FROM (
            s.ended_at, s.end_cause, s.client_totals > 0, s.estimated, s.disputed,
            s.received_packets, s.received_bytes, s.sent_packets, s.sent_bytes,
            s.peer_received_packets, s.peer_received_bytes, s.peer_sent_packets, s.peer_sent_bytes
        )
    ) IS NOT TRUE
),
told AS (
    UPDATE staged_sessions s SET ends = e.number FROM ended e WHERE s.ctid = e.place
    RETURNING s.*
)
INSERT INTO accounting.feed_outbox (
    event_id, type, realm_id,
    allocation_id, started_at, ended_at, received_packets, received_bytes, sent_packets,
    sent_bytes, peer_received_packets, peer_received_bytes, peer_sent_packets, peer_sent_bytes,
    session_id, user_key, number, database, source_id, start_known, total_reported, estimated,
    disputed, end_cause
)
SELECT
    accounting.event_id('session.ended', s.session_id || ' ' || s.ends), 'session.ended', s.realm_id,
    s.allocation_id, s.started_at, s.ended_at, s.received_packets, s.received_bytes,
    s.sent_packets, s.sent_bytes, s.peer_received_packets, s.peer_received_bytes,
    s.peer_sent_packets, s.peer_sent_bytes, s.session_id, s.user_key, s.ends, s.database,
    s.source_id, s.start_known, s.client_totals > 0, s.estimated, s.disputed, s.end_cause
FROM told s
ORDER BY s.ended_at, s.session_id
