-- Drops the slices of a realm's hours long before :starts_at: they are counted anew if ever touched.
DELETE FROM accounting.realm_slices
WHERE realm_id = :realm_id
    AND starts_at < CAST(:starts_at AS timestamptz) - make_interval(secs => :kept_seconds)
