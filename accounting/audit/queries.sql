-- name: count_in_flight
-- Counts what settling, the roll-up and the adjustments still have to process; zero: nothing.
SELECT
    (SELECT count(*) FROM (SELECT FROM accounting.usage_deltas LIMIT 1) deltas)
    + (SELECT count(*) FROM (SELECT FROM accounting.server_deltas LIMIT 1) deltas)
    + (SELECT count(*) FROM (SELECT FROM accounting.periods_to_adjust LIMIT 1) periods)
    + (SELECT count(*) FROM (
        SELECT FROM accounting.sessions e
        JOIN accounting.settle_watermarks t USING (source_id)
        WHERE e.recheck_at < t.settled_until AND e.ended_at IS NULL AND e.phase = 1
        LIMIT 1
    ) due);

-- name: read_carried
-- Reads the carried sessions by key, the active one of a key first. With :since and :until only
-- those whose keys have a report in that span, or a sighting up to the cutoff, and unconfirmed active
-- ones, which may expire in it.
-- :"evidence": accounting, or pg_temp for that of an archive.
SELECT
    c.source_id, c.database, c.username_key, c.allocation_id, c.session_id,
    c.user_key, c.realm_id, c.started_at, c.last_seen_at, c.expires_at,
    c.start_known, c.lifetime_known, c.ended_at, c.end_cause, c.phase,
    c.confirmed, c.transport, c.client_address, c.server_address, c.received_packets,
    c.received_bytes, c.sent_packets, c.sent_bytes, c.peer_received_packets, c.peer_received_bytes,
    c.peer_sent_packets, c.peer_sent_bytes, c.new_count, c.deleted_count, c.client_total_count,
    c.peer_total_count, c.client_total, c.peer_total, c.estimated, c.disputed, c.hourly_usage
FROM :"evidence".carried_sessions c
WHERE c.source_id = ANY (CAST(:sources AS smallint[]))
    AND c.realm_id = ANY (CAST(:realms AS integer[]))
    AND (CAST(:usernames AS uuid[]) IS NULL OR c.username_key = ANY (CAST(:usernames AS uuid[])))
    AND (
        CAST(:since AS timestamptz) IS NULL
        OR (NOT c.confirmed AND c.phase = 1)
        OR (c.source_id, c.database, c.username_key, c.allocation_id) IN (
            SELECT r.source_id, r.database, r.username_key, r.allocation_id
            FROM :"evidence".reports r
            WHERE r.received_at >= CAST(:since AS timestamptz)
                AND r.received_at < CAST(:until AS timestamptz)
            UNION ALL
            SELECT k.source_id, k.database, k.username_key, k.allocation_id
            FROM unnest(
                CAST(:sources AS smallint[]), CAST(:last_sighting_epochs AS integer[]),
                CAST(:last_sighting_positions AS bigint[]), CAST(:last_sightings AS bigint[])
            ) AS b (source_id, epoch, position, sighting)
            LEFT JOIN :"evidence".dropped_positions z USING (source_id)
            JOIN :"evidence".key_sightings k ON k.source_id = b.source_id
                AND (k.epoch, k.position, k.sighting) <= (b.epoch, b.position, b.sighting)
            WHERE ((k.epoch, k.position) < (z.epoch, z.position)) IS NOT TRUE
        )
    )
ORDER BY c.source_id, c.database, c.username_key, c.allocation_id, c.phase;

-- name: read_evidence
-- Reads the settled reports and key sightings by key, each key's in order, up to a cutoff and after
-- the dropped reports. A sighting at the position of the last dropped report came after it.
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
FROM :"evidence".reports r
JOIN cutoffs c ON c.source_id = r.source_id AND (r.epoch, r.position) <= (c.epoch, c.position)
LEFT JOIN :"evidence".dropped_positions z ON z.source_id = r.source_id
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
FROM :"evidence".key_sightings k
JOIN cutoffs c ON c.source_id = k.source_id
    AND (k.epoch, k.position, k.sighting)
        <= (c.last_sighting_epoch, c.last_sighting_position, c.last_sighting)
LEFT JOIN :"evidence".dropped_positions z ON z.source_id = k.source_id
WHERE ((k.epoch, k.position) < (z.epoch, z.position)) IS NOT TRUE
    AND k.realm_id = ANY (CAST(:realms AS integer[]))
    AND (CAST(:usernames AS uuid[]) IS NULL OR k.username_key = ANY (CAST(:usernames AS uuid[])))
ORDER BY source_id, database, username_key, allocation_id, epoch, position, sighting NULLS FIRST;

-- name: find_out_of_order_evidence
-- Whether evidence within a cutoff comes after evidence beyond it: a key sighting was settled later
-- than reports behind it, or a gap between the reports became known after the cutoff.
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
        AND (k.epoch, k.position, k.sighting)
            > (c.last_sighting_epoch, c.last_sighting_position, c.last_sighting)
) OR EXISTS (
    SELECT FROM cutoffs c JOIN accounting.capture_gaps g USING (source_id)
    WHERE g.gap_id > CAST(:highest_gap AS bigint) AND (g.epoch, g.position) < (c.epoch, c.position)
);

-- name: create_recomputed_sessions
-- Scratch tables for recomputed sessions and their hours: the columns of the stored tables.
CREATE TEMP TABLE recomputed_sessions (LIKE accounting.sessions INCLUDING DEFAULTS) ON COMMIT DROP;
CREATE TEMP TABLE recomputed_session_usage (LIKE accounting.session_usage) ON COMMIT DROP;

-- name: create_recomputed_usage
-- Scratch tables for what follows from the recomputed sessions: the columns of the stored tables.
CREATE TEMP TABLE recomputed_user_usage_hourly (
    LIKE accounting.user_usage_hourly INCLUDING DEFAULTS
) ON COMMIT DROP;
CREATE TEMP TABLE recomputed_user_usage_daily (LIKE accounting.user_usage_daily) ON COMMIT DROP;
CREATE TEMP TABLE recomputed_user_usage_monthly (LIKE accounting.user_usage_monthly) ON COMMIT DROP;
CREATE TEMP TABLE recomputed_realm_usage_hourly (LIKE accounting.realm_usage_hourly) ON COMMIT DROP;
CREATE TEMP TABLE recomputed_realm_usage_daily (LIKE accounting.realm_usage_daily) ON COMMIT DROP;
CREATE TEMP TABLE recomputed_realm_usage_monthly (LIKE accounting.realm_usage_monthly)
    ON COMMIT DROP;
CREATE TEMP TABLE recomputed_server_usage_hourly (LIKE accounting.server_usage_hourly)
    ON COMMIT DROP;
CREATE TEMP TABLE recomputed_dimension_peaks_hourly (LIKE accounting.dimension_peaks_hourly)
    ON COMMIT DROP;
CREATE TEMP TABLE recomputed_server_load (LIKE accounting.server_load) ON COMMIT DROP;
CREATE TEMP TABLE recomputed_period_usage (LIKE accounting.session_usage) ON COMMIT DROP;
CREATE TEMP TABLE recomputed_buckets (LIKE accounting.buckets) ON COMMIT DROP;
CREATE TEMP TABLE recomputed_hours (
    realm_id integer, starts_at timestamptz, ends_at timestamptz,
    day_starts_at timestamptz, month_starts_at timestamptz
) ON COMMIT DROP;

-- name: recompute_user_hours
-- Recomputes the hours of users from the hours of sessions.
INSERT INTO recomputed_user_usage_hourly (
    user_key, starts_at, realm_id,
    received_packets, received_bytes, sent_packets, sent_bytes,
    peer_received_packets, peer_received_bytes, peer_sent_packets, peer_sent_bytes,
    sessions_started, sessions_ended, session_microseconds, estimated_bytes
)
SELECT user_key, starts_at, realm_id,
    sum(received_packets), sum(received_bytes), sum(sent_packets), sum(sent_bytes),
    sum(peer_received_packets), sum(peer_received_bytes),
    sum(peer_sent_packets), sum(peer_sent_bytes),
    count(*) FILTER (WHERE started), count(*) FILTER (WHERE ended),
    sum(round(extract(epoch FROM active_to - active_from) * 1000000)),
    coalesce(sum(received_bytes + sent_bytes) FILTER (WHERE estimated), 0)
FROM recomputed_session_usage
WHERE confirmed
GROUP BY user_key, starts_at, realm_id;

-- name: recompute_user_buckets
-- Recomputes the days or months of users: the sums of their hours.
INSERT INTO :"buckets" (
    user_key, starts_at, realm_id,
    received_packets, received_bytes, sent_packets, sent_bytes,
    peer_received_packets, peer_received_bytes, peer_sent_packets, peer_sent_bytes,
    sessions_started, sessions_ended, session_microseconds, estimated_bytes
)
SELECT u.user_key, h.:"bucket_starts_at", u.realm_id,
    sum(u.received_packets), sum(u.received_bytes), sum(u.sent_packets), sum(u.sent_bytes),
    sum(u.peer_received_packets), sum(u.peer_received_bytes),
    sum(u.peer_sent_packets), sum(u.peer_sent_bytes),
    sum(u.sessions_started), sum(u.sessions_ended), sum(u.session_microseconds),
    sum(u.estimated_bytes)
FROM recomputed_user_usage_hourly u
JOIN recomputed_hours h USING (realm_id, starts_at)
GROUP BY u.user_key, h.:"bucket_starts_at", u.realm_id;

