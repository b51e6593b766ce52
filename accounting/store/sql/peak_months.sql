-- Sets the peaks of the months of realms that the staged hours lie in: the highest of their days.
UPDATE accounting.realm_usage_monthly u SET peak_sessions = p.peak_sessions
FROM (
    SELECT t.realm_id, t.starts_at, (
        SELECT max(h.peak_sessions) FROM accounting.realm_usage_daily h
        WHERE h.realm_id = t.realm_id AND h.starts_at >= t.starts_at AND h.starts_at < t.ends_at
    ) AS peak_sessions
    FROM (
        SELECT DISTINCT realm_id, month_starts_at AS starts_at, month_ends_at AS ends_at
        FROM staged_hours
    ) t
) p
WHERE u.realm_id = p.realm_id AND u.starts_at = p.starts_at
    AND u.peak_sessions <> p.peak_sessions
