-- name: count_staged_deltas
-- Counts the staged deltas.
SELECT count(*) FROM staged_deltas;

-- name: create_staged_deltas
-- Scratch table for the usage deltas of one roll-up, summed by user and hour.
CREATE TEMP TABLE IF NOT EXISTS staged_deltas (LIKE accounting.usage_deltas) ON COMMIT DELETE ROWS;

-- name: create_staged_hours
-- Scratch table for the hours of realms that one roll-up folds, and then for those that it changes,
-- with their days and months. is_folded: usage of the hour also goes to its users' day and month.
CREATE TEMP TABLE IF NOT EXISTS staged_hours (
    realm_id integer, starts_at timestamptz, ends_at timestamptz,
    day_starts_at timestamptz, day_ends_at timestamptz,
    month_starts_at timestamptz, month_ends_at timestamptz, is_folded boolean
) ON COMMIT DELETE ROWS;

-- name: create_staged_realm_deltas
-- Scratch table for the usage deltas of one roll-up, summed by realm and hour.
CREATE TEMP TABLE IF NOT EXISTS staged_realm_deltas ON COMMIT DELETE ROWS AS
SELECT realm_id, starts_at,
    received_packets, received_bytes, sent_packets, sent_bytes,
    peer_received_packets, peer_received_bytes, peer_sent_packets, peer_sent_bytes,
    sessions_started, sessions_ended, session_microseconds, estimated_bytes
FROM accounting.usage_deltas WITH NO DATA;

-- name: create_staged_server_deltas
-- Scratch table for the server deltas of one roll-up, summed by realm, hour, server and transport.
CREATE TEMP TABLE IF NOT EXISTS staged_server_deltas (LIKE accounting.server_deltas)
    ON COMMIT DELETE ROWS;

-- name: create_staged_slices
-- Scratch table for the slices, or whole hours, of realms to be counted.
CREATE TEMP TABLE IF NOT EXISTS staged_slices (
    realm_id integer, starts_at timestamptz, from_at timestamptz, to_at timestamptz
) ON COMMIT DELETE ROWS;

-- name: dequeue_usage_deltas
-- Deletes at most :limit usage deltas and stages their sums by user and hour.
WITH taken AS (
    DELETE FROM accounting.usage_deltas
    WHERE ctid = ANY (ARRAY(SELECT ctid FROM accounting.usage_deltas LIMIT :limit))
    RETURNING *
)
INSERT INTO staged_deltas (
    realm_id, user_key, starts_at,
    received_packets, received_bytes, sent_packets, sent_bytes,
    peer_received_packets, peer_received_bytes, peer_sent_packets, peer_sent_bytes,
    sessions_started, sessions_ended, session_microseconds, estimated_bytes
)
SELECT realm_id, user_key, starts_at,
    accounting.bigint_sum(received_packets), accounting.bigint_sum(received_bytes),
    accounting.bigint_sum(sent_packets), accounting.bigint_sum(sent_bytes),
    accounting.bigint_sum(peer_received_packets), accounting.bigint_sum(peer_received_bytes),
    accounting.bigint_sum(peer_sent_packets), accounting.bigint_sum(peer_sent_bytes),
    accounting.bigint_sum(sessions_started), accounting.bigint_sum(sessions_ended),
    accounting.bigint_sum(session_microseconds), accounting.bigint_sum(estimated_bytes)
FROM taken
GROUP BY realm_id, user_key, starts_at;