-- name: recompute_realm_hours
-- Recomputes the hours of realms from the hours of sessions. The peak is the highest number of
-- sessions that were active at the start of one of them. Spans are half-open; a session that has
-- not ended is active to the end of the hour.
WITH spans AS (
    SELECT u.realm_id, u.starts_at, u.active_from, h.ends_at,
        CASE WHEN u.ended THEN u.active_to ELSE h.ends_at END AS active_to
    FROM recomputed_session_usage u
    JOIN recomputed_hours h USING (realm_id, starts_at)
    WHERE u.confirmed AND (u.active_to > u.active_from OR (u.started AND NOT u.ended))
), begins AS (
    SELECT realm_id, starts_at, active_from AS at, count(*) AS begun FROM spans
    WHERE active_to > active_from GROUP BY realm_id, starts_at, active_from
), ends AS (
    SELECT realm_id, starts_at, active_to AS at, count(*) AS ended FROM spans
    WHERE active_to > active_from AND active_to < ends_at
    GROUP BY realm_id, starts_at, active_to
), counts AS (
    SELECT realm_id, starts_at, at, sum(coalesce(begun, 0) - coalesce(ended, 0)) OVER (
        PARTITION BY realm_id, starts_at ORDER BY at
    ) AS active
    FROM begins FULL JOIN ends USING (realm_id, starts_at, at)
), peaks AS (
    SELECT realm_id, starts_at, max(active) AS peak_sessions
    FROM counts GROUP BY realm_id, starts_at
)
INSERT INTO recomputed_realm_usage_hourly (
    realm_id, starts_at,
    received_packets, received_bytes, sent_packets, sent_bytes,
    peer_received_packets, peer_received_bytes, peer_sent_packets, peer_sent_bytes,
    sessions_started, sessions_ended, session_microseconds, estimated_bytes, peak_sessions
)
SELECT u.realm_id, u.starts_at,
    sum(u.received_packets), sum(u.received_bytes), sum(u.sent_packets), sum(u.sent_bytes),
    sum(u.peer_received_packets), sum(u.peer_received_bytes),
    sum(u.peer_sent_packets), sum(u.peer_sent_bytes),
    count(*) FILTER (WHERE u.started), count(*) FILTER (WHERE u.ended),
    sum(round(extract(epoch FROM u.active_to - u.active_from) * 1000000)),
    coalesce(sum(u.received_bytes + u.sent_bytes) FILTER (WHERE u.estimated), 0),
    coalesce(max(p.peak_sessions), 0)
FROM recomputed_session_usage u
LEFT JOIN peaks p USING (realm_id, starts_at)
WHERE u.confirmed
GROUP BY u.realm_id, u.starts_at;

-- name: recompute_realm_buckets
-- Recomputes the days or months of realms: the sums of their hours, and the highest of their peaks.
INSERT INTO :"buckets" (
    realm_id, starts_at,
    received_packets, received_bytes, sent_packets, sent_bytes,
    peer_received_packets, peer_received_bytes, peer_sent_packets, peer_sent_bytes,
    sessions_started, sessions_ended, session_microseconds, estimated_bytes, peak_sessions
)
SELECT u.realm_id, h.:"bucket_starts_at",
    sum(u.received_packets), sum(u.received_bytes), sum(u.sent_packets), sum(u.sent_bytes),
    sum(u.peer_received_packets), sum(u.peer_received_bytes),
    sum(u.peer_sent_packets), sum(u.peer_sent_bytes),
    sum(u.sessions_started), sum(u.sessions_ended), sum(u.session_microseconds),
    sum(u.estimated_bytes), max(u.peak_sessions)
FROM recomputed_realm_usage_hourly u
JOIN recomputed_hours h USING (realm_id, starts_at)
GROUP BY u.realm_id, h.:"bucket_starts_at";

-- name: recompute_server_hours
-- Recomputes the hours of servers and transports from the hours of sessions. One without usage has no
-- row.
INSERT INTO recomputed_server_usage_hourly (
    realm_id, starts_at, server, transport,
    received_packets, received_bytes, sent_packets, sent_bytes,
    peer_received_packets, peer_received_bytes, peer_sent_packets, peer_sent_bytes,
    sessions_started, sessions_ended, session_microseconds, estimated_bytes
)
SELECT * FROM (
    SELECT u.realm_id, u.starts_at, accounting.server_host(s.server_address) AS server,
        coalesce(s.transport, '') AS transport,
        sum(u.received_packets) AS received_packets, sum(u.received_bytes) AS received_bytes,
        sum(u.sent_packets) AS sent_packets, sum(u.sent_bytes) AS sent_bytes,
        sum(u.peer_received_packets) AS peer_received_packets,
        sum(u.peer_received_bytes) AS peer_received_bytes,
        sum(u.peer_sent_packets) AS peer_sent_packets, sum(u.peer_sent_bytes) AS peer_sent_bytes,
        count(*) FILTER (WHERE u.started) AS sessions_started,
        count(*) FILTER (WHERE u.ended) AS sessions_ended,
        sum(round(extract(epoch FROM u.active_to - u.active_from) * 1000000)) AS microseconds,
        coalesce(sum(u.received_bytes + u.sent_bytes) FILTER (WHERE u.estimated), 0) AS estimated
    FROM recomputed_session_usage u JOIN recomputed_sessions s USING (session_id, user_key)
    WHERE u.confirmed
    GROUP BY 1, 2, 3, 4
) h
WHERE (
    received_packets, received_bytes, sent_packets, sent_bytes,
    peer_received_packets, peer_received_bytes, peer_sent_packets, peer_sent_bytes,
    sessions_started, sessions_ended, microseconds, estimated
) <> (0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0);

-- name: recompute_dimension_peaks
-- Recomputes the peaks of servers and transports as recompute_realm_hours those of realms.
WITH spans AS (
    SELECT u.realm_id, u.starts_at, d.dimension, d.name, u.active_from, h.ends_at,
        CASE WHEN u.ended THEN u.active_to ELSE h.ends_at END AS active_to
    FROM recomputed_session_usage u
    JOIN recomputed_hours h USING (realm_id, starts_at)
    JOIN recomputed_sessions s USING (session_id, user_key)
    CROSS JOIN LATERAL (
        VALUES ('server', accounting.server_host(s.server_address)),
            ('transport', coalesce(s.transport, ''))
    ) AS d (dimension, name)
    WHERE u.confirmed AND (u.active_to > u.active_from OR (u.started AND NOT u.ended))
), begins AS (
    SELECT realm_id, starts_at, dimension, name, active_from AS at, count(*) AS begun FROM spans
    WHERE active_to > active_from GROUP BY realm_id, starts_at, dimension, name, active_from
), ends AS (
    SELECT realm_id, starts_at, dimension, name, active_to AS at, count(*) AS ended FROM spans
    WHERE active_to > active_from AND active_to < ends_at
    GROUP BY realm_id, starts_at, dimension, name, active_to
)
INSERT INTO recomputed_dimension_peaks_hourly (
    realm_id, starts_at, dimension, name, peak_sessions
)
SELECT realm_id, starts_at, dimension, name, max(active) FROM (
    SELECT realm_id, starts_at, dimension, name,
        sum(coalesce(begun, 0) - coalesce(ended, 0)) OVER (
            PARTITION BY realm_id, starts_at, dimension, name ORDER BY at
        ) AS active
    FROM begins FULL JOIN ends USING (realm_id, starts_at, dimension, name, at)
) counts
GROUP BY realm_id, starts_at, dimension, name
HAVING max(active) > 0;

-- name: recompute_server_load
-- Recomputes the open sessions of realms at their servers.
INSERT INTO recomputed_server_load (realm_id, server, live_sessions)
SELECT realm_id, accounting.server_host(server_address), count(*)
FROM recomputed_sessions WHERE confirmed AND ended_at IS NULL
GROUP BY 1, 2;

-- name: compare_server_load
-- Finds the servers with another number of open sessions of a realm than was recomputed.
SELECT server, l.live_sessions AS stored, r.live_sessions AS recomputed
FROM (SELECT * FROM accounting.server_load WHERE realm_id = :realm_id) l
FULL JOIN (SELECT * FROM recomputed_server_load WHERE realm_id = :realm_id) r USING (server)
WHERE l.live_sessions IS DISTINCT FROM r.live_sessions
ORDER BY server;

