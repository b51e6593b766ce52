-- Realms' hours: the sums over the sessions themselves. The peak: at each begin of a session within
-- the hour, how many had begun and not ended; half-open, and a live one lasts to the hour's end.
WITH spans AS (
    SELECT u.realm_id, u.starts_at, u.active_from, h.ends_at,
        CASE WHEN u.ended THEN u.active_to ELSE h.ends_at END AS active_to
    FROM proof_session_usage u
    JOIN proof_hours h USING (realm_id, starts_at)
    WHERE u.vouched AND (u.active_to > u.active_from OR (u.started AND NOT u.ended))
), begins AS (
    SELECT realm_id, starts_at, active_from AS at, count(*) AS begun FROM spans
    WHERE active_to > active_from GROUP BY realm_id, starts_at, active_from
), ends AS (
    SELECT realm_id, starts_at, active_to AS at, count(*) AS ended FROM spans
    WHERE active_to > active_from AND active_to < ends_at
    GROUP BY realm_id, starts_at, active_to
), moments AS (
    SELECT realm_id, starts_at, at, sum(coalesce(begun, 0) - coalesce(ended, 0)) OVER (
        PARTITION BY realm_id, starts_at ORDER BY at
    ) AS alive
    FROM begins FULL JOIN ends USING (realm_id, starts_at, at)
), peaks AS (
    SELECT realm_id, starts_at, max(alive) AS peak_sessions FROM moments GROUP BY realm_id, starts_at
)
INSERT INTO proof_realm_usage_hourly (
    realm_id, starts_at,
    received_packets, received_bytes, sent_packets, sent_bytes,
    peer_received_packets, peer_received_bytes, peer_sent_packets, peer_sent_bytes,
    sessions_started, sessions_ended, session_microseconds, estimated_bytes, peak_sessions
)
SELECT u.realm_id, u.starts_at,
    sum(u.received_packets), sum(u.received_bytes), sum(u.sent_packets), sum(u.sent_bytes),
    sum(u.peer_received_packets), sum(u.peer_received_bytes), sum(u.peer_sent_packets), sum(u.peer_sent_bytes),
    count(*) FILTER (WHERE u.started), count(*) FILTER (WHERE u.ended),
    sum(round(extract(epoch FROM u.active_to - u.active_from) * 1000000)),
    coalesce(sum(u.received_bytes + u.sent_bytes) FILTER (WHERE u.estimated), 0),
    coalesce(max(p.peak_sessions), 0)
FROM proof_session_usage u
LEFT JOIN peaks p USING (realm_id, starts_at)
WHERE u.vouched
GROUP BY u.realm_id, u.starts_at
