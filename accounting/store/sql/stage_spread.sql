-- A scratch table for the sessions of one batch that leave their only hour.
CREATE TEMP TABLE IF NOT EXISTS staged_spread (session_id uuid) ON COMMIT DELETE ROWS