-- name: compare_peak_slices
-- Finds the slices of a realm's hours in which the open sessions grow by something else than the
-- recomputed ones, and the hours of which the slices have another peak. slice_at: null for a peak.
-- Hours without slices are counted from the sessions when they change.
WITH hours AS MATERIALIZED (
    SELECT DISTINCT h.realm_id, s.starts_at, b.ends_at
    FROM accounting.realm_peak_slices s
    JOIN accounting.buckets b
        ON b.realm_id = s.realm_id AND b.level = 'hour' AND b.starts_at = s.starts_at
    CROSS JOIN (SELECT CAST(:realm_id AS integer) AS realm_id) h
    WHERE s.realm_id = h.realm_id
        AND s.starts_at >= CAST(:since AS timestamptz) AND s.starts_at < CAST(:until AS timestamptz)
), quarters AS (  -- for a hash join: times to hours would be compared one by one
    SELECT h.*, generate_series(
        date_bin('15 minutes', starts_at, 'epoch'), ends_at, interval '15 minutes'
    ) AS quarter
    FROM hours h
), steps AS (
    SELECT h.starts_at, '-infinity' AS slice_at, e.server_address, e.transport, 1 AS step
    FROM hours h
    JOIN recomputed_session_usage u
        ON u.realm_id = h.realm_id AND u.starts_at = h.starts_at
            AND NOT u.started AND u.confirmed AND u.active_to > u.active_from
    JOIN recomputed_sessions e USING (session_id, user_key)
    UNION ALL
    SELECT h.starts_at, greatest(
            h.starts_at, date_bin(make_interval(secs => :slice_seconds), c.at, 'epoch')
        ), e.server_address, e.transport, c.step
    FROM recomputed_sessions e
    CROSS JOIN LATERAL (VALUES (e.started_at, 1), (e.ended_at, -1)) AS c (at, step)
    JOIN quarters h ON h.quarter = date_bin('15 minutes', c.at, 'epoch')
        AND c.at >= h.starts_at AND c.at < h.ends_at
    WHERE e.realm_id = h.realm_id AND e.confirmed
        AND (e.ended_at IS NULL OR e.ended_at > e.started_at)
        AND (c.step > 0 OR c.at > h.starts_at)
), recomputed AS (
    SELECT starts_at, slice_at, d.dimension, d.name, sum(step) AS number
    FROM steps
    CROSS JOIN LATERAL (
        VALUES ('realm', ''), ('server', accounting.server_host(server_address)),
            ('transport', coalesce(transport, ''))
    ) AS d (dimension, name)
    GROUP BY starts_at, slice_at, d.dimension, d.name
    UNION ALL
    SELECT starts_at, NULL, 'realm', '', peak_sessions
    FROM recomputed_realm_usage_hourly JOIN hours USING (realm_id, starts_at)
    UNION ALL
    SELECT starts_at, NULL, dimension, name, peak_sessions
    FROM recomputed_dimension_peaks_hourly JOIN hours USING (realm_id, starts_at)
), stored AS (
    SELECT starts_at, slice_at, dimension, name, session_delta AS number
    FROM accounting.realm_peak_slices JOIN hours USING (realm_id, starts_at)
    UNION ALL
    SELECT starts_at, NULL, dimension, name, max(before + session_peak)
    FROM (
        SELECT starts_at, dimension, name, session_peak, sum(session_delta) OVER (
            PARTITION BY starts_at, dimension, name ORDER BY slice_at
        ) - session_delta AS before
        FROM accounting.realm_peak_slices JOIN hours USING (realm_id, starts_at)
    ) c
    GROUP BY starts_at, dimension, name
)
SELECT starts_at, CAST(slice_at AS text) AS slice_at, dimension, name,
    coalesce(sum(number) FILTER (WHERE is_stored), 0) AS stored,
    coalesce(sum(number) FILTER (WHERE NOT is_stored), 0) AS recomputed
FROM (SELECT *, true AS is_stored FROM stored UNION ALL SELECT *, false FROM recomputed) n
GROUP BY starts_at, n.slice_at, dimension, name
HAVING sum(CASE WHEN is_stored THEN number ELSE -number END) <> 0
ORDER BY starts_at, n.slice_at, dimension, name;

-- name: compare_last_hour
-- Whether the roll-up knows a realm's last hour with usage; otherwise it would not be folded.
SELECT CAST(f.last_hour_ends_at AS text) AS stored, h.ends_at AS recomputed
FROM (SELECT max(ends_at) AS ends_at FROM recomputed_hours WHERE realm_id = :realm_id) h
LEFT JOIN accounting.fold_watermarks f ON f.realm_id = :realm_id
WHERE (f.last_hour_ends_at >= h.ends_at) IS NOT TRUE AND h.ends_at IS NOT NULL;

-- name: set_last_hour
-- Sets the end of a realm's last hour with usage.
UPDATE accounting.fold_watermarks f SET last_hour_ends_at = h.ends_at
FROM (SELECT max(ends_at) AS ends_at FROM recomputed_hours WHERE realm_id = :realm_id) h
WHERE f.realm_id = :realm_id AND f.last_hour_ends_at < h.ends_at;

-- name: find_missing_users
-- Finds users with usage or a statement that have no row with their name.
SELECT user_key FROM recomputed_user_usage_monthly WHERE realm_id = :realm_id
UNION
SELECT user_key FROM accounting.statements WHERE realm_id = :realm_id
EXCEPT
SELECT user_key FROM accounting.users WHERE realm_id = :realm_id
ORDER BY user_key;

-- name: read_user_names
-- Reads the names of a realm's users. is_erased: the name may be empty. radacct_suffix: what it should
-- be, if it is something else.
SELECT u.user_key, u.user_id, u.radacct_suffix AS stored_suffix, s.radacct_suffix,
    e.user_key IS NOT NULL AS is_erased
FROM accounting.users u
JOIN accounting.realms r USING (realm_id)
CROSS JOIN LATERAL accounting.radacct_suffix(u.user_id, r.realm, r.named_in_radacct)
    AS s (radacct_suffix)
LEFT JOIN (SELECT DISTINCT user_key FROM accounting.erasures) e USING (user_key)
WHERE u.realm_id = :realm_id;

-- name: read_usernames
-- Reads the usernames of a realm's users.
SELECT n.user_key, n.username_key, n.username, e.user_key IS NOT NULL AS is_erased
FROM accounting.usernames n
JOIN accounting.users u USING (user_key)
LEFT JOIN (SELECT DISTINCT user_key FROM accounting.erasures) e USING (user_key)
WHERE u.realm_id = :realm_id;

-- name: usernames_of_users
-- Reads the usernames of some users.
SELECT user_key, username FROM accounting.usernames WHERE user_key = ANY (CAST(:user_keys AS uuid[]));

-- name: restore_users
-- Stores names of users of a realm.
INSERT INTO accounting.users AS u (user_key, realm_id, user_id)
SELECT user_key, CAST(:realm_id AS integer), user_id
FROM unnest(CAST(:user_keys AS uuid[]), CAST(:user_ids AS text[])) AS n (user_key, user_id)
ON CONFLICT (user_key) DO UPDATE SET user_id = excluded.user_id, realm_id = excluded.realm_id;

-- name: restore_radacct_suffixes
-- Gives the users of a realm the names in radacct that follow from theirs.
UPDATE accounting.users u
SET radacct_suffix = accounting.radacct_suffix(u.user_id, r.realm, r.named_in_radacct)
FROM accounting.realms r
WHERE r.realm_id = u.realm_id AND u.realm_id = :realm_id AND u.radacct_suffix
    <> accounting.radacct_suffix(u.user_id, r.realm, r.named_in_radacct);

-- name: unannounced_ends
-- Reads the recomputed sessions of which the feed has no event that says how they ended.
SELECT
    s.source_id, s.database, s.username_key, s.allocation_id, s.session_id, s.user_key,
    s.realm_id, s.started_at, s.last_seen_at, s.expires_at, s.start_known, s.lifetime_known,
    s.ended_at, s.end_cause, s.phase, s.confirmed, s.transport, s.client_address, s.server_address,
    s.received_packets, s.received_bytes, s.sent_packets, s.sent_bytes, s.peer_received_packets,
    s.peer_received_bytes, s.peer_sent_packets, s.peer_sent_bytes, s.new_count, s.deleted_count,
    s.client_total_count, s.peer_total_count, s.client_total, s.peer_total,
    s.estimated, s.disputed
FROM recomputed_sessions s
WHERE s.realm_id = ANY (CAST(:realms AS integer[])) AND s.confirmed AND s.ended_at IS NOT NULL
    AND NOT EXISTS (
        SELECT FROM accounting.feed f
        WHERE f.type = 'session.ended' AND f.session_id = s.session_id AND f.user_key = s.user_key
            AND f.ended_at = s.ended_at AND f.end_cause = s.end_cause
            AND f.total_reported = (s.client_total_count > 0)
            AND f.estimated = s.estimated AND f.disputed = s.disputed
            AND f.received_packets = s.received_packets AND f.received_bytes = s.received_bytes
            AND f.sent_packets = s.sent_packets AND f.sent_bytes = s.sent_bytes
            AND f.peer_received_packets = s.peer_received_packets
            AND f.peer_received_bytes = s.peer_received_bytes
            AND f.peer_sent_packets = s.peer_sent_packets
            AND f.peer_sent_bytes = s.peer_sent_bytes
    )
    AND NOT EXISTS (
        SELECT FROM accounting.feed_outbox f
        WHERE f.type = 'session.ended' AND f.session_id = s.session_id AND f.user_key = s.user_key
            AND f.ended_at = s.ended_at AND f.end_cause = s.end_cause
            AND f.total_reported = (s.client_total_count > 0)
            AND f.estimated = s.estimated AND f.disputed = s.disputed
            AND f.received_packets = s.received_packets AND f.received_bytes = s.received_bytes
            AND f.sent_packets = s.sent_packets AND f.sent_bytes = s.sent_bytes
            AND f.peer_received_packets = s.peer_received_packets
            AND f.peer_received_bytes = s.peer_received_bytes
            AND f.peer_sent_packets = s.peer_sent_packets
            AND f.peer_sent_bytes = s.peer_sent_bytes
    )
ORDER BY s.started_at, s.session_id;

