-- A scratch table for the hours that one roll-up is about, with their days and months.
CREATE TEMP TABLE IF NOT EXISTS staged_hours (
    realm_id integer, starts_at timestamptz, ends_at timestamptz,
    day_starts_at timestamptz, day_ends_at timestamptz,
    month_starts_at timestamptz, month_ends_at timestamptz, is_folded boolean
) ON COMMIT DELETE ROWS
