-- Users' hours as the recomputed sessions give them.
INSERT INTO proof_user_usage_hourly (
    user_key, starts_at, realm_id,
    received_packets, received_bytes, sent_packets, sent_bytes,
    peer_received_packets, peer_received_bytes, peer_sent_packets, peer_sent_bytes,
    sessions_started, sessions_ended, session_microseconds, estimated_bytes
)
SELECT user_key, starts_at, realm_id,
    sum(received_packets), sum(received_bytes), sum(sent_packets), sum(sent_bytes),
    sum(peer_received_packets), sum(peer_received_bytes), sum(peer_sent_packets), sum(peer_sent_bytes),
    count(*) FILTER (WHERE started), count(*) FILTER (WHERE ended),
    sum(round(extract(epoch FROM active_to - active_from) * 1000000)),
    coalesce(sum(received_bytes + sent_bytes) FILTER (WHERE estimated), 0)
FROM proof_session_usage
WHERE vouched
GROUP BY user_key, starts_at, realm_id
