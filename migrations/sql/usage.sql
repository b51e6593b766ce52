-- The results of the roll-up: usage of users and realms by hour, day and month.

-- The bounds of the hours, days and months that have usage, in the time zone of their realm.
-- tzdata_version: of the data about time zones that they were computed with.
CREATE TABLE accounting.buckets (
    realm_id integer NOT NULL,
    level text NOT NULL CONSTRAINT level_is_known CHECK (level IN ('hour', 'day', 'month')),
    starts_at timestamptz NOT NULL,
    ends_at timestamptz NOT NULL,
    time_zone text NOT NULL,
    tzdata_version text NOT NULL,
    CONSTRAINT buckets_pkey PRIMARY KEY (realm_id, level, starts_at),
    CONSTRAINT bucket_is_not_empty CHECK (ends_at > starts_at)
);
GRANT SELECT, INSERT, UPDATE, DELETE ON accounting.buckets TO turn_accounting_writer;

-- The changes of users' hours since the last roll-up, which adds them to the sums: its cost does
-- not depend on the usage that an hour, day or month already has. Rows are inserted and deleted,
-- never updated, so that a roll-up can't consume a change that its snapshot does not include.
CREATE TABLE accounting.usage_deltas (
    realm_id integer NOT NULL,
    user_key uuid NOT NULL,
    starts_at timestamptz NOT NULL,
    received_packets bigint NOT NULL DEFAULT 0,
    received_bytes bigint NOT NULL DEFAULT 0,
    sent_packets bigint NOT NULL DEFAULT 0,
    sent_bytes bigint NOT NULL DEFAULT 0,
    peer_received_packets bigint NOT NULL DEFAULT 0,
    peer_received_bytes bigint NOT NULL DEFAULT 0,
    peer_sent_packets bigint NOT NULL DEFAULT 0,
    peer_sent_bytes bigint NOT NULL DEFAULT 0,
    sessions_started bigint NOT NULL DEFAULT 0,
    sessions_ended bigint NOT NULL DEFAULT 0,
    session_microseconds bigint NOT NULL DEFAULT 0,
    estimated_bytes bigint NOT NULL DEFAULT 0
);
GRANT SELECT, INSERT, UPDATE, DELETE ON accounting.usage_deltas TO turn_accounting_writer;

-- The same changes by server and transport: a few rows for each batch. sessions_carried: sessions
-- that turned out to continue into the hour. received_from, received_until: when the reports of the
-- batch were received. Rows are inserted and deleted, as in usage_deltas.
CREATE TABLE accounting.server_deltas (
    realm_id integer NOT NULL,
    starts_at timestamptz NOT NULL,
    server text COLLATE "C" NOT NULL,
    transport text COLLATE "C" NOT NULL,
    received_packets bigint NOT NULL DEFAULT 0,
    received_bytes bigint NOT NULL DEFAULT 0,
    sent_packets bigint NOT NULL DEFAULT 0,
    sent_bytes bigint NOT NULL DEFAULT 0,
    peer_received_packets bigint NOT NULL DEFAULT 0,
    peer_received_bytes bigint NOT NULL DEFAULT 0,
    peer_sent_packets bigint NOT NULL DEFAULT 0,
    peer_sent_bytes bigint NOT NULL DEFAULT 0,
    sessions_started bigint NOT NULL DEFAULT 0,
    sessions_ended bigint NOT NULL DEFAULT 0,
    session_microseconds bigint NOT NULL DEFAULT 0,
    estimated_bytes bigint NOT NULL DEFAULT 0,
    sessions_carried bigint NOT NULL DEFAULT 0,
    received_from timestamptz,
    received_until timestamptz
);
GRANT SELECT, INSERT, DELETE ON accounting.server_deltas TO turn_accounting_writer;

-- The server in an address that coturn reports, which has a port: empty if it is unknown. As
-- accounting.domain.server_host.
CREATE FUNCTION accounting.server_host(address text) RETURNS text
LANGUAGE sql IMMUTABLE PARALLEL SAFE AS $$
    SELECT CASE
        WHEN address IS NULL THEN ''
        WHEN starts_with(address, '[') THEN split_part(substr(address, 2), ']', 1)
        WHEN strpos(substr(address, strpos(address, ':') + 1), ':') = 0
            THEN split_part(address, ':', 1)
        ELSE address
    END
$$;

