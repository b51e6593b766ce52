-- name: add_session_hours
-- Adds the staged hours to session_usage; flags and active spans replace the stored ones.
INSERT INTO accounting.session_usage AS h (
    session_id, starts_at, user_key, realm_id, confirmed, estimated, started, ended,
    active_from, active_to,
    received_packets, received_bytes, sent_packets, sent_bytes,
    peer_received_packets, peer_received_bytes, peer_sent_packets, peer_sent_bytes
)
SELECT
    session_id, starts_at, user_key, realm_id, confirmed, estimated, started, ended,
    active_from, active_to,
    received_packets, received_bytes, sent_packets, sent_bytes,
    peer_received_packets, peer_received_bytes, peer_sent_packets, peer_sent_bytes
FROM staged_session_hours
ON CONFLICT (session_id, starts_at, user_key) DO UPDATE SET
    confirmed = excluded.confirmed,
    estimated = excluded.estimated,
    started = excluded.started,
    ended = excluded.ended,
    active_from = excluded.active_from,
    active_to = excluded.active_to,
    received_packets = h.received_packets + excluded.received_packets,
    received_bytes = h.received_bytes + excluded.received_bytes,
    sent_packets = h.sent_packets + excluded.sent_packets,
    sent_bytes = h.sent_bytes + excluded.sent_bytes,
    peer_received_packets = h.peer_received_packets + excluded.peer_received_packets,
    peer_received_bytes = h.peer_received_bytes + excluded.peer_received_bytes,
    peer_sent_packets = h.peer_sent_packets + excluded.peer_sent_packets,
    peer_sent_bytes = h.peer_sent_bytes + excluded.peer_sent_bytes;

-- name: create_staged_flags
-- Scratch table: the current flags of sessions. Emptied at the end of the transaction, as all here.
CREATE TEMP TABLE IF NOT EXISTS staged_flags (
    session_id uuid, confirmed boolean, estimated boolean,
    server_before text, transport_before text, server text, transport text
) ON COMMIT DELETE ROWS;

-- name: create_staged_keys
-- Scratch table: the allocation keys of one batch.
CREATE TEMP TABLE IF NOT EXISTS staged_keys (
    source_id smallint, database integer, username_key uuid, allocation_id bigint
) ON COMMIT DELETE ROWS;

-- name: create_staged_merges
-- Scratch table: pending sessions of one batch, each with the session that it was merged into.
CREATE TEMP TABLE IF NOT EXISTS staged_merges (
    pending_id uuid, session_id uuid, user_key uuid, server text, transport text
) ON COMMIT DELETE ROWS;

-- name: create_staged_rechecks
-- Scratch table: when to check sessions of one batch again.
CREATE TEMP TABLE IF NOT EXISTS staged_rechecks (
    session_id uuid, user_key uuid, recheck_at timestamptz
) ON COMMIT DELETE ROWS;

-- name: create_staged_refreshes
-- Scratch table: sessions of one batch that got only new counters and times.
CREATE TEMP TABLE IF NOT EXISTS staged_refreshes ON COMMIT DELETE ROWS AS
SELECT * FROM accounting.sessions WITH NO DATA;

-- name: create_staged_removals
-- Scratch table: open sessions that one batch removes or writes again.
CREATE TEMP TABLE IF NOT EXISTS staged_removals (session_id uuid, user_key uuid)
ON COMMIT DELETE ROWS;

-- name: create_staged_session_hours
-- Scratch table: what one batch adds to hours of sessions.
CREATE TEMP TABLE IF NOT EXISTS staged_session_hours (LIKE accounting.session_usage)
ON COMMIT DELETE ROWS;

-- name: create_staged_sessions
-- Scratch table: the sessions that a rebuild replaces.
CREATE TEMP TABLE IF NOT EXISTS staged_sessions ON COMMIT DELETE ROWS AS
SELECT * FROM accounting.sessions WITH NO DATA;

