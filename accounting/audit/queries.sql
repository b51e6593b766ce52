-- name: count_in_flight
-- What settling, the roll-up and late usage have still to do, of what is loaded and past: zero when they rest.
SELECT
    (SELECT count(*) FROM (SELECT FROM accounting.usage_deltas LIMIT 1) marks)
    + (SELECT count(*) FROM (SELECT FROM accounting.periods_to_adjust LIMIT 1) periods)
    + (SELECT count(*) FROM (
        SELECT FROM accounting.sessions e
        JOIN accounting.settle_watermarks t USING (source_id)
        WHERE e.recheck_at < t.settled_until AND e.ended_at IS NULL AND e.phase = 1
        LIMIT 1
    ) due);

-- name: count_live
-- The staged sessions that have not ended, by source. Interims after a session's end live as long as
-- they could be its own; those of a source that is retired, no longer.
SELECT o.source, count(*) AS sessions
FROM day_lives d
JOIN accounting.sessions s ON s.session_id = d.session_id AND s.user_key = d.user_key
JOIN accounting.sources o USING (source_id)
JOIN accounting.settle_watermarks t USING (source_id)
WHERE s.ended_at IS NULL AND s.phase > 0 AND o.retired_at IS NULL
    AND NOT (s.phase = 2 AND s.expires_at < t.settled_until)
GROUP BY o.source ORDER BY o.source;

-- name: count_reports
-- Sources of which fewer reports are kept than were loaded and not dropped.
SELECT s.source, t.total - coalesce(d.dropped, 0) AS loaded, coalesce(r.kept, 0) AS kept
FROM accounting.message_counts t
JOIN accounting.sources s USING (source_id)
LEFT JOIN (
    SELECT source_id, count(*) AS kept FROM accounting.reports GROUP BY source_id
) r USING (source_id)
LEFT JOIN (
    SELECT source_id, sum(reports) AS dropped FROM accounting.dropped_reports GROUP BY source_id
) d USING (source_id)
WHERE t.outcome = 'loaded' AND coalesce(r.kept, 0) < t.total - coalesce(d.dropped, 0)
ORDER BY s.source;

-- name: day_sources
-- How far each source is settled, and the last report that it has of a span of time.
SELECT s.source_id, s.source, s.retired_at IS NOT NULL AS is_retired, t.settled_until,
    l.epoch, l.position, l.received_at,
    coalesce((l.epoch, l.position) > (t.epoch, t.position), false) AS is_unsettled,
    l.epoch IS NOT NULL AND EXISTS (
        SELECT FROM accounting.reports r
        WHERE r.source_id = s.source_id AND r.received_at >= CAST(:until AS timestamptz)
            AND (r.epoch, r.position) < (l.epoch, l.position)
    ) AS is_out_of_order
FROM accounting.sources s
LEFT JOIN accounting.settle_watermarks t USING (source_id)
LEFT JOIN LATERAL (
    SELECT r.epoch, r.position, r.received_at FROM accounting.reports r
    WHERE r.source_id = s.source_id
        AND r.received_at >= CAST(:since AS timestamptz)
        AND r.received_at < CAST(:until AS timestamptz)
    ORDER BY r.epoch DESC, r.position DESC LIMIT 1
) l ON true
ORDER BY s.source;

-- name: drop_sealing
-- Drops the scratch tables of one day, for the next in the same transaction.
DROP TABLE IF EXISTS day_lives, proof_sessions, proof_session_usage, staged_carried, told_keys, sealed;

-- name: fed_periods
-- The periods that the staged sessions fed, each with its last proof. period null: not drawn yet.
SELECT r.realm, p.period, p.closed_at IS NOT NULL AS is_closed, f.differences, f.checked_at,
    coalesce(f.checked_at > p.closed_at AND f.checked_at > now() - CAST(:holds AS interval), false)
        AS is_fresh
FROM (
    SELECT h.realm_id, min(h.starts_at) AS first, max(h.starts_at) AS last
    FROM day_lives d
    CROSS JOIN LATERAL (  -- OFFSET 0: along the keys, session by session
        SELECT * FROM accounting.session_hours h
        WHERE h.session_id = d.session_id AND h.user_key = d.user_key OFFSET 0
    ) h
    WHERE h.confirmed GROUP BY h.realm_id
) fed
JOIN accounting.realms r USING (realm_id)
LEFT JOIN accounting.periods p
    ON p.realm_id = fed.realm_id AND p.ends_at > fed.first AND p.starts_at <= fed.last
