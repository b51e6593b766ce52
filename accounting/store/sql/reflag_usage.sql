-- Carries what a session is (vouched for, estimated) to all its hours, and marks them touched.
WITH changed AS (
    UPDATE accounting.session_usage h
    SET vouched = e.vouched, estimated = e.estimated
    FROM accounting.sessions e
    WHERE h.session_id = :session_id AND e.session_id = h.session_id AND e.user_key = h.user_key
        AND (h.vouched, h.estimated) IS DISTINCT FROM (e.vouched, e.estimated)
    RETURNING h.realm_id, h.user_key, h.starts_at
)
INSERT INTO accounting.touched_hours (realm_id, user_key, starts_at)
SELECT realm_id, user_key, starts_at FROM changed
