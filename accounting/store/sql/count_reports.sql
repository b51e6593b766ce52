-- Sources of which fewer reports are kept than were loaded and not dropped.
SELECT s.source, t.total - coalesce(d.dropped, 0) AS loaded, coalesce(r.kept, 0) AS kept
FROM accounting.tallies t
JOIN accounting.sources s USING (source_id)
LEFT JOIN (
    SELECT source_id, count(*) AS kept FROM accounting.reports GROUP BY source_id
) r USING (source_id)
LEFT JOIN (
    SELECT source_id, sum(reports) AS dropped FROM accounting.dropped_reports GROUP BY source_id
) d USING (source_id)
WHERE t.counted = 'loaded' AND coalesce(r.kept, 0) < t.total - coalesce(d.dropped, 0)
ORDER BY s.source