-- name: describe_gaps
-- Describes what happened to the sessions that were open at each closed gap. Repeats that for three
-- hours of what is settled, longer than any lifetime. Counts only sessions that started within the
-- day before the gap.
UPDATE accounting.capture_gaps g
SET outcome = o.outcome
FROM (
    SELECT c.gap_id, CASE WHEN count(e.session_id) = 0 THEN 'no session was open during it'
        ELSE format('of %s session%s that %s open during it %s made exact by their totals, '
            || '%s kept by their keys, %s expired, %s still live',
            count(e.session_id), CASE WHEN count(e.session_id) <> 1 THEN 's' END,
            CASE WHEN count(e.session_id) <> 1 THEN 'were' ELSE 'was' END,
            count(*) FILTER (WHERE e.client_total_count > 0 AND e.ended_at IS NOT NULL),
            count(*) FILTER (WHERE EXISTS (
                SELECT FROM accounting.key_sightings k
                WHERE k.source_id = c.source_id AND k.epoch >= c.epoch
                    AND k.seen_at BETWEEN c.from_at AND c.to_at + interval '1 hour'
                    AND (k.username_key, k.allocation_id, k.database)
                        = (e.username_key, e.allocation_id, e.database))),
            count(*) FILTER (WHERE e.client_total_count = 0 AND e.end_cause = 'expired'),
            count(*) FILTER (WHERE e.ended_at IS NULL))
        END AS outcome
    FROM accounting.capture_gaps c
    JOIN accounting.settle_watermarks t ON t.source_id = c.source_id AND t.settled_until > c.to_at
    LEFT JOIN LATERAL (
        SELECT s.* FROM accounting.realms r
        CROSS JOIN LATERAL (  -- OFFSET 0: realm by realm along the index
            SELECT * FROM accounting.sessions
            WHERE realm_id = r.realm_id
                AND started_at BETWEEN c.from_at - interval '1 day' AND c.from_at
            OFFSET 0
        ) s
        WHERE s.source_id = c.source_id AND s.confirmed
            -- An expired session ended at its last report, but was open until its expiry.
            AND (s.ended_at IS NULL OR s.ended_at >= c.from_at
                OR (s.end_cause = 'expired' AND s.expires_at >= c.from_at))
    ) e ON true
    WHERE c.outcome = '' OR c.to_at > t.settled_until - interval '3 hours'
    GROUP BY c.gap_id
) o
WHERE o.gap_id = g.gap_id AND o.outcome <> g.outcome;

-- name: empty_staged_keys
-- Empties the scratch table before its next use within the transaction.
DELETE FROM staged_keys;

-- name: merge_pending_hours
-- Moves the hours of pending sessions to the sessions that they were merged into, and queues what
-- that adds. Where both have an hour, the session's own row says when it was active.
WITH moved AS (
    DELETE FROM accounting.session_usage h USING staged_merges m
    WHERE h.session_id = m.pending_id
    RETURNING m.session_id, h.starts_at, m.user_key, m.server, m.transport, h.realm_id,
        h.received_packets, h.received_bytes, h.sent_packets, h.sent_bytes,
        h.peer_received_packets, h.peer_received_bytes, h.peer_sent_packets, h.peer_sent_bytes
),
written AS (
    INSERT INTO accounting.session_usage AS h (
        session_id, starts_at, user_key, realm_id, confirmed, estimated, started, ended,
        active_from, active_to,
        received_packets, received_bytes, sent_packets, sent_bytes,
        peer_received_packets, peer_received_bytes, peer_sent_packets, peer_sent_bytes
    )
    SELECT
        session_id, starts_at, user_key, realm_id, true, false, false, false, starts_at, starts_at,
        received_packets, received_bytes, sent_packets, sent_bytes,
        peer_received_packets, peer_received_bytes, peer_sent_packets, peer_sent_bytes
    FROM moved
    ON CONFLICT (session_id, starts_at, user_key) DO UPDATE SET
        received_packets = h.received_packets + excluded.received_packets,
        received_bytes = h.received_bytes + excluded.received_bytes,
        sent_packets = h.sent_packets + excluded.sent_packets,
        sent_bytes = h.sent_bytes + excluded.sent_bytes,
        peer_received_packets = h.peer_received_packets + excluded.peer_received_packets,
        peer_received_bytes = h.peer_received_bytes + excluded.peer_received_bytes,
        peer_sent_packets = h.peer_sent_packets + excluded.peer_sent_packets,
        peer_sent_bytes = h.peer_sent_bytes + excluded.peer_sent_bytes
    RETURNING session_id, starts_at, user_key, estimated
),
added AS (
    SELECT m.realm_id, m.user_key, m.starts_at, m.server, m.transport,
        m.received_packets, m.received_bytes, m.sent_packets, m.sent_bytes,
        m.peer_received_packets, m.peer_received_bytes, m.peer_sent_packets, m.peer_sent_bytes,
        CASE WHEN w.estimated THEN m.received_bytes + m.sent_bytes ELSE 0 END AS estimated_bytes
    FROM moved m JOIN written w USING (session_id, starts_at, user_key)
),
of_servers AS (
    INSERT INTO accounting.server_deltas (
        realm_id, starts_at, server, transport,
        received_packets, received_bytes, sent_packets, sent_bytes,
        peer_received_packets, peer_received_bytes, peer_sent_packets, peer_sent_bytes,
        estimated_bytes
    )
    SELECT realm_id, starts_at, server, transport,
        received_packets, received_bytes, sent_packets, sent_bytes,
        peer_received_packets, peer_received_bytes, peer_sent_packets, peer_sent_bytes,
        estimated_bytes
    FROM added
)
INSERT INTO accounting.usage_deltas (
    realm_id, user_key, starts_at,
    received_packets, received_bytes, sent_packets, sent_bytes,
    peer_received_packets, peer_received_bytes, peer_sent_packets, peer_sent_bytes,
    estimated_bytes
)
SELECT realm_id, user_key, starts_at,
    received_packets, received_bytes, sent_packets, sent_bytes,
    peer_received_packets, peer_received_bytes, peer_sent_packets, peer_sent_bytes,
    estimated_bytes
