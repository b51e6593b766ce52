-- Sets the peaks of the staged hours of realms: the highest of their slices.
UPDATE accounting.realm_usage_hourly u SET peak_sessions = p.peak_sessions
FROM (
    SELECT realm_id, starts_at, max(before + top) AS peak_sessions
    FROM (
        SELECT h.realm_id, h.starts_at, s.top, sum(s.net) OVER (
            PARTITION BY h.realm_id, h.starts_at ORDER BY s.slice_at
        ) - s.net AS before
        FROM staged_hours h
        JOIN accounting.realm_slices s USING (realm_id, starts_at)
    ) c
    GROUP BY realm_id, starts_at
) p
WHERE u.realm_id = p.realm_id AND u.starts_at = p.starts_at
    AND u.peak_sessions <> p.peak_sessions