-- name: dequeue_server_deltas
-- Deletes the server deltas, stages their sums, and returns the hours that they change. What was
-- received in the last minutes also goes to its slots of ten seconds, in shares that are rounded so that
-- they add up.
WITH taken AS (
    DELETE FROM accounting.server_deltas RETURNING *
),
staged AS (
    INSERT INTO staged_server_deltas (
        realm_id, starts_at, server, transport,
        received_packets, received_bytes, sent_packets, sent_bytes,
        peer_received_packets, peer_received_bytes, peer_sent_packets, peer_sent_bytes,
        sessions_started, sessions_ended, session_microseconds, estimated_bytes,
        sessions_carried
    )
    SELECT realm_id, starts_at, server, transport,
        accounting.bigint_sum(received_packets), accounting.bigint_sum(received_bytes),
        accounting.bigint_sum(sent_packets), accounting.bigint_sum(sent_bytes),
        accounting.bigint_sum(peer_received_packets), accounting.bigint_sum(peer_received_bytes),
        accounting.bigint_sum(peer_sent_packets), accounting.bigint_sum(peer_sent_bytes),
        accounting.bigint_sum(sessions_started), accounting.bigint_sum(sessions_ended),
        accounting.bigint_sum(session_microseconds), accounting.bigint_sum(estimated_bytes),
        accounting.bigint_sum(sessions_carried)
    FROM taken
    GROUP BY realm_id, starts_at, server, transport
    RETURNING realm_id, starts_at
),
traffic AS (
    INSERT INTO accounting.server_traffic AS k (
        slot_at, realm_id, server, received_bytes, sent_bytes, sessions_started
    )
    SELECT p.slot_at, t.realm_id, t.server,
        sum(round(t.received_bytes * p.until_share) - round(t.received_bytes * p.from_share)),
        sum(round(t.sent_bytes * p.until_share) - round(t.sent_bytes * p.from_share)),
        sum(round(t.sessions_started * p.until_share) - round(t.sessions_started * p.from_share))
    FROM taken t
    CROSS JOIN LATERAL (
        SELECT slot_at,
            CASE WHEN t.received_from >= t.received_until THEN 0 ELSE
                extract(epoch FROM greatest(slot_at, t.received_from) - t.received_from)
                / extract(epoch FROM t.received_until - t.received_from)
            END AS from_share,
            CASE WHEN t.received_from >= t.received_until THEN 1 ELSE
                extract(epoch FROM least(slot_at + interval '10 seconds', t.received_until)
                    - t.received_from)
                / extract(epoch FROM t.received_until - t.received_from)
            END AS until_share
        FROM generate_series(
            date_bin('10 seconds', greatest(
                least(t.received_from, t.received_until),
                accounting.database_now() - interval '10 minutes'
            ), 'epoch'),
            t.received_until, interval '10 seconds'
        ) AS slot_at
    ) p
    WHERE p.until_share > p.from_share
    GROUP BY p.slot_at, t.realm_id, t.server
    ORDER BY p.slot_at, t.realm_id, t.server
    ON CONFLICT (slot_at, realm_id, server) DO UPDATE SET
        received_bytes = k.received_bytes + excluded.received_bytes,
        sent_bytes = k.sent_bytes + excluded.sent_bytes,
        sessions_started = k.sessions_started + excluded.sessions_started
)
SELECT DISTINCT realm_id, starts_at FROM staged;

-- name: stage_realm_deltas
-- Sums the staged deltas by realm and hour; returns those hours.
INSERT INTO staged_realm_deltas (
    realm_id, starts_at,
    received_packets, received_bytes, sent_packets, sent_bytes,
    peer_received_packets, peer_received_bytes, peer_sent_packets, peer_sent_bytes,
    sessions_started, sessions_ended, session_microseconds, estimated_bytes
)
SELECT realm_id, starts_at,
    accounting.bigint_sum(received_packets), accounting.bigint_sum(received_bytes),
    accounting.bigint_sum(sent_packets), accounting.bigint_sum(sent_bytes),
    accounting.bigint_sum(peer_received_packets), accounting.bigint_sum(peer_received_bytes),
    accounting.bigint_sum(peer_sent_packets), accounting.bigint_sum(peer_sent_bytes),
    accounting.bigint_sum(sessions_started), accounting.bigint_sum(sessions_ended),
    accounting.bigint_sum(session_microseconds), accounting.bigint_sum(estimated_bytes)
FROM staged_deltas
GROUP BY realm_id, starts_at
RETURNING realm_id, starts_at;

-- name: dequeue_peak_deltas
-- Deletes the queued slices and returns each once.
WITH taken AS (
    DELETE FROM accounting.peak_deltas RETURNING realm_id, starts_at, slice_at
)
SELECT DISTINCT realm_id, starts_at, slice_at FROM taken;

-- name: add_user_hours
-- Adds the staged deltas to the hours that their users have.
UPDATE accounting.user_usage_hourly u SET
    received_packets = u.received_packets + t.received_packets,
    received_bytes = u.received_bytes + t.received_bytes,
    sent_packets = u.sent_packets + t.sent_packets, sent_bytes = u.sent_bytes + t.sent_bytes,
    peer_received_packets = u.peer_received_packets + t.peer_received_packets,
    peer_received_bytes = u.peer_received_bytes + t.peer_received_bytes,
    peer_sent_packets = u.peer_sent_packets + t.peer_sent_packets,
    peer_sent_bytes = u.peer_sent_bytes + t.peer_sent_bytes,
    sessions_started = u.sessions_started + t.sessions_started,
    sessions_ended = u.sessions_ended + t.sessions_ended,
    session_microseconds = u.session_microseconds + t.session_microseconds,
    estimated_bytes = u.estimated_bytes + t.estimated_bytes
FROM (
    SELECT * FROM staged_deltas ORDER BY user_key, starts_at
) t
WHERE u.user_key = t.user_key AND u.starts_at = t.starts_at;

