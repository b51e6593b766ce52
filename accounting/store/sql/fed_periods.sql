-- The periods that the staged sessions fed, each with its last proof. period null: not drawn yet.
SELECT r.realm, p.period, p.closed_at IS NOT NULL AS is_closed, f.differences, f.checked_at,
    coalesce(f.checked_at > p.closed_at AND f.checked_at > now() - CAST(:holds AS interval), false)
        AS is_fresh
FROM (
    SELECT h.realm_id, min(h.starts_at) AS first, max(h.starts_at) AS last
    FROM day_lives d
    CROSS JOIN LATERAL (  -- OFFSET 0: along the keys, session by session
        SELECT * FROM accounting.session_hours h
        WHERE h.session_id = d.session_id AND h.user_key = d.user_key OFFSET 0
    ) h
    WHERE h.vouched GROUP BY h.realm_id
) fed
JOIN accounting.realms r USING (realm_id)
LEFT JOIN accounting.periods p
    ON p.realm_id = fed.realm_id AND p.ends_at > fed.first AND p.starts_at <= fed.last
LEFT JOIN accounting.proofs f ON f.realm_id = p.realm_id AND f.period = p.period
ORDER BY r.realm, p.period