-- name: drop_wrong_ends
-- Deletes events from the outbox, not numbered yet, of sessions that end otherwise.
DELETE FROM accounting.feed_outbox
WHERE type = 'session.ended' AND session_id = ANY (CAST(:session_ids AS uuid[]));

-- name: wrong_rejected_counts
-- Finds the sources of which the hours have another number of rejected messages than were counted.
SELECT s.source, coalesce(h.messages, 0) AS stored, coalesce(c.total, 0) AS counted
FROM accounting.sources s
LEFT JOIN (
    SELECT source_id, sum(total) AS total FROM accounting.message_counts
    WHERE outcome = 'rejected' GROUP BY source_id
) c USING (source_id)
LEFT JOIN (
    SELECT source_id, sum(messages) AS messages FROM accounting.rejected_counts GROUP BY source_id
) h USING (source_id)
WHERE coalesce(h.messages, 0) <> coalesce(c.total, 0)
ORDER BY s.source;

-- name: count_wrong_reports
-- Finds the sources that have fewer reports than were loaded and neither dropped nor pruned, several
-- at one position, or one that was received earlier than a report before it.
SELECT s.source,
    coalesce(t.total, 0) - coalesce(d.dropped, 0) - coalesce(p.reports, 0) AS loaded,
    coalesce(r.stored, 0) AS stored, coalesce(r.repeated, 0) AS repeated,
    coalesce(r.out_of_order, 0) AS out_of_order
FROM accounting.sources s
LEFT JOIN accounting.message_counts t ON t.source_id = s.source_id AND t.outcome = 'loaded'
LEFT JOIN (
    SELECT source_id, count(*) AS stored,
        count(*) FILTER (WHERE epoch = epoch_before AND position = position_before) AS repeated,
        count(*) FILTER (WHERE received_at < received_before) AS out_of_order
    FROM (
        SELECT source_id, epoch, position, received_at,
            lag(epoch) OVER in_order AS epoch_before,
            lag(position) OVER in_order AS position_before,
            lag(received_at) OVER in_order AS received_before
        FROM accounting.reports
        WINDOW in_order AS (PARTITION BY source_id ORDER BY epoch, position)
    ) pairs
    GROUP BY source_id
) r ON r.source_id = s.source_id
LEFT JOIN (
    SELECT source_id, sum(reports) AS dropped FROM accounting.dropped_reports GROUP BY source_id
) d ON d.source_id = s.source_id
LEFT JOIN accounting.pruned_counts p ON p.source_id = s.source_id
WHERE coalesce(r.stored, 0)
        < coalesce(t.total, 0) - coalesce(d.dropped, 0) - coalesce(p.reports, 0)
    OR r.repeated > 0 OR r.out_of_order > 0
ORDER BY s.source;

-- name: compare_statement
-- Compares a closed period's statement with the recomputed hours up to its cutoff, user by user.
-- stored or recomputed is null where the user has no line or no hours.
SELECT user_key, l.digest, l.numbers AS stored, u.numbers AS recomputed
FROM (
    SELECT user_key, digest, CAST(ARRAY[
        received_packets, received_bytes, sent_packets, sent_bytes,
        peer_received_packets, peer_received_bytes, peer_sent_packets, peer_sent_bytes,
        sessions_started, sessions_ended, session_microseconds, estimated_bytes
    ] AS numeric[]) AS numbers
    FROM accounting.statements WHERE realm_id = :realm_id AND period = :period
) l
FULL JOIN (
    SELECT user_key, CAST(ARRAY[
        sum(received_packets), sum(received_bytes), sum(sent_packets), sum(sent_bytes),
        sum(peer_received_packets), sum(peer_received_bytes),
        sum(peer_sent_packets), sum(peer_sent_bytes),
        count(*) FILTER (WHERE started), count(*) FILTER (WHERE ended),
        sum(round(extract(epoch FROM active_to - active_from) * 1000000)),
        coalesce(sum(received_bytes + sent_bytes) FILTER (WHERE estimated), 0)
    ] AS numeric[]) AS numbers
    FROM recomputed_period_usage
    WHERE confirmed AND realm_id = :realm_id AND starts_at >= :starts_at AND starts_at < :ends_at
    GROUP BY user_key
) u USING (user_key)
ORDER BY user_key;

-- name: find_unbalanced_adjustments
-- Finds the users of a closed period whose line and adjustments for late usage are not the sum of
-- their recomputed hours.
SELECT user_key, coalesce(b.numbers, z.numbers) AS stored,
    coalesce(u.numbers, z.numbers) AS recomputed
FROM (
    SELECT user_key, CAST(ARRAY[
        sum(received_packets), sum(received_bytes), sum(sent_packets), sum(sent_bytes),
        sum(peer_received_packets), sum(peer_received_bytes),
        sum(peer_sent_packets), sum(peer_sent_bytes), sum(session_microseconds)
    ] AS numeric[]) AS numbers
    FROM (
        SELECT user_key,
            received_packets, received_bytes, sent_packets, sent_bytes, peer_received_packets,
            peer_received_bytes, peer_sent_packets, peer_sent_bytes, session_microseconds
        FROM accounting.statements WHERE realm_id = :realm_id AND period = :period
        UNION ALL
        SELECT user_key,
            received_packets, received_bytes, sent_packets, sent_bytes, peer_received_packets,
            peer_received_bytes, peer_sent_packets, peer_sent_bytes, session_microseconds
        FROM accounting.adjustments
        WHERE realm_id = :realm_id AND period = :period AND NOT manual
    ) billed
    GROUP BY user_key
) b
FULL JOIN (
    SELECT user_key, CAST(ARRAY[
        sum(received_packets), sum(received_bytes), sum(sent_packets), sum(sent_bytes),
        sum(peer_received_packets), sum(peer_received_bytes),
        sum(peer_sent_packets), sum(peer_sent_bytes), sum(session_microseconds)
    ] AS numeric[]) AS numbers
    FROM recomputed_user_usage_hourly
    WHERE realm_id = :realm_id AND starts_at >= :starts_at AND starts_at < :ends_at
    GROUP BY user_key
) u USING (user_key)
CROSS JOIN (SELECT array_fill(CAST(0 AS numeric), ARRAY[9]) AS numbers) z
WHERE coalesce(b.numbers, z.numbers) <> coalesce(u.numbers, z.numbers)
ORDER BY user_key;

-- name: move_single_hours
-- Moves the only hour of a recomputed session into the session's own row, where settling keeps it.
WITH single AS (
    SELECT session_id, user_key, min(starts_at) AS starts_at FROM recomputed_session_usage
    GROUP BY session_id, user_key HAVING count(*) = 1 AND bool_and(started)
),
updated AS (
    UPDATE recomputed_sessions s SET single_hour = h.starts_at FROM single h
    WHERE s.session_id = h.session_id AND s.user_key = h.user_key
)
DELETE FROM recomputed_session_usage u USING single h
WHERE u.session_id = h.session_id AND u.user_key = h.user_key;

-- name: note_rebuilt_hours
-- In a cell of a front, notes that the hours of a rebuilt realm changed.
INSERT INTO accounting.changed_hours AS c (realm_id, starts_at, changed_at)
SELECT b.realm_id, b.starts_at, n.changed_at
FROM accounting.buckets b
CROSS JOIN (
    SELECT greatest(clock_timestamp(), max(changed_at) + interval '1 microsecond') AS changed_at
    FROM accounting.changed_hours
) n
WHERE b.realm_id = :realm_id AND b.level = 'hour' AND EXISTS (SELECT FROM accounting.membership)
ON CONFLICT (realm_id, starts_at) DO UPDATE SET changed_at = excluded.changed_at;

-- name: queue_rebuilt_periods
-- Queues the closed periods, by user, whose hours a rebuild of a realm is about to change.
INSERT INTO accounting.periods_to_adjust (realm_id, period, user_key)
SELECT DISTINCT p.realm_id, p.period, h.user_key
FROM (
    SELECT realm_id, user_key, starts_at
    FROM (
        SELECT 1 AS side, * FROM accounting.user_usage_hourly WHERE realm_id = :realm_id
        UNION ALL
        SELECT 2, * FROM recomputed_user_usage_hourly
    ) b
    GROUP BY realm_id, user_key, starts_at, received_packets, received_bytes, sent_packets,
        sent_bytes, peer_received_packets, peer_received_bytes, peer_sent_packets, peer_sent_bytes,
        sessions_started, sessions_ended, session_microseconds, estimated_bytes
    HAVING count(DISTINCT side) = 1
) h
JOIN accounting.periods p
    ON p.realm_id = h.realm_id AND h.starts_at >= p.starts_at AND h.starts_at < p.ends_at
WHERE p.closed_at IS NOT NULL;

-- name: delete_server_load
-- Deletes the numbers of open sessions at the servers of a realm.
DELETE FROM accounting.server_load WHERE realm_id = :realm_id;

-- name: insert_server_load
-- Stores the recomputed open sessions of a realm at its servers.
INSERT INTO accounting.server_load (realm_id, server, live_sessions)
SELECT realm_id, server, live_sessions FROM recomputed_server_load WHERE realm_id = :realm_id;

-- name: set_peak_versions
-- Gives all hours of a realm new versions of their peaks, also those that have no usage any more.
INSERT INTO accounting.peak_versions AS v (realm_id, starts_at)
SELECT realm_id, starts_at FROM accounting.realm_usage_hourly WHERE realm_id = :realm_id
UNION
SELECT realm_id, starts_at FROM accounting.peak_versions WHERE realm_id = :realm_id
ON CONFLICT (realm_id, starts_at) DO UPDATE
SET version = excluded.version, changed_at = excluded.changed_at;

