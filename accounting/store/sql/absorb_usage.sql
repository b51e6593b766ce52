-- Moves the hours of limbo lives to the lives that took them over, adding where both have one, and
-- marks what that adds. The life's own hours say when it was active.
WITH moved AS (
    DELETE FROM accounting.session_usage h USING staged_absorbed a
    WHERE h.session_id = a.absorbed_id
    RETURNING a.session_id, h.starts_at, a.user_key, h.realm_id,
    h.received_packets, h.received_bytes, h.sent_packets, h.sent_bytes,
        h.peer_received_packets, h.peer_received_bytes, h.peer_sent_packets, h.peer_sent_bytes
),
placed AS (
INSERT INTO accounting.session_usage AS h (
    session_id, starts_at, user_key, realm_id, vouched, estimated, started, ended,
    active_from, active_to,
    received_packets, received_bytes, sent_packets, sent_bytes,
    peer_received_packets, peer_received_bytes, peer_sent_packets, peer_sent_bytes
)
SELECT
    session_id, starts_at, user_key, realm_id, true, false, false, false, starts_at, starts_at,
    received_packets, received_bytes, sent_packets, sent_bytes,
    peer_received_packets, peer_received_bytes, peer_sent_packets, peer_sent_bytes
FROM moved
ON CONFLICT (session_id, starts_at, user_key) DO UPDATE SET
    received_packets = h.received_packets + excluded.received_packets,
    received_bytes = h.received_bytes + excluded.received_bytes,
    sent_packets = h.sent_packets + excluded.sent_packets,
    sent_bytes = h.sent_bytes + excluded.sent_bytes,
    peer_received_packets = h.peer_received_packets + excluded.peer_received_packets,
    peer_received_bytes = h.peer_received_bytes + excluded.peer_received_bytes,
    peer_sent_packets = h.peer_sent_packets + excluded.peer_sent_packets,
    peer_sent_bytes = h.peer_sent_bytes + excluded.peer_sent_bytes
RETURNING session_id, starts_at, user_key, estimated
)
INSERT INTO accounting.touched_hours (
    realm_id, user_key, starts_at,
    received_packets, received_bytes, sent_packets, sent_bytes,
    peer_received_packets, peer_received_bytes, peer_sent_packets, peer_sent_bytes,
    estimated_bytes
)
SELECT m.realm_id, m.user_key, m.starts_at,
    m.received_packets, m.received_bytes, m.sent_packets, m.sent_bytes,
    m.peer_received_packets, m.peer_received_bytes, m.peer_sent_packets, m.peer_sent_bytes,
    CASE WHEN p.estimated THEN m.received_bytes + m.sent_bytes ELSE 0 END
FROM moved m JOIN placed p USING (session_id, starts_at, user_key)
