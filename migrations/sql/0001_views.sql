-- Schema reporting: the public contract. Views change only with a major version.

CREATE VIEW reporting.sources AS
SELECT s.source, s.mode, s.epoch, s.position, s.captured_until, s.loaded_until,
    t.until AS settled_until, s.retired_at
FROM accounting.sources s LEFT JOIN accounting.settling t USING (source_id);

CREATE VIEW reporting.capture_gaps AS
SELECT g.gap_id, s.source, g.from_at, g.to_at, g.cause, g.detail
FROM accounting.capture_gaps g JOIN accounting.sources s USING (source_id);

CREATE VIEW reporting.rejected_messages AS
SELECT s.source, m.position, m.received_at, m.channel, m.payload, m.reason
FROM accounting.rejected_messages m JOIN accounting.sources s USING (source_id);

CREATE VIEW reporting.allocation_events AS
SELECT s.source, r.database, r.epoch, r.position, r.received_at, r.time_estimated,
    re.realm, coalesce(n.username, '') AS username, coalesce(u.user_id, '') AS user_id, r.user_key,
    lpad(r.allocation_id::text, 18, '0') AS allocation_id,
    CASE r.kind WHEN 1 THEN 'new' WHEN 2 THEN 'refreshed' ELSE 'deleted' END AS event,
    r.lifetime, r.transport, r.client_address, r.server_address
FROM accounting.reports r
JOIN accounting.sources s USING (source_id)
JOIN accounting.realms re USING (realm_id)
LEFT JOIN accounting.users u USING (user_key)
LEFT JOIN accounting.usernames n USING (username_key, user_key)
WHERE r.kind <= 3;

CREATE VIEW reporting.traffic_reports AS
SELECT s.source, r.database, r.epoch, r.position, r.received_at, r.time_estimated,
    re.realm, coalesce(n.username, '') AS username, coalesce(u.user_id, '') AS user_id, r.user_key,
    lpad(r.allocation_id::text, 18, '0') AS allocation_id,
    CASE r.kind WHEN 4 THEN 'interim' ELSE 'total' END AS report,
    CASE r.side WHEN 0 THEN 'client' ELSE 'peer' END AS side,
    r.received_packets, r.received_bytes, r.sent_packets, r.sent_bytes
FROM accounting.reports r
JOIN accounting.sources s USING (source_id)
JOIN accounting.realms re USING (realm_id)
LEFT JOIN accounting.users u USING (user_key)
LEFT JOIN accounting.usernames n USING (username_key, user_key)
WHERE r.kind >= 4;

CREATE VIEW reporting.sessions AS
SELECT e.session_id, s.source, e.database, re.realm, coalesce(n.username, '') AS username,
    coalesce(u.user_id, '') AS user_id, e.user_key,
    lpad(e.allocation_id::text, 18, '0') AS allocation_id,
    e.started_at, e.start_known, e.last_seen_at, e.ended_at, e.end_cause,
    e.transport, e.client_address, e.server_address,
    e.received_packets, e.received_bytes, e.sent_packets, e.sent_bytes,
    e.peer_received_packets, e.peer_received_bytes, e.peer_sent_packets, e.peer_sent_bytes,
    e.client_totals > 0 AS total_reported, e.estimated, e.disputed
FROM accounting.sessions e
JOIN accounting.sources s USING (source_id)
JOIN accounting.realms re USING (realm_id)
LEFT JOIN accounting.users u USING (user_key)
LEFT JOIN accounting.usernames n USING (username_key, user_key)
WHERE e.vouched;

CREATE VIEW reporting.unattributed_usage AS
SELECT s.source, re.realm, coalesce(n.username, '') AS username, h.starts_at, b.ends_at,
    sum(h.received_packets) AS received_packets, sum(h.received_bytes) AS received_bytes,
    sum(h.sent_packets) AS sent_packets, sum(h.sent_bytes) AS sent_bytes,
    sum(h.peer_received_packets) AS peer_received_packets,
    sum(h.peer_received_bytes) AS peer_received_bytes,
    sum(h.peer_sent_packets) AS peer_sent_packets, sum(h.peer_sent_bytes) AS peer_sent_bytes
FROM accounting.session_usage h
JOIN accounting.sessions e USING (session_id, user_key)
JOIN accounting.sources s USING (source_id)
JOIN accounting.realms re ON re.realm_id = h.realm_id
JOIN accounting.buckets b
    ON b.realm_id = h.realm_id AND b.level = 'hour' AND b.starts_at = h.starts_at
LEFT JOIN accounting.usernames n USING (username_key, user_key)
WHERE NOT h.vouched
GROUP BY s.source, re.realm, n.username, h.starts_at, b.ends_at;

DO $$
DECLARE
    length text[];