LEFT JOIN accounting.proofs f ON f.realm_id = p.realm_id AND f.period = p.period
ORDER BY r.realm, p.period;

-- name: fetch_logged
-- The billed sessions of keys as coturn's log names them, oldest first.
SELECT
    k.realm, k.username, k.allocation_id, e.session_id, e.estimated, e.disputed,
    e.received_packets, e.received_bytes, e.sent_packets, e.sent_bytes,
    e.peer_received_packets, e.peer_received_bytes, e.peer_sent_packets, e.peer_sent_bytes
FROM unnest(CAST(:realms AS text[]), CAST(:usernames AS text[]), CAST(:allocations AS bigint[]))
    AS k (realm, username, allocation_id)
JOIN accounting.realms r ON r.realm = k.realm
JOIN accounting.users u USING (realm_id)
JOIN accounting.usernames n USING (user_key)
JOIN accounting.sessions e
    ON e.user_key = u.user_key AND e.username_key = n.username_key
    AND e.allocation_id = k.allocation_id
WHERE n.username = k.username AND e.confirmed
ORDER BY e.started_at, e.session_id;

-- name: find_entangled
-- Whether evidence up to a cutoff does not all come before the rest: a key sighting that was settled
-- later than reports after it, or a gap among them that became known later.
WITH cutoffs AS (
    SELECT * FROM unnest(
        CAST(:sources AS smallint[]), CAST(:epochs AS integer[]), CAST(:positions AS bigint[]),
        CAST(:last_sighting_epochs AS integer[]), CAST(:last_sighting_positions AS bigint[]),
        CAST(:last_sightings AS bigint[])
    ) AS c (source_id, epoch, position, last_sighting_epoch, last_sighting_position, last_sighting)
)
SELECT EXISTS (
    SELECT FROM cutoffs c JOIN accounting.key_sightings k USING (source_id)
    WHERE (k.epoch, k.position) < (c.epoch, c.position)
        AND (k.epoch, k.position, k.sighting) > (c.last_sighting_epoch, c.last_sighting_position, c.last_sighting)
) OR EXISTS (
    SELECT FROM cutoffs c JOIN accounting.capture_gaps g USING (source_id)
    WHERE g.gap_id > CAST(:highest_gap AS bigint) AND (g.epoch, g.position) < (c.epoch, c.position)
);

-- name: prove_adjustments
-- Users of a closed period whose line and adjustments for late usage are not the sum of its hours.
-- The hours are those recomputed from the reports.
SELECT user_key, CAST(ARRAY[
    coalesce(sum(received_packets) FILTER (WHERE billed), 0),
    coalesce(sum(received_bytes) FILTER (WHERE billed), 0),
    coalesce(sum(sent_packets) FILTER (WHERE billed), 0),
    coalesce(sum(sent_bytes) FILTER (WHERE billed), 0),
    coalesce(sum(peer_received_packets) FILTER (WHERE billed), 0),
    coalesce(sum(peer_received_bytes) FILTER (WHERE billed), 0),
    coalesce(sum(peer_sent_packets) FILTER (WHERE billed), 0),
    coalesce(sum(peer_sent_bytes) FILTER (WHERE billed), 0),
    coalesce(sum(session_microseconds) FILTER (WHERE billed), 0)
] AS numeric[]) AS booked, CAST(ARRAY[
    coalesce(sum(received_packets) FILTER (WHERE NOT billed), 0),
    coalesce(sum(received_bytes) FILTER (WHERE NOT billed), 0),
    coalesce(sum(sent_packets) FILTER (WHERE NOT billed), 0),
    coalesce(sum(sent_bytes) FILTER (WHERE NOT billed), 0),
    coalesce(sum(peer_received_packets) FILTER (WHERE NOT billed), 0),
    coalesce(sum(peer_received_bytes) FILTER (WHERE NOT billed), 0),
    coalesce(sum(peer_sent_packets) FILTER (WHERE NOT billed), 0),
    coalesce(sum(peer_sent_bytes) FILTER (WHERE NOT billed), 0),
    coalesce(sum(session_microseconds) FILTER (WHERE NOT billed), 0)
] AS numeric[]) AS proved
FROM (
    SELECT true AS billed, user_key,
        received_packets, received_bytes, sent_packets, sent_bytes,
        peer_received_packets, peer_received_bytes, peer_sent_packets, peer_sent_bytes,
        session_microseconds
    FROM accounting.statements WHERE realm_id = :realm_id AND period = :period
    UNION ALL
    SELECT true, user_key,
        received_packets, received_bytes, sent_packets, sent_bytes,
        peer_received_packets, peer_received_bytes, peer_sent_packets, peer_sent_bytes,
        session_microseconds
    FROM accounting.adjustments
    WHERE realm_id = :realm_id AND period = :period AND NOT manual
    UNION ALL
    SELECT false, user_key,
        received_packets, received_bytes, sent_packets, sent_bytes,
        peer_received_packets, peer_received_bytes, peer_sent_packets, peer_sent_bytes,
        session_microseconds
    FROM proof_user_usage_hourly
    WHERE realm_id = :realm_id AND starts_at >= :starts_at AND starts_at < :ends_at
) lines
GROUP BY user_key
HAVING coalesce(sum(CASE WHEN billed THEN received_packets ELSE -received_packets END), 0) <> 0
    OR coalesce(sum(CASE WHEN billed THEN received_bytes ELSE -received_bytes END), 0) <> 0
    OR coalesce(sum(CASE WHEN billed THEN sent_packets ELSE -sent_packets END), 0) <> 0
    OR coalesce(sum(CASE WHEN billed THEN sent_bytes ELSE -sent_bytes END), 0) <> 0
    OR coalesce(sum(CASE WHEN billed THEN peer_received_packets ELSE -peer_received_packets END), 0) <> 0
    OR coalesce(sum(CASE WHEN billed THEN peer_received_bytes ELSE -peer_received_bytes END), 0) <> 0
    OR coalesce(sum(CASE WHEN billed THEN peer_sent_packets ELSE -peer_sent_packets END), 0) <> 0
    OR coalesce(sum(CASE WHEN billed THEN peer_sent_bytes ELSE -peer_sent_bytes END), 0) <> 0
    OR coalesce(sum(CASE WHEN billed THEN session_microseconds ELSE -session_microseconds END), 0) <> 0
