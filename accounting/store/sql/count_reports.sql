-- Sources of which fewer reports are kept than were loaded.
SELECT s.source, t.total AS loaded, coalesce(r.kept, 0) AS kept
FROM accounting.tallies t
JOIN accounting.sources s USING (source_id)
LEFT JOIN (
    SELECT source_id, count(*) AS kept FROM accounting.reports GROUP BY source_id
) r USING (source_id)
WHERE t.counted = 'loaded' AND coalesce(r.kept, 0) < t.total
ORDER BY s.source