-- name: last_recomputed_hour
-- The end of the last hour of a realm that is recomputed, or in the feed.
SELECT greatest(
    (SELECT max(ends_at) FROM recomputed_buckets WHERE realm_id = :realm_id AND level = 'hour'),
    (SELECT max(ended_at) FROM accounting.counted_usage WHERE realm_id = :realm_id)
);

-- name: stage_feed_differences
-- Stages by how much the hours of users in some spans of a realm differ from what the feed has of them.
INSERT INTO staged_deltas (
    realm_id, user_key, starts_at,
    received_packets, received_bytes, sent_packets, sent_bytes,
    peer_received_packets, peer_received_bytes, peer_sent_packets, peer_sent_bytes,
    sessions_started, sessions_ended, session_microseconds, estimated_bytes
)
SELECT d.*
FROM (
    SELECT realm_id, user_key, starts_at,
        sum(sign * received_packets) AS received_packets,
        sum(sign * received_bytes) AS received_bytes,
        sum(sign * sent_packets) AS sent_packets,
        sum(sign * sent_bytes) AS sent_bytes,
        sum(sign * peer_received_packets) AS peer_received_packets,
        sum(sign * peer_received_bytes) AS peer_received_bytes,
        sum(sign * peer_sent_packets) AS peer_sent_packets,
        sum(sign * peer_sent_bytes) AS peer_sent_bytes,
        sum(sign * sessions_started) AS sessions_started,
        sum(sign * sessions_ended) AS sessions_ended,
        sum(sign * session_microseconds) AS session_microseconds,
        sum(sign * estimated_bytes) AS estimated_bytes
    FROM (
        SELECT 1 AS sign, h.realm_id, h.user_key, h.starts_at,
            received_packets, received_bytes, sent_packets, sent_bytes, peer_received_packets,
            peer_received_bytes, peer_sent_packets, peer_sent_bytes, sessions_started,
            sessions_ended, session_microseconds, estimated_bytes
        FROM unnest(CAST(:sinces AS timestamptz[]), CAST(:untils AS timestamptz[]))
            AS s (since, until)
        JOIN accounting.user_usage_hourly h
            ON h.realm_id = :realm_id AND h.starts_at >= s.since AND h.starts_at < s.until
        UNION ALL
        SELECT -1, c.realm_id, c.user_key, c.started_at,
            received_packets, received_bytes, sent_packets, sent_bytes, peer_received_packets,
            peer_received_bytes, peer_sent_packets, peer_sent_bytes, sessions_started,
            sessions_ended, session_microseconds, estimated_bytes
        FROM unnest(CAST(:sinces AS timestamptz[]), CAST(:untils AS timestamptz[]))
            AS s (since, until)
        JOIN accounting.counted_usage c
            ON c.realm_id = :realm_id AND c.started_at >= s.since AND c.started_at < s.until
    ) v
    GROUP BY realm_id, user_key, starts_at
) d
WHERE (
    received_packets, received_bytes, sent_packets, sent_bytes,
    peer_received_packets, peer_received_bytes, peer_sent_packets, peer_sent_bytes,
    sessions_started, sessions_ended, session_microseconds, estimated_bytes
) <> (0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0);

-- name: compare_counted_hours
-- Finds the hours of users in a span of a realm of which the feed has something else than was
-- recomputed. It has the folded ones.
SELECT user_key, starts_at, c.numbers AS stored, h.numbers AS recomputed
FROM (
    SELECT user_key, started_at AS starts_at, CAST(ARRAY[
        sum(received_packets), sum(received_bytes), sum(sent_packets), sum(sent_bytes),
        sum(peer_received_packets), sum(peer_received_bytes),
        sum(peer_sent_packets), sum(peer_sent_bytes),
        sum(sessions_started), sum(sessions_ended),
        sum(session_microseconds), sum(estimated_bytes)
    ] AS numeric[]) AS numbers
    FROM accounting.counted_usage
    WHERE realm_id = :realm_id
        AND started_at >= CAST(:since AS timestamptz) AND started_at < CAST(:until AS timestamptz)
    GROUP BY user_key, started_at
) c
FULL JOIN (
    SELECT r.user_key, r.starts_at, CAST(ARRAY[
        received_packets, received_bytes, sent_packets, sent_bytes,
        peer_received_packets, peer_received_bytes, peer_sent_packets, peer_sent_bytes,
        sessions_started, sessions_ended, session_microseconds, estimated_bytes
    ] AS numeric[]) AS numbers
    FROM recomputed_user_usage_hourly r JOIN accounting.fold_watermarks f USING (realm_id)
    WHERE r.realm_id = :realm_id AND r.starts_at < f.folded_until
        AND r.starts_at >= CAST(:since AS timestamptz) AND r.starts_at < CAST(:until AS timestamptz)
) h USING (user_key, starts_at)
CROSS JOIN (SELECT array_fill(CAST(0 AS numeric), ARRAY[12]) AS numbers) z
WHERE coalesce(c.numbers, z.numbers) <> coalesce(h.numbers, z.numbers)
ORDER BY starts_at, user_key;

-- name: compare_counted_statement
-- Finds the users of a closed period of whose hours the feed has something else than their line.
SELECT user_key, c.numbers AS stored, l.numbers AS recomputed
FROM (
    SELECT user_key, CAST(ARRAY[
        sum(received_packets), sum(received_bytes), sum(sent_packets), sum(sent_bytes),
        sum(peer_received_packets), sum(peer_received_bytes),
        sum(peer_sent_packets), sum(peer_sent_bytes),
        sum(sessions_started), sum(sessions_ended),
        sum(session_microseconds), sum(estimated_bytes)
    ] AS numeric[]) AS numbers
    FROM accounting.counted_usage
    WHERE realm_id = :realm_id AND started_at >= :starts_at AND started_at < :ends_at
    GROUP BY user_key
) c
FULL JOIN (
    SELECT user_key, CAST(ARRAY[
        received_packets, received_bytes, sent_packets, sent_bytes,
        peer_received_packets, peer_received_bytes, peer_sent_packets, peer_sent_bytes,
        sessions_started, sessions_ended, session_microseconds, estimated_bytes
    ] AS numeric[]) AS numbers
    FROM accounting.statements WHERE realm_id = :realm_id AND period = :period
) l USING (user_key)
CROSS JOIN (SELECT array_fill(CAST(0 AS numeric), ARRAY[12]) AS numbers) z
WHERE coalesce(c.numbers, z.numbers) <> coalesce(l.numbers, z.numbers)
ORDER BY user_key;

-- name: day_sources
-- Reads how far each source is settled, and its last report in a span of time.
SELECT s.source_id, s.source, s.retired_at IS NOT NULL AS is_retired, t.settled_until,
    l.epoch, l.position, l.received_at,
    coalesce((l.epoch, l.position) > (t.epoch, t.position), false) AS is_unsettled
FROM accounting.sources s
LEFT JOIN accounting.settle_watermarks t USING (source_id)
LEFT JOIN (
    SELECT source_id, CAST(last[1] AS integer) AS epoch, last[2] AS position, received_at
    FROM (
        SELECT source_id, max(ARRAY[epoch, position]) AS last, max(received_at) AS received_at
        FROM accounting.reports
        WHERE received_at >= CAST(:since AS timestamptz)
            AND received_at < CAST(:until AS timestamptz)
        GROUP BY source_id
    ) r
) l USING (source_id)
ORDER BY s.source;

-- name: retention_clock
-- The time that the age of reports is counted from: the database's now, but not later than the sources
-- in service have captured, so that no clock that is ahead makes reports old.
SELECT CASE
    WHEN EXISTS (SELECT FROM accounting.sources WHERE retired_at IS NULL)
    THEN (SELECT least(max(captured_until), accounting.database_now()) FROM accounting.sources)
    ELSE accounting.database_now()
END;

-- name: report_days
-- Reads the days (UTC) that have a partition of reports, the oldest first.
SELECT to_date(substr(c.relname, 9), 'YYYYMMDD') AS day
FROM pg_inherits i JOIN pg_class c ON c.oid = i.inhrelid
WHERE i.inhparent = CAST('accounting.reports' AS regclass) AND c.relname ~ '^reports_[0-9]{8}$'
ORDER BY day;

-- name: create_day_sessions
-- Collects the sessions that the evidence of a span belongs to: those that began in it, by the bounds
-- of their session_ids, and the carried ones whose keys have a report in it, or a sighting up to the
-- position of its last report.
CREATE TEMP TABLE day_sessions ON COMMIT DROP AS
SELECT s.session_id, s.user_key
FROM unnest(
    CAST(:sources AS smallint[]), CAST(:last_session_ids AS uuid[])
) AS b (source_id, last_session_id)
LEFT JOIN accounting.dropped_positions z USING (source_id)
JOIN accounting.sessions s ON s.source_id = b.source_id AND s.session_id <= b.last_session_id
    AND s.session_id > coalesce(z.last_session_id, '00000000-0000-0000-0000-000000000000')