BEGIN
    FOREACH length SLICE 1 IN ARRAY
        ARRAY[['hourly', 'hour'], ['daily', 'day'], ['monthly', 'month']]
    LOOP
        EXECUTE format($view$
            CREATE VIEW reporting.user_usage_%1$s AS
            SELECT r.realm, coalesce(u.user_id, '') AS user_id, h.user_key,
                h.starts_at, b.ends_at, b.time_zone,
                h.received_packets, h.received_bytes, h.sent_packets, h.sent_bytes,
                h.peer_received_packets, h.peer_received_bytes,
                h.peer_sent_packets, h.peer_sent_bytes,
                h.sessions_started, h.sessions_ended,
                h.session_microseconds * 0.000001 AS session_seconds, h.estimated_bytes
            FROM accounting.user_usage_%1$s h
            JOIN accounting.realms r USING (realm_id)
            JOIN accounting.buckets b
                ON b.realm_id = h.realm_id AND b.level = %2$L AND b.starts_at = h.starts_at
            LEFT JOIN accounting.users u USING (user_key);
            CREATE VIEW reporting.realm_usage_%1$s AS
            SELECT r.realm, h.starts_at, b.ends_at, b.time_zone,
                h.received_packets, h.received_bytes, h.sent_packets, h.sent_bytes,
                h.peer_received_packets, h.peer_received_bytes,
                h.peer_sent_packets, h.peer_sent_bytes,
                h.sessions_started, h.sessions_ended,
                h.session_microseconds * 0.000001 AS session_seconds, h.estimated_bytes,
                h.peak_sessions
            FROM accounting.realm_usage_%1$s h
            JOIN accounting.realms r USING (realm_id)
            JOIN accounting.buckets b
                ON b.realm_id = h.realm_id AND b.level = %2$L AND b.starts_at = h.starts_at;
        $view$, length[1], length[2]);
    END LOOP;
END
$$;

-- The column names of FreeRADIUS' table. Octets as RADIUS means them: input from the client.
CREATE VIEW reporting.radacct AS
SELECT session_id::text AS radacctid, allocation_id AS acctsessionid,
    session_id::text AS acctuniqueid, user_id AS username, realm,
    coalesce(server_address, source) AS nasipaddress, allocation_id AS nasportid,
    transport AS nasporttype, started_at AS acctstarttime, last_seen_at AS acctupdatetime,
    ended_at AS acctstoptime, NULL::bigint AS acctinterval,
    floor(extract(epoch FROM coalesce(ended_at, last_seen_at) - started_at))::bigint
        AS acctsessiontime,
    'Local'::text AS acctauthentic, username AS connectinfo_start,
    NULL::text AS connectinfo_stop, received_bytes AS acctinputoctets,
    sent_bytes AS acctoutputoctets, coalesce(server_address, '') AS calledstationid,
    coalesce(client_address, '') AS callingstationid,
    CASE end_cause WHEN 'deleted' THEN 'User-Request' WHEN 'expired' THEN 'Session-Timeout'
        WHEN 'superseded' THEN 'NAS-Reboot' END AS acctterminatecause,
    'TURN'::text AS servicetype, ''::text AS framedprotocol,
    coalesce(client_address, '') AS framedipaddress, NULL::inet AS framedipv6address,
    NULL::inet AS framedipv6prefix, NULL::text AS framedinterfaceid,
    NULL::inet AS delegatedipv6prefix
FROM reporting.sessions;

DO $$
DECLARE
    undescribed text;
    entry record;
