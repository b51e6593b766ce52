-- Marks the closed periods, by user, of the hours that one roll-up changed.
INSERT INTO accounting.touched_periods (realm_id, period, user_key)
SELECT DISTINCT p.realm_id, p.period, t.user_key
FROM staged_touched t
JOIN accounting.periods p
    ON p.realm_id = t.realm_id AND t.starts_at >= p.starts_at AND t.starts_at < p.ends_at
WHERE p.closed_at IS NOT NULL
