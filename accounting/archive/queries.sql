-- name: contents_of_reports
-- Counts the reports of a span by source and epoch, with their first and last position and sums.
SELECT r.source_id, s.source, r.epoch, count(*) AS reports,
    min(r.position) AS first_position, max(r.position) AS last_position,
    sum(r.received_packets) AS received_packets, sum(r.received_bytes) AS received_bytes,
    sum(r.sent_packets) AS sent_packets, sum(r.sent_bytes) AS sent_bytes
FROM accounting.reports r JOIN accounting.sources s USING (source_id)
WHERE r.received_at >= CAST(:since AS timestamptz) AND r.received_at < CAST(:until AS timestamptz)
GROUP BY r.source_id, s.source, r.epoch
ORDER BY s.source, r.epoch;

-- name: contents_of_sightings
-- Counts the key sightings of a span by source.
SELECT k.source_id, s.source, count(*) AS sightings
FROM accounting.key_sightings k JOIN accounting.sources s USING (source_id)
WHERE k.seen_at >= CAST(:since AS timestamptz) AND k.seen_at < CAST(:until AS timestamptz)
GROUP BY k.source_id, s.source
ORDER BY s.source;

-- name: archived_reports
-- Reads the reports of a source in a span as an archive has them, in order of position.
SELECT r.epoch, r.position, r.received_at, r.time_estimated, r.database, m.realm,
    r.username_key, r.user_key, lpad(CAST(r.allocation_id AS text), 18, '0') AS allocation_id,
    (ARRAY['new', 'refreshed', 'deleted', 'interim', 'total'])[r.kind] AS kind,
    (ARRAY['client', 'peer'])[r.side + 1] AS side,
    r.lifetime, r.transport, r.server_address,
    r.received_packets, r.received_bytes, r.sent_packets, r.sent_bytes
FROM accounting.reports r JOIN accounting.realms m USING (realm_id)
WHERE r.source_id = :source_id
    AND r.received_at >= CAST(:since AS timestamptz) AND r.received_at < CAST(:until AS timestamptz)
ORDER BY r.epoch, r.position;

-- name: archived_key_sightings
-- Reads the key sightings of a source in a span as an archive has them, in order of position.
SELECT k.epoch, k.position, k.sighting, k.database, m.realm, k.username_key, k.user_key,
    lpad(CAST(k.allocation_id AS text), 18, '0') AS allocation_id,
    k.scan_started_at, k.seen_at, k.idle_seconds
FROM accounting.key_sightings k JOIN accounting.realms m USING (realm_id)
WHERE k.source_id = :source_id
    AND k.seen_at >= CAST(:since AS timestamptz) AND k.seen_at < CAST(:until AS timestamptz)
ORDER BY k.epoch, k.position, k.sighting, k.user_key;

-- name: sources_before
-- Finds the sources in service that are not settled up to a time.
SELECT s.source, t.settled_until
FROM accounting.sources s LEFT JOIN accounting.settle_watermarks t USING (source_id)
WHERE s.retired_at IS NULL AND (t.settled_until >= CAST(:until AS timestamptz)) IS NOT TRUE
ORDER BY s.source;

-- name: load_reports
-- Loads archived reports into a scratch table, from CSV.
COPY pg_temp.reports (
    source_id, epoch, position, received_at, time_estimated, database, realm_id, username_key,
    user_key, allocation_id, kind, side, lifetime, transport, server_address,
    received_packets, received_bytes, sent_packets, sent_bytes
) FROM STDIN (FORMAT csv);

-- name: load_key_sightings
-- Loads archived key sightings into a scratch table, from CSV.
COPY pg_temp.key_sightings (
    source_id, epoch, position, sighting, database, realm_id, username_key, user_key,
    allocation_id, scan_started_at, seen_at, idle_seconds
) FROM STDIN (FORMAT csv);

-- name: source_ids
-- The numbers of all sources of this database, in service or not.
SELECT source_id FROM accounting.sources;
