-- A scratch table for the marks that one roll-up takes; empty again when the transaction ends.
CREATE TEMP TABLE IF NOT EXISTS staged_touched (LIKE accounting.touched_hours) ON COMMIT DELETE ROWS
