-- Takes marks of touched closed periods: at most :limit of them, removed here and staged once each.
WITH taken AS (
    DELETE FROM accounting.touched_periods
    WHERE ctid = ANY (ARRAY(SELECT ctid FROM accounting.touched_periods LIMIT :limit))
    RETURNING realm_id, period, user_key
)
INSERT INTO staged_touched_periods SELECT DISTINCT realm_id, period, user_key FROM taken
