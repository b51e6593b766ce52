-- Adds to the touched hours of users what changed in them.
INSERT INTO accounting.user_usage_hourly AS u (
    user_key, starts_at, realm_id,
    received_packets, received_bytes, sent_packets, sent_bytes,
    peer_received_packets, peer_received_bytes, peer_sent_packets, peer_sent_bytes,
    sessions_started, sessions_ended, session_microseconds, estimated_bytes
)
SELECT user_key, starts_at, realm_id,
    received_packets, received_bytes, sent_packets, sent_bytes,
    peer_received_packets, peer_received_bytes, peer_sent_packets, peer_sent_bytes,
    sessions_started, sessions_ended, session_microseconds, estimated_bytes
FROM staged_touched
ON CONFLICT (user_key, starts_at) DO UPDATE SET
    received_packets = u.received_packets + excluded.received_packets, received_bytes = u.received_bytes + excluded.received_bytes,
    sent_packets = u.sent_packets + excluded.sent_packets, sent_bytes = u.sent_bytes + excluded.sent_bytes,
    peer_received_packets = u.peer_received_packets + excluded.peer_received_packets, peer_received_bytes = u.peer_received_bytes + excluded.peer_received_bytes,
    peer_sent_packets = u.peer_sent_packets + excluded.peer_sent_packets, peer_sent_bytes = u.peer_sent_bytes + excluded.peer_sent_bytes,
    sessions_started = u.sessions_started + excluded.sessions_started, sessions_ended = u.sessions_ended + excluded.sessions_ended,
    session_microseconds = u.session_microseconds + excluded.session_microseconds, estimated_bytes = u.estimated_bytes + excluded.estimated_bytes
