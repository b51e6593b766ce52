-- All settled reports and key sightings of some realms, key by key, each in order, up to a cutoff,
-- after what was dropped. A sighting at the last dropped report came after it, and is told.
WITH cutoffs AS (
    SELECT * FROM unnest(
        CAST(:sources AS smallint[]), CAST(:epochs AS integer[]), CAST(:positions AS bigint[]),
        CAST(:sighted_epochs AS integer[]), CAST(:sighted_positions AS bigint[]),
        CAST(:sighted AS bigint[])
    ) AS c (source_id, epoch, position, sighted_epoch, sighted_position, sighted)
)
SELECT
    r.source_id, NULL::bigint AS sighting, NULL::timestamptz AS began_at,
    NULL::integer AS idle_seconds,
    r.epoch, r.position, r.received_at, r.database, r.realm_id,
    r.username_key, r.user_key, r.allocation_id, r.kind, r.side,
    r.lifetime, r.transport, r.server_address, r.client_address, r.received_packets,
    r.received_bytes, r.sent_packets, r.sent_bytes
FROM accounting.reports r
JOIN cutoffs c ON c.source_id = r.source_id AND (r.epoch, r.position) <= (c.epoch, c.position)
LEFT JOIN accounting.dropped_positions z ON z.source_id = r.source_id
WHERE ((r.epoch, r.position) <= (z.epoch, z.position)) IS NOT TRUE
    AND (CAST(:until AS timestamptz) IS NULL OR r.received_at < CAST(:until AS timestamptz))
    AND r.realm_id = ANY (CAST(:realms AS integer[]))
    AND (CAST(:usernames AS uuid[]) IS NULL OR r.username_key = ANY (CAST(:usernames AS uuid[])))
UNION ALL
SELECT
    k.source_id, k.sighting, k.began_at, k.idle_seconds,
    k.epoch, k.position, k.seen_at, k.database, k.realm_id,
    k.username_key, k.user_key, k.allocation_id, NULL, NULL,
    NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL
FROM accounting.key_sightings k
JOIN cutoffs c ON c.source_id = k.source_id
    AND (k.epoch, k.position, k.sighting) <= (c.sighted_epoch, c.sighted_position, c.sighted)
LEFT JOIN accounting.dropped_positions z ON z.source_id = k.source_id
WHERE ((k.epoch, k.position) < (z.epoch, z.position)) IS NOT TRUE
    AND k.realm_id = ANY (CAST(:realms AS integer[]))
    AND (CAST(:usernames AS uuid[]) IS NULL OR k.username_key = ANY (CAST(:usernames AS uuid[])))
ORDER BY source_id, database, username_key, allocation_id, epoch, position, sighting NULLS FIRST