BEGIN
    CREATE TEMP TABLE described (view_name text, column_name text, comment text) ON COMMIT DROP;
    -- A NULL view stands for every view that has the column.
    INSERT INTO described VALUES
    (NULL, 'source', 'Name of the source: one Redis that one collector listens to'),
    (NULL, 'database', 'Number of the Redis database the event was published in; 0 where only a subscriber listens'),
    (NULL, 'epoch', 'Stretch of unbroken positions of the source; another begins where continuity was lost'),
    (NULL, 'position', 'Position of the message within its source and epoch; rises'),
    (NULL, 'received_at', 'When the collector received it; coturn sends no times'),
    (NULL, 'time_estimated', 'Whether received_at was interpolated after an outage'),
    (NULL, 'realm', 'TURN realm, empty when absent; bytes that are not UTF-8 as \xNN'),
    (NULL, 'username', 'Username as on the wire, empty when absent or erased; bytes that are not UTF-8 as \xNN'),
    (NULL, 'user_id', 'Whom to bill: the username less the time of a TURN REST credential; empty when absent or erased'),
    (NULL, 'user_key', 'Opaque key of realm and user_id; stays when the name is erased'),
    (NULL, 'allocation_id', 'coturn''s allocation id, 18 digits: relay thread, then a counter that restarts with the server'),
    (NULL, 'transport', 'Transport between client and server as coturn says it; null before coturn 4.6'),
    (NULL, 'client_address', 'Address and port of the client; null before coturn 4.6'),
    (NULL, 'server_address', 'Address and port of the server that the client used; null before coturn 4.6'),
    (NULL, 'starts_at', 'Start of the bucket, inclusive'),
    (NULL, 'ends_at', 'End of the bucket, exclusive'),
    (NULL, 'time_zone', 'Time zone that the borders of the bucket are in'),
    (NULL, 'received_packets', 'Packets that the server received from the client'),
    (NULL, 'received_bytes', 'Bytes that the server received from the client'),
    (NULL, 'sent_packets', 'Packets that the server sent to the client'),
    (NULL, 'sent_bytes', 'Bytes that the server sent to the client'),
    (NULL, 'peer_received_packets', 'Packets that the server received from the peers'),
    (NULL, 'peer_received_bytes', 'Bytes that the server received from the peers'),
    (NULL, 'peer_sent_packets', 'Packets that the server sent to the peers'),
    (NULL, 'peer_sent_bytes', 'Bytes that the server sent to the peers; with the ChannelData header since coturn 4.11'),
    (NULL, 'sessions_started', 'Sessions whose first sign of life is in the bucket'),
    (NULL, 'sessions_ended', 'Sessions that ended in the bucket'),
    (NULL, 'session_seconds', 'Seconds that sessions lived in the bucket, split at its borders, never rounded; a live one counts to last_seen_at'),
    (NULL, 'estimated_bytes', 'received_bytes + sent_bytes of the sessions marked estimated'),
    (NULL, 'peak_sessions', 'Most sessions alive at one moment of the bucket; for days and months that of the highest hour'),
    (NULL, 'started_at', 'When the session began, or its first sign of life when the start is unknown'),
    (NULL, 'start_known', 'Whether its beginning was heard'),
    (NULL, 'last_seen_at', 'Its last sign of life'),
    (NULL, 'ended_at', 'When it ended; null while it lives'),
    (NULL, 'end_cause', 'deleted (coturn said so), expired (its lifetime passed in silence), superseded (its id began anew); null while it lives'),
    (NULL, 'session_id', 'The session; the same again when settled again from the same reports'),
    (NULL, 'total_reported', 'Whether coturn''s own total was heard, which is then the truth for the client side'),
    (NULL, 'estimated', 'Whether reports were missed: volumes from the total, in time where the total came'),
    (NULL, 'disputed', 'Whether reports contradict each other, or two servers shared the key'),
    (NULL, 'reason', 'Why the message was not understood'),
    (NULL, 'channel', 'Redis channel, raw bytes'),
    (NULL, 'payload', 'Message, raw bytes'),
    (NULL, 'lifetime', 'Lifetime in seconds that the event grants; null for deleted'),
    (NULL, 'event', 'new, refreshed or deleted'),
    (NULL, 'report', 'interim (what was relayed since the last one) or total (of the whole allocation)'),
    (NULL, 'side', 'client (between client and server) or peer (between server and peers)'),
    ('traffic_reports', 'received_packets', 'Packets that the server received on that side'),
    ('traffic_reports', 'received_bytes', 'Bytes that the server received on that side; a peer total is modulo 2^32'),
    ('traffic_reports', 'sent_packets', 'Packets that the server sent on that side'),
    ('traffic_reports', 'sent_bytes', 'Bytes that the server sent on that side; a peer total is modulo 2^32'),
    ('sources', 'mode', 'How it listens: replication or subscribe'),
    ('sources', 'epoch', 'Epoch that loading has reached'),
    ('sources', 'position', 'Position that loading has reached within the epoch'),
    ('sources', 'captured_until', 'Everything received before this time is on the collector''s disk'),
    ('sources', 'loaded_until', 'Everything received before this time is in the reports'),
    ('sources', 'settled_until', 'Everything received before this time is in the sessions'),
    ('sources', 'retired_at', 'When the source was declared gone; null while in service'),
    ('capture_gaps', 'gap_id', 'Number of the gap'),
    ('capture_gaps', 'from_at', 'From when events may have been lost, inclusive'),
    ('capture_gaps', 'to_at', 'Until when events may have been lost; null while the gap is open'),
    ('capture_gaps', 'cause', 'What broke the capture, one word'),
    ('capture_gaps', 'detail', 'More on the cause'),
    ('radacct', 'radacctid', 'session_id'),
    ('radacct', 'acctsessionid', 'allocation_id'),
    ('radacct', 'acctuniqueid', 'session_id'),
    ('radacct', 'username', 'user_id: whom to bill'),
    ('radacct', 'nasipaddress', 'Address and port of the server, or the source where it is unknown'),
    ('radacct', 'nasportid', 'allocation_id'),
    ('radacct', 'nasporttype', 'transport'),
    ('radacct', 'acctstarttime', 'started_at'),
    ('radacct', 'acctupdatetime', 'last_seen_at'),
    ('radacct', 'acctstoptime', 'ended_at'),
    ('radacct', 'acctinterval', 'Always null: coturn reports by packets, not by time'),
    ('radacct', 'acctsessiontime', 'Whole seconds from started_at to ended_at or last_seen_at'),
    ('radacct', 'acctauthentic', 'Always Local'),
    ('radacct', 'connectinfo_start', 'username as on the wire'),
    ('radacct', 'connectinfo_stop', 'Always null'),
    ('radacct', 'acctinputoctets', 'received_bytes'),
    ('radacct', 'acctoutputoctets', 'sent_bytes'),
    ('radacct', 'calledstationid', 'server_address'),
    ('radacct', 'callingstationid', 'client_address'),
    ('radacct', 'acctterminatecause', 'deleted: User-Request, expired: Session-Timeout, superseded: NAS-Reboot'),
    ('radacct', 'servicetype', 'Always TURN'),
    ('radacct', 'framedprotocol', 'Always empty'),
    ('radacct', 'framedipaddress', 'client_address'),
    ('radacct', 'framedipv6address', 'Always null'),
    ('radacct', 'framedipv6prefix', 'Always null'),
    ('radacct', 'framedinterfaceid', 'Always null'),
    ('radacct', 'delegatedipv6prefix', 'Always null');
    FOR entry IN
        SELECT c.relname AS view_name, a.attname AS column_name,
            coalesce(own.comment, every.comment) AS comment
        FROM pg_class c
        JOIN pg_attribute a ON a.attrelid = c.oid AND a.attnum > 0
        LEFT JOIN described own ON own.view_name = c.relname AND own.column_name = a.attname
        LEFT JOIN described every ON every.view_name IS NULL AND every.column_name = a.attname
        WHERE c.relnamespace = 'reporting'::regnamespace
    LOOP
        IF entry.comment IS NULL THEN
            undescribed := concat_ws(', ', undescribed, entry.view_name || '.' || entry.column_name);
        ELSE
            EXECUTE format('COMMENT ON COLUMN reporting.%I.%I IS %L',
                entry.view_name, entry.column_name, entry.comment);
        END IF;
    END LOOP;
    IF undescribed IS NOT NULL THEN
        RAISE EXCEPTION 'columns of reporting without a comment: %', undescribed;
    END IF;
    DROP TABLE described;
