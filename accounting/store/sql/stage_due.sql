-- A scratch table for when lives are looked at again; empty again when the transaction ends.
CREATE TEMP TABLE IF NOT EXISTS staged_due (
    session_id uuid, user_key uuid, due_at timestamptz
) ON COMMIT DELETE ROWS
