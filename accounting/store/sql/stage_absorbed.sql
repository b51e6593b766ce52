-- A scratch table for the limbo lives of one batch that join another life.
CREATE TEMP TABLE IF NOT EXISTS staged_absorbed (
    absorbed_id uuid, session_id uuid, user_key uuid
) ON COMMIT DELETE ROWS