-- name: add_limited_user_hours
-- As add_user_hours where realms have limits; returns how many hours. Stages the users of
-- staged_limit_realms whose limits are to be looked at: see user_usage_hourly.next_check_score. A
-- statement of its own, since RETURNING takes a tenth of the time of an UPDATE.
WITH added AS (
    UPDATE accounting.user_usage_hourly u SET
        received_packets = u.received_packets + t.received_packets,
        received_bytes = u.received_bytes + t.received_bytes,
        sent_packets = u.sent_packets + t.sent_packets, sent_bytes = u.sent_bytes + t.sent_bytes,
        peer_received_packets = u.peer_received_packets + t.peer_received_packets,
        peer_received_bytes = u.peer_received_bytes + t.peer_received_bytes,
        peer_sent_packets = u.peer_sent_packets + t.peer_sent_packets,
        peer_sent_bytes = u.peer_sent_bytes + t.peer_sent_bytes,
        sessions_started = u.sessions_started + t.sessions_started,
        sessions_ended = u.sessions_ended + t.sessions_ended,
        session_microseconds = u.session_microseconds + t.session_microseconds,
        estimated_bytes = u.estimated_bytes + t.estimated_bytes
    FROM (
        SELECT * FROM staged_deltas ORDER BY user_key, starts_at
    ) t
    LEFT JOIN staged_limit_realms r USING (realm_id)
    WHERE u.user_key = t.user_key AND u.starts_at = t.starts_at
    RETURNING u.realm_id, u.user_key, u.starts_at,
        u.starts_at <> r.last_hour
        OR least(t.received_bytes, t.sent_bytes, t.sessions_started, t.session_microseconds) < 0
        OR u.next_check_score <= accounting.limit_score(
            r.bytes_weight, r.sessions_weight, r.microseconds_weight,
            u.received_bytes, u.sent_bytes, u.sessions_started, u.session_microseconds) AS is_due
),
looked_at AS (
    INSERT INTO staged_limit_users (realm_id, user_key, starts_at)
    SELECT realm_id, user_key, starts_at FROM added WHERE is_due
)
SELECT count(*) FROM added;

-- name: insert_user_hours
-- Inserts the hours of users that the staged deltas begin. An hour that is not folded yet also gets
-- an empty day and month unless its user has them: the views start from existing rows and add it.
-- Stages their users, of staged_limit_realms, to look at their limits.
WITH fresh AS MATERIALIZED (
    SELECT * FROM staged_deltas t WHERE NOT EXISTS (
        SELECT FROM accounting.user_usage_hourly u
        WHERE u.user_key = t.user_key AND u.starts_at = t.starts_at
    )
    ORDER BY user_key, starts_at
),
hours AS (
    INSERT INTO accounting.user_usage_hourly (
        user_key, starts_at, realm_id,
        received_packets, received_bytes, sent_packets, sent_bytes, peer_received_packets,
        peer_received_bytes, peer_sent_packets, peer_sent_bytes, sessions_started, sessions_ended,
        session_microseconds, estimated_bytes
    )
    SELECT
        user_key, starts_at, realm_id,
        received_packets, received_bytes, sent_packets, sent_bytes, peer_received_packets,
        peer_received_bytes, peer_sent_packets, peer_sent_bytes, sessions_started, sessions_ended,
        session_microseconds, estimated_bytes
    FROM fresh
),
looked_at AS (
    INSERT INTO staged_limit_users (realm_id, user_key, starts_at)
    SELECT realm_id, f.user_key, f.starts_at
    FROM fresh f JOIN staged_limit_realms r USING (realm_id)
),
begun AS MATERIALIZED (
    SELECT t.user_key, t.realm_id, h.day_starts_at, h.month_starts_at
    FROM fresh t JOIN staged_hours h USING (realm_id, starts_at)
    WHERE NOT h.is_folded
),
days AS (
    INSERT INTO accounting.user_usage_daily (
        user_key, starts_at, realm_id,
        received_packets, received_bytes, sent_packets, sent_bytes, peer_received_packets,
        peer_received_bytes, peer_sent_packets, peer_sent_bytes, sessions_started, sessions_ended,
        session_microseconds, estimated_bytes
    )
    SELECT DISTINCT user_key, day_starts_at, realm_id, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0
    FROM begun ORDER BY user_key
    ON CONFLICT DO NOTHING
)
INSERT INTO accounting.user_usage_monthly (
    user_key, starts_at, realm_id,
    received_packets, received_bytes, sent_packets, sent_bytes, peer_received_packets,
    peer_received_bytes, peer_sent_packets, peer_sent_bytes, sessions_started, sessions_ended,
    session_microseconds, estimated_bytes
)
SELECT DISTINCT user_key, month_starts_at, realm_id, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0
FROM begun ORDER BY user_key
ON CONFLICT DO NOTHING;

