-- Names the sessions of some realms that ended with the dropped reports, with the day they began.
CREATE TEMP TABLE sealed ON COMMIT DROP AS
SELECT s.session_id, s.user_key, s.realm_id, CAST(s.started_at AT TIME ZONE 'UTC' AS date) AS day
FROM accounting.dropped_positions z
JOIN accounting.sessions s ON s.source_id = z.source_id AND s.session_id <= z.last_session_id
WHERE s.realm_id = ANY (CAST(:realms AS integer[])) AND NOT EXISTS (
    SELECT FROM accounting.carried_lives c
    WHERE c.session_id = s.session_id AND c.user_key = s.user_key
)
