-- The staged sessions that have not ended, by source. Interims after a session's end live as long as
-- they could be its own; those of a source that is retired, no longer.
SELECT o.source, count(*) AS sessions
FROM day_lives d
JOIN accounting.sessions s ON s.session_id = d.session_id AND s.user_key = d.user_key
JOIN accounting.sources o USING (source_id)
JOIN accounting.settling t USING (source_id)
WHERE s.ended_at IS NULL AND s.standing > 0 AND o.retired_at IS NULL
    AND NOT (s.standing = 2 AND s.expires_at < t.until)
GROUP BY o.source ORDER BY o.source