-- name: add_user_usage
-- Adds usage of folded hours to the days or months of users. :"usage": the table; :"starts_at": the
-- column of staged_hours with its buckets; :"schema".:"table": the usage by hour.
MERGE INTO accounting.:"usage" u
USING (
    SELECT t.user_key, h.:"starts_at" AS starts_at, t.realm_id,
        sum(t.received_packets)::bigint AS received_packets,
        sum(t.received_bytes)::bigint AS received_bytes,
        sum(t.sent_packets)::bigint AS sent_packets, sum(t.sent_bytes)::bigint AS sent_bytes,
        sum(t.peer_received_packets)::bigint AS peer_received_packets,
        sum(t.peer_received_bytes)::bigint AS peer_received_bytes,
        sum(t.peer_sent_packets)::bigint AS peer_sent_packets,
        sum(t.peer_sent_bytes)::bigint AS peer_sent_bytes,
        sum(t.sessions_started)::bigint AS sessions_started,
        sum(t.sessions_ended)::bigint AS sessions_ended,
        sum(t.session_microseconds) AS session_microseconds,
        sum(t.estimated_bytes)::bigint AS estimated_bytes
    FROM :"schema".:"table" t JOIN staged_hours h USING (realm_id, starts_at)
    WHERE h.is_folded
    GROUP BY t.user_key, h.:"starts_at", t.realm_id
    ORDER BY t.user_key
) t
ON u.user_key = t.user_key AND u.starts_at = t.starts_at
WHEN MATCHED THEN UPDATE SET
    received_packets = u.received_packets + t.received_packets,
    received_bytes = u.received_bytes + t.received_bytes,
    sent_packets = u.sent_packets + t.sent_packets, sent_bytes = u.sent_bytes + t.sent_bytes,
    peer_received_packets = u.peer_received_packets + t.peer_received_packets,
    peer_received_bytes = u.peer_received_bytes + t.peer_received_bytes,
    peer_sent_packets = u.peer_sent_packets + t.peer_sent_packets,
    peer_sent_bytes = u.peer_sent_bytes + t.peer_sent_bytes,
    sessions_started = u.sessions_started + t.sessions_started,
    sessions_ended = u.sessions_ended + t.sessions_ended,
    session_microseconds = u.session_microseconds + t.session_microseconds,
    estimated_bytes = u.estimated_bytes + t.estimated_bytes
WHEN NOT MATCHED THEN INSERT (
    user_key, starts_at, realm_id,
    received_packets, received_bytes, sent_packets, sent_bytes, peer_received_packets,
    peer_received_bytes, peer_sent_packets, peer_sent_bytes, sessions_started, sessions_ended,
    session_microseconds, estimated_bytes
) VALUES (
    t.user_key, t.starts_at, t.realm_id,
    t.received_packets, t.received_bytes, t.sent_packets, t.sent_bytes, t.peer_received_packets,
    t.peer_received_bytes, t.peer_sent_packets, t.peer_sent_bytes, t.sessions_started,
    t.sessions_ended, t.session_microseconds, t.estimated_bytes
);

-- name: add_realm_usage
-- Adds the staged deltas to the hours, days or months of realms. :"usage": the table; :"starts_at": the
-- column of staged_hours with its buckets. Peaks are set separately.
INSERT INTO accounting.:"usage" AS u (
    realm_id, starts_at,
    received_packets, received_bytes, sent_packets, sent_bytes,
    peer_received_packets, peer_received_bytes, peer_sent_packets, peer_sent_bytes,
    sessions_started, sessions_ended, session_microseconds, estimated_bytes,
    peak_sessions
)
SELECT t.realm_id, h.:"starts_at",
    sum(t.received_packets), sum(t.received_bytes), sum(t.sent_packets),
    sum(t.sent_bytes), sum(t.peer_received_packets), sum(t.peer_received_bytes),
    sum(t.peer_sent_packets), sum(t.peer_sent_bytes), sum(t.sessions_started),
    sum(t.sessions_ended), sum(t.session_microseconds), sum(t.estimated_bytes),
    0
FROM staged_realm_deltas t JOIN staged_hours h USING (realm_id, starts_at)
GROUP BY t.realm_id, h.:"starts_at"
ON CONFLICT (realm_id, starts_at) DO UPDATE SET
    received_packets = u.received_packets + excluded.received_packets,
    received_bytes = u.received_bytes + excluded.received_bytes,
    sent_packets = u.sent_packets + excluded.sent_packets,
    sent_bytes = u.sent_bytes + excluded.sent_bytes,
    peer_received_packets = u.peer_received_packets + excluded.peer_received_packets,
    peer_received_bytes = u.peer_received_bytes + excluded.peer_received_bytes,
    peer_sent_packets = u.peer_sent_packets + excluded.peer_sent_packets,
    peer_sent_bytes = u.peer_sent_bytes + excluded.peer_sent_bytes,
    sessions_started = u.sessions_started + excluded.sessions_started,
    sessions_ended = u.sessions_ended + excluded.sessions_ended,
    session_microseconds = u.session_microseconds + excluded.session_microseconds,
    estimated_bytes = u.estimated_bytes + excluded.estimated_bytes;

-- name: add_server_usage
-- Adds the staged server deltas to the hours of servers and transports.
INSERT INTO accounting.server_usage_hourly AS u (
    realm_id, starts_at, server, transport,
    received_packets, received_bytes, sent_packets, sent_bytes,
    peer_received_packets, peer_received_bytes, peer_sent_packets, peer_sent_bytes,
    sessions_started, sessions_ended, session_microseconds, estimated_bytes
)
SELECT realm_id, starts_at, server, transport,
    received_packets, received_bytes, sent_packets, sent_bytes,
    peer_received_packets, peer_received_bytes, peer_sent_packets, peer_sent_bytes,
    sessions_started, sessions_ended, session_microseconds, estimated_bytes
