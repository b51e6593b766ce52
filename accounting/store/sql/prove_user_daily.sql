-- Users' days: the sums of their hours within each.
INSERT INTO proof_user_usage_daily (
    user_key, starts_at, realm_id,
    received_packets, received_bytes, sent_packets, sent_bytes,
    peer_received_packets, peer_received_bytes, peer_sent_packets, peer_sent_bytes,
    sessions_started, sessions_ended, session_microseconds, estimated_bytes
)
SELECT u.user_key, h.day_starts_at, u.realm_id,
    sum(u.received_packets), sum(u.received_bytes), sum(u.sent_packets), sum(u.sent_bytes),
    sum(u.peer_received_packets), sum(u.peer_received_bytes), sum(u.peer_sent_packets), sum(u.peer_sent_bytes),
    sum(u.sessions_started), sum(u.sessions_ended), sum(u.session_microseconds), sum(u.estimated_bytes)
FROM proof_user_usage_hourly u
JOIN proof_hours h USING (realm_id, starts_at)
GROUP BY u.user_key, h.day_starts_at, u.realm_id
