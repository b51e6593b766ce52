-- The results of settling: sessions, and their usage by the hour.

-- How far settling has come. version counts changes of open sessions by others than their loader.
CREATE TABLE accounting.settle_watermarks (
    source_id smallint NOT NULL,
    epoch integer NOT NULL DEFAULT 0,
    position bigint NOT NULL DEFAULT 0,
    received_at timestamptz,
    settled_until timestamptz,
    last_sighting_epoch integer NOT NULL DEFAULT 0,
    last_sighting_position bigint NOT NULL DEFAULT 0,
    last_sighting bigint NOT NULL DEFAULT 0,
    version integer NOT NULL DEFAULT 0,
    CONSTRAINT settle_watermarks_pkey PRIMARY KEY (source_id)
);
GRANT SELECT, INSERT, UPDATE, DELETE ON accounting.settle_watermarks TO turn_accounting_writer;

-- The address in text such as 198.51.100.7:50000 or [2001:db8::7]:50000, which coturn writes, also
-- without port, or in a network such as 198.51.100.0/24. Null for other text. Without the zone of an
-- IPv6 address, such as %eth0, which inet can't have. 1.7 us: a subtransaction costs less than regular
-- expressions that make the cast safe (4 us, IPv6 45). For that it must not run in parallel.
CREATE FUNCTION accounting.ip_address(address text) RETURNS inet
LANGUAGE plpgsql IMMUTABLE STRICT PARALLEL UNSAFE AS $$
BEGIN
    RETURN CASE
        WHEN address LIKE '[%' THEN split_part(split_part(substr(address, 2), ']', 1), '%', 1)
        WHEN address LIKE '%:%:%' THEN split_part(address, '%', 1)
        ELSE split_part(address, ':', 1)
    END::inet;
EXCEPTION WHEN invalid_text_representation THEN
    RETURN NULL;
END
$$;

-- The port in such text.
CREATE FUNCTION accounting.ip_port(address text) RETURNS integer
LANGUAGE sql IMMUTABLE RETURN CASE
    WHEN accounting.ip_address(address) IS NOT NULL
    THEN substring(address FROM '^(?:[^:]*|\[.*\]):([0-9]{1,5})$')::integer
END;

-- end_events: how many session.ended events the feed has of the session. single_hour: the only hour
-- in which it was active, until it is active in another; session_usage has no row of it meanwhile.
-- Array columns hold the sums of the totals, in the order of the counters; empty if these are zero.
-- What every report changes is in one place: an update within a page logs only the bytes from the
-- first to the last that changed.
--
-- By phase: a report can still change the open sessions, which are few and written again and again;
-- the closed ones are only inserted.
CREATE TABLE accounting.sessions (
    session_id uuid NOT NULL,
    user_key uuid NOT NULL,
    username_key uuid NOT NULL,
    realm_id integer NOT NULL,
    database integer NOT NULL,
    allocation_id bigint NOT NULL,
    started_at timestamptz NOT NULL,
    last_seen_at timestamptz NOT NULL,
    expires_at timestamptz NOT NULL,
    recheck_at timestamptz NOT NULL,
    received_packets bigint NOT NULL,
    received_bytes bigint NOT NULL,
    sent_packets bigint NOT NULL,
    sent_bytes bigint NOT NULL,
    peer_received_packets bigint NOT NULL,
    peer_received_bytes bigint NOT NULL,
    peer_sent_packets bigint NOT NULL,
    peer_sent_bytes bigint NOT NULL,
    end_events integer NOT NULL DEFAULT 0,
    source_id smallint NOT NULL,
    new_count smallint NOT NULL,
    deleted_count smallint NOT NULL,
    client_total_count smallint NOT NULL,
    peer_total_count smallint NOT NULL,
    phase smallint NOT NULL,
    start_known boolean NOT NULL,
    lifetime_known boolean NOT NULL,
    confirmed boolean NOT NULL,
    estimated boolean NOT NULL,
    disputed boolean NOT NULL,
    ended_at timestamptz,
    single_hour timestamptz,
    end_cause text
        CONSTRAINT end_cause_is_known CHECK (end_cause IN ('deleted', 'expired', 'superseded')),
    transport text,
    client_address text,
    server_address text,
    client_total bigint[] NOT NULL,
    peer_total bigint[] NOT NULL,
    CONSTRAINT end_has_time_and_cause CHECK ((ended_at IS NULL) = (end_cause IS NULL)),
    CONSTRAINT session_is_not_backwards
        CHECK (last_seen_at >= started_at AND ended_at >= started_at)
) PARTITION BY LIST (phase);
-- fillfactor: sessions that started together are refreshed together, so that all rows of a page are
-- updated at once. With free space on the page, these updates are HOT and change no index.
CREATE TABLE accounting.sessions_open PARTITION OF accounting.sessions (
    CONSTRAINT sessions_open_pkey PRIMARY KEY (session_id, user_key)
) FOR VALUES IN (1, 2) WITH (fillfactor = 50);
CREATE TABLE accounting.sessions_closed PARTITION OF accounting.sessions (
    CONSTRAINT sessions_closed_pkey PRIMARY KEY (session_id, user_key)
) FOR VALUES IN (0);
-- Each index of the whole table takes over those of the partitions, which get their names here.
-- live, disputed and unattributed cover a small part of all sessions.
CREATE INDEX sessions_open_by_user ON accounting.sessions_open (user_key, started_at);
CREATE INDEX sessions_closed_by_user ON accounting.sessions_closed (user_key, started_at);
CREATE INDEX sessions_by_user ON accounting.sessions (user_key, started_at);
CREATE INDEX sessions_open_by_realm ON accounting.sessions_open (realm_id, started_at);
CREATE INDEX sessions_closed_by_realm ON accounting.sessions_closed (realm_id, started_at);
CREATE INDEX sessions_by_realm ON accounting.sessions (realm_id, started_at);
CREATE INDEX sessions_open_by_end ON accounting.sessions_open (realm_id, ended_at)
    WHERE ended_at IS NOT NULL;