FROM staged_server_deltas
ORDER BY realm_id, starts_at, server, transport
ON CONFLICT (realm_id, starts_at, server, transport) DO UPDATE SET
    received_packets = u.received_packets + excluded.received_packets,
    received_bytes = u.received_bytes + excluded.received_bytes,
    sent_packets = u.sent_packets + excluded.sent_packets,
    sent_bytes = u.sent_bytes + excluded.sent_bytes,
    peer_received_packets = u.peer_received_packets + excluded.peer_received_packets,
    peer_received_bytes = u.peer_received_bytes + excluded.peer_received_bytes,
    peer_sent_packets = u.peer_sent_packets + excluded.peer_sent_packets,
    peer_sent_bytes = u.peer_sent_bytes + excluded.peer_sent_bytes,
    sessions_started = u.sessions_started + excluded.sessions_started,
    sessions_ended = u.sessions_ended + excluded.sessions_ended,
    session_microseconds = u.session_microseconds + excluded.session_microseconds,
    estimated_bytes = u.estimated_bytes + excluded.estimated_bytes;

-- name: delete_empty_server_hours
-- Deletes the hours of servers whose usage has moved to another one: their sessions turned out to be
-- there.
DELETE FROM accounting.server_usage_hourly u USING staged_server_deltas t
WHERE u.realm_id = t.realm_id AND u.starts_at = t.starts_at
    AND u.server = t.server AND u.transport = t.transport
    AND (
        u.received_packets, u.received_bytes, u.sent_packets, u.sent_bytes,
        u.peer_received_packets, u.peer_received_bytes, u.peer_sent_packets, u.peer_sent_bytes,
        u.sessions_started, u.sessions_ended, u.session_microseconds, u.estimated_bytes
    ) = (0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0);

-- name: add_server_load
-- Adds the sessions that started, less those that ended, to the open ones of their servers.
INSERT INTO accounting.server_load AS l (realm_id, server, live_sessions)
SELECT realm_id, server, accounting.bigint_sum(sessions_started - sessions_ended)
FROM staged_server_deltas
GROUP BY realm_id, server
HAVING accounting.bigint_sum(sessions_started - sessions_ended) <> 0
ORDER BY realm_id, server
ON CONFLICT (realm_id, server) DO UPDATE SET live_sessions = l.live_sessions + excluded.live_sessions;

-- name: delete_idle_servers
-- Deletes the servers without open sessions, of those whose number changed.
DELETE FROM accounting.server_load l USING staged_server_deltas t
WHERE l.realm_id = t.realm_id AND l.server = t.server AND l.live_sessions = 0;

-- name: delete_old_traffic
-- Deletes the slots of traffic that no rate is computed from.
DELETE FROM accounting.server_traffic
WHERE slot_at < accounting.database_now() - interval '10 minutes';

-- name: add_carried_sessions
-- Adds, to the sessions that an hour starts with, those that settling found to continue into it.
INSERT INTO accounting.realm_peak_slices AS s (
    realm_id, starts_at, slice_at, dimension, name, session_delta, session_peak
)
SELECT t.realm_id, t.starts_at, '-infinity', d.dimension, d.name, sum(t.sessions_carried),
    sum(t.sessions_carried)
FROM staged_server_deltas t
CROSS JOIN LATERAL (
    VALUES ('realm', ''), ('server', t.server), ('transport', t.transport)
) AS d (dimension, name)
WHERE t.sessions_carried <> 0 AND EXISTS (
    SELECT FROM accounting.realm_peak_slices k
    WHERE k.realm_id = t.realm_id AND k.starts_at = t.starts_at AND k.slice_at = '-infinity'
)
GROUP BY t.realm_id, t.starts_at, d.dimension, d.name
ON CONFLICT (realm_id, starts_at, slice_at, dimension, name) DO UPDATE SET
    session_delta = s.session_delta + excluded.session_delta,
    session_peak = s.session_peak + excluded.session_peak;

