-- Replaces the touched days of users by the sums of their hours.
INSERT INTO accounting.user_usage_daily (
    user_key, starts_at, realm_id, received_packets,
    received_bytes, sent_packets, sent_bytes, peer_received_packets,
    peer_received_bytes, peer_sent_packets, peer_sent_bytes, sessions_started,
    sessions_ended, session_microseconds, estimated_bytes
)
SELECT u.user_key, t.starts_at, u.realm_id,
    sum(u.received_packets), sum(u.received_bytes), sum(u.sent_packets), sum(u.sent_bytes),
    sum(u.peer_received_packets), sum(u.peer_received_bytes), sum(u.peer_sent_packets), sum(u.peer_sent_bytes),
    sum(u.sessions_started), sum(u.sessions_ended), sum(u.session_microseconds), sum(u.estimated_bytes)
FROM (
    SELECT DISTINCT t.realm_id, t.user_key,
        h.day_starts_at AS starts_at, h.day_ends_at AS ends_at
    FROM staged_touched t JOIN staged_hours h USING (realm_id, starts_at)
) t
JOIN accounting.user_usage_hourly u
    ON u.user_key = t.user_key AND u.starts_at >= t.starts_at AND u.starts_at < t.ends_at
GROUP BY u.user_key, t.starts_at, u.realm_id
ON CONFLICT (user_key, starts_at) DO UPDATE SET
    received_packets = excluded.received_packets, received_bytes = excluded.received_bytes,
    sent_packets = excluded.sent_packets, sent_bytes = excluded.sent_bytes,
    peer_received_packets = excluded.peer_received_packets, peer_received_bytes = excluded.peer_received_bytes,
    peer_sent_packets = excluded.peer_sent_packets, peer_sent_bytes = excluded.peer_sent_bytes,
    sessions_started = excluded.sessions_started, sessions_ended = excluded.sessions_ended,
    session_microseconds = excluded.session_microseconds, estimated_bytes = excluded.estimated_bytes
