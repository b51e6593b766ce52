-- The days and months of users hold the hours that are over; the hour under way stands in the hourly
-- table alone, and what shows days and months adds it. So a user who is touched every other second
-- has one row written each time, and not three.

-- Up to where the hours of a realm's users are folded into their days and months.
CREATE TABLE accounting.folds (
    realm_id integer NOT NULL,
    until timestamptz NOT NULL,
    CONSTRAINT folds_pkey PRIMARY KEY (realm_id)
) WITH (fillfactor = 50);
-- All that there is now.
INSERT INTO accounting.folds (realm_id, until)
SELECT realm_id, max(starts_at) + interval '1 hour' FROM accounting.realm_usage_hourly GROUP BY realm_id;

CREATE VIEW accounting.user_days AS
SELECT d.user_key, d.starts_at, d.realm_id,
    d.received_packets + coalesce(h.received_packets, 0) AS received_packets,
    d.received_bytes + coalesce(h.received_bytes, 0) AS received_bytes,
    d.sent_packets + coalesce(h.sent_packets, 0) AS sent_packets,
    d.sent_bytes + coalesce(h.sent_bytes, 0) AS sent_bytes,
    d.peer_received_packets + coalesce(h.peer_received_packets, 0) AS peer_received_packets,
    d.peer_received_bytes + coalesce(h.peer_received_bytes, 0) AS peer_received_bytes,
    d.peer_sent_packets + coalesce(h.peer_sent_packets, 0) AS peer_sent_packets,
    d.peer_sent_bytes + coalesce(h.peer_sent_bytes, 0) AS peer_sent_bytes,
    d.sessions_started + coalesce(h.sessions_started, 0) AS sessions_started,
    d.sessions_ended + coalesce(h.sessions_ended, 0) AS sessions_ended,
    d.session_microseconds + coalesce(h.session_microseconds, 0) AS session_microseconds,
    d.estimated_bytes + coalesce(h.estimated_bytes, 0) AS estimated_bytes,
    b.ends_at, b.time_zone
FROM accounting.user_usage_daily d
JOIN accounting.buckets b
    ON b.realm_id = d.realm_id AND b.level = 'day' AND b.starts_at = d.starts_at
JOIN accounting.folds f ON f.realm_id = d.realm_id
CROSS JOIN LATERAL (
    SELECT
        sum(received_packets)::bigint AS received_packets,
        sum(received_bytes)::bigint AS received_bytes, sum(sent_packets)::bigint AS sent_packets,
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
    WHERE b.ends_at > f.until AND user_key = d.user_key AND realm_id = d.realm_id
        AND starts_at >= f.until AND starts_at >= d.starts_at AND starts_at < b.ends_at
) h;

CREATE VIEW accounting.user_months AS
SELECT d.user_key, d.starts_at, d.realm_id,
    d.received_packets + coalesce(h.received_packets, 0) AS received_packets,
    d.received_bytes + coalesce(h.received_bytes, 0) AS received_bytes,
    d.sent_packets + coalesce(h.sent_packets, 0) AS sent_packets,
    d.sent_bytes + coalesce(h.sent_bytes, 0) AS sent_bytes,
    d.peer_received_packets + coalesce(h.peer_received_packets, 0) AS peer_received_packets,
    d.peer_received_bytes + coalesce(h.peer_received_bytes, 0) AS peer_received_bytes,
    d.peer_sent_packets + coalesce(h.peer_sent_packets, 0) AS peer_sent_packets,
    d.peer_sent_bytes + coalesce(h.peer_sent_bytes, 0) AS peer_sent_bytes,
    d.sessions_started + coalesce(h.sessions_started, 0) AS sessions_started,
    d.sessions_ended + coalesce(h.sessions_ended, 0) AS sessions_ended,
    d.session_microseconds + coalesce(h.session_microseconds, 0) AS session_microseconds,
    d.estimated_bytes + coalesce(h.estimated_bytes, 0) AS estimated_bytes,
    b.ends_at, b.time_zone
FROM accounting.user_usage_monthly d
JOIN accounting.buckets b
    ON b.realm_id = d.realm_id AND b.level = 'month' AND b.starts_at = d.starts_at
JOIN accounting.folds f ON f.realm_id = d.realm_id
CROSS JOIN LATERAL (
    SELECT
        sum(received_packets)::bigint AS received_packets,
        sum(received_bytes)::bigint AS received_bytes, sum(sent_packets)::bigint AS sent_packets,
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
    WHERE b.ends_at > f.until AND user_key = d.user_key AND realm_id = d.realm_id
        AND starts_at >= f.until AND starts_at >= d.starts_at AND starts_at < b.ends_at
) h;

CREATE OR REPLACE VIEW reporting.user_usage_daily AS
SELECT r.realm, u.user_id, h.user_key, h.starts_at, h.ends_at, h.time_zone,
    h.received_packets, h.received_bytes, h.sent_packets, h.sent_bytes,
    h.peer_received_packets, h.peer_received_bytes, h.peer_sent_packets, h.peer_sent_bytes,
    h.sessions_started, h.sessions_ended,
    h.session_microseconds * 0.000001 AS session_seconds, h.estimated_bytes
FROM accounting.user_days h
JOIN accounting.realms r USING (realm_id)
LEFT JOIN accounting.users u ON u.user_key = h.user_key AND u.realm_id = h.realm_id;

CREATE OR REPLACE VIEW reporting.user_usage_monthly AS
SELECT r.realm, u.user_id, h.user_key, h.starts_at, h.ends_at, h.time_zone,
    h.received_packets, h.received_bytes, h.sent_packets, h.sent_bytes,
    h.peer_received_packets, h.peer_received_bytes, h.peer_sent_packets, h.peer_sent_bytes,
    h.sessions_started, h.sessions_ended,
    h.session_microseconds * 0.000001 AS session_seconds, h.estimated_bytes
FROM accounting.user_months h
JOIN accounting.realms r USING (realm_id)
LEFT JOIN accounting.users u ON u.user_key = h.user_key AND u.realm_id = h.realm_id;

GRANT SELECT, INSERT, UPDATE ON accounting.folds TO turn_accounting_writer;
GRANT SELECT ON accounting.user_days, accounting.user_months TO turn_accounting_writer;

-- Slices of peaks are five seconds long now, not ten: hours that are touched again are counted anew.
DELETE FROM accounting.realm_slices;
