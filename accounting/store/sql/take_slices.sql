-- Takes the marks of touched slices, each once.
WITH taken AS (
    DELETE FROM accounting.touched_slices RETURNING realm_id, starts_at, slice_at
)
SELECT DISTINCT realm_id, starts_at, slice_at FROM taken
