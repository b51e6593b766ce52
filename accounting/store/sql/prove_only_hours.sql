-- Lets the staged sessions that have one hour stand without a row of it, as settling does.
WITH single AS (
    SELECT session_id, user_key, min(starts_at) AS starts_at FROM proof_session_usage
    GROUP BY session_id, user_key HAVING count(*) = 1 AND bool_and(started)
),
told AS (
    UPDATE proof_sessions s SET only_hour = h.starts_at FROM single h
    WHERE s.session_id = h.session_id AND s.user_key = h.user_key
)
DELETE FROM proof_session_usage u USING single h
WHERE u.session_id = h.session_id AND u.user_key = h.user_key
