-- The key sightings of a source not taken in yet, in order, as far as reports are settled.
SELECT
    epoch, position, sighting, database, realm_id,
    username_key, user_key, allocation_id, began_at, seen_at, idle_seconds
FROM accounting.key_sightings
WHERE source_id = :source_id
    AND (epoch, position, sighting) > (:epoch, :position, :sighting)
    AND (epoch, position) <= (:upto_epoch, :upto_position)
ORDER BY epoch, position, sighting