-- Slices of realms' hours in which a session's start or end changed since the last roll-up.
-- Rows are inserted and deleted, as in usage_deltas.
CREATE TABLE accounting.peak_deltas (
    realm_id integer NOT NULL,
    starts_at timestamptz NOT NULL,
    slice_at timestamptz NOT NULL
);
GRANT SELECT, INSERT, DELETE ON accounting.peak_deltas TO turn_accounting_writer;

-- Slices of an hour, from which its peak is computed: only changed slices are counted again.
-- session_delta: by how many the open sessions grow from the start of the slice to its end.
-- session_peak: the most by which they exceed those at its start. The row at -infinity counts the
-- sessions open at the start of the hour. An hour without rows is counted as a whole; rows of old
-- hours are deleted. Each for the realm, with an empty name, for its servers and for its transports.
CREATE TABLE accounting.realm_peak_slices (
    realm_id integer NOT NULL,
    starts_at timestamptz NOT NULL,
    slice_at timestamptz NOT NULL,
    dimension text COLLATE "C" NOT NULL,
    name text COLLATE "C" NOT NULL,
    session_delta bigint NOT NULL,
    session_peak bigint NOT NULL,
    CONSTRAINT realm_peak_slices_pkey
        PRIMARY KEY (realm_id, starts_at, slice_at, dimension, name)
);
GRANT SELECT, INSERT, UPDATE, DELETE ON accounting.realm_peak_slices TO turn_accounting_writer;

-- A version of the peaks of each hour, which is another one after every change of its slices. By these
-- a front sees which hours it has to count again, and for that they are random: a number would come
-- again where a database is restored.
CREATE TABLE accounting.peak_versions (
    realm_id integer NOT NULL,
    starts_at timestamptz NOT NULL,
    version uuid NOT NULL DEFAULT gen_random_uuid(),
    changed_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    CONSTRAINT peak_versions_pkey PRIMARY KEY (realm_id, starts_at)
) WITH (fillfactor = 80);
CREATE INDEX peak_versions_by_change ON accounting.peak_versions (changed_at);
GRANT SELECT, INSERT, UPDATE, DELETE ON accounting.peak_versions TO turn_accounting_writer;

DO $$
DECLARE
    length text;
BEGIN
    FOREACH length IN ARRAY ARRAY['hourly', 'daily', 'monthly'] LOOP
        EXECUTE format($table$
            CREATE TABLE accounting.user_usage_%1$s (
                user_key uuid NOT NULL,
                starts_at timestamptz NOT NULL,
                realm_id integer NOT NULL,
                received_packets bigint NOT NULL,
                received_bytes bigint NOT NULL,
                sent_packets bigint NOT NULL,
                sent_bytes bigint NOT NULL,
                peer_received_packets bigint NOT NULL,
                peer_received_bytes bigint NOT NULL,
                peer_sent_packets bigint NOT NULL,
                peer_sent_bytes bigint NOT NULL,
                sessions_started bigint NOT NULL,
                sessions_ended bigint NOT NULL,
                session_microseconds numeric NOT NULL,
                estimated_bytes bigint NOT NULL,
                CONSTRAINT user_usage_%1$s_pkey PRIMARY KEY (user_key, starts_at)
            ) WITH (fillfactor = 80);
            CREATE INDEX user_usage_%1$s_by_realm
                ON accounting.user_usage_%1$s (realm_id, starts_at);
            CREATE TABLE accounting.realm_usage_%1$s (
                realm_id integer NOT NULL,
                starts_at timestamptz NOT NULL,
                received_packets bigint NOT NULL,
                received_bytes bigint NOT NULL,
                sent_packets bigint NOT NULL,
                sent_bytes bigint NOT NULL,
                peer_received_packets bigint NOT NULL,
                peer_received_bytes bigint NOT NULL,
                peer_sent_packets bigint NOT NULL,
                peer_sent_bytes bigint NOT NULL,
                sessions_started bigint NOT NULL,
                sessions_ended bigint NOT NULL,
                session_microseconds numeric NOT NULL,
                estimated_bytes bigint NOT NULL,
                peak_sessions bigint NOT NULL,
                CONSTRAINT realm_usage_%1$s_pkey PRIMARY KEY (realm_id, starts_at)
            ) WITH (fillfactor = 80);
            GRANT SELECT, INSERT, UPDATE, DELETE
                ON accounting.user_usage_%1$s, accounting.realm_usage_%1$s
                TO turn_accounting_writer;
        $table$, length);
    END LOOP;
END
$$;

