-- Takes marks of touched hours: at most :limit of them, removed here and staged once each.
WITH taken AS (
    DELETE FROM accounting.touched_hours
    WHERE ctid = ANY (ARRAY(SELECT ctid FROM accounting.touched_hours LIMIT :limit))
    RETURNING realm_id, user_key, starts_at
)
INSERT INTO staged_touched SELECT DISTINCT realm_id, user_key, starts_at FROM taken
