-- Where the usage of each realm begins, along the key of its hours.
SELECT r.realm_id, h.starts_at
FROM accounting.realms r
CROSS JOIN LATERAL (
    SELECT starts_at FROM accounting.realm_usage_hourly
    WHERE realm_id = r.realm_id ORDER BY starts_at LIMIT 1
) h