ORDER BY user_key;

-- name: prove_single_hours
-- Lets the staged sessions that have one hour stand without a row of it, as settling does.
WITH single AS (
    SELECT session_id, user_key, min(starts_at) AS starts_at FROM proof_session_usage
    GROUP BY session_id, user_key HAVING count(*) = 1 AND bool_and(started)
),
told AS (
    UPDATE proof_sessions s SET single_hour = h.starts_at FROM single h
    WHERE s.session_id = h.session_id AND s.user_key = h.user_key
)
DELETE FROM proof_session_usage u USING single h
WHERE u.session_id = h.session_id AND u.user_key = h.user_key;

-- name: prove_realm_daily
-- Realms' days: the sums of their hours within each, and the highest of their peaks.
INSERT INTO proof_realm_usage_daily (
    realm_id, starts_at,
    received_packets, received_bytes, sent_packets, sent_bytes,
    peer_received_packets, peer_received_bytes, peer_sent_packets, peer_sent_bytes,
    sessions_started, sessions_ended, session_microseconds, estimated_bytes, peak_sessions
)
SELECT u.realm_id, h.day_starts_at,
    sum(u.received_packets), sum(u.received_bytes), sum(u.sent_packets), sum(u.sent_bytes),
    sum(u.peer_received_packets), sum(u.peer_received_bytes), sum(u.peer_sent_packets), sum(u.peer_sent_bytes),
    sum(u.sessions_started), sum(u.sessions_ended), sum(u.session_microseconds), sum(u.estimated_bytes), max(u.peak_sessions)
FROM proof_realm_usage_hourly u
JOIN proof_hours h USING (realm_id, starts_at)
GROUP BY u.realm_id, h.day_starts_at;

