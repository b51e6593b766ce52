-- A scratch table for the hours that one roll-up folds into their days and months.
CREATE TEMP TABLE IF NOT EXISTS staged_folds (
    realm_id integer, starts_at timestamptz, day_starts_at timestamptz, month_starts_at timestamptz
) ON COMMIT DELETE ROWS