FROM added;

-- name: number_replaced_ends
-- Returns each staged session that ended, unless the stored row, whose end was announced last, has
-- the same end and sums, and counts its events. Runs before the sessions are written.
-- OFFSET 0: each session goes to its stored row by the key, also where statistics from before the
-- first end make the planner expect none.
WITH compared AS (
    SELECT s.ctid AS row_id, coalesce(e.end_events, 0) AS end_events,
        s.ended_at IS NOT NULL AND s.confirmed AND (
            e.end_events > 0 AND e.confirmed AND (
                e.ended_at, e.end_cause, e.client_total_count > 0, e.estimated, e.disputed,
                e.received_packets, e.received_bytes, e.sent_packets, e.sent_bytes,
                e.peer_received_packets, e.peer_received_bytes, e.peer_sent_packets, e.peer_sent_bytes
            ) IS NOT DISTINCT FROM (
                s.ended_at, s.end_cause, s.client_total_count > 0, s.estimated, s.disputed,
                s.received_packets, s.received_bytes, s.sent_packets, s.sent_bytes,
                s.peer_received_packets, s.peer_received_bytes, s.peer_sent_packets, s.peer_sent_bytes
            )
        ) IS NOT TRUE AS is_announced
    FROM staged_sessions s LEFT JOIN LATERAL (
        SELECT * FROM accounting.sessions e WHERE e.session_id = s.session_id OFFSET 0
    ) e ON e.user_key = s.user_key
),
numbered AS (
    UPDATE staged_sessions s SET end_events = c.end_events + c.is_announced::integer
    FROM compared c WHERE s.ctid = c.row_id
)
SELECT
    s.source_id, s.database, s.username_key, s.allocation_id, s.session_id, s.user_key,
    s.realm_id, s.started_at, s.last_seen_at, s.expires_at, s.start_known, s.lifetime_known,
    s.ended_at, s.end_cause, s.phase, s.confirmed, s.transport, s.client_address, s.server_address,
    s.received_packets, s.received_bytes, s.sent_packets, s.sent_bytes, s.peer_received_packets,
    s.peer_received_bytes, s.peer_sent_packets, s.peer_sent_bytes, s.new_count, s.deleted_count,
    s.client_total_count, s.peer_total_count, s.client_total, s.peer_total,
    s.estimated, s.disputed
FROM staged_sessions s JOIN compared c ON s.ctid = c.row_id WHERE c.is_announced;

-- name: read_due_keys
-- Reads the keys of active sessions that may have expired by :until, in that order.
SELECT source_id, database, username_key, allocation_id FROM accounting.sessions_open
WHERE source_id = :source_id AND recheck_at < :until AND ended_at IS NULL AND phase = 1
ORDER BY recheck_at
LIMIT :limit;