-- name: count_carried_sessions
-- Counts the sessions that the staged hours start with, where that is unknown; returns those hours. Less
-- what is queued, which a later roll-up adds. One statement, so that both are read from one snapshot.
WITH counted AS (
    INSERT INTO accounting.realm_peak_slices (
        realm_id, starts_at, slice_at, dimension, name, session_delta, session_peak
    )
    SELECT h.realm_id, h.starts_at, '-infinity', c.dimension, c.name, c.carried, c.carried
    FROM staged_hours h
    CROSS JOIN LATERAL (
        SELECT d.dimension, d.name, sum(o.carried) AS carried
        FROM (
            SELECT accounting.server_host(e.server_address) AS server,
                coalesce(e.transport, '') AS transport, count(*) AS carried
            FROM accounting.session_usage u
            CROSS JOIN LATERAL (  -- OFFSET 0: session by session along the keys
                SELECT server_address, transport FROM accounting.sessions s
                WHERE s.session_id = u.session_id AND s.user_key = u.user_key OFFSET 0
            ) e
            WHERE u.realm_id = h.realm_id AND u.starts_at = h.starts_at
                AND NOT u.started AND u.confirmed AND u.active_to > u.active_from
            GROUP BY e.server_address, e.transport
            UNION ALL
            SELECT t.server, t.transport, -t.sessions_carried FROM accounting.server_deltas t
            WHERE t.realm_id = h.realm_id AND t.starts_at = h.starts_at
            UNION ALL
            SELECT '', '', 0
        ) o
        CROSS JOIN LATERAL (
            VALUES ('realm', ''), ('server', o.server), ('transport', o.transport)
        ) AS d (dimension, name)
        GROUP BY d.dimension, d.name
    ) c
    WHERE NOT EXISTS (
        SELECT FROM accounting.realm_peak_slices s
        WHERE s.realm_id = h.realm_id AND s.starts_at = h.starts_at AND s.slice_at = '-infinity'
    )
    RETURNING realm_id, starts_at, dimension
)
SELECT realm_id, starts_at FROM counted WHERE dimension = 'realm';

-- name: delete_staged_slices
-- Deletes the staged slices before they are counted.
DELETE FROM accounting.realm_peak_slices s USING staged_slices t
WHERE s.realm_id = t.realm_id AND s.starts_at = t.starts_at
    AND s.slice_at >= t.from_at AND s.slice_at < t.to_at;

-- name: read_slice_steps
-- Reads the starts and ends of sessions in the staged slices, by slice, server and transport: the times
-- in Postgres' binary format, one behind the other, since a row for each would cost more than to read
-- the sessions. One that ends when it starts is not counted.
-- OFFSET 0 makes the planner go slice by slice along the indexes; a range join would read them whole.
SELECT t.realm_id, t.starts_at, greatest(
        t.starts_at, date_bin(make_interval(secs => :slice_seconds), e.started_at, 'epoch')
    ) AS slice_at, e.server_address, e.transport, false AS is_end,
    string_agg(timestamptz_send(e.started_at), '') AS times
FROM staged_slices t
CROSS JOIN LATERAL (
    SELECT s.started_at, s.ended_at, s.confirmed, s.server_address, s.transport
    FROM accounting.sessions s
    WHERE s.realm_id = t.realm_id AND s.started_at >= t.from_at AND s.started_at < t.to_at
    OFFSET 0
) e
WHERE e.confirmed AND (e.ended_at IS NULL OR e.ended_at > e.started_at)
GROUP BY t.realm_id, t.starts_at, slice_at, e.server_address, e.transport
UNION ALL
SELECT t.realm_id, t.starts_at, greatest(
        t.starts_at, date_bin(make_interval(secs => :slice_seconds), e.ended_at, 'epoch')
    ) AS slice_at, e.server_address, e.transport, true,
    string_agg(timestamptz_send(e.ended_at), '')
FROM staged_slices t
CROSS JOIN LATERAL (
    SELECT s.started_at, s.ended_at, s.confirmed, s.server_address, s.transport
    FROM accounting.sessions s
    WHERE s.realm_id = t.realm_id AND s.ended_at >= t.from_at AND s.ended_at < t.to_at
    OFFSET 0
) e
WHERE e.confirmed AND e.ended_at > greatest(e.started_at, t.starts_at)
GROUP BY t.realm_id, t.starts_at, slice_at, e.server_address, e.transport;

-- name: set_peak_versions
-- Gives the hours whose slices are counted again, or that start with more or fewer sessions, versions.
INSERT INTO accounting.peak_versions AS v (realm_id, starts_at)
SELECT realm_id, starts_at FROM staged_slices
UNION
SELECT realm_id, starts_at FROM staged_server_deltas WHERE sessions_carried <> 0
ON CONFLICT (realm_id, starts_at) DO UPDATE
SET version = excluded.version, changed_at = excluded.changed_at;

-- name: set_hour_peaks
-- Sets the peaks of the staged hours of realms: the maximum over their slices.
UPDATE accounting.realm_usage_hourly u SET peak_sessions = p.peak_sessions
FROM (
    SELECT realm_id, starts_at, max(before + session_peak) AS peak_sessions
    FROM (
        SELECT h.realm_id, h.starts_at, s.session_peak, sum(s.session_delta) OVER (
            PARTITION BY h.realm_id, h.starts_at ORDER BY s.slice_at
        ) - s.session_delta AS before
        FROM staged_hours h
        JOIN accounting.realm_peak_slices s USING (realm_id, starts_at)
        WHERE s.dimension = 'realm'
    ) c
    GROUP BY realm_id, starts_at
) p
WHERE u.realm_id = p.realm_id AND u.starts_at = p.starts_at
    AND u.peak_sessions <> p.peak_sessions;

-- name: delete_dimension_peaks
-- Deletes the peaks of servers and transports in the staged hours that are folded.
DELETE FROM accounting.dimension_peaks_hourly p USING staged_hours h
WHERE h.is_folded AND p.realm_id = h.realm_id AND p.starts_at = h.starts_at;

