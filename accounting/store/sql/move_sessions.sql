-- Moves the staged lives on, of which nothing else changed: a narrow update that touches no index.
UPDATE accounting.sessions e SET
    last_seen_at = m.last_seen_at, expires_at = m.expires_at, due_at = least(e.due_at, m.due_at),
    received_packets = m.received_packets, received_bytes = m.received_bytes,
    sent_packets = m.sent_packets, sent_bytes = m.sent_bytes,
    peer_received_packets = m.peer_received_packets, peer_received_bytes = m.peer_received_bytes,
    peer_sent_packets = m.peer_sent_packets, peer_sent_bytes = m.peer_sent_bytes
FROM staged_moves m
WHERE e.session_id = m.session_id AND e.user_key = m.user_key
