-- The periods that wait for nothing, the oldest first.
SELECT p.realm_id, p.period
FROM accounting.periods p
WHERE p.closed_at IS NULL AND accounting.period_waits(p.realm_id, p.period) IS NULL
ORDER BY p.starts_at, p.realm_id
