-- Replaces the touched hours of users by the sums of their sessions' hours.
INSERT INTO accounting.user_usage_hourly (
    user_key, starts_at, realm_id, received_packets,
    received_bytes, sent_packets, sent_bytes, peer_received_packets,
    peer_received_bytes, peer_sent_packets, peer_sent_bytes, sessions_started,
    sessions_ended, session_microseconds, estimated_bytes
)
SELECT h.user_key, h.starts_at, h.realm_id,
    sum(h.received_packets), sum(h.received_bytes), sum(h.sent_packets), sum(h.sent_bytes),
    sum(h.peer_received_packets), sum(h.peer_received_bytes), sum(h.peer_sent_packets), sum(h.peer_sent_bytes),
    count(*) FILTER (WHERE h.started), count(*) FILTER (WHERE h.ended),
    sum(round(extract(epoch FROM h.active_to - h.active_from) * 1000000)),
    coalesce(sum(h.received_bytes + h.sent_bytes) FILTER (WHERE h.estimated), 0)
FROM staged_touched t
JOIN accounting.session_usage h
    ON h.user_key = t.user_key AND h.starts_at = t.starts_at AND h.realm_id = t.realm_id
WHERE h.vouched
GROUP BY h.user_key, h.starts_at, h.realm_id
ON CONFLICT (user_key, starts_at) DO UPDATE SET
    received_packets = excluded.received_packets, received_bytes = excluded.received_bytes,
    sent_packets = excluded.sent_packets, sent_bytes = excluded.sent_bytes,
    peer_received_packets = excluded.peer_received_packets, peer_received_bytes = excluded.peer_received_bytes,
    peer_sent_packets = excluded.peer_sent_packets, peer_sent_bytes = excluded.peer_sent_bytes,
    sessions_started = excluded.sessions_started, sessions_ended = excluded.sessions_ended,
    session_microseconds = excluded.session_microseconds, estimated_bytes = excluded.estimated_bytes