UNION
SELECT s.session_id, s.user_key
FROM accounting.carried_sessions c
JOIN (
    SELECT DISTINCT source_id, database, username_key, allocation_id
    FROM accounting.reports
    WHERE received_at >= CAST(:since AS timestamptz) AND received_at < CAST(:until AS timestamptz)
    UNION
    SELECT k.source_id, k.database, k.username_key, k.allocation_id
    FROM unnest(
        CAST(:sources AS smallint[]), CAST(:epochs AS integer[]), CAST(:positions AS bigint[])
    ) AS b (source_id, epoch, position)
    LEFT JOIN accounting.dropped_positions z USING (source_id)
    JOIN accounting.key_sightings k ON k.source_id = b.source_id
        AND (k.epoch, k.position) < (b.epoch, b.position)
    WHERE ((k.epoch, k.position) < (z.epoch, z.position)) IS NOT TRUE
) k USING (source_id, database, username_key, allocation_id)
JOIN accounting.sessions s ON s.session_id = c.session_id AND s.user_key = c.user_key;

-- name: count_active_day_sessions
-- Counts the day's sessions that have not ended, by source. A pending session counts until its time
-- has passed; those of a retired source do not count.
SELECT o.source, count(*) AS sessions
FROM day_sessions d
JOIN accounting.sessions s ON s.session_id = d.session_id AND s.user_key = d.user_key
JOIN accounting.sources o USING (source_id)
JOIN accounting.settle_watermarks t USING (source_id)
WHERE s.ended_at IS NULL AND s.phase > 0 AND o.retired_at IS NULL
    AND NOT (s.phase = 2 AND s.expires_at < t.settled_until)
GROUP BY o.source ORDER BY o.source;

-- name: dependent_periods
-- Reads the periods that a day depends on, each with its last proof: those in which its sessions have
-- usage, and those of its realms that overlap it. The latter are the ones that
-- drop_report_partition() checks: usage that is not confirmed counts there too. period is null where
-- the period has no row yet.
WITH usage AS (
    SELECT h.realm_id, min(h.starts_at) AS first, max(h.starts_at) AS last
    FROM day_sessions d
    CROSS JOIN LATERAL (  -- OFFSET 0: along the keys, session by session
        SELECT * FROM accounting.session_hours h
        WHERE h.session_id = d.session_id AND h.user_key = d.user_key OFFSET 0
    ) h
    WHERE h.confirmed GROUP BY h.realm_id
), depends AS (
    SELECT u.realm_id, p.period
    FROM usage u
    LEFT JOIN accounting.periods p
        ON p.realm_id = u.realm_id AND p.ends_at > u.first AND p.starts_at <= u.last
    UNION
    SELECT p.realm_id, p.period
    FROM accounting.periods p
    WHERE p.starts_at < CAST(:until AS timestamptz) AND p.ends_at > CAST(:since AS timestamptz)
        AND p.realm_id IN (
            SELECT unnest(CAST(:realms AS integer[]))
            UNION ALL
            SELECT realm_id FROM accounting.dropped_reports WHERE day = CAST(:day AS date)
        )
)
SELECT r.realm, p.period, p.closed_at IS NOT NULL AS is_closed, f.differences, f.checked_at,
    coalesce(
        f.checked_at > p.closed_at AND f.checked_at > now() - CAST(:max_age AS interval), false
    ) AS is_fresh
FROM depends d
JOIN accounting.realms r USING (realm_id)
LEFT JOIN accounting.periods p ON p.realm_id = d.realm_id AND p.period = d.period
LEFT JOIN accounting.proofs f ON f.realm_id = p.realm_id AND f.period = p.period
ORDER BY r.realm, p.period;

-- name: create_recomputed_carried
-- Scratch tables for the sessions that go on after a day of reports, and for all keys of the day.
CREATE TEMP TABLE recomputed_carried_sessions (LIKE accounting.carried_sessions) ON COMMIT DROP;
CREATE TEMP TABLE recomputed_keys (
    source_id smallint, database integer, username_key uuid, allocation_id bigint
) ON COMMIT DROP;

-- name: create_finalized_from_recomputed
-- Collects the recomputed sessions, which end with the day's reports, by the day (UTC) they began.
CREATE TEMP TABLE finalized ON COMMIT DROP AS
SELECT session_id, user_key, realm_id, CAST(started_at AT TIME ZONE 'UTC' AS date) AS day
FROM recomputed_sessions;

-- name: create_finalized_from_stored
-- Collects the stored sessions of some realms that ended with the dropped reports, by the day (UTC)
-- they began.
CREATE TEMP TABLE finalized ON COMMIT DROP AS
SELECT s.session_id, s.user_key, s.realm_id, CAST(s.started_at AT TIME ZONE 'UTC' AS date) AS day
FROM accounting.dropped_positions z
JOIN accounting.sessions s ON s.source_id = z.source_id AND s.session_id <= z.last_session_id
WHERE s.realm_id = ANY (CAST(:realms AS integer[])) AND NOT EXISTS (
    SELECT FROM accounting.carried_sessions c
    WHERE c.session_id = s.session_id AND c.user_key = s.user_key
);

-- name: finalized_digests
-- Computes for each realm and day the number of finalized sessions and a sum of hashes over their
-- rows and hours. Times are in seconds, so that no setting of the connection changes a digest.
-- Without client_address, which erasing a person empties.
SELECT realm_id, day, count(*) FILTER (WHERE is_session) AS sessions, sum(hash) AS digest
FROM (
    SELECT l.realm_id, l.day, true AS is_session, accounting.row_hash(jsonb_build_array(
        s.session_id, s.user_key, s.username_key, s.realm_id, s.source_id, s.database,
        s.allocation_id, extract(epoch FROM s.started_at), extract(epoch FROM s.last_seen_at),
        extract(epoch FROM s.expires_at), s.start_known, s.lifetime_known,
        extract(epoch FROM s.ended_at), s.end_cause, s.phase, s.confirmed, s.transport,
        s.server_address, s.received_packets, s.received_bytes, s.sent_packets, s.sent_bytes,
        s.peer_received_packets, s.peer_received_bytes, s.peer_sent_packets, s.peer_sent_bytes,
        s.new_count, s.deleted_count, s.client_total_count, s.peer_total_count, s.client_total,
        s.peer_total, s.estimated, s.disputed
    )) AS hash
    FROM finalized l
    JOIN accounting.sessions s ON s.session_id = l.session_id AND s.user_key = l.user_key
    UNION ALL
    SELECT l.realm_id, l.day, false, accounting.row_hash(jsonb_build_array(
        h.session_id, extract(epoch FROM h.starts_at), h.user_key, h.realm_id, h.confirmed,
        h.estimated, h.started, h.ended, extract(epoch FROM h.active_from),
        extract(epoch FROM h.active_to), h.received_packets, h.received_bytes, h.sent_packets,
        h.sent_bytes, h.peer_received_packets, h.peer_received_bytes, h.peer_sent_packets,
        h.peer_sent_bytes
    ))
    FROM finalized l
    JOIN accounting.session_hours h ON h.session_id = l.session_id AND h.user_key = l.user_key
) hashes
GROUP BY realm_id, day;

-- name: copy_finalized
-- Copies the finalized sessions and their hours from the stored tables into the recomputed ones:
-- their reports were dropped, so they can't be recomputed.
WITH copied_sessions AS (
    INSERT INTO recomputed_sessions
    SELECT s.* FROM finalized l
    JOIN accounting.sessions s ON s.session_id = l.session_id AND s.user_key = l.user_key
),
copied_periods AS (
    INSERT INTO recomputed_period_usage
    SELECT h.* FROM finalized l
    JOIN accounting.session_hours h ON h.session_id = l.session_id AND h.user_key = l.user_key
)
INSERT INTO recomputed_session_usage
SELECT h.* FROM finalized l
JOIN accounting.session_hours h ON h.session_id = l.session_id AND h.user_key = l.user_key;

-- name: finalized_of_user
-- Reads a user's finalized sessions, or only :session_id, with usage in a span, and its eight counters
-- and microseconds.
SELECT
    e.source_id, e.database, e.username_key, e.allocation_id, e.session_id,
    e.user_key, e.realm_id, e.started_at, e.last_seen_at, e.expires_at,
    e.start_known, e.lifetime_known, e.ended_at, e.end_cause, e.phase,
    e.confirmed, e.transport, e.client_address, e.server_address, e.received_packets,
    e.received_bytes, e.sent_packets, e.sent_bytes, e.peer_received_packets, e.peer_received_bytes,
    e.peer_sent_packets, e.peer_sent_bytes, e.new_count, e.deleted_count, e.client_total_count,
    e.peer_total_count, e.client_total, e.peer_total, e.estimated, e.disputed,
    h.numbers
FROM accounting.sessions e
JOIN accounting.dropped_positions z
    ON z.source_id = e.source_id AND e.session_id <= z.last_session_id
CROSS JOIN LATERAL (
    SELECT CAST(ARRAY[
        sum(received_packets), sum(received_bytes), sum(sent_packets), sum(sent_bytes),
        sum(peer_received_packets), sum(peer_received_bytes),
        sum(peer_sent_packets), sum(peer_sent_bytes),
        sum(round(extract(epoch FROM active_to - active_from) * 1000000))
    ] AS numeric[]) AS numbers
    FROM accounting.session_hours
    WHERE session_id = e.session_id AND user_key = e.user_key AND confirmed
        AND starts_at >= CAST(:starts_at AS timestamptz)
        AND starts_at < CAST(:ends_at AS timestamptz)
    HAVING count(*) > 0
) h
WHERE e.user_key = CAST(:user_key AS uuid) AND e.realm_id = CAST(:realm_id AS integer)
    AND (CAST(:session_id AS uuid) IS NULL OR e.session_id = CAST(:session_id AS uuid))
    AND e.started_at < CAST(:ends_at AS timestamptz)
    AND NOT EXISTS (
        SELECT FROM accounting.carried_sessions c
        WHERE c.session_id = e.session_id AND c.user_key = e.user_key
    )