CREATE INDEX sessions_closed_by_end ON accounting.sessions_closed (realm_id, ended_at)
    WHERE ended_at IS NOT NULL;
CREATE INDEX sessions_by_end ON accounting.sessions (realm_id, ended_at)
    WHERE ended_at IS NOT NULL;
CREATE INDEX sessions_open_live ON accounting.sessions_open (started_at)
    WHERE ended_at IS NULL AND confirmed;
CREATE INDEX sessions_closed_live ON accounting.sessions_closed (started_at)
    WHERE ended_at IS NULL AND confirmed;
CREATE INDEX sessions_live ON accounting.sessions (started_at)
    WHERE ended_at IS NULL AND confirmed;
CREATE INDEX sessions_open_disputed ON accounting.sessions_open (started_at)
    WHERE disputed AND confirmed;
CREATE INDEX sessions_closed_disputed ON accounting.sessions_closed (started_at)
    WHERE disputed AND confirmed;
CREATE INDEX sessions_disputed ON accounting.sessions (started_at)
    WHERE disputed AND confirmed;
CREATE INDEX sessions_open_unattributed ON accounting.sessions_open (realm_id, single_hour)
    WHERE NOT confirmed AND single_hour IS NOT NULL;
CREATE INDEX sessions_closed_unattributed ON accounting.sessions_closed (realm_id, single_hour)
    WHERE NOT confirmed AND single_hour IS NOT NULL;
CREATE INDEX sessions_unattributed ON accounting.sessions (realm_id, single_hour)
    WHERE NOT confirmed AND single_hour IS NOT NULL;
-- radacct is asked for one client address. Open sessions are few, and are filtered instead: their
-- index would double the cost, which is 3.5 us of Postgres a session.
CREATE INDEX sessions_closed_by_client ON accounting.sessions_closed
    (accounting.ip_address(client_address), started_at);
-- The sessions to which the next report of a key may belong.
CREATE INDEX sessions_open_by_key ON accounting.sessions_open
    (username_key, allocation_id, source_id, database);
CREATE INDEX sessions_open_recheck ON accounting.sessions_open (source_id, recheck_at)
    WHERE ended_at IS NULL AND phase = 1;
-- Sessions that were never confirmed and are over, by age: those that the job retain deletes.
CREATE INDEX sessions_closed_unconfirmed ON accounting.sessions_closed (session_id)
    WHERE NOT confirmed;
GRANT SELECT, INSERT, UPDATE, DELETE
    ON accounting.sessions, accounting.sessions_open, accounting.sessions_closed
    TO turn_accounting_writer;

