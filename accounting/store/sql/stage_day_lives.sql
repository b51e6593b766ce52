-- The sessions that the reports of a span speak of: those that began in it, and those carried into
-- it, each by its bounds of session_id.
CREATE TEMP TABLE day_lives ON COMMIT DROP AS
SELECT s.session_id, s.user_key
FROM unnest(
    CAST(:sources AS smallint[]), CAST(:upto AS uuid[])
) AS b (source_id, upto)
LEFT JOIN accounting.dropped_positions z USING (source_id)
JOIN accounting.sessions s ON s.source_id = b.source_id AND s.session_id <= b.upto
    AND s.session_id > coalesce(z.last_session_id, '00000000-0000-0000-0000-000000000000')
UNION
SELECT s.session_id, s.user_key
FROM accounting.carried_lives c
JOIN (
    SELECT DISTINCT source_id, database, username_key, allocation_id
    FROM accounting.reports
    WHERE received_at >= CAST(:since AS timestamptz) AND received_at < CAST(:until AS timestamptz)
) k USING (source_id, database, username_key, allocation_id)
JOIN accounting.sessions s ON s.session_id = c.session_id AND s.user_key = c.user_key