ORDER BY e.session_id;

-- name: drop_day_tables
-- Drops the scratch tables of a day, so that the transaction can process the next day.
DROP TABLE IF EXISTS day_sessions, recomputed_sessions, recomputed_session_usage,
    recomputed_carried_sessions, recomputed_keys, finalized;

-- name: fetch_logged_sessions
-- Reads the billed sessions of keys as coturn's log names them, oldest first.
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

-- name: fetch_sessions_by_allocation
-- Reads the billed sessions of some allocation ids with all names, oldest first.
SELECT
    r.realm, n.username, e.allocation_id, e.session_id, e.estimated, e.disputed,
    e.received_packets, e.received_bytes, e.sent_packets, e.sent_bytes,
    e.peer_received_packets, e.peer_received_bytes, e.peer_sent_packets, e.peer_sent_bytes
FROM accounting.sessions e
JOIN accounting.realms r USING (realm_id)
JOIN accounting.usernames n USING (username_key, user_key)
WHERE e.allocation_id = ANY (CAST(:allocations AS bigint[])) AND e.confirmed
ORDER BY e.started_at, e.session_id;

-- name: newest_unconfirmed
-- Finds the newest session of a source that is over, was never confirmed, and is not one of the
-- :kept newest.
SELECT session_id FROM accounting.sessions
WHERE NOT confirmed AND phase = 0
    AND session_id > CAST(:after AS uuid) AND session_id < CAST(:source_end AS uuid)
ORDER BY session_id DESC OFFSET :kept LIMIT 1;

-- name: create_pruned_sessions
-- Collects sessions of a source that are over and were never confirmed: those last seen before
-- :seen_before, and those up to :newest. Of a disputed one some reports may be set aside.
CREATE TEMP TABLE pruned_sessions ON COMMIT DROP AS
SELECT session_id, user_key, username_key, realm_id, source_id, database, allocation_id,
    started_at, last_seen_at
FROM accounting.sessions
WHERE NOT confirmed AND phase = 0 AND NOT disputed
    AND session_id > CAST(:after AS uuid) AND session_id < CAST(:source_end AS uuid)
    AND (last_seen_at < CAST(:seen_before AS timestamptz) OR session_id <= CAST(:newest AS uuid))
ORDER BY session_id LIMIT :limit;

-- name: keep_related_sessions
-- Keeps the sessions that others depend on: those with a key that also had a confirmed session, as
-- the fold of that one would change, and those that dropped reports left open. A user without usage
-- has no confirmed session; a username may have had several users.
WITH names AS MATERIALIZED (
    SELECT DISTINCT n.username_key, n.user_key
    FROM (SELECT DISTINCT username_key FROM pruned_sessions) p
    CROSS JOIN LATERAL (  -- OFFSET 0: name by name along the index
        SELECT * FROM accounting.usernames n WHERE n.username_key = p.username_key OFFSET 0
    ) n
    WHERE coalesce(
        (SELECT user_key FROM accounting.user_usage_monthly WHERE user_key = n.user_key LIMIT 1),
        (SELECT user_key FROM accounting.usage_deltas WHERE user_key = n.user_key LIMIT 1)
    ) IS NOT NULL
), confirmed_keys AS MATERIALIZED (
    SELECT s.source_id, s.database, s.username_key, s.allocation_id
    FROM (SELECT DISTINCT user_key FROM names) n
    CROSS JOIN LATERAL (  -- OFFSET 0: user by user along the index
        SELECT * FROM accounting.sessions s
        WHERE s.user_key = n.user_key AND s.confirmed OFFSET 0
    ) s
)
DELETE FROM pruned_sessions p
WHERE (p.source_id, p.database, p.username_key, p.allocation_id)
        IN (SELECT * FROM confirmed_keys)
    OR p.session_id IN (SELECT session_id FROM accounting.carried_sessions);

-- name: create_finalized_from_pruned
-- Collects those of the pruned sessions that ended with the dropped reports.
CREATE TEMP TABLE finalized ON COMMIT DROP AS
SELECT p.session_id, p.user_key, p.realm_id,
    CAST(p.started_at AT TIME ZONE 'UTC' AS date) AS day
FROM pruned_sessions p JOIN accounting.dropped_positions z USING (source_id)
WHERE p.session_id <= z.last_session_id;

-- name: read_pruned_with_reports
-- Reads the pruned sessions whose reports are kept, and the last time at which one was seen.
SELECT session_id, max(last_seen_at) OVER () AS last_seen_at FROM pruned_sessions
WHERE session_id NOT IN (SELECT session_id FROM finalized)
ORDER BY session_id;

-- name: first_session_after
-- Finds the first session of a source that started after a time, among those after :after.
SELECT session_id FROM accounting.sessions
WHERE session_id > CAST(:after AS uuid) AND session_id < CAST(:source_end AS uuid)
    AND started_at > CAST(:started_after AS timestamptz)
ORDER BY session_id LIMIT 1;

-- name: add_pruned_usage
-- Adds the hours of the pruned sessions to the sums by realm and hour.
INSERT INTO accounting.pruned_usage AS u (
    source_id, realm_id, starts_at, sessions_started,
    received_packets, received_bytes, sent_packets, sent_bytes,
    peer_received_packets, peer_received_bytes, peer_sent_packets, peer_sent_bytes
)
SELECT p.source_id, h.realm_id, h.starts_at, count(*) FILTER (WHERE h.started),
    sum(h.received_packets), sum(h.received_bytes), sum(h.sent_packets), sum(h.sent_bytes),
    sum(h.peer_received_packets), sum(h.peer_received_bytes),
    sum(h.peer_sent_packets), sum(h.peer_sent_bytes)
FROM pruned_sessions p
CROSS JOIN LATERAL (  -- OFFSET 0: along the keys, session by session
    SELECT * FROM accounting.session_hours h WHERE h.session_id = p.session_id OFFSET 0
) h
GROUP BY p.source_id, h.realm_id, h.starts_at
ON CONFLICT (source_id, realm_id, starts_at) DO UPDATE SET
    sessions_started = u.sessions_started + excluded.sessions_started,
    received_packets = u.received_packets + excluded.received_packets,
    received_bytes = u.received_bytes + excluded.received_bytes,
    sent_packets = u.sent_packets + excluded.sent_packets,
    sent_bytes = u.sent_bytes + excluded.sent_bytes,
    peer_received_packets = u.peer_received_packets + excluded.peer_received_packets,
    peer_received_bytes = u.peer_received_bytes + excluded.peer_received_bytes,
    peer_sent_packets = u.peer_sent_packets + excluded.peer_sent_packets,
    peer_sent_bytes = u.peer_sent_bytes + excluded.peer_sent_bytes;

-- name: delete_pruned_sessions
-- Deletes the pruned sessions and their hours; returns how many sessions.
WITH hours AS (
    DELETE FROM accounting.session_usage h USING pruned_sessions p
    WHERE h.session_id = p.session_id AND h.user_key = p.user_key
), deleted AS (
    DELETE FROM accounting.sessions s USING pruned_sessions p
    WHERE s.session_id = p.session_id AND s.user_key = p.user_key
    RETURNING 1
)
SELECT count(*) FROM deleted;

-- name: create_names_of_pruned_sessions
-- Collects the names of the pruned sessions. A username may have had several users.
CREATE TEMP TABLE pruned_names ON COMMIT DROP AS
SELECT n.user_key, n.username_key
FROM (SELECT DISTINCT username_key FROM pruned_sessions OFFSET 0) p
CROSS JOIN LATERAL (
    SELECT * FROM accounting.usernames n WHERE n.username_key = p.username_key OFFSET 0
) n;

-- name: prune_sightings
-- Deletes sightings of a source that no report can need, and collects their names.
CREATE TEMP TABLE pruned_names ON COMMIT DROP AS
SELECT user_key, username_key
FROM accounting.prune_sightings(
    CAST(:source_id AS smallint), CAST(:since AS timestamptz), CAST(:before AS timestamptz),
    '{}', CAST(:most AS integer));

-- name: prune_sightings_of_names
-- Deletes the sightings of the pruned names whose users have no session; returns how many.
SELECT count(*) FROM accounting.prune_sightings(
    CAST(:source_id AS smallint), NULL, NULL,
    ARRAY(SELECT DISTINCT user_key FROM pruned_names), 0);

-- name: next_sightings
-- Finds the span of the next sightings of a source that were not considered yet; null: there are none.
SELECT min(seen_at) AS since, max(seen_at) + interval '1 microsecond' AS before
FROM (
    SELECT k.seen_at FROM accounting.key_sightings k
    WHERE k.source_id = :source_id AND k.seen_at < CAST(:before AS timestamptz)
        AND k.seen_at >= coalesce((
            SELECT c.sightings_until FROM accounting.pruned_counts c
            WHERE c.source_id = :source_id
        ), '-infinity')
    ORDER BY k.seen_at LIMIT :most
) next;