-- name: prove_realm_hourly
-- Realms' hours: the sums over the sessions themselves. The peak: at each begin of a session within
-- the hour, how many had begun and not ended; half-open, and a live one lasts to the hour's end.
WITH spans AS (
    SELECT u.realm_id, u.starts_at, u.active_from, h.ends_at,
        CASE WHEN u.ended THEN u.active_to ELSE h.ends_at END AS active_to
    FROM proof_session_usage u
    JOIN proof_hours h USING (realm_id, starts_at)
    WHERE u.confirmed AND (u.active_to > u.active_from OR (u.started AND NOT u.ended))
), begins AS (
    SELECT realm_id, starts_at, active_from AS at, count(*) AS begun FROM spans
    WHERE active_to > active_from GROUP BY realm_id, starts_at, active_from
), ends AS (
    SELECT realm_id, starts_at, active_to AS at, count(*) AS ended FROM spans
    WHERE active_to > active_from AND active_to < ends_at
    GROUP BY realm_id, starts_at, active_to
), moments AS (
    SELECT realm_id, starts_at, at, sum(coalesce(begun, 0) - coalesce(ended, 0)) OVER (
        PARTITION BY realm_id, starts_at ORDER BY at
    ) AS alive
    FROM begins FULL JOIN ends USING (realm_id, starts_at, at)
), peaks AS (
    SELECT realm_id, starts_at, max(alive) AS peak_sessions FROM moments GROUP BY realm_id, starts_at
)
INSERT INTO proof_realm_usage_hourly (
    realm_id, starts_at,
    received_packets, received_bytes, sent_packets, sent_bytes,
    peer_received_packets, peer_received_bytes, peer_sent_packets, peer_sent_bytes,
    sessions_started, sessions_ended, session_microseconds, estimated_bytes, peak_sessions
)
SELECT u.realm_id, u.starts_at,
    sum(u.received_packets), sum(u.received_bytes), sum(u.sent_packets), sum(u.sent_bytes),
    sum(u.peer_received_packets), sum(u.peer_received_bytes), sum(u.peer_sent_packets), sum(u.peer_sent_bytes),
    count(*) FILTER (WHERE u.started), count(*) FILTER (WHERE u.ended),
    sum(round(extract(epoch FROM u.active_to - u.active_from) * 1000000)),
    coalesce(sum(u.received_bytes + u.sent_bytes) FILTER (WHERE u.estimated), 0),
    coalesce(max(p.peak_sessions), 0)
FROM proof_session_usage u
LEFT JOIN peaks p USING (realm_id, starts_at)
WHERE u.confirmed
GROUP BY u.realm_id, u.starts_at;

-- name: prove_realm_monthly
-- Realms' months: the sums of their hours within each, and the highest of their peaks.
INSERT INTO proof_realm_usage_monthly (
    realm_id, starts_at,
    received_packets, received_bytes, sent_packets, sent_bytes,
    peer_received_packets, peer_received_bytes, peer_sent_packets, peer_sent_bytes,
    sessions_started, sessions_ended, session_microseconds, estimated_bytes, peak_sessions
)
SELECT u.realm_id, h.month_starts_at,
    sum(u.received_packets), sum(u.received_bytes), sum(u.sent_packets), sum(u.sent_bytes),
    sum(u.peer_received_packets), sum(u.peer_received_bytes), sum(u.peer_sent_packets), sum(u.peer_sent_bytes),
    sum(u.sessions_started), sum(u.sessions_ended), sum(u.session_microseconds), sum(u.estimated_bytes), max(u.peak_sessions)
FROM proof_realm_usage_hourly u
JOIN proof_hours h USING (realm_id, starts_at)
GROUP BY u.realm_id, h.month_starts_at;

-- name: prove_statements
-- A closed period's lines beside what the staged hours up to its cutoff come to; for each user.
SELECT coalesce(l.user_key, u.user_key) AS user_key, l.digest,
    CASE WHEN l.user_key IS NOT NULL THEN CAST(ARRAY[
        l.received_packets, l.received_bytes, l.sent_packets, l.sent_bytes,
        l.peer_received_packets, l.peer_received_bytes, l.peer_sent_packets, l.peer_sent_bytes,
        l.sessions_started, l.sessions_ended, l.session_microseconds, l.estimated_bytes
    ] AS numeric[]) END AS booked,
    CASE WHEN u.user_key IS NOT NULL THEN CAST(ARRAY[
        u.received_packets, u.received_bytes, u.sent_packets, u.sent_bytes,
        u.peer_received_packets, u.peer_received_bytes, u.peer_sent_packets, u.peer_sent_bytes,
        u.sessions_started, u.sessions_ended, u.session_microseconds, u.estimated_bytes
    ] AS numeric[]) END AS proved
FROM (
    SELECT * FROM accounting.statements WHERE realm_id = :realm_id AND period = :period
) l
FULL JOIN (
    SELECT user_key,
        sum(received_packets) AS received_packets, sum(received_bytes) AS received_bytes,
        sum(sent_packets) AS sent_packets, sum(sent_bytes) AS sent_bytes,
        sum(peer_received_packets) AS peer_received_packets, sum(peer_received_bytes) AS peer_received_bytes,
        sum(peer_sent_packets) AS peer_sent_packets, sum(peer_sent_bytes) AS peer_sent_bytes,
        count(*) FILTER (WHERE started) AS sessions_started,
        count(*) FILTER (WHERE ended) AS sessions_ended,
        sum(round(extract(epoch FROM active_to - active_from) * 1000000)) AS session_microseconds,
        coalesce(sum(received_bytes + sent_bytes) FILTER (WHERE estimated), 0) AS estimated_bytes
    FROM proof_period_usage
    WHERE confirmed AND realm_id = :realm_id AND starts_at >= :starts_at AND starts_at < :ends_at
    GROUP BY user_key
) u ON u.user_key = l.user_key
ORDER BY 1;

