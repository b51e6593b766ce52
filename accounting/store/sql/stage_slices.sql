-- A scratch table for the slices of realms' hours, or the whole hours, that one roll-up counts anew.
CREATE TEMP TABLE IF NOT EXISTS staged_slices (
    realm_id integer, starts_at timestamptz, from_at timestamptz, to_at timestamptz
) ON COMMIT DELETE ROWS
