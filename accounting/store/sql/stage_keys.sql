-- A scratch table for the keys of one batch; empty again when the transaction ends.
CREATE TEMP TABLE IF NOT EXISTS staged_keys (
    source_id smallint, database integer, username_key uuid, allocation_id bigint
) ON COMMIT DELETE ROWS
