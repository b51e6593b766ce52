-- A scratch table for the lives of one batch; empty again when the transaction ends. Totals are null
-- where none came.
CREATE TEMP TABLE IF NOT EXISTS staged_sessions ON COMMIT DELETE ROWS AS
SELECT * FROM accounting.sessions WITH NO DATA
