-- Scratch tables for what one roll-up replaces; empty again when the transaction ends.
CREATE TEMP TABLE IF NOT EXISTS staged_touched (
    realm_id integer, user_key uuid, starts_at timestamptz
) ON COMMIT DELETE ROWS;
CREATE TEMP TABLE IF NOT EXISTS staged_hours (
    realm_id integer, starts_at timestamptz, ends_at timestamptz,
    day_starts_at timestamptz, day_ends_at timestamptz,
    month_starts_at timestamptz, month_ends_at timestamptz
) ON COMMIT DELETE ROWS
