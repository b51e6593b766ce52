-- Marks the hours that the staged usage touched, for the roll-up to replace.
INSERT INTO accounting.touched_hours (realm_id, user_key, starts_at)
SELECT DISTINCT realm_id, user_key, starts_at FROM staged_usage WHERE vouched
