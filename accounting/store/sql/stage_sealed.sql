-- Stages the sealed sessions and their hours as they are booked: nothing is left to compute them from.
WITH of_sessions AS (
    INSERT INTO proof_sessions
    SELECT s.* FROM sealed l
    JOIN accounting.sessions s ON s.session_id = l.session_id AND s.user_key = l.user_key
),
of_periods AS (
    INSERT INTO proof_period_usage
    SELECT h.* FROM sealed l
    JOIN accounting.session_hours h ON h.session_id = l.session_id AND h.user_key = l.user_key
)
INSERT INTO proof_session_usage
SELECT h.* FROM sealed l
JOIN accounting.session_hours h ON h.session_id = l.session_id AND h.user_key = l.user_key
