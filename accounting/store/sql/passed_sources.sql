-- The sources that a period closes without, though they were behind its end and grace: those that
-- are retired, and those that it was told not to wait for.
SELECT s.source
FROM accounting.sources s
LEFT JOIN accounting.settling t USING (source_id)
JOIN accounting.periods p ON p.realm_id = :realm_id AND p.period = :period
WHERE (s.retired_at IS NOT NULL OR s.source = ANY (CAST(:without AS text[])))
    AND (least(s.captured_until, t.until) > p.due_at) IS NOT TRUE
ORDER BY s.source
