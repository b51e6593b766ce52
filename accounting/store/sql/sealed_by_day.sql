-- Names the staged lives, which end with the dropped reports, with the day (UTC) that they began.
CREATE TEMP TABLE sealed ON COMMIT DROP AS
SELECT session_id, user_key, realm_id, CAST(started_at AT TIME ZONE 'UTC' AS date) AS day
FROM proof_sessions
