-- A scratch table for the hours of one batch; empty again when the transaction ends.
CREATE TEMP TABLE IF NOT EXISTS staged_usage (LIKE accounting.session_usage) ON COMMIT DELETE ROWS
