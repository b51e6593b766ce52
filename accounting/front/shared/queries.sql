-- name: read_sources
-- The sources of this cell, with the numbers that are in the ids of their sessions.
SELECT source, source_id FROM accounting.sources
UNION SELECT former_name, source_id FROM accounting.former_source_names ORDER BY source;

-- name: sources_of_cells
-- What is known of the sources of all cells.
SELECT cell, source, source_id FROM accounting.sources_of_cells ORDER BY source, cell;

-- name: forget_sources_of_cell
-- Forgets the sources of a cell.
DELETE FROM accounting.sources_of_cells WHERE cell = :cell;

-- name: record_sources_of_cell
-- Records the sources of a cell.
INSERT INTO accounting.sources_of_cells (cell, source, source_id)
SELECT :cell, source, source_id
FROM unnest(CAST(:sources AS text[]), CAST(:source_ids AS smallint[])) AS s (source, source_id);

-- name: other_sources
-- What this cell knows of the sources of other cells.
SELECT cell, source, source_id FROM accounting.other_sources ORDER BY source, cell;

-- name: forget_other_sources
-- Forgets the sources of other cells.
DELETE FROM accounting.other_sources;

-- name: record_other_sources
-- Records the sources of other cells.
INSERT INTO accounting.other_sources (cell, source, source_id)
SELECT cell, source, source_id
FROM unnest(CAST(:cells AS text[]), CAST(:sources AS text[]), CAST(:source_ids AS smallint[]))
    AS s (cell, source, source_id)
ON CONFLICT DO NOTHING;

-- name: erasures_of_front
-- The newest erasure of each user.
SELECT user_key, max(erased_at) AS erased_at FROM accounting.erasures GROUP BY user_key
ORDER BY user_key;

-- name: carried_erasures
-- The newest erasure of each user that the front recorded and that was carried out in this cell.
SELECT user_key, max(of_front) AS of_front FROM accounting.erasures
WHERE of_front IS NOT NULL GROUP BY user_key;