-- name: prove_user_daily
-- Users' days: the sums of their hours within each.
INSERT INTO proof_user_usage_daily (
    user_key, starts_at, realm_id,
    received_packets, received_bytes, sent_packets, sent_bytes,
    peer_received_packets, peer_received_bytes, peer_sent_packets, peer_sent_bytes,
    sessions_started, sessions_ended, session_microseconds, estimated_bytes
)
SELECT u.user_key, h.day_starts_at, u.realm_id,
    sum(u.received_packets), sum(u.received_bytes), sum(u.sent_packets), sum(u.sent_bytes),
    sum(u.peer_received_packets), sum(u.peer_received_bytes), sum(u.peer_sent_packets), sum(u.peer_sent_bytes),
    sum(u.sessions_started), sum(u.sessions_ended), sum(u.session_microseconds), sum(u.estimated_bytes)
FROM proof_user_usage_hourly u
JOIN proof_hours h USING (realm_id, starts_at)
GROUP BY u.user_key, h.day_starts_at, u.realm_id;

-- name: prove_user_hourly
-- Users' hours as the recomputed sessions give them.
INSERT INTO proof_user_usage_hourly (
    user_key, starts_at, realm_id,
    received_packets, received_bytes, sent_packets, sent_bytes,
    peer_received_packets, peer_received_bytes, peer_sent_packets, peer_sent_bytes,
    sessions_started, sessions_ended, session_microseconds, estimated_bytes
)
SELECT user_key, starts_at, realm_id,
    sum(received_packets), sum(received_bytes), sum(sent_packets), sum(sent_bytes),
    sum(peer_received_packets), sum(peer_received_bytes), sum(peer_sent_packets), sum(peer_sent_bytes),
    count(*) FILTER (WHERE started), count(*) FILTER (WHERE ended),
    sum(round(extract(epoch FROM active_to - active_from) * 1000000)),
    coalesce(sum(received_bytes + sent_bytes) FILTER (WHERE estimated), 0)
FROM proof_session_usage
WHERE confirmed
GROUP BY user_key, starts_at, realm_id;

-- name: prove_user_monthly
-- Users' months: the sums of their hours within each.
INSERT INTO proof_user_usage_monthly (
    user_key, starts_at, realm_id,
    received_packets, received_bytes, sent_packets, sent_bytes,
    peer_received_packets, peer_received_bytes, peer_sent_packets, peer_sent_bytes,
    sessions_started, sessions_ended, session_microseconds, estimated_bytes
)
SELECT u.user_key, h.month_starts_at, u.realm_id,
    sum(u.received_packets), sum(u.received_bytes), sum(u.sent_packets), sum(u.sent_bytes),
    sum(u.peer_received_packets), sum(u.peer_received_bytes), sum(u.peer_sent_packets), sum(u.peer_sent_bytes),
    sum(u.sessions_started), sum(u.sessions_ended), sum(u.session_microseconds), sum(u.estimated_bytes)
FROM proof_user_usage_hourly u
JOIN proof_hours h USING (realm_id, starts_at)
GROUP BY u.user_key, h.month_starts_at, u.realm_id;

-- name: read_carried
-- The lives that the dropped reports left to later ones, key by key, the one under way first. With
-- :since and :until only what the reports of that span may touch, and what only awaits its end.
SELECT
    c.source_id, c.database, c.username_key, c.allocation_id, c.session_id,
    c.user_key, c.realm_id, c.started_at, c.last_seen_at, c.expires_at,
    c.start_known, c.lifetime_known, c.ended_at, c.end_cause, c.phase,
    c.confirmed, c.transport, c.client_address, c.server_address, c.received_packets,
    c.received_bytes, c.sent_packets, c.sent_bytes, c.peer_received_packets, c.peer_received_bytes,
    c.peer_sent_packets, c.peer_sent_bytes, c.new_count, c.deleted_count, c.client_total_count,
    c.peer_total_count, c.client_total, c.peer_total, c.estimated, c.disputed, c.deltas
