-- A scratch table for the lives of one batch; empty again when the transaction ends.
CREATE TEMP TABLE IF NOT EXISTS staged_sessions (LIKE accounting.sessions INCLUDING DEFAULTS) ON COMMIT DELETE ROWS
