-- Sets the peaks of the days of realms that the staged hours lie in: the highest of their hours.
UPDATE accounting.realm_usage_daily u SET peak_sessions = p.peak_sessions
FROM (
    SELECT t.realm_id, t.starts_at, (
        SELECT max(h.peak_sessions) FROM accounting.realm_usage_hourly h
        WHERE h.realm_id = t.realm_id AND h.starts_at >= t.starts_at AND h.starts_at < t.ends_at
    ) AS peak_sessions
    FROM (
        SELECT DISTINCT realm_id, day_starts_at AS starts_at, day_ends_at AS ends_at
        FROM staged_hours
    ) t
) p
WHERE u.realm_id = p.realm_id AND u.starts_at = p.starts_at
    AND u.peak_sessions <> p.peak_sessions
