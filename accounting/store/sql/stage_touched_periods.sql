-- A scratch table for the marks of closed periods that one run of adjusting takes.
CREATE TEMP TABLE IF NOT EXISTS staged_touched_periods (
    realm_id integer, period date, user_key uuid
) ON COMMIT DELETE ROWS