-- Usage by server and transport: the views sum it by either, and by day. server: its address without
-- the port. Empty where coturn did not report it.
CREATE TABLE accounting.server_usage_hourly (
    realm_id integer NOT NULL,
    starts_at timestamptz NOT NULL,
    server text COLLATE "C" NOT NULL,
    transport text COLLATE "C" NOT NULL,
    received_packets bigint NOT NULL,
    received_bytes bigint NOT NULL,
    sent_packets bigint NOT NULL,
    sent_bytes bigint NOT NULL,
    peer_received_packets bigint NOT NULL,
    peer_received_bytes bigint NOT NULL,
    peer_sent_packets bigint NOT NULL,
    peer_sent_bytes bigint NOT NULL,
    sessions_started bigint NOT NULL,
    sessions_ended bigint NOT NULL,
    session_microseconds numeric NOT NULL,
    estimated_bytes bigint NOT NULL,
    CONSTRAINT server_usage_hourly_pkey PRIMARY KEY (realm_id, starts_at, server, transport)
) WITH (fillfactor = 80);
GRANT SELECT, INSERT, UPDATE, DELETE ON accounting.server_usage_hourly TO turn_accounting_writer;

-- The open sessions of each realm at each server: those that started less those that ended, in all
-- hours. A server without any has no row.
CREATE TABLE accounting.server_load (
    realm_id integer NOT NULL,
    server text COLLATE "C" NOT NULL,
    live_sessions bigint NOT NULL,
    CONSTRAINT server_load_pkey PRIMARY KEY (realm_id, server)
) WITH (fillfactor = 50);
GRANT SELECT, INSERT, UPDATE, DELETE ON accounting.server_load TO turn_accounting_writer;

-- What was reported in the last minutes, in slots of ten seconds. The traffic of a batch is spread
-- over the time in which its reports were received: a second or two, unless the loader catches up.
CREATE TABLE accounting.server_traffic (
    slot_at timestamptz NOT NULL,
    realm_id integer NOT NULL,
    server text COLLATE "C" NOT NULL,
    received_bytes bigint NOT NULL,
    sent_bytes bigint NOT NULL,
    sessions_started bigint NOT NULL,
    CONSTRAINT server_traffic_pkey PRIMARY KEY (slot_at, realm_id, server)
) WITH (fillfactor = 50);
GRANT SELECT, INSERT, UPDATE, DELETE ON accounting.server_traffic TO turn_accounting_writer;

-- Peaks by server, and by transport, in hours that are folded: see fold_watermarks. They are in no sum
-- of each other, so that each has its own row.
CREATE TABLE accounting.dimension_peaks_hourly (
    realm_id integer NOT NULL,
    starts_at timestamptz NOT NULL,
    dimension text COLLATE "C" NOT NULL
        CONSTRAINT dimension_is_known CHECK (dimension IN ('server', 'transport')),
    name text COLLATE "C" NOT NULL,
    peak_sessions bigint NOT NULL,
    CONSTRAINT dimension_peaks_hourly_pkey PRIMARY KEY (realm_id, starts_at, dimension, name)
);
GRANT SELECT, INSERT, UPDATE, DELETE ON accounting.dimension_peaks_hourly TO turn_accounting_writer;

-- The time up to which the hours of a realm's users are added to their days and months. The current
-- hour is only in the hourly table: usage that changes every other second then costs one update
-- each time instead of three. last_hour_ends_at: the end of the last hour with usage; before it is
-- folded, the roll-up looks whether an hour is over.
CREATE TABLE accounting.fold_watermarks (
    realm_id integer NOT NULL,
    folded_until timestamptz NOT NULL,
    last_hour_ends_at timestamptz NOT NULL DEFAULT '-infinity',
    CONSTRAINT fold_watermarks_pkey PRIMARY KEY (realm_id)
) WITH (fillfactor = 50);
GRANT SELECT, INSERT, UPDATE ON accounting.fold_watermarks TO turn_accounting_writer;

-- In a cell of a front: when the roll-up or a rebuild changed the hours of realms last. The front reads
-- what changed since it looked: no time is before that of an earlier transaction, since all have the
-- lock rollup.
CREATE TABLE accounting.changed_hours (
    realm_id integer NOT NULL,
    starts_at timestamptz NOT NULL,
    changed_at timestamptz NOT NULL,
    CONSTRAINT changed_hours_pkey PRIMARY KEY (realm_id, starts_at)
) WITH (fillfactor = 50);
CREATE INDEX changed_hours_by_time ON accounting.changed_hours (changed_at);
GRANT SELECT, INSERT, UPDATE ON accounting.changed_hours TO turn_accounting_writer;

