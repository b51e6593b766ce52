-- A scratch table for the marks that one roll-up takes; empty again when the transaction ends.
CREATE TEMP TABLE IF NOT EXISTS staged_touched (
    realm_id integer, user_key uuid, starts_at timestamptz
) ON COMMIT DELETE ROWS