-- name: insert_dimension_peaks
-- Inserts the peaks of servers and transports in the staged hours that are folded: the maximum over
-- their slices. The views compute those of the other hours, which change every other second.
INSERT INTO accounting.dimension_peaks_hourly (realm_id, starts_at, dimension, name, peak_sessions)
SELECT h.realm_id, h.starts_at, p.dimension, p.name, p.peak_sessions
FROM staged_hours h
CROSS JOIN LATERAL (
    SELECT c.dimension, c.name, max(c.before + c.session_peak) AS peak_sessions
    FROM (
        SELECT s.dimension, s.name, s.session_peak, sum(s.session_delta) OVER (
            PARTITION BY s.dimension, s.name ORDER BY s.slice_at
        ) - s.session_delta AS before
        FROM accounting.realm_peak_slices s
        WHERE s.realm_id = h.realm_id AND s.starts_at = h.starts_at AND s.dimension <> 'realm'
    ) c
    GROUP BY c.dimension, c.name
) p
WHERE h.is_folded AND p.peak_sessions > 0;

-- name: set_bucket_peaks
-- Sets the peaks of the days or months of realms that the staged hours are in: the maximum over their
-- hours or days. :"usage": the table; :"parts": that of its hours or days.
UPDATE accounting.:"usage" u SET peak_sessions = p.peak_sessions
FROM (
    SELECT t.realm_id, t.starts_at, (
        SELECT max(h.peak_sessions) FROM accounting.:"parts" h
        WHERE h.realm_id = t.realm_id AND h.starts_at >= t.starts_at AND h.starts_at < t.ends_at
    ) AS peak_sessions
    FROM (
        SELECT DISTINCT realm_id, :"starts_at" AS starts_at, :"ends_at" AS ends_at
        FROM staged_hours
    ) t
) p
WHERE u.realm_id = p.realm_id AND u.starts_at = p.starts_at
    AND u.peak_sessions <> p.peak_sessions;

-- name: delete_old_slices
-- Deletes the slices of a realm long before :starts_at; if they change again, the hour is counted whole.
DELETE FROM accounting.realm_peak_slices
WHERE realm_id = :realm_id
    AND starts_at < CAST(:starts_at AS timestamptz) - make_interval(secs => :kept_seconds);

-- name: queue_adjustments
-- Queues the closed periods, by user, that the staged deltas belong to.
INSERT INTO accounting.periods_to_adjust (realm_id, period, user_key)
SELECT DISTINCT p.realm_id, p.period, t.user_key
FROM staged_deltas t
JOIN accounting.periods p
    ON p.realm_id = t.realm_id AND t.starts_at >= p.starts_at AND t.starts_at < p.ends_at
WHERE p.closed_at IS NOT NULL;

-- name: realms_to_fold
-- The realms with hours that have been over for :delay_seconds and are not folded, and the end of the
-- last of those hours.
WITH clock AS MATERIALIZED (
    SELECT accounting.database_now() - make_interval(secs => :delay_seconds) AS over_until
)
SELECT f.realm_id, h.ends_at
FROM accounting.fold_watermarks f
CROSS JOIN clock c
CROSS JOIN LATERAL (
    SELECT max(b.ends_at) AS ends_at FROM accounting.buckets b
    WHERE b.realm_id = f.realm_id AND b.level = 'hour'
        AND b.starts_at >= f.folded_until AND b.ends_at <= c.over_until
) h
WHERE f.folded_until < f.last_hour_ends_at AND h.ends_at IS NOT NULL;

-- name: note_last_hours
-- Notes the end of the last staged hour of each realm, unless a later one has usage.
UPDATE accounting.fold_watermarks f SET last_hour_ends_at = h.ends_at
FROM (SELECT realm_id, max(ends_at) AS ends_at FROM staged_hours GROUP BY realm_id) h
WHERE f.realm_id = h.realm_id AND f.last_hour_ends_at < h.ends_at;

-- name: note_changed_hours
-- In a cell of a front, notes when the staged hours changed.
INSERT INTO accounting.changed_hours AS c (realm_id, starts_at, changed_at)
SELECT h.realm_id, h.starts_at, n.changed_at
FROM staged_hours h
CROSS JOIN (
    SELECT greatest(clock_timestamp(), max(changed_at) + interval '1 microsecond') AS changed_at
    FROM accounting.changed_hours
) n
WHERE EXISTS (SELECT FROM accounting.membership)
ON CONFLICT (realm_id, starts_at) DO UPDATE SET changed_at = excluded.changed_at;