-- name: read_open_keys
-- Reads the key of each open session of a source.
SELECT source_id, database, username_key, allocation_id FROM accounting.sessions_open
WHERE source_id = :source_id;

-- name: read_open_sessions
-- The sessions of the staged keys that another report may still belong to. Totals are null where
-- none was reported: most have none, and reading an array costs as much as ten columns.
-- OFFSET 0: key by key along the index, also where statistics say that no session is open.
SELECT
    e.source_id, e.database, e.username_key, e.allocation_id, e.session_id, e.user_key,
    e.realm_id, e.started_at, e.last_seen_at, e.expires_at, e.start_known, e.lifetime_known,
    e.ended_at, e.end_cause, e.phase, e.confirmed, e.transport, e.client_address, e.server_address,
    e.received_packets, e.received_bytes, e.sent_packets, e.sent_bytes, e.peer_received_packets,
    e.peer_received_bytes, e.peer_sent_packets, e.peer_sent_bytes, e.new_count, e.deleted_count,
    e.client_total_count, e.peer_total_count,
    CASE WHEN e.client_total_count > 0 THEN e.client_total END,
    CASE WHEN e.peer_total_count > 0 THEN e.peer_total END,
    e.estimated, e.disputed, e.recheck_at, e.end_events, e.single_hour
FROM staged_keys k
CROSS JOIN LATERAL (
    SELECT * FROM accounting.sessions_open s
    WHERE s.username_key = k.username_key AND s.allocation_id = k.allocation_id
        AND s.source_id = k.source_id AND s.database = k.database
    OFFSET 0
) e;

-- name: read_reports
-- The next reports of a source up to a position, in order. :since limits it to the partitions of the
-- last days.
SELECT
    epoch, position, received_at, database, realm_id,
    username_key, user_key, allocation_id, kind, side,
    lifetime, transport, server_address, client_address, received_packets,
    received_bytes, sent_packets, sent_bytes
FROM accounting.reports
WHERE source_id = :source_id AND received_at >= :since
    AND (epoch, position) > (:epoch, :position)
    AND (epoch, position) <= (:upto_epoch, :upto_position)
ORDER BY epoch, position
LIMIT :limit;

-- name: read_sightings
-- The next key sightings of a source, in order, as far as its reports are settled.
SELECT
    epoch, position, sighting, database, realm_id,
    username_key, user_key, allocation_id, scan_started_at, seen_at, idle_seconds
FROM accounting.key_sightings
WHERE source_id = :source_id
    AND (epoch, position, sighting) > (:epoch, :position, :sighting)
    AND (epoch, position) <= (:upto_epoch, :upto_position)
ORDER BY epoch, position, sighting;

-- name: reduce_client_addresses
-- Reduces the client addresses in a realm's reports of a day (UTC); returns in how many.
SELECT accounting.reduce_client_addresses(:realm_id, :kept, :day);

-- name: refresh_sessions
-- Updates the staged sessions, which got only new counters and times, and touches no index.
UPDATE accounting.sessions_open e SET
    last_seen_at = r.last_seen_at, expires_at = r.expires_at, recheck_at = r.recheck_at,
    received_packets = r.received_packets, received_bytes = r.received_bytes,
    sent_packets = r.sent_packets, sent_bytes = r.sent_bytes,
    peer_received_packets = r.peer_received_packets, peer_received_bytes = r.peer_received_bytes,
    peer_sent_packets = r.peer_sent_packets, peer_sent_bytes = r.peer_sent_bytes
FROM staged_refreshes r
WHERE e.session_id = r.session_id AND e.user_key = r.user_key;

-- name: remove_open_sessions
-- Removes the staged sessions from the open ones.
DELETE FROM accounting.sessions_open e USING staged_removals r
WHERE e.session_id = r.session_id AND e.user_key = r.user_key;

-- name: report_days
-- The days (UTC) that have a partition of the reports.
SELECT to_date(right(c.relname, 8), 'YYYYMMDD') AS day
FROM pg_inherits i JOIN pg_class c ON c.oid = i.inhrelid
WHERE i.inhparent = 'accounting.reports'::regclass
ORDER BY day;

