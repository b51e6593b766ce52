-- Moves the hours of limbo lives to the lives that took them over, adding where both have one.
WITH moved AS (
    DELETE FROM accounting.session_usage h USING staged_absorbed a
    WHERE h.session_id = a.absorbed_id
    RETURNING a.session_id, h.starts_at, a.user_key, h.realm_id, h.active_from, h.active_to,
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
    session_id, starts_at, user_key, realm_id, true, false, false, false, active_from, active_to,
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
RETURNING realm_id, user_key, starts_at
)
INSERT INTO accounting.touched_hours (realm_id, user_key, starts_at)
SELECT realm_id, user_key, starts_at FROM placed
