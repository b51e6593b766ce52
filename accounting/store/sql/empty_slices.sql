-- Empties the staged slices, to be counted anew.
DELETE FROM accounting.realm_slices s USING staged_slices t
WHERE s.realm_id = t.realm_id AND s.starts_at = t.starts_at
    AND s.slice_at >= t.from_at AND s.slice_at < t.to_at