FROM accounting.carried_sessions c
WHERE c.source_id = ANY (CAST(:sources AS smallint[]))
    AND c.realm_id = ANY (CAST(:realms AS integer[]))
    AND (CAST(:usernames AS uuid[]) IS NULL OR c.username_key = ANY (CAST(:usernames AS uuid[])))
    AND (
        CAST(:since AS timestamptz) IS NULL
        OR (NOT c.confirmed AND c.phase = 1)
        OR (c.source_id, c.database, c.username_key, c.allocation_id) IN (
            SELECT r.source_id, r.database, r.username_key, r.allocation_id
            FROM accounting.reports r
            WHERE r.received_at >= CAST(:since AS timestamptz)
                AND r.received_at < CAST(:until AS timestamptz)
        )
    )
ORDER BY c.source_id, c.database, c.username_key, c.allocation_id, c.phase;

-- name: replay_reports
-- All settled reports and key sightings of some realms, key by key, each in order, up to a cutoff,
-- after what was dropped. A sighting at the last dropped report came after it, and is told.
WITH cutoffs AS (
    SELECT * FROM unnest(
        CAST(:sources AS smallint[]), CAST(:epochs AS integer[]), CAST(:positions AS bigint[]),
        CAST(:last_sighting_epochs AS integer[]), CAST(:last_sighting_positions AS bigint[]),
        CAST(:last_sightings AS bigint[])
    ) AS c (source_id, epoch, position, last_sighting_epoch, last_sighting_position, last_sighting)
)
SELECT
    r.source_id, NULL::bigint AS sighting, NULL::timestamptz AS scan_started_at,
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
    k.source_id, k.sighting, k.scan_started_at, k.idle_seconds,
    k.epoch, k.position, k.seen_at, k.database, k.realm_id,
    k.username_key, k.user_key, k.allocation_id, NULL, NULL,
    NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL
FROM accounting.key_sightings k
JOIN cutoffs c ON c.source_id = k.source_id
    AND (k.epoch, k.position, k.sighting) <= (c.last_sighting_epoch, c.last_sighting_position, c.last_sighting)
LEFT JOIN accounting.dropped_positions z ON z.source_id = k.source_id
WHERE ((k.epoch, k.position) < (z.epoch, z.position)) IS NOT TRUE
    AND k.realm_id = ANY (CAST(:realms AS integer[]))
    AND (CAST(:usernames AS uuid[]) IS NULL OR k.username_key = ANY (CAST(:usernames AS uuid[])))
ORDER BY source_id, database, username_key, allocation_id, epoch, position, sighting NULLS FIRST;

-- name: report_days
-- The days (UTC) that have a partition of reports, the oldest first.
SELECT to_date(substr(c.relname, 9), 'YYYYMMDD') AS day
FROM pg_inherits i JOIN pg_class c ON c.oid = i.inhrelid
WHERE i.inhparent = CAST('accounting.reports' AS regclass) AND c.relname ~ '^reports_[0-9]{8}$'
ORDER BY day;

-- name: sealed_by_day
-- Names the staged lives, which end with the dropped reports, with the day (UTC) that they began.
CREATE TEMP TABLE sealed ON COMMIT DROP AS
SELECT session_id, user_key, realm_id, CAST(started_at AT TIME ZONE 'UTC' AS date) AS day
FROM proof_sessions;

-- name: sealed_digests
-- For each realm and day: how many sealed sessions began then, and a sum of hashes over the rows of
-- the sessions and their hours. Times in seconds: no setting of the connection changes a digest.
SELECT realm_id, day, count(*) FILTER (WHERE is_session) AS sessions, sum(hash) AS digest
FROM (
    SELECT l.realm_id, l.day, true AS is_session, accounting.row_hash(jsonb_build_array(
        s.session_id, s.user_key, s.username_key, s.realm_id, s.source_id, s.database,
        s.allocation_id, extract(epoch FROM s.started_at), extract(epoch FROM s.last_seen_at),
        extract(epoch FROM s.expires_at), s.start_known, s.lifetime_known,
        extract(epoch FROM s.ended_at), s.end_cause, s.phase, s.confirmed, s.transport,
        s.client_address, s.server_address, s.received_packets, s.received_bytes, s.sent_packets,
        s.sent_bytes, s.peer_received_packets, s.peer_received_bytes, s.peer_sent_packets,
        s.peer_sent_bytes, s.new_count, s.deleted_count, s.client_total_count, s.peer_total_count, s.client_total,
        s.peer_total, s.estimated, s.disputed
    )) AS hash
    FROM sealed l
    JOIN accounting.sessions s ON s.session_id = l.session_id AND s.user_key = l.user_key
    UNION ALL
    SELECT l.realm_id, l.day, false, accounting.row_hash(jsonb_build_array(
        h.session_id, extract(epoch FROM h.starts_at), h.user_key, h.realm_id, h.confirmed,
        h.estimated, h.started, h.ended, extract(epoch FROM h.active_from),
        extract(epoch FROM h.active_to), h.received_packets, h.received_bytes, h.sent_packets,
        h.sent_bytes, h.peer_received_packets, h.peer_received_bytes, h.peer_sent_packets,
        h.peer_sent_bytes
    ))
    FROM sealed l
    JOIN accounting.session_hours h ON h.session_id = l.session_id AND h.user_key = l.user_key
) hashes
GROUP BY realm_id, day;