-- name: reschedule_sessions
-- Sets when to check the staged sessions again, which were due and did not expire.
UPDATE accounting.sessions_open e SET recheck_at = r.recheck_at
FROM staged_rechecks r
WHERE e.session_id = r.session_id AND e.user_key = r.user_key AND e.ended_at IS NULL;

-- name: stage_latest_keys
-- Stages the keys of a source whose open sessions had the latest reports.
INSERT INTO staged_keys (source_id, database, username_key, allocation_id)
SELECT source_id, database, username_key, allocation_id FROM accounting.sessions_open
WHERE source_id = :source_id
GROUP BY source_id, database, username_key, allocation_id
ORDER BY max(last_seen_at) DESC
LIMIT :limit;

-- name: update_flags
-- Sets the flags of the staged sessions in their rows of hours, and queues what that changes, also
-- where their server is another one now.
WITH before AS (
    SELECT h.*, f.confirmed AS is_confirmed, f.estimated AS is_estimated,
        f.server_before, f.transport_before, f.server, f.transport,
        f.confirmed::integer - h.confirmed::integer AS sign,
        (f.confirmed AND f.estimated)::integer - (h.confirmed AND h.estimated)::integer
            AS estimated_sign
    FROM staged_flags f
    CROSS JOIN LATERAL (  -- OFFSET 0: along the keys, session by session
        SELECT * FROM accounting.session_usage h WHERE h.session_id = f.session_id OFFSET 0
    ) h
    WHERE (h.confirmed, h.estimated, f.server_before, f.transport_before)
        IS DISTINCT FROM (f.confirmed, f.estimated, f.server, f.transport)
),
of_servers AS (
    INSERT INTO accounting.server_deltas (
        realm_id, starts_at, server, transport,
        received_packets, received_bytes, sent_packets, sent_bytes,
        peer_received_packets, peer_received_bytes, peer_sent_packets, peer_sent_bytes,
        sessions_started, sessions_ended, session_microseconds, estimated_bytes,
        sessions_carried
    )
    SELECT b.realm_id, b.starts_at, p.server, p.transport,
        p.sign * received_packets, p.sign * received_bytes,
        p.sign * sent_packets, p.sign * sent_bytes,
        p.sign * peer_received_packets, p.sign * peer_received_bytes,
        p.sign * peer_sent_packets, p.sign * peer_sent_bytes,
        p.sign * started::integer, p.sign * ended::integer,
        p.sign * round(extract(epoch FROM active_to - active_from) * 1000000),
        p.estimated_sign * (received_bytes + sent_bytes),
        p.sign * (NOT started AND active_to > active_from)::integer
    FROM before b CROSS JOIN LATERAL (
        VALUES
        (b.server_before, b.transport_before, -(b.confirmed::integer),
            -((b.confirmed AND b.estimated)::integer)),
        (b.server, b.transport, b.is_confirmed::integer,
            (b.is_confirmed AND b.is_estimated)::integer)
    ) AS p (server, transport, sign, estimated_sign)
    WHERE p.sign <> 0
),
changed AS (
    UPDATE accounting.session_usage h
    SET confirmed = b.is_confirmed, estimated = b.is_estimated
    FROM before b
    WHERE h.session_id = b.session_id AND h.starts_at = b.starts_at AND h.user_key = b.user_key
)
INSERT INTO accounting.usage_deltas (
    realm_id, user_key, starts_at,
    received_packets, received_bytes, sent_packets, sent_bytes,
    peer_received_packets, peer_received_bytes, peer_sent_packets, peer_sent_bytes,
    sessions_started, sessions_ended, session_microseconds, estimated_bytes
)
SELECT realm_id, user_key, starts_at,
    sign * received_packets, sign * received_bytes, sign * sent_packets, sign * sent_bytes,
    sign * peer_received_packets, sign * peer_received_bytes,
    sign * peer_sent_packets, sign * peer_sent_bytes,
    sign * started::integer, sign * ended::integer,
    sign * round(extract(epoch FROM active_to - active_from) * 1000000),
    estimated_sign * (received_bytes + sent_bytes)
FROM before
WHERE sign <> 0 OR estimated_sign <> 0;