-- dimension_peaks: with those of the hours that are not folded yet.
CREATE VIEW accounting.dimension_peaks AS
SELECT realm_id, starts_at, dimension, name, peak_sessions
FROM accounting.dimension_peaks_hourly
UNION ALL
SELECT realm_id, starts_at, dimension, name, max(before + session_peak)
FROM (
    SELECT s.realm_id, s.starts_at, s.dimension, s.name, s.session_peak, sum(s.session_delta) OVER (
        PARTITION BY s.realm_id, s.starts_at, s.dimension, s.name ORDER BY s.slice_at
    ) - s.session_delta AS before
    FROM accounting.fold_watermarks f
    JOIN accounting.realm_peak_slices s
        ON s.realm_id = f.realm_id AND s.starts_at >= f.folded_until
    WHERE s.dimension <> 'realm'
) c
GROUP BY realm_id, starts_at, dimension, name
HAVING max(before + session_peak) > 0;
GRANT SELECT ON accounting.dimension_peaks TO turn_accounting_writer;

-- user_days, user_months: the days and months of users, with the hours that are not folded yet.
DO $$
DECLARE
    view text[];
BEGIN
    FOREACH view SLICE 1 IN ARRAY
        ARRAY[['user_days', 'daily', 'day'], ['user_months', 'monthly', 'month']]
    LOOP
        EXECUTE format($view$
            CREATE VIEW accounting.%1$s AS
            SELECT d.user_key, d.starts_at, d.realm_id,
                d.received_packets + coalesce(h.received_packets, 0) AS received_packets,
                d.received_bytes + coalesce(h.received_bytes, 0) AS received_bytes,
                d.sent_packets + coalesce(h.sent_packets, 0) AS sent_packets,
                d.sent_bytes + coalesce(h.sent_bytes, 0) AS sent_bytes,
                d.peer_received_packets + coalesce(h.peer_received_packets, 0)
                    AS peer_received_packets,
                d.peer_received_bytes + coalesce(h.peer_received_bytes, 0)
                    AS peer_received_bytes,
                d.peer_sent_packets + coalesce(h.peer_sent_packets, 0) AS peer_sent_packets,
                d.peer_sent_bytes + coalesce(h.peer_sent_bytes, 0) AS peer_sent_bytes,
                d.sessions_started + coalesce(h.sessions_started, 0) AS sessions_started,
                d.sessions_ended + coalesce(h.sessions_ended, 0) AS sessions_ended,
                d.session_microseconds + coalesce(h.session_microseconds, 0)
                    AS session_microseconds,
                d.estimated_bytes + coalesce(h.estimated_bytes, 0) AS estimated_bytes,
                b.ends_at, b.time_zone
            FROM accounting.user_usage_%2$s d
            JOIN accounting.buckets b
                ON b.realm_id = d.realm_id AND b.level = %3$L AND b.starts_at = d.starts_at
            JOIN accounting.fold_watermarks f ON f.realm_id = d.realm_id
            CROSS JOIN LATERAL (
                SELECT
                    sum(received_packets)::bigint AS received_packets,
                    sum(received_bytes)::bigint AS received_bytes,
                    sum(sent_packets)::bigint AS sent_packets,
                    sum(sent_bytes)::bigint AS sent_bytes,
                    sum(peer_received_packets)::bigint AS peer_received_packets,
                    sum(peer_received_bytes)::bigint AS peer_received_bytes,
                    sum(peer_sent_packets)::bigint AS peer_sent_packets,
                    sum(peer_sent_bytes)::bigint AS peer_sent_bytes,
                    sum(sessions_started)::bigint AS sessions_started,
                    sum(sessions_ended)::bigint AS sessions_ended,
                    sum(session_microseconds) AS session_microseconds,
                    sum(estimated_bytes)::bigint AS estimated_bytes
                FROM accounting.user_usage_hourly
                WHERE b.ends_at > f.folded_until
                    AND user_key = d.user_key AND realm_id = d.realm_id
                    AND starts_at >= f.folded_until
                    AND starts_at >= d.starts_at AND starts_at < b.ends_at
            ) h;
            GRANT SELECT ON accounting.%1$s TO turn_accounting_writer;
        $view$, view[1], view[2], view[3]);
    END LOOP;
END
$$;