-- name: sealed_in_books
-- Names the sessions of some realms that ended with the dropped reports, with the day they began.
CREATE TEMP TABLE sealed ON COMMIT DROP AS
SELECT s.session_id, s.user_key, s.realm_id, CAST(s.started_at AT TIME ZONE 'UTC' AS date) AS day
FROM accounting.dropped_positions z
JOIN accounting.sessions s ON s.source_id = z.source_id AND s.session_id <= z.last_session_id
WHERE s.realm_id = ANY (CAST(:realms AS integer[])) AND NOT EXISTS (
    SELECT FROM accounting.carried_sessions c
    WHERE c.session_id = s.session_id AND c.user_key = s.user_key
);

-- name: sealed_of_user
-- A user's sessions that ended with the dropped reports, with what they have in a span.
SELECT
    e.source_id, e.database, e.username_key, e.allocation_id, e.session_id,
    e.user_key, e.realm_id, e.started_at, e.last_seen_at, e.expires_at,
    e.start_known, e.lifetime_known, e.ended_at, e.end_cause, e.phase,
    e.confirmed, e.transport, e.client_address, e.server_address, e.received_packets,
    e.received_bytes, e.sent_packets, e.sent_bytes, e.peer_received_packets, e.peer_received_bytes,
    e.peer_sent_packets, e.peer_sent_bytes, e.new_count, e.deleted_count, e.client_total_count,
    e.peer_total_count, e.client_total, e.peer_total, e.estimated, e.disputed,
    CAST(ARRAY[
        h.received_packets, h.received_bytes, h.sent_packets, h.sent_bytes,
        h.peer_received_packets, h.peer_received_bytes, h.peer_sent_packets, h.peer_sent_bytes,
        h.session_microseconds
    ] AS numeric[]) AS numbers
FROM accounting.sessions e
JOIN accounting.dropped_positions z
    ON z.source_id = e.source_id AND e.session_id <= z.last_session_id
CROSS JOIN LATERAL (
    SELECT
        sum(received_packets) AS received_packets, sum(received_bytes) AS received_bytes,
        sum(sent_packets) AS sent_packets, sum(sent_bytes) AS sent_bytes,
        sum(peer_received_packets) AS peer_received_packets,
        sum(peer_received_bytes) AS peer_received_bytes,
        sum(peer_sent_packets) AS peer_sent_packets, sum(peer_sent_bytes) AS peer_sent_bytes,
        sum(round(extract(epoch FROM active_to - active_from) * 1000000)) AS session_microseconds
    FROM accounting.session_hours
    WHERE session_id = e.session_id AND user_key = e.user_key AND confirmed
        AND starts_at >= CAST(:starts_at AS timestamptz)
        AND starts_at < CAST(:ends_at AS timestamptz)
    HAVING count(*) > 0
) h
WHERE e.user_key = CAST(:user_key AS uuid) AND e.realm_id = CAST(:realm_id AS integer)
    AND e.started_at < CAST(:ends_at AS timestamptz)
    AND NOT EXISTS (
        SELECT FROM accounting.carried_sessions c
        WHERE c.session_id = e.session_id AND c.user_key = e.user_key
    )
ORDER BY e.session_id;

-- name: stage_day_lives
-- The sessions that the reports of a span speak of: those that began in it, and those carried into
-- it, each by its bounds of session_id.
CREATE TEMP TABLE day_lives ON COMMIT DROP AS
SELECT s.session_id, s.user_key
FROM unnest(
    CAST(:sources AS smallint[]), CAST(:upto AS uuid[])
) AS b (source_id, upto)
LEFT JOIN accounting.dropped_positions z USING (source_id)
JOIN accounting.sessions s ON s.source_id = b.source_id AND s.session_id <= b.upto
    AND s.session_id > coalesce(z.last_session_id, '00000000-0000-0000-0000-000000000000')
