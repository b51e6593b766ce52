-- Gives users whose first usage in an hour is staged a day and a month for it, empty as long as the hour
-- is not folded into them: what shows them adds it. Before their hours are written.
WITH fresh AS (
    SELECT DISTINCT t.user_key, t.realm_id, h.day_starts_at, h.month_starts_at
    FROM staged_touched t JOIN staged_hours h USING (realm_id, starts_at)
    WHERE NOT h.is_folded AND NOT EXISTS (
        SELECT FROM accounting.user_usage_hourly u
        WHERE u.user_key = t.user_key AND u.starts_at = t.starts_at
    )
),
days AS (
    INSERT INTO accounting.user_usage_daily (
        user_key, starts_at, realm_id,
        received_packets, received_bytes, sent_packets, sent_bytes, peer_received_packets,
        peer_received_bytes, peer_sent_packets, peer_sent_bytes, sessions_started, sessions_ended,
        session_microseconds, estimated_bytes
    )
    SELECT DISTINCT user_key, day_starts_at, realm_id, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0
    FROM fresh ORDER BY user_key
    ON CONFLICT DO NOTHING
)
INSERT INTO accounting.user_usage_monthly (
    user_key, starts_at, realm_id,
    received_packets, received_bytes, sent_packets, sent_bytes, peer_received_packets,
    peer_received_bytes, peer_sent_packets, peer_sent_bytes, sessions_started, sessions_ended,
    session_microseconds, estimated_bytes
)
SELECT DISTINCT user_key, month_starts_at, realm_id, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0
FROM fresh ORDER BY user_key
ON CONFLICT DO NOTHING
