-- Marks the closed periods, by user, of the hours that a rebuild of a realm is to change.
INSERT INTO accounting.touched_periods (realm_id, period, user_key)
SELECT DISTINCT p.realm_id, p.period, h.user_key
FROM (
    (SELECT * FROM accounting.user_usage_hourly WHERE realm_id = :realm_id
        EXCEPT SELECT * FROM proof_user_usage_hourly)
    UNION ALL
    (SELECT * FROM proof_user_usage_hourly
        EXCEPT SELECT * FROM accounting.user_usage_hourly WHERE realm_id = :realm_id)
) h
JOIN accounting.periods p
    ON p.realm_id = h.realm_id AND h.starts_at >= p.starts_at AND h.starts_at < p.ends_at
WHERE p.closed_at IS NOT NULL