UNION
SELECT s.session_id, s.user_key
FROM accounting.carried_sessions c
JOIN (
    SELECT DISTINCT source_id, database, username_key, allocation_id
    FROM accounting.reports
    WHERE received_at >= CAST(:since AS timestamptz) AND received_at < CAST(:until AS timestamptz)
) k USING (source_id, database, username_key, allocation_id)
JOIN accounting.sessions s ON s.session_id = c.session_id AND s.user_key = c.user_key;

-- name: stage_proof
-- Scratch tables for what the reports come to: the same columns as the books.
CREATE TEMP TABLE proof_sessions (LIKE accounting.sessions INCLUDING DEFAULTS) ON COMMIT DROP;
CREATE TEMP TABLE proof_session_usage (LIKE accounting.session_usage) ON COMMIT DROP;
CREATE TEMP TABLE proof_user_usage_hourly (LIKE accounting.user_usage_hourly) ON COMMIT DROP;
CREATE TEMP TABLE proof_user_usage_daily (LIKE accounting.user_usage_daily) ON COMMIT DROP;
CREATE TEMP TABLE proof_user_usage_monthly (LIKE accounting.user_usage_monthly) ON COMMIT DROP;
CREATE TEMP TABLE proof_realm_usage_hourly (LIKE accounting.realm_usage_hourly) ON COMMIT DROP;
CREATE TEMP TABLE proof_realm_usage_daily (LIKE accounting.realm_usage_daily) ON COMMIT DROP;
CREATE TEMP TABLE proof_realm_usage_monthly (LIKE accounting.realm_usage_monthly) ON COMMIT DROP;
CREATE TEMP TABLE proof_period_usage (LIKE accounting.session_usage) ON COMMIT DROP;
CREATE TEMP TABLE proof_buckets (LIKE accounting.buckets) ON COMMIT DROP;
CREATE TEMP TABLE proof_hours (
    realm_id integer, starts_at timestamptz, ends_at timestamptz,
    day_starts_at timestamptz, month_starts_at timestamptz
) ON COMMIT DROP;

-- name: stage_sealed
-- Stages the sealed sessions and their hours as they are booked: nothing is left to compute them from.
WITH of_sessions AS (
    INSERT INTO proof_sessions
    SELECT s.* FROM sealed l
    JOIN accounting.sessions s ON s.session_id = l.session_id AND s.user_key = l.user_key
),
of_periods AS (
    INSERT INTO proof_period_usage
    SELECT h.* FROM sealed l
    JOIN accounting.session_hours h ON h.session_id = l.session_id AND h.user_key = l.user_key
)
INSERT INTO proof_session_usage
SELECT h.* FROM sealed l
JOIN accounting.session_hours h ON h.session_id = l.session_id AND h.user_key = l.user_key;

-- name: stage_sealing
-- Scratch tables for what a day of reports leaves: lives that end with it, and those that go on.
CREATE TEMP TABLE proof_sessions (LIKE accounting.sessions INCLUDING DEFAULTS) ON COMMIT DROP;
CREATE TEMP TABLE proof_session_usage (LIKE accounting.session_usage) ON COMMIT DROP;
CREATE TEMP TABLE staged_carried (LIKE accounting.carried_sessions) ON COMMIT DROP;
CREATE TEMP TABLE told_keys (
    source_id smallint, database integer, username_key uuid, allocation_id bigint
) ON COMMIT DROP;

-- name: touch_rebuilt_periods
-- Marks the closed periods, by user, of the hours that a rebuild of a realm is to change.
INSERT INTO accounting.periods_to_adjust (realm_id, period, user_key)
SELECT DISTINCT p.realm_id, p.period, h.user_key
FROM (
    (SELECT * FROM accounting.user_usage_hourly WHERE realm_id = :realm_id
        EXCEPT SELECT * FROM proof_user_usage_hourly)
    UNION ALL
    (SELECT * FROM proof_user_usage_hourly
        EXCEPT SELECT * FROM accounting.user_usage_hourly WHERE realm_id = :realm_id)
) h
JOIN accounting.periods p
    ON p.realm_id = h.realm_id AND h.starts_at >= p.starts_at AND h.starts_at < p.ends_at
WHERE p.closed_at IS NOT NULL;
