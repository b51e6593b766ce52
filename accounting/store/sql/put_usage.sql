-- Adds the staged hours to the sessions' hours; flags and active spans replace what stood there.
INSERT INTO accounting.session_usage AS h (
    session_id, starts_at, user_key, realm_id, vouched, estimated, started, ended,
    active_from, active_to,
    received_packets, received_bytes, sent_packets, sent_bytes,
    peer_received_packets, peer_received_bytes, peer_sent_packets, peer_sent_bytes
)
SELECT
    session_id, starts_at, user_key, realm_id, vouched, estimated, started, ended,
    active_from, active_to,
    received_packets, received_bytes, sent_packets, sent_bytes,
    peer_received_packets, peer_received_bytes, peer_sent_packets, peer_sent_bytes
FROM staged_usage
ON CONFLICT (session_id, starts_at, user_key) DO UPDATE SET
    vouched = excluded.vouched,
    estimated = excluded.estimated,
    started = excluded.started,
    ended = excluded.ended,
    active_from = excluded.active_from,
    active_to = excluded.active_to,
    received_packets = h.received_packets + excluded.received_packets,
    received_bytes = h.received_bytes + excluded.received_bytes,
    sent_packets = h.sent_packets + excluded.sent_packets,
    sent_bytes = h.sent_bytes + excluded.sent_bytes,
    peer_received_packets = h.peer_received_packets + excluded.peer_received_packets,
    peer_received_bytes = h.peer_received_bytes + excluded.peer_received_bytes,
    peer_sent_packets = h.peer_sent_packets + excluded.peer_sent_packets,
    peer_sent_bytes = h.peer_sent_bytes + excluded.peer_sent_bytes