-- The hours of sessions that were active in more than one. Most are active in a single hour, whose
-- usage is that of the session itself: not storing it here saves two writes for each of them.
CREATE TABLE accounting.session_usage (
    session_id uuid NOT NULL,
    starts_at timestamptz NOT NULL,
    user_key uuid NOT NULL,
    realm_id integer NOT NULL,
    confirmed boolean NOT NULL,
    estimated boolean NOT NULL,
    started boolean NOT NULL,
    ended boolean NOT NULL,
    active_from timestamptz NOT NULL,
    active_to timestamptz NOT NULL,
    received_packets bigint NOT NULL,
    received_bytes bigint NOT NULL,
    sent_packets bigint NOT NULL,
    sent_bytes bigint NOT NULL,
    peer_received_packets bigint NOT NULL,
    peer_received_bytes bigint NOT NULL,
    peer_sent_packets bigint NOT NULL,
    peer_sent_bytes bigint NOT NULL,
    CONSTRAINT session_usage_pkey PRIMARY KEY (session_id, starts_at, user_key),
    CONSTRAINT active_is_not_backwards CHECK (active_to >= active_from)
) WITH (fillfactor = 80);
-- Hours of sessions that started before the hour.
CREATE INDEX session_usage_carried ON accounting.session_usage (realm_id, starts_at)
    WHERE NOT started;
CREATE INDEX session_usage_unattributed ON accounting.session_usage (realm_id, starts_at)
    WHERE NOT confirmed;
GRANT SELECT, INSERT, UPDATE, DELETE ON accounting.session_usage TO turn_accounting_writer;

-- The hours of all sessions, with the columns of session_usage.
CREATE VIEW accounting.session_hours AS
SELECT session_id, starts_at, user_key, realm_id, confirmed, estimated, started, ended,
    active_from, active_to,
    received_packets, received_bytes, sent_packets, sent_bytes,
    peer_received_packets, peer_received_bytes, peer_sent_packets, peer_sent_bytes
FROM accounting.session_usage
UNION ALL
SELECT session_id, single_hour, user_key, realm_id, confirmed, estimated, true,
    ended_at IS NOT NULL, started_at, coalesce(ended_at, last_seen_at),
    received_packets, received_bytes, sent_packets, sent_bytes,
    peer_received_packets, peer_received_bytes, peer_sent_packets, peer_sent_bytes
FROM accounting.sessions
WHERE single_hour IS NOT NULL;
GRANT SELECT ON accounting.session_hours TO turn_accounting_writer;

-- Reports that are in no session, because folding them raised an error: a bug. sighting: the number of
-- a sighting of a status key, else 0. reason: the error. A rebuild takes them in after the fix.
CREATE TABLE accounting.set_aside_reports (
    source_id smallint NOT NULL,
    epoch integer NOT NULL,
    position bigint NOT NULL,
    sighting bigint NOT NULL,
    realm_id integer NOT NULL,
    received_at timestamptz NOT NULL,
    reason text NOT NULL,
    set_aside_at timestamptz NOT NULL DEFAULT now(),
    CONSTRAINT set_aside_reports_pkey PRIMARY KEY (source_id, epoch, position, sighting)
);
CREATE INDEX set_aside_reports_by_realm ON accounting.set_aside_reports (realm_id);
GRANT SELECT, INSERT, DELETE ON accounting.set_aside_reports TO turn_accounting_writer;

-- Each relay thread of coturn that sent a report: when it sent the last one, and how many of its
-- sessions have expired since then without a report. Settling deletes rows that are a week old.
CREATE TABLE accounting.relay_threads (
    source_id smallint NOT NULL,
    database integer NOT NULL,
    server text NOT NULL,
    thread smallint NOT NULL,
    last_report_at timestamptz NOT NULL,
    highest_id bigint NOT NULL,
    highest_at timestamptz,
    restarted_at timestamptz,
    missed_count integer NOT NULL,
    not_explained_by_gap boolean NOT NULL,
    overdue_since timestamptz,
    CONSTRAINT relay_threads_pkey PRIMARY KEY (source_id, database, server, thread),
    CONSTRAINT missed_reports_have_a_due_time
        CHECK ((missed_count > 0) = (overdue_since IS NOT NULL))
) WITH (fillfactor = 50);
GRANT SELECT, INSERT, UPDATE, DELETE ON accounting.relay_threads TO turn_accounting_writer;
