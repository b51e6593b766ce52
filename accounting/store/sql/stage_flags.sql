-- A scratch table for what lives turned out to be; empty again when the transaction ends.
CREATE TEMP TABLE IF NOT EXISTS staged_flags (
    session_id uuid, vouched boolean, estimated boolean
) ON COMMIT DELETE ROWS