-- name: create_names_in_use
-- Collects the names in pruned_names that another session or a key sighting still refers to.
CREATE TEMP TABLE names_in_use ON COMMIT DROP AS
WITH candidates AS MATERIALIZED (SELECT DISTINCT user_key FROM pruned_names)
SELECT s.user_key, s.username_key
FROM candidates c
CROSS JOIN LATERAL (  -- OFFSET 0: user by user along the index
    SELECT * FROM accounting.sessions s WHERE s.user_key = c.user_key OFFSET 0
) s
UNION
SELECT k.user_key, k.username_key
FROM candidates c
CROSS JOIN LATERAL (
    SELECT * FROM accounting.key_sightings k WHERE k.user_key = c.user_key OFFSET 0
) k
UNION
SELECT k.user_key, k.username_key FROM accounting.carried_sessions k JOIN candidates USING (user_key);

-- name: read_unsettled_sources
-- Reads from where on the reports of a source are not settled yet, of sources that have such reports.
SELECT s.source_id, coalesce(t.epoch, 0) AS epoch, coalesce(t.position, 0) AS position,
    coalesce(t.received_at, to_timestamp(0)) AS since
FROM accounting.sources s LEFT JOIN accounting.settle_watermarks t USING (source_id)
WHERE (s.epoch, s.position) > (coalesce(t.epoch, 0), coalesce(t.position, 0));

-- name: add_unsettled_names
-- Adds the names in pruned_names that a report of a source refers to which is not settled yet.
INSERT INTO names_in_use (user_key, username_key)
SELECT r.user_key, r.username_key
FROM accounting.reports r
WHERE r.source_id = :source_id AND r.received_at >= CAST(:since AS timestamptz)
    AND (r.epoch, r.position) > (:epoch, :position)
    AND r.user_key IN (SELECT user_key FROM pruned_names);

-- name: delete_unused_usernames
-- Deletes the pruned usernames that nothing refers to; returns how many.
WITH deleted AS (
    DELETE FROM accounting.usernames n
    USING pruned_names p
    WHERE n.user_key = p.user_key AND n.username_key = p.username_key
        AND (n.user_key, n.username_key) NOT IN (SELECT user_key, username_key FROM names_in_use)
    RETURNING 1
)
SELECT count(*) FROM deleted;

-- name: delete_unused_users
-- Deletes the pruned users that nothing refers to.
-- Each subquery finds one row along an index; NOT EXISTS may be planned as a hash of a whole table.
DELETE FROM accounting.users u
USING (SELECT DISTINCT user_key FROM pruned_names) p
WHERE u.user_key = p.user_key
    AND u.user_key NOT IN (SELECT user_key FROM names_in_use)
    AND coalesce(
        (SELECT user_key FROM accounting.user_usage_monthly WHERE user_key = u.user_key LIMIT 1),
        (SELECT user_key FROM accounting.usage_deltas WHERE user_key = u.user_key LIMIT 1),
        (SELECT user_key FROM accounting.statements WHERE user_key = u.user_key LIMIT 1),
        (SELECT user_key FROM accounting.adjustments WHERE user_key = u.user_key LIMIT 1)
    ) IS NULL;

-- name: drop_pruned_tables
-- Drops the scratch tables of a batch, so that the transaction can go on.
DROP TABLE IF EXISTS pruned_sessions, pruned_names, finalized, names_in_use;

-- name: add_pruned_counts
-- Adds to the counts of what was pruned of a source.
INSERT INTO accounting.pruned_counts AS c (
    source_id, sessions, reports, usernames, sightings, sightings_until
)
VALUES (:source_id, :sessions, :reports, :usernames, :sightings,
    CAST(:sightings_until AS timestamptz))
ON CONFLICT (source_id) DO UPDATE SET
    sessions = c.sessions + excluded.sessions, reports = c.reports + excluded.reports,
    usernames = c.usernames + excluded.usernames, sightings = c.sightings + excluded.sightings,
    sightings_until = greatest(c.sightings_until, excluded.sightings_until);

-- name: delete_oldest_relay_threads
-- Deletes the relay threads of a source, except the :kept with the latest reports.
DELETE FROM accounting.relay_threads WHERE source_id = :source_id AND last_report_at <= (
    SELECT last_report_at FROM accounting.relay_threads WHERE source_id = :source_id
    ORDER BY last_report_at DESC OFFSET :kept LIMIT 1
);

-- name: create_archived_evidence
-- Scratch tables for the evidence of an archive, as accounting has it. Nothing was carried or
-- dropped there.
CREATE TEMP TABLE reports (LIKE accounting.reports) ON COMMIT DROP;
CREATE TEMP TABLE key_sightings (LIKE accounting.key_sightings) ON COMMIT DROP;
CREATE TEMP TABLE carried_sessions (LIKE accounting.carried_sessions) ON COMMIT DROP;
CREATE TEMP TABLE dropped_positions (LIKE accounting.dropped_positions) ON COMMIT DROP;
CREATE TEMP TABLE recomputed_period_usage (LIKE accounting.session_usage) ON COMMIT DROP;

-- name: add_kept_reports
-- Adds the reports of a span that the database still has, of sources beyond the archived positions.
INSERT INTO pg_temp.reports
SELECT r.* FROM accounting.reports r
LEFT JOIN unnest(
    CAST(:sources AS smallint[]), CAST(:epochs AS integer[]), CAST(:positions AS bigint[])
) AS a (source_id, epoch, position) USING (source_id)
WHERE r.received_at >= CAST(:since AS timestamptz) AND r.received_at < CAST(:until AS timestamptz)
    AND r.realm_id = ANY (CAST(:realms AS integer[]))
    AND ((r.epoch, r.position) <= (a.epoch, a.position)) IS NOT TRUE;

-- name: add_kept_sightings
-- Adds the key sightings of a span that the database still has.
INSERT INTO pg_temp.key_sightings
SELECT k.* FROM accounting.key_sightings k
WHERE k.seen_at >= CAST(:since AS timestamptz) AND k.seen_at < CAST(:until AS timestamptz)
    AND k.realm_id = ANY (CAST(:realms AS integer[]));

-- name: delete_repeated_sightings
-- Deletes key sightings that came twice, from an archive and from the database.
DELETE FROM pg_temp.key_sightings a USING pg_temp.key_sightings b
WHERE a.ctid > b.ctid AND a.source_id = b.source_id AND a.epoch = b.epoch
    AND a.position = b.position AND a.sighting = b.sighting AND a.user_key = b.user_key;

-- name: dropped_but_not_archived
-- Finds the sources with fewer reports in the scratch table than were dropped of a day and realm.
-- is_archived: whether all that was dropped of the day had been archived.
SELECT s.source, m.realm, d.reports AS dropped, coalesce(r.reports, 0) AS archived,
    (SELECT sum(reports) FROM accounting.dropped_reports WHERE day = CAST(:day AS date)) <= (
        SELECT coalesce(sum(reports), 0) FROM accounting.report_archives
        WHERE day = CAST(:day AS date) AND dropped_at IS NOT NULL
    ) AS is_archived
FROM accounting.dropped_reports d
JOIN accounting.sources s USING (source_id)
JOIN accounting.realms m USING (realm_id)
LEFT JOIN (
    SELECT source_id, realm_id, count(*) AS reports FROM pg_temp.reports
    WHERE received_at >= CAST(:since AS timestamptz)
        AND received_at < CAST(:until AS timestamptz)
    GROUP BY source_id, realm_id
) r USING (source_id, realm_id)
WHERE d.day = CAST(:day AS date) AND d.realm_id = ANY (CAST(:realms AS integer[]))
    AND d.reports > coalesce(r.reports, 0)
ORDER BY s.source, m.realm;

-- name: first_start_in_period
-- The start of the first session that has usage in a period; null: there is none.
SELECT min(e.started_at)
FROM accounting.sessions e
WHERE e.realm_id = :realm_id AND e.started_at < CAST(:ends_at AS timestamptz)
    AND EXISTS (
        SELECT FROM accounting.session_hours h
        WHERE h.session_id = e.session_id AND h.user_key = e.user_key
            AND h.starts_at >= CAST(:starts_at AS timestamptz)
            AND h.starts_at < CAST(:ends_at AS timestamptz)
    );

-- name: archives_of_span
-- Reads where the days (UTC) of a span of which reports of a realm were dropped are archived, and how
-- many of them are not, or not whole.
WITH dropped AS (
    SELECT day, sum(reports) AS reports FROM accounting.dropped_reports
    WHERE day IN (
        SELECT day FROM accounting.dropped_reports
        WHERE realm_id = :realm_id
            AND day < CAST(CAST(:until AS timestamptz) AT TIME ZONE 'UTC' AS date) + 1
            AND day >= CAST(CAST(:since AS timestamptz) AT TIME ZONE 'UTC' AS date)
    )
    GROUP BY day
)
SELECT coalesce((
        SELECT array_agg(DISTINCT a.place ORDER BY a.place) FROM accounting.report_archives a
        WHERE a.day IN (SELECT d.day FROM dropped d) AND a.dropped_at IS NOT NULL
    ), '{}') AS places,
    (
        SELECT count(*) FROM dropped d
        WHERE d.reports > coalesce((
            SELECT sum(a.reports) FROM accounting.report_archives a
            WHERE a.day = d.day AND a.dropped_at IS NOT NULL
        ), 0)
    ) AS unarchived_days;