-- name: write_counted_hours
-- Writes the hours of users that begin within the spans of their realms to the feed, without hours of
-- closed periods. The id of an event is a function of what it says, and of how many corrections of the
-- hour there are with it: it may change, change back, and change again.
INSERT INTO accounting.feed_outbox (
    event_id, type, realm_id, user_key, started_at, ended_at,
    received_packets, received_bytes, sent_packets, sent_bytes, peer_received_packets,
    peer_received_bytes, peer_sent_packets, peer_sent_bytes, sessions_started, sessions_ended,
    session_microseconds, estimated_bytes, is_correction
)
SELECT accounting.event_id('usage.counted', concat_ws(' ',
        u.user_key, accounting.iso_time(u.starts_at), 0,
        u.received_packets, u.received_bytes, u.sent_packets, u.sent_bytes,
        u.peer_received_packets, u.peer_received_bytes, u.peer_sent_packets,
        u.peer_sent_bytes, u.sessions_started, u.sessions_ended,
        CAST(u.session_microseconds AS bigint), u.estimated_bytes)), 'usage.counted', u.realm_id,
    u.user_key, u.starts_at, b.ends_at,
    u.received_packets, u.received_bytes, u.sent_packets, u.sent_bytes, u.peer_received_packets,
    u.peer_received_bytes, u.peer_sent_packets, u.peer_sent_bytes, u.sessions_started,
    u.sessions_ended, u.session_microseconds, u.estimated_bytes, false
FROM unnest(
    CAST(:realms AS integer[]), CAST(:sinces AS timestamptz[]), CAST(:untils AS timestamptz[])
) AS s (realm_id, since, until)
JOIN accounting.buckets b ON b.realm_id = s.realm_id AND b.level = 'hour'
    AND b.starts_at >= s.since AND b.starts_at < s.until
JOIN accounting.user_usage_hourly u ON u.realm_id = b.realm_id AND u.starts_at = b.starts_at
WHERE NOT EXISTS (
        SELECT FROM accounting.periods p
        WHERE p.realm_id = b.realm_id AND p.closed_at IS NOT NULL
            AND b.starts_at >= p.starts_at AND b.starts_at < p.ends_at
    ) AND (
        u.received_packets, u.received_bytes, u.sent_packets, u.sent_bytes,
        u.peer_received_packets, u.peer_received_bytes, u.peer_sent_packets, u.peer_sent_bytes,
        u.sessions_started, u.sessions_ended, u.session_microseconds, u.estimated_bytes
    ) <> (0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0)
ORDER BY u.starts_at, u.user_key;

-- name: write_corrections
-- Writes the staged deltas of hours that begin before the times of their realms to the feed, as
-- corrections. Not those of closed periods, of which adjustments are posted. An hour that the feed has
-- by a fault may have no bucket.
INSERT INTO accounting.feed_outbox (
    event_id, type, realm_id, user_key, started_at, ended_at,
    received_packets, received_bytes, sent_packets, sent_bytes, peer_received_packets,
    peer_received_bytes, peer_sent_packets, peer_sent_bytes, sessions_started, sessions_ended,
    session_microseconds, estimated_bytes, is_correction
)
SELECT accounting.event_id('usage.counted', concat_ws(' ',
        t.user_key, accounting.iso_time(t.starts_at), n.number,
        t.received_packets, t.received_bytes, t.sent_packets, t.sent_bytes,
        t.peer_received_packets, t.peer_received_bytes, t.peer_sent_packets,
        t.peer_sent_bytes, t.sessions_started, t.sessions_ended,
        t.session_microseconds, t.estimated_bytes)), 'usage.counted',
    t.realm_id, t.user_key, t.starts_at,
    coalesce(b.ends_at, t.starts_at + interval '1 hour'),
    t.received_packets, t.received_bytes, t.sent_packets, t.sent_bytes, t.peer_received_packets,
    t.peer_received_bytes, t.peer_sent_packets, t.peer_sent_bytes, t.sessions_started,
    t.sessions_ended, t.session_microseconds, t.estimated_bytes, true
FROM unnest(
    CAST(:realms AS integer[]), CAST(:untils AS timestamptz[])
) AS s (realm_id, until)
JOIN staged_deltas t ON t.realm_id = s.realm_id AND t.starts_at < s.until
LEFT JOIN accounting.buckets b
    ON b.realm_id = t.realm_id AND b.level = 'hour' AND b.starts_at = t.starts_at
CROSS JOIN LATERAL (
    SELECT 1 + count(*) AS number FROM (
        SELECT FROM accounting.feed f
        WHERE f.user_key = t.user_key AND f.started_at = t.starts_at AND f.is_correction
        UNION ALL
        SELECT FROM accounting.feed_outbox o
        WHERE o.user_key = t.user_key AND o.started_at = t.starts_at AND o.is_correction
    ) c
) n
WHERE (
        t.received_packets, t.received_bytes, t.sent_packets, t.sent_bytes,
        t.peer_received_packets, t.peer_received_bytes, t.peer_sent_packets, t.peer_sent_bytes,
        t.sessions_started, t.sessions_ended, t.session_microseconds, t.estimated_bytes
    ) <> (0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0) AND NOT EXISTS (
        SELECT FROM accounting.periods p
        WHERE p.realm_id = t.realm_id AND p.closed_at IS NOT NULL
            AND t.starts_at >= p.starts_at AND t.starts_at < p.ends_at
    )
ORDER BY t.starts_at, t.user_key;
