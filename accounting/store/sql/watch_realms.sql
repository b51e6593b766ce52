-- Each realm's usage of the last day, how much of it is estimated or nobody's, and its live sessions.
-- Along indexes that hold the last day's hours, and the live sessions, alone.
WITH live AS (
    SELECT realm_id, count(*) AS sessions FROM accounting.sessions
    WHERE ended_at IS NULL AND standing = 1 AND vouched
    GROUP BY realm_id
)
SELECT
    r.realm, coalesce(live.sessions, 0) AS live_sessions,
    coalesce(u.used_bytes, 0)::bigint AS used_bytes,
    coalesce(u.estimated_bytes, 0)::bigint AS estimated_bytes,
    coalesce(n.unattributed_bytes, 0)::bigint AS unattributed_bytes
FROM accounting.realms r
LEFT JOIN live USING (realm_id)
CROSS JOIN LATERAL (
    SELECT sum(received_bytes + sent_bytes) AS used_bytes, sum(estimated_bytes) AS estimated_bytes
    FROM accounting.realm_usage_hourly h
    WHERE h.realm_id = r.realm_id AND h.starts_at > now() - interval '24 hours'
) u
CROSS JOIN LATERAL (
    SELECT sum(received_bytes + sent_bytes) AS unattributed_bytes
    FROM accounting.session_hours h
    WHERE h.realm_id = r.realm_id AND h.starts_at > now() - interval '24 hours' AND NOT h.vouched
) n
ORDER BY r.realm