END
$$;

COMMENT ON VIEW reporting.sessions IS 'One row for each allocation that coturn vouched for: the bill''s smallest unit';
COMMENT ON VIEW reporting.user_usage_hourly IS 'Usage of each user by hour of the realm''s time zone';
COMMENT ON VIEW reporting.user_usage_daily IS 'Usage of each user by day of the realm''s time zone';
COMMENT ON VIEW reporting.user_usage_monthly IS 'Usage of each user by month of the realm''s time zone';
COMMENT ON VIEW reporting.realm_usage_hourly IS 'Usage of each realm by hour of its time zone';
COMMENT ON VIEW reporting.realm_usage_daily IS 'Usage of each realm by day of its time zone';
COMMENT ON VIEW reporting.realm_usage_monthly IS 'Usage of each realm by month of its time zone';
COMMENT ON VIEW reporting.allocation_events IS 'Every new, refreshed and deleted of an allocation, as reported';
COMMENT ON VIEW reporting.traffic_reports IS 'Every count of traffic, interim or total, as reported';
COMMENT ON VIEW reporting.sources IS 'Every source, and how far it is captured, loaded and settled';
COMMENT ON VIEW reporting.radacct IS 'The sessions under the column names of FreeRADIUS'' table';
COMMENT ON VIEW reporting.unattributed_usage IS 'Traffic that coturn published without an allocation that vouches for it: kept, shown, never billed';
COMMENT ON VIEW reporting.capture_gaps IS 'Every span of time in which events may have been lost between Redis and Postgres';
COMMENT ON VIEW reporting.rejected_messages IS 'Messages on allocation channels that could not be understood, as received';

GRANT USAGE ON SCHEMA reporting TO turn_accounting_reader, turn_accounting_writer;
GRANT SELECT ON ALL TABLES IN SCHEMA reporting TO turn_accounting_reader, turn_accounting_writer;
ALTER DEFAULT PRIVILEGES IN SCHEMA reporting
    GRANT SELECT ON TABLES TO turn_accounting_reader, turn_accounting_writer;
