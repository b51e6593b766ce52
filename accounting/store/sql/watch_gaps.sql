-- Gaps so far, by source and cause.
SELECT s.source, g.cause, count(*) AS gaps
FROM accounting.capture_gaps g
JOIN accounting.sources s USING (source_id)
GROUP BY s.source, g.cause
ORDER BY s.source, g.cause
