-- Marks of touched hours say by how much: the roll-up adds what changed instead of reading again what
-- stands there, so that it costs the same in the first minute of an hour, a day or a month and in
-- its last. And the peaks of realms are counted in slices, of which only the touched are read again.

ALTER TABLE accounting.touched_hours
    ADD COLUMN received_packets bigint NOT NULL DEFAULT 0,
    ADD COLUMN received_bytes bigint NOT NULL DEFAULT 0,
    ADD COLUMN sent_packets bigint NOT NULL DEFAULT 0,
    ADD COLUMN sent_bytes bigint NOT NULL DEFAULT 0,
    ADD COLUMN peer_received_packets bigint NOT NULL DEFAULT 0,
    ADD COLUMN peer_received_bytes bigint NOT NULL DEFAULT 0,
    ADD COLUMN peer_sent_packets bigint NOT NULL DEFAULT 0,
    ADD COLUMN peer_sent_bytes bigint NOT NULL DEFAULT 0,
    ADD COLUMN sessions_started bigint NOT NULL DEFAULT 0,
    ADD COLUMN sessions_ended bigint NOT NULL DEFAULT 0,
    ADD COLUMN session_microseconds bigint NOT NULL DEFAULT 0,
    ADD COLUMN estimated_bytes bigint NOT NULL DEFAULT 0,
    ADD COLUMN sessions_carried bigint NOT NULL DEFAULT 0;

-- The marks that wait now, said so.
WITH taken AS (
    DELETE FROM accounting.touched_hours RETURNING realm_id, user_key, starts_at
)
INSERT INTO accounting.touched_hours (
    realm_id, user_key, starts_at,
    received_packets, received_bytes, sent_packets, sent_bytes,
    peer_received_packets, peer_received_bytes, peer_sent_packets, peer_sent_bytes,
    sessions_started, sessions_ended, session_microseconds, estimated_bytes
)
SELECT t.realm_id, t.user_key, t.starts_at,
    h.received_packets - coalesce(u.received_packets, 0),
    h.received_bytes - coalesce(u.received_bytes, 0),
    h.sent_packets - coalesce(u.sent_packets, 0),
    h.sent_bytes - coalesce(u.sent_bytes, 0),
    h.peer_received_packets - coalesce(u.peer_received_packets, 0),
    h.peer_received_bytes - coalesce(u.peer_received_bytes, 0),
    h.peer_sent_packets - coalesce(u.peer_sent_packets, 0),
    h.peer_sent_bytes - coalesce(u.peer_sent_bytes, 0),
    h.sessions_started - coalesce(u.sessions_started, 0),
    h.sessions_ended - coalesce(u.sessions_ended, 0),
    h.session_microseconds - coalesce(u.session_microseconds, 0),
    h.estimated_bytes - coalesce(u.estimated_bytes, 0)
FROM (SELECT DISTINCT realm_id, user_key, starts_at FROM taken) t
CROSS JOIN LATERAL (
    SELECT
        count(*) AS lives,
        coalesce(sum(received_packets), 0) AS received_packets,
        coalesce(sum(received_bytes), 0) AS received_bytes,
        coalesce(sum(sent_packets), 0) AS sent_packets,
        coalesce(sum(sent_bytes), 0) AS sent_bytes,
        coalesce(sum(peer_received_packets), 0) AS peer_received_packets,
        coalesce(sum(peer_received_bytes), 0) AS peer_received_bytes,
        coalesce(sum(peer_sent_packets), 0) AS peer_sent_packets,
        coalesce(sum(peer_sent_bytes), 0) AS peer_sent_bytes,
        count(*) FILTER (WHERE started) AS sessions_started,
        count(*) FILTER (WHERE ended) AS sessions_ended,
        coalesce(sum(round(extract(epoch FROM active_to - active_from) * 1000000)), 0) AS session_microseconds,
        coalesce(sum(received_bytes + sent_bytes) FILTER (WHERE estimated), 0) AS estimated_bytes
    FROM accounting.session_usage
    WHERE user_key = t.user_key AND starts_at = t.starts_at AND realm_id = t.realm_id AND vouched
) h
LEFT JOIN accounting.user_usage_hourly u ON u.user_key = t.user_key AND u.starts_at = t.starts_at
WHERE h.lives > 0;

-- Slices of realms' hours whose begins and ends of sessions changed. Appended to and taken, as
-- touched_hours.
CREATE TABLE accounting.touched_slices (
    realm_id integer NOT NULL,
    starts_at timestamptz NOT NULL,
    slice_at timestamptz NOT NULL
);

-- How many sessions more live at the end of a slice of an hour than at its beginning (net), and how
-- many more at the most in between (top). The row at -infinity: those that the hour began with.
-- Where an hour has none it is counted anew; rows of old hours are dropped.
CREATE TABLE accounting.realm_slices (
    realm_id integer NOT NULL,
    starts_at timestamptz NOT NULL,
    slice_at timestamptz NOT NULL,
    net bigint NOT NULL,
    top bigint NOT NULL,
    CONSTRAINT realm_slices_pkey PRIMARY KEY (realm_id, starts_at, slice_at)
);

CREATE INDEX sessions_by_end ON accounting.sessions (realm_id, ended_at)
    WHERE ended_at IS NOT NULL;
-- Hours of sessions that began before: few, where those by user and by realm held every hour.
CREATE INDEX session_usage_carried ON accounting.session_usage (realm_id, starts_at)
    WHERE NOT started;
DROP INDEX accounting.session_usage_by_user;
DROP INDEX accounting.session_usage_by_realm;

GRANT SELECT, INSERT, DELETE ON accounting.touched_slices TO turn_accounting_writer;
GRANT SELECT, INSERT, UPDATE, DELETE ON accounting.realm_slices TO turn_accounting_writer;
