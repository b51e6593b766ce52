-- Schema reporting: the public contract. Views change only with a major version; the default
-- privileges of the schema let both roles read them. The comment on a column that means the same in
-- several views is at the end, once.
--
-- The views of sessions and usage show names without coalesce(): a condition on a name can then use
-- the indexes, and would otherwise read every session of the realm. The names are never null, since
-- the loader inserts them with the first report, erasing empties them in place, and pruning deletes
-- them only with the last session.

CREATE VIEW reporting.sources AS
SELECT s.source, s.mode, s.epoch, s.position, s.captured_until, s.loaded_until,
    t.settled_until, s.retired_at
FROM accounting.sources s LEFT JOIN accounting.settle_watermarks t USING (source_id);
COMMENT ON VIEW reporting.sources IS
    'Every source, and how far it is captured, loaded and settled';
COMMENT ON COLUMN reporting.sources.mode IS
    'How it is captured: replication or subscribe; before it first is, as asked for, also auto';
COMMENT ON COLUMN reporting.sources.epoch IS 'Epoch that loading has reached';
COMMENT ON COLUMN reporting.sources.position IS
    'Position that loading has reached within the epoch';
COMMENT ON COLUMN reporting.sources.captured_until IS
    'Every message received before this time is on the collector''s disk';
COMMENT ON COLUMN reporting.sources.loaded_until IS
    'Every message received before this time is in the reports';
COMMENT ON COLUMN reporting.sources.settled_until IS
    'Every message received before this time is in the sessions';
COMMENT ON COLUMN reporting.sources.retired_at IS
    'When the source was retired; null while it is in service';

CREATE VIEW reporting.capture_gaps AS
SELECT g.gap_id, s.source, g.from_at, g.to_at, g.cause,
    concat_ws('; ', nullif(g.detail, ''), nullif(g.outcome, '')) AS detail
FROM accounting.capture_gaps g JOIN accounting.sources s USING (source_id);
COMMENT ON VIEW reporting.capture_gaps IS
    'Periods in which events may have been lost between Redis and Postgres';
COMMENT ON COLUMN reporting.capture_gaps.gap_id IS 'Number of the gap';
COMMENT ON COLUMN reporting.capture_gaps.from_at IS
    'From when events may have been lost, inclusive';
COMMENT ON COLUMN reporting.capture_gaps.to_at IS
    'Until when events may have been lost; null while the gap is open';
COMMENT ON COLUMN reporting.capture_gaps.cause IS 'What interrupted capture, in one word';
COMMENT ON COLUMN reporting.capture_gaps.detail IS
    'Details of the cause, and what became of the sessions that were open during the gap';

CREATE VIEW reporting.rejected_messages AS
SELECT s.source, m.position, m.received_at, m.channel, m.payload, m.reason
FROM accounting.rejected_messages m JOIN accounting.sources s USING (source_id);
COMMENT ON VIEW reporting.rejected_messages IS
    'Messages on allocation channels that could not be parsed; of each hour and source only the '
    'first ones, for a limited time';
COMMENT ON COLUMN reporting.rejected_messages.channel IS
    'Redis channel, the first 1,024 raw bytes';
COMMENT ON COLUMN reporting.rejected_messages.payload IS 'Message, the first 1,024 raw bytes';
COMMENT ON COLUMN reporting.rejected_messages.reason IS 'Why the message could not be parsed';

CREATE VIEW reporting.rejected_message_counts AS
SELECT s.source, c.starts_at, c.starts_at + interval '1 hour' AS ends_at, c.reason,
    c.messages, c.stored
FROM accounting.rejected_counts c JOIN accounting.sources s USING (source_id);
COMMENT ON VIEW reporting.rejected_message_counts IS
    'How many messages could not be parsed, by hour (UTC) and reason; never deleted';
COMMENT ON COLUMN reporting.rejected_message_counts.starts_at IS 'Start of the hour, inclusive';
COMMENT ON COLUMN reporting.rejected_message_counts.ends_at IS 'End of the hour, exclusive';
COMMENT ON COLUMN reporting.rejected_message_counts.reason IS
    'Why the messages could not be parsed';
COMMENT ON COLUMN reporting.rejected_message_counts.messages IS
    'Messages rejected for that reason';
COMMENT ON COLUMN reporting.rejected_message_counts.stored IS
    'Those that were stored in rejected_messages at first';

CREATE VIEW reporting.allocation_events AS
SELECT s.source, r.database, r.epoch, r.position, r.received_at, r.time_estimated,
    re.realm, n.username, u.user_id, r.user_key,
    lpad(r.allocation_id::text, 18, '0') AS allocation_id,
    CASE r.kind WHEN 1 THEN 'new' WHEN 2 THEN 'refreshed' ELSE 'deleted' END AS event,
    r.lifetime, r.transport, r.client_address, r.server_address
FROM accounting.reports r
JOIN accounting.sources s USING (source_id)
JOIN accounting.realms re USING (realm_id)
LEFT JOIN accounting.users u USING (user_key, realm_id)
LEFT JOIN accounting.usernames n USING (username_key, user_key)
WHERE r.kind <= 3;
COMMENT ON VIEW reporting.allocation_events IS
    'Every event of an allocation (new, refreshed or deleted), as reported';
COMMENT ON COLUMN reporting.allocation_events.event IS 'new, refreshed or deleted';
COMMENT ON COLUMN reporting.allocation_events.lifetime IS
    'Lifetime in seconds that the event grants; null for deleted';

CREATE VIEW reporting.traffic_reports AS
SELECT s.source, r.database, r.epoch, r.position, r.received_at, r.time_estimated,
    re.realm, n.username, u.user_id, r.user_key,
    lpad(r.allocation_id::text, 18, '0') AS allocation_id,
    CASE r.kind WHEN 4 THEN 'interim' ELSE 'total' END AS report,
    CASE r.side WHEN 0 THEN 'client' ELSE 'peer' END AS side,
    r.received_packets, r.received_bytes, r.sent_packets, r.sent_bytes
FROM accounting.reports r
JOIN accounting.sources s USING (source_id)
JOIN accounting.realms re USING (realm_id)
LEFT JOIN accounting.users u USING (user_key, realm_id)
LEFT JOIN accounting.usernames n USING (username_key, user_key)
WHERE r.kind >= 4;
COMMENT ON VIEW reporting.traffic_reports IS
    'Every traffic report, interim or total, as received';
COMMENT ON COLUMN reporting.traffic_reports.report IS
    'interim (what was relayed since the last one) or total (of the whole allocation)';
COMMENT ON COLUMN reporting.traffic_reports.side IS
    'client (between client and server) or peer (between server and peers)';
COMMENT ON COLUMN reporting.traffic_reports.received_packets IS
    'Packets that the server received on that side';
COMMENT ON COLUMN reporting.traffic_reports.received_bytes IS
    'Bytes that the server received on that side; a peer total is modulo 2^32';
COMMENT ON COLUMN reporting.traffic_reports.sent_packets IS
    'Packets that the server sent on that side';
COMMENT ON COLUMN reporting.traffic_reports.sent_bytes IS
    'Bytes that the server sent on that side; a peer total is modulo 2^32';

CREATE VIEW reporting.sessions AS
SELECT e.session_id, s.source, e.database, re.realm, n.username,
    u.user_id, e.user_key,
    lpad(e.allocation_id::text, 18, '0') AS allocation_id,
    e.started_at, e.start_known, e.last_seen_at, e.ended_at, e.end_cause,
    e.transport, e.client_address, e.server_address,
    e.received_packets, e.received_bytes, e.sent_packets, e.sent_bytes,
    e.peer_received_packets, e.peer_received_bytes, e.peer_sent_packets, e.peer_sent_bytes,
    e.client_total_count > 0 AS total_reported, e.estimated, e.disputed
FROM accounting.sessions e
JOIN accounting.sources s USING (source_id)
JOIN accounting.realms re USING (realm_id)
LEFT JOIN accounting.users u USING (user_key, realm_id)
LEFT JOIN accounting.usernames n USING (username_key, user_key)
WHERE e.confirmed;
COMMENT ON VIEW reporting.sessions IS
    'One row for each allocation that coturn confirmed: the smallest unit of the bill';
COMMENT ON COLUMN reporting.sessions.session_id IS
    'Id of the session: the same if it is computed again from the same reports';
COMMENT ON COLUMN reporting.sessions.started_at IS
    'When the session started, or its first report if the start is unknown';
COMMENT ON COLUMN reporting.sessions.start_known IS 'Whether the report of its start was received';
COMMENT ON COLUMN reporting.sessions.last_seen_at IS 'When its last report was received';
COMMENT ON COLUMN reporting.sessions.ended_at IS 'When it ended; null while it is open';
COMMENT ON COLUMN reporting.sessions.end_cause IS
    'deleted (coturn reported it), expired (its lifetime passed without a report), superseded (its '
    'id was reused); null while it is open';
COMMENT ON COLUMN reporting.sessions.total_reported IS
    'Whether coturn''s total was received, which then determines the client side';
COMMENT ON COLUMN reporting.sessions.estimated IS
    'Whether reports were missed: usage is known from the total, and placed at its time';
COMMENT ON COLUMN reporting.sessions.disputed IS
    'Whether reports contradict each other or are set aside, or two servers shared the key';

-- The sessions as FreeRADIUS' table: its columns in its order, and then the ports, which inet lacks.
-- Octets as in RADIUS: input is received from the client.
CREATE VIEW reporting.radacct AS
SELECT
    ('x' || left(encode(sha256(uuid_send(e.session_id)), 'hex'), 16))::bit(64)::bigint
        & 9223372036854775807 AS radacctid,
    lpad(e.allocation_id::text, 18, '0') AS acctsessionid,
    replace(e.session_id::text, '-', '') AS acctuniqueid,
    u.user_id || u.radacct_suffix AS username,
    re.realm AS groupname,
    re.realm,
    coalesce(accounting.ip_address(e.server_address), '0.0.0.0') AS nasipaddress,
    lpad(e.allocation_id::text, 18, '0') AS nasportid,
    e.transport AS nasporttype,
    e.started_at AS acctstarttime,
    e.last_seen_at AS acctupdatetime,
    e.ended_at AS acctstoptime,
    NULL::bigint AS acctinterval,
    floor(extract(epoch FROM coalesce(e.ended_at, e.last_seen_at) - e.started_at))::bigint
        AS acctsessiontime,
    'Local'::text AS acctauthentic,
    n.username AS connectinfo_start,
    NULL::text AS connectinfo_stop,
    e.received_bytes AS acctinputoctets,
    e.sent_bytes AS acctoutputoctets,
    coalesce(abbrev(accounting.ip_address(e.server_address)), e.server_address, '')
        AS calledstationid,
    coalesce(abbrev(accounting.ip_address(e.client_address)), e.client_address, '')
        AS callingstationid,
    CASE e.end_cause WHEN 'deleted' THEN 'User-Request' WHEN 'expired' THEN 'Session-Timeout'
        WHEN 'superseded' THEN 'NAS-Reboot' END AS acctterminatecause,
    'TURN'::text AS servicetype,
    ''::text AS framedprotocol,
    accounting.ip_address(e.client_address) AS framedipaddress,
    CASE WHEN family(accounting.ip_address(e.client_address)) = 6
        THEN accounting.ip_address(e.client_address) END AS framedipv6address,
    NULL::inet AS framedipv6prefix,
    NULL::text AS framedinterfaceid,
    NULL::inet AS delegatedipv6prefix,
    e.user_key::text AS class,
    accounting.ip_port(e.server_address) AS serverport,
    accounting.ip_port(e.client_address) AS clientport
FROM accounting.sessions e
JOIN accounting.realms re USING (realm_id)
LEFT JOIN accounting.users u USING (user_key, realm_id)
LEFT JOIN accounting.usernames n USING (username_key, user_key)
WHERE e.confirmed;
COMMENT ON VIEW reporting.radacct IS
    'The sessions as FreeRADIUS'' table radacct, for tools that read it: docs/radacct.md';
COMMENT ON COLUMN reporting.radacct.radacctid IS
    'Number of the session: 63 bits of a digest of session_id, the same if it is computed again';
COMMENT ON COLUMN reporting.radacct.acctsessionid IS 'allocation_id';
COMMENT ON COLUMN reporting.radacct.acctuniqueid IS
    'session_id as 32 hexadecimal digits, as FreeRADIUS writes it';
COMMENT ON COLUMN reporting.radacct.username IS
    'user_id@realm, an @ of the realm as %40; user_id alone in the realm that was set so';
COMMENT ON COLUMN reporting.radacct.groupname IS 'realm';
COMMENT ON COLUMN reporting.radacct.nasipaddress IS
    'Address of the server that the client used; 0.0.0.0 where coturn did not report it';
COMMENT ON COLUMN reporting.radacct.nasportid IS 'allocation_id';
COMMENT ON COLUMN reporting.radacct.nasporttype IS 'transport';
COMMENT ON COLUMN reporting.radacct.acctstarttime IS 'started_at';
COMMENT ON COLUMN reporting.radacct.acctupdatetime IS 'last_seen_at';
COMMENT ON COLUMN reporting.radacct.acctstoptime IS 'ended_at';
COMMENT ON COLUMN reporting.radacct.acctinterval IS
    'Always null: coturn reports by packets, not by time';
COMMENT ON COLUMN reporting.radacct.acctsessiontime IS
    'Whole seconds from started_at to ended_at, or to last_seen_at while it is open';
COMMENT ON COLUMN reporting.radacct.acctauthentic IS 'Always Local';
COMMENT ON COLUMN reporting.radacct.connectinfo_start IS 'username as published';
COMMENT ON COLUMN reporting.radacct.connectinfo_stop IS 'Always null';
COMMENT ON COLUMN reporting.radacct.acctinputoctets IS 'received_bytes';
COMMENT ON COLUMN reporting.radacct.acctoutputoctets IS 'sent_bytes';
COMMENT ON COLUMN reporting.radacct.calledstationid IS
    'Address of the server without port; empty where it is unknown';
COMMENT ON COLUMN reporting.radacct.callingstationid IS
    'Address of the client without port; empty where it is unknown';
COMMENT ON COLUMN reporting.radacct.acctterminatecause IS
    'deleted: User-Request, expired: Session-Timeout, superseded: NAS-Reboot';
COMMENT ON COLUMN reporting.radacct.servicetype IS 'Always TURN';
COMMENT ON COLUMN reporting.radacct.framedprotocol IS 'Always empty';
COMMENT ON COLUMN reporting.radacct.framedipaddress IS
    'Address of the client, IPv4 or IPv6; null where it is unknown';
COMMENT ON COLUMN reporting.radacct.framedipv6address IS
    'Address of the client where it is IPv6, else null';
COMMENT ON COLUMN reporting.radacct.framedipv6prefix IS 'Always null';
COMMENT ON COLUMN reporting.radacct.framedinterfaceid IS 'Always null';
COMMENT ON COLUMN reporting.radacct.delegatedipv6prefix IS 'Always null';
COMMENT ON COLUMN reporting.radacct.class IS
    'user_key: the key of the user, unchanged when the name is erased';
COMMENT ON COLUMN reporting.radacct.serverport IS
    'Port of the server; null where it is unknown. Not a column of FreeRADIUS';
COMMENT ON COLUMN reporting.radacct.clientport IS
    'Port of the client; null where it is unknown. Not a column of FreeRADIUS';

CREATE VIEW reporting.unattributed_usage AS
SELECT s.source, re.realm, u.username, u.starts_at, b.ends_at,
    sum(u.received_packets) AS received_packets,
    sum(u.received_bytes) AS received_bytes,
    sum(u.sent_packets) AS sent_packets,
    sum(u.sent_bytes) AS sent_bytes,
    sum(u.peer_received_packets) AS peer_received_packets,
    sum(u.peer_received_bytes) AS peer_received_bytes,
    sum(u.peer_sent_packets) AS peer_sent_packets,
    sum(u.peer_sent_bytes) AS peer_sent_bytes
FROM (
    SELECT h.source_id, h.realm_id, coalesce(n.username, '') AS username, h.starts_at,
        h.received_packets, h.received_bytes, h.sent_packets, h.sent_bytes,
        h.peer_received_packets, h.peer_received_bytes, h.peer_sent_packets, h.peer_sent_bytes
    FROM (
        SELECT source_id, realm_id, user_key, username_key, single_hour AS starts_at,
            received_packets, received_bytes, sent_packets, sent_bytes,
            peer_received_packets, peer_received_bytes, peer_sent_packets, peer_sent_bytes
        FROM accounting.sessions
        WHERE NOT confirmed AND single_hour IS NOT NULL
        UNION ALL
        SELECT e.source_id, u.realm_id, u.user_key, e.username_key, u.starts_at,
            u.received_packets, u.received_bytes, u.sent_packets, u.sent_bytes,
            u.peer_received_packets, u.peer_received_bytes, u.peer_sent_packets, u.peer_sent_bytes
        FROM accounting.session_usage u
        JOIN accounting.sessions e USING (session_id, user_key)
        WHERE NOT u.confirmed
    ) h
    LEFT JOIN accounting.usernames n USING (username_key, user_key)
    UNION ALL
    SELECT source_id, realm_id, '', starts_at,
        received_packets, received_bytes, sent_packets, sent_bytes,
        peer_received_packets, peer_received_bytes, peer_sent_packets, peer_sent_bytes
    FROM accounting.pruned_usage
) u
JOIN accounting.sources s USING (source_id)
JOIN accounting.realms re USING (realm_id)
JOIN accounting.buckets b
    ON b.realm_id = u.realm_id AND b.level = 'hour' AND b.starts_at = u.starts_at
GROUP BY s.source, re.realm, u.username, u.starts_at, b.ends_at;
COMMENT ON VIEW reporting.unattributed_usage IS
    'Traffic that coturn published for an allocation that it never confirmed: stored and shown, '
    'never billed';
COMMENT ON COLUMN reporting.unattributed_usage.username IS
    'Username as published; empty when absent or erased, and for all usage that is older than the '
    'retention of such names';

CREATE VIEW reporting.user_usage_hourly AS
SELECT r.realm, u.user_id, h.user_key, h.starts_at, b.ends_at, b.time_zone,
    h.received_packets, h.received_bytes, h.sent_packets, h.sent_bytes,
    h.peer_received_packets, h.peer_received_bytes, h.peer_sent_packets, h.peer_sent_bytes,
    h.sessions_started, h.sessions_ended,
    h.session_microseconds * 0.000001 AS session_seconds, h.estimated_bytes
FROM accounting.user_usage_hourly h
JOIN accounting.realms r USING (realm_id)
JOIN accounting.buckets b
    ON b.realm_id = h.realm_id AND b.level = 'hour' AND b.starts_at = h.starts_at
LEFT JOIN accounting.users u ON u.user_key = h.user_key AND u.realm_id = h.realm_id;
COMMENT ON VIEW reporting.user_usage_hourly IS
    'Usage of each user by hour of the realm''s time zone';

DO $$
DECLARE
    level text[];
BEGIN
    FOREACH level SLICE 1 IN ARRAY
        ARRAY[['daily', 'day', 'user_days'], ['monthly', 'month', 'user_months']]
    LOOP
        EXECUTE format($view$
            CREATE VIEW reporting.user_usage_%1$s AS
            SELECT r.realm, u.user_id, h.user_key, h.starts_at, h.ends_at, h.time_zone,
                h.received_packets, h.received_bytes, h.sent_packets, h.sent_bytes,
                h.peer_received_packets, h.peer_received_bytes,
                h.peer_sent_packets, h.peer_sent_bytes,
                h.sessions_started, h.sessions_ended,
                h.session_microseconds * 0.000001 AS session_seconds, h.estimated_bytes
            FROM accounting.%3$s h
            JOIN accounting.realms r USING (realm_id)
            LEFT JOIN accounting.users u ON u.user_key = h.user_key AND u.realm_id = h.realm_id;
            COMMENT ON VIEW reporting.user_usage_%1$s IS
                'Usage of each user by %2$s of the realm''s time zone';
        $view$, level[1], level[2], level[3]);
    END LOOP;
    FOREACH level SLICE 1 IN ARRAY
        ARRAY[['hourly', 'hour'], ['daily', 'day'], ['monthly', 'month']]
    LOOP
        EXECUTE format($view$
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
            COMMENT ON VIEW reporting.realm_usage_%1$s IS
                'Usage of each realm by %2$s of its time zone';
        $view$, level[1], level[2]);
    END LOOP;
END
$$;

-- Usage by server and by transport. Peaks of hours that are not folded yet are computed from their
-- slices. OFFSET 0: both are read once for each bucket.
DO $$
DECLARE
    dimension text[];
    level text[];
BEGIN
    FOREACH dimension SLICE 1 IN ARRAY
        ARRAY[
            ['server', 'server_address', 'server',
                'Address of the server without the port; empty where coturn did not report it'],
            ['transport', 'transport', 'transport',
                'Transport between client and server as coturn reports it; empty where it did not']
        ]
    LOOP
        FOREACH level SLICE 1 IN ARRAY ARRAY[['hourly', 'hour'], ['daily', 'day']]
        LOOP
            EXECUTE format($view$
                CREATE VIEW reporting.%1$s_usage_%3$s AS
                SELECT r.realm, h.name AS %2$s, b.starts_at, b.ends_at, b.time_zone,
                    h.received_packets, h.received_bytes, h.sent_packets, h.sent_bytes,
                    h.peer_received_packets, h.peer_received_bytes,
                    h.peer_sent_packets, h.peer_sent_bytes,
                    h.sessions_started, h.sessions_ended,
                    h.session_microseconds * 0.000001 AS session_seconds, h.estimated_bytes,
                    h.peak_sessions
                FROM accounting.realms r
                JOIN accounting.buckets b ON b.realm_id = r.realm_id AND b.level = %4$L
                JOIN accounting.fold_watermarks f ON f.realm_id = r.realm_id
                CROSS JOIN LATERAL (
                    SELECT u.*, coalesce(p.peak_sessions, 0) AS peak_sessions
                    FROM (
                        SELECT %1$s AS name,
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
                        FROM accounting.server_usage_hourly
                        WHERE realm_id = b.realm_id
                            AND starts_at >= b.starts_at AND starts_at < b.ends_at
                        GROUP BY %1$s
                    ) u
                    LEFT JOIN (
                        SELECT name, max(peak_sessions)::bigint AS peak_sessions
                        FROM (
                            SELECT name, peak_sessions
                            FROM accounting.dimension_peaks_hourly
                            WHERE realm_id = b.realm_id AND dimension = %1$L
                                AND starts_at >= b.starts_at AND starts_at < b.ends_at
                            UNION ALL
                            SELECT name, session_peak + sum(session_delta) OVER (
                                PARTITION BY starts_at, name ORDER BY slice_at
                            ) - session_delta
                            FROM accounting.realm_peak_slices
                            WHERE realm_id = b.realm_id AND dimension = %1$L
                                AND b.ends_at > f.folded_until
                                AND starts_at >= greatest(b.starts_at, f.folded_until)
                                AND starts_at < b.ends_at
                        ) c
                        GROUP BY name
                    ) p USING (name)
                    OFFSET 0
                ) h;
                COMMENT ON VIEW reporting.%1$s_usage_%3$s IS
                    'Usage of each realm by %5$s and %4$s of the realm''s time zone';
            $view$, dimension[1], dimension[2], level[1], level[2], dimension[3]);
            EXECUTE format('COMMENT ON COLUMN reporting.%s_usage_%s.%s IS %L',
                dimension[1], level[1], dimension[2], dimension[4]);
        END LOOP;
    END LOOP;
END
$$;

-- What each server does now. until_at ends the span of both rates: slots are whole then.
CREATE VIEW reporting.rates AS
WITH clock AS MATERIALIZED (
    SELECT date_bin('10 seconds', accounting.database_now(), 'epoch') AS until_at
)
SELECT r.realm, t.server AS server_address, c.until_at,
    sum(t.live_sessions)::bigint AS live_sessions,
    coalesce(sum(t.sessions_started) FILTER (WHERE t.slot_at >= c.until_at - interval '1 minute'),
        0)::bigint AS sessions_started_1m,
    coalesce(sum(t.sessions_started), 0)::bigint AS sessions_started_5m,
    round(coalesce(sum(t.received_bytes) FILTER (
        WHERE t.slot_at >= c.until_at - interval '1 minute'), 0) / 60)::bigint
        AS received_bytes_per_second_1m,
    round(coalesce(sum(t.sent_bytes) FILTER (
        WHERE t.slot_at >= c.until_at - interval '1 minute'), 0) / 60)::bigint
        AS sent_bytes_per_second_1m,
    round(sum(t.received_bytes) / 300)::bigint AS received_bytes_per_second_5m,
    round(sum(t.sent_bytes) / 300)::bigint AS sent_bytes_per_second_5m
FROM clock c
CROSS JOIN LATERAL (
    SELECT realm_id, server, NULL::timestamptz AS slot_at, live_sessions,
        0 AS sessions_started, 0 AS received_bytes, 0 AS sent_bytes
    FROM accounting.server_load
    UNION ALL
    SELECT realm_id, server, slot_at, 0, sessions_started, received_bytes, sent_bytes
    FROM accounting.server_traffic
    WHERE slot_at >= c.until_at - interval '5 minutes' AND slot_at < c.until_at
) t
JOIN accounting.realms r USING (realm_id)
GROUP BY r.realm, t.server, c.until_at;
COMMENT ON VIEW reporting.rates IS
    'Open sessions and bytes per second of each realm at each server, in the last minute and in the '
    'last five; servers with neither have no row';
COMMENT ON COLUMN reporting.rates.server_address IS
    'Address of the server without the port; empty where coturn did not report it';
COMMENT ON COLUMN reporting.rates.until_at IS
    'End of the minute and of the five minutes: the last whole ten seconds';
COMMENT ON COLUMN reporting.rates.live_sessions IS 'Open sessions, as far as they are settled';
COMMENT ON COLUMN reporting.rates.sessions_started_1m IS 'Sessions that started in the minute';
COMMENT ON COLUMN reporting.rates.sessions_started_5m IS
    'Sessions that started in the five minutes';
COMMENT ON COLUMN reporting.rates.received_bytes_per_second_1m IS
    'Bytes per second received from clients, over the minute';
COMMENT ON COLUMN reporting.rates.sent_bytes_per_second_1m IS
    'Bytes per second sent to clients, over the minute';
COMMENT ON COLUMN reporting.rates.received_bytes_per_second_5m IS
    'Bytes per second received from clients, over the five minutes';
COMMENT ON COLUMN reporting.rates.sent_bytes_per_second_5m IS
    'Bytes per second sent to clients, over the five minutes';

CREATE VIEW reporting.periods AS
SELECT r.realm, p.period, p.starts_at, p.ends_at, p.time_zone,
    CASE WHEN p.closed_at IS NOT NULL THEN 'closed' WHEN w.waits_for = 'its end' THEN 'open'
        ELSE 'closing' END AS state,
    p.closed_at, w.waits_for
FROM accounting.periods p
JOIN accounting.realms r USING (realm_id)
CROSS JOIN LATERAL (
    SELECT CASE WHEN p.closed_at IS NULL
        THEN accounting.period_waits(p.realm_id, p.period) END AS waits_for
) w;
COMMENT ON VIEW reporting.periods IS
    'The billing periods of each realm, without holes or overlaps';
COMMENT ON COLUMN reporting.periods.period IS 'Name of the period: its first day in its time zone';
COMMENT ON COLUMN reporting.periods.starts_at IS 'Start of the period, inclusive';
COMMENT ON COLUMN reporting.periods.ends_at IS 'End of the period, exclusive';
COMMENT ON COLUMN reporting.periods.time_zone IS 'Time zone of the period''s start';
COMMENT ON COLUMN reporting.periods.state IS
    'open (not over), closing (over, but waiting for something), closed (its statement is final)';
COMMENT ON COLUMN reporting.periods.closed_at IS 'When it was closed; null until then';
COMMENT ON COLUMN reporting.periods.waits_for IS 'What it waits for, in words; null if nothing';

CREATE VIEW reporting.statements AS
SELECT r.realm, l.period, coalesce(u.user_id, '') AS user_id, l.user_key,
    l.received_packets, l.received_bytes, l.sent_packets, l.sent_bytes,
    l.peer_received_packets, l.peer_received_bytes, l.peer_sent_packets, l.peer_sent_bytes,
    l.sessions_started, l.sessions_ended,
    l.session_microseconds * 0.000001 AS session_seconds, l.estimated_bytes,
    p.cutoff, p.closed_at, l.digest
FROM accounting.statements l
JOIN accounting.periods p USING (realm_id, period)
JOIN accounting.realms r USING (realm_id)
LEFT JOIN accounting.users u USING (user_key);
COMMENT ON VIEW reporting.statements IS
    'One line for each user with usage in a closed period; never changed, never removed';
COMMENT ON COLUMN reporting.statements.period IS
    'The closed period: its first day in its time zone';
COMMENT ON COLUMN reporting.statements.user_id IS 'User to bill; empty when absent or erased';
COMMENT ON COLUMN reporting.statements.sessions_started IS
    'Sessions whose first report is in the period, as known at the cutoff';
COMMENT ON COLUMN reporting.statements.sessions_ended IS
    'Sessions that ended in the period, as known at the cutoff';
COMMENT ON COLUMN reporting.statements.session_seconds IS
    'Seconds that sessions were open in the period, never rounded';
COMMENT ON COLUMN reporting.statements.cutoff IS
    'What it was computed from, as JSON: how far each source was settled';
COMMENT ON COLUMN reporting.statements.closed_at IS 'When the period was closed';
COMMENT ON COLUMN reporting.statements.digest IS
    'SHA-256 over realm, period, user_key, all numbers and the cutoff, hexadecimal';

CREATE VIEW reporting.statement_previews AS
SELECT l.realm, l.period, coalesce(u.user_id, '') AS user_id, l.user_key,
    l.received_packets, l.received_bytes, l.sent_packets, l.sent_bytes,
    l.peer_received_packets, l.peer_received_bytes, l.peer_sent_packets, l.peer_sent_bytes,
    l.sessions_started, l.sessions_ended,
    l.session_microseconds * 0.000001 AS session_seconds, l.estimated_bytes,
    NULL::text AS cutoff, NULL::timestamptz AS closed_at, NULL::text AS digest
FROM accounting.open_period_lines l
LEFT JOIN accounting.users u USING (user_key);
COMMENT ON VIEW reporting.statement_previews IS
    'The lines that the statement of each period that is not closed would have now; they still '
    'change. The columns are those of statements';
COMMENT ON COLUMN reporting.statement_previews.period IS
    'The period, which is not closed: its first day in its time zone';
COMMENT ON COLUMN reporting.statement_previews.user_id IS
    'User to bill; empty when absent or erased';
COMMENT ON COLUMN reporting.statement_previews.sessions_started IS
    'Sessions whose first report is in the period, as known now';
COMMENT ON COLUMN reporting.statement_previews.sessions_ended IS
    'Sessions that ended in the period, as known now';
COMMENT ON COLUMN reporting.statement_previews.session_seconds IS
    'Seconds that sessions were open in the period, never rounded';
COMMENT ON COLUMN reporting.statement_previews.cutoff IS 'Null: there is none before the close';
COMMENT ON COLUMN reporting.statement_previews.closed_at IS 'Null: the period is not closed';
COMMENT ON COLUMN reporting.statement_previews.digest IS 'Null: there is none before the close';

CREATE VIEW reporting.adjustments AS
SELECT a.adjustment_id, r.realm, a.period, a.posted_in, coalesce(u.user_id, '') AS user_id,
    a.user_key,
    a.received_packets, a.received_bytes, a.sent_packets, a.sent_bytes,
    a.peer_received_packets, a.peer_received_bytes, a.peer_sent_packets, a.peer_sent_bytes,
    a.session_microseconds * 0.000001 AS session_seconds, a.reason, a.author, a.posted_at
FROM accounting.adjustments a
JOIN accounting.realms r USING (realm_id)
LEFT JOIN accounting.users u USING (user_key);
COMMENT ON VIEW reporting.adjustments IS
    'Changes of closed periods after the close: late usage, and corrections by a person; never '
    'changed, never removed';
COMMENT ON COLUMN reporting.adjustments.adjustment_id IS 'Id of the adjustment';
COMMENT ON COLUMN reporting.adjustments.period IS 'The closed period that it corrects';
COMMENT ON COLUMN reporting.adjustments.posted_in IS
    'The period that was open when it was posted: bill it with that one';
COMMENT ON COLUMN reporting.adjustments.user_id IS 'User to bill; empty when absent or erased';
COMMENT ON COLUMN reporting.adjustments.received_packets IS
    'Packets that the server received from the client, signed';
COMMENT ON COLUMN reporting.adjustments.received_bytes IS
    'Bytes that the server received from the client, signed';
COMMENT ON COLUMN reporting.adjustments.sent_packets IS
    'Packets that the server sent to the client, signed';
COMMENT ON COLUMN reporting.adjustments.sent_bytes IS
    'Bytes that the server sent to the client, signed';
COMMENT ON COLUMN reporting.adjustments.peer_received_packets IS
    'Packets that the server received from the peers, signed';
COMMENT ON COLUMN reporting.adjustments.peer_received_bytes IS
    'Bytes that the server received from the peers, signed';
COMMENT ON COLUMN reporting.adjustments.peer_sent_packets IS
    'Packets that the server sent to the peers, signed';
COMMENT ON COLUMN reporting.adjustments.peer_sent_bytes IS
    'Bytes that the server sent to the peers; with the ChannelData header since coturn 4.11, '
    'signed';
COMMENT ON COLUMN reporting.adjustments.session_seconds IS
    'Seconds that sessions were open, signed, never rounded';
COMMENT ON COLUMN reporting.adjustments.reason IS 'Late usage, or the reason that a person gave';
COMMENT ON COLUMN reporting.adjustments.author IS
    'Who posted it: a person, or for late usage `turn-accounting`';
COMMENT ON COLUMN reporting.adjustments.posted_at IS 'When it was posted';

CREATE VIEW reporting.feed AS
SELECT f.seq, f.event_id, f.type, coalesce(r.realm, '') AS realm,
    CASE WHEN f.payload IS NOT NULL THEN f.payload
    WHEN f.is_correction IS NULL THEN jsonb_build_object(
        'session_id', f.session_id, 'number', f.number, 'user_key', f.user_key,
        'source', (SELECT s.source FROM accounting.sources s WHERE s.source_id = f.source_id),
        'database', f.database, 'allocation_id', lpad(f.allocation_id::text, 18, '0'),
        'started_at', accounting.iso_time(f.started_at), 'start_known', f.start_known,
        'ended_at', accounting.iso_time(f.ended_at), 'end_cause', f.end_cause,
        'received_packets', f.received_packets, 'received_bytes', f.received_bytes,
        'sent_packets', f.sent_packets, 'sent_bytes', f.sent_bytes,
        'peer_received_packets', f.peer_received_packets,
        'peer_received_bytes', f.peer_received_bytes,
        'peer_sent_packets', f.peer_sent_packets, 'peer_sent_bytes', f.peer_sent_bytes,
        'total_reported', f.total_reported, 'estimated', f.estimated, 'disputed', f.disputed
    )
    ELSE jsonb_build_object(
        'user_key', f.user_key,
        'starts_at', accounting.iso_time(f.started_at),
        'ends_at', accounting.iso_time(f.ended_at),
        'received_packets', f.received_packets, 'received_bytes', f.received_bytes,
        'sent_packets', f.sent_packets, 'sent_bytes', f.sent_bytes,
        'peer_received_packets', f.peer_received_packets,
        'peer_received_bytes', f.peer_received_bytes,
        'peer_sent_packets', f.peer_sent_packets, 'peer_sent_bytes', f.peer_sent_bytes,
        'sessions_started', f.sessions_started, 'sessions_ended', f.sessions_ended,
        'session_seconds', round(f.session_microseconds / 1000000.0, 6)::text,
        'estimated_bytes', f.estimated_bytes, 'correction', f.is_correction
    ) END AS payload,
    f.created_at
FROM accounting.feed f LEFT JOIN accounting.realms r USING (realm_id);
COMMENT ON VIEW reporting.feed IS
    'Events for billing. Append only: no event appears below a number that was seen';
COMMENT ON COLUMN reporting.feed.seq IS 'Number of the event: 1, 2, 3, without gaps';
COMMENT ON COLUMN reporting.feed.event_id IS 'Id of the event, by which a duplicate is recognized';
COMMENT ON COLUMN reporting.feed.type IS
    'session.ended, usage.counted, period.closed, adjustment.posted, limit.reached, limit.cleared, '
    'source.trouble or webhook.disabled. usage.counted: a user''s usage of an hour, or by how much '
    'it changed; those of a closed period add up to its statement';
COMMENT ON COLUMN reporting.feed.payload IS
    'Details as an object with the views'' names; it has no names of users';
COMMENT ON COLUMN reporting.feed.created_at IS
    'When the event was recorded; not always in the order of seq';

CREATE VIEW reporting.limits AS
SELECT l.limit_id, r.realm, l.whom,
    CASE WHEN l.user_key IS NOT NULL THEN coalesce(u.user_id, '') END AS user_id, l.user_key,
    l.measure, l.direction, l.per, l.amount, l.thresholds, l.set_at
FROM accounting.limits l
JOIN accounting.realms r USING (realm_id)
LEFT JOIN accounting.users u ON u.user_key = l.user_key;
COMMENT ON VIEW reporting.limits IS
    'The limits of usage, as `turn-accounting limit set` has set them';
COMMENT ON COLUMN reporting.limits.whom IS
    'Whose usage is limited: realm (all users together), user, or every_user (each one apart)';
COMMENT ON COLUMN reporting.limits.user_id IS
    'The one user that is limited, empty when erased; null unless whom is user';
COMMENT ON COLUMN reporting.limits.user_key IS
    'Opaque key of that user; null unless whom is user';
COMMENT ON COLUMN reporting.limits.thresholds IS
    'Percents of the amount at which an event is recorded, in order; 100 is the limit itself';
COMMENT ON COLUMN reporting.limits.set_at IS
    'When it was set or changed: it holds for buckets that end after that';

CREATE VIEW reporting.limit_states AS
SELECT s.limit_id, r.realm, l.whom,
    CASE WHEN l.whom <> 'realm' THEN coalesce(u.user_id, '') END AS user_id,
    nullif(s.user_key, '00000000-0000-0000-0000-000000000000'::uuid) AS user_key,
    l.measure, l.direction, l.per, s.amount, s.threshold, s.starts_at, s.ends_at, s.time_zone,
    s.usage, s.reached_at, s.cleared_at, s.times_reached
FROM accounting.limit_states s
JOIN accounting.limits l USING (limit_id)
JOIN accounting.realms r ON r.realm_id = s.realm_id
LEFT JOIN accounting.users u ON u.user_key = s.user_key;
COMMENT ON VIEW reporting.limit_states IS
    'The thresholds of limits that were reached, by user and bucket';
COMMENT ON COLUMN reporting.limit_states.user_id IS
    'User whose usage reached it, empty when absent or erased; null for a limit of the realm';
COMMENT ON COLUMN reporting.limit_states.user_key IS
    'Opaque key of that user; null for a limit of the realm';
COMMENT ON COLUMN reporting.limit_states.amount IS 'The limit when the threshold was reached';
COMMENT ON COLUMN reporting.limit_states.threshold IS 'Percent of the amount that was reached';
COMMENT ON COLUMN reporting.limit_states.usage IS
    'Usage of the bucket when the threshold was reached, in the unit of amount';
COMMENT ON COLUMN reporting.limit_states.reached_at IS 'When it was reached, the last time';
COMMENT ON COLUMN reporting.limit_states.cleared_at IS
    'When usage fell below it by a correction, or a changed limit no longer had it; null while it is '
    'reached';
COMMENT ON COLUMN reporting.limit_states.times_reached IS
    'How often it was reached: 1, and 1 more each time after it was cleared';

-- How much of each limit is used in the bucket that runs now: by each user with usage in it, or by the
-- realm. The condition on one user is in each part: Postgres does not push it into the lateral UNION.
CREATE VIEW reporting.limit_usage AS
SELECT l.limit_id, r.realm, l.whom,
    CASE WHEN l.whom <> 'realm' THEN coalesce(u.user_id, '') END AS user_id, t.user_key,
    l.measure, l.direction, l.per, l.amount, b.starts_at, b.ends_at, b.time_zone, c.usage,
    trunc(100 * c.usage / l.amount, 1) AS percent
FROM accounting.limits l
JOIN accounting.realms r USING (realm_id)
CROSS JOIN LATERAL accounting.limit_bucket_now(l.realm_id, l.per) b
CROSS JOIN LATERAL (
    SELECT NULL::uuid AS user_key, h.received_bytes, h.sent_bytes, h.sessions_started,
        h.session_microseconds
    FROM accounting.realm_usage_hourly h
    WHERE l.whom = 'realm' AND l.per = 'hour'
        AND h.realm_id = l.realm_id AND h.starts_at = b.starts_at
    UNION ALL
    SELECT NULL, sum(d.received_bytes), sum(d.sent_bytes), sum(d.sessions_started),
        sum(d.session_microseconds)
    FROM accounting.realm_usage_daily d
    WHERE l.whom = 'realm' AND l.per <> 'hour'
        AND d.realm_id = l.realm_id AND d.starts_at >= b.starts_at AND d.starts_at < b.ends_at
    HAVING count(*) > 0
    UNION ALL
    SELECT h.user_key, h.received_bytes, h.sent_bytes, h.sessions_started, h.session_microseconds
    FROM accounting.user_usage_hourly h
    WHERE l.whom <> 'realm' AND l.per = 'hour'
        AND h.realm_id = l.realm_id AND h.starts_at = b.starts_at
        AND (l.user_key IS NULL OR h.user_key = l.user_key)
    UNION ALL
    SELECT d.user_key, d.received_bytes, d.sent_bytes, d.sessions_started, d.session_microseconds
    FROM accounting.user_days d
    WHERE l.whom <> 'realm' AND l.per = 'day'
        AND d.realm_id = l.realm_id AND d.starts_at = b.starts_at
        AND (l.user_key IS NULL OR d.user_key = l.user_key)
    UNION ALL
    SELECT m.user_key, m.received_bytes, m.sent_bytes, m.sessions_started, m.session_microseconds
    FROM accounting.user_months m
    WHERE l.whom <> 'realm' AND l.per = 'month'
        AND m.realm_id = l.realm_id AND m.starts_at = b.starts_at
        AND (l.user_key IS NULL OR m.user_key = l.user_key)
    UNION ALL
    SELECT d.user_key, sum(d.received_bytes), sum(d.sent_bytes), sum(d.sessions_started),
        sum(d.session_microseconds)
    FROM accounting.user_days d
    WHERE l.whom <> 'realm' AND l.per = 'period'
        AND d.realm_id = l.realm_id AND d.starts_at >= b.starts_at AND d.starts_at < b.ends_at
        AND (l.user_key IS NULL OR d.user_key = l.user_key)
    GROUP BY d.user_key
) t
CROSS JOIN LATERAL (
    SELECT accounting.limited_usage(l.measure, l.direction, t.received_bytes, t.sent_bytes,
        t.sessions_started, t.session_microseconds) AS usage
) c
LEFT JOIN accounting.users u ON u.user_key = t.user_key;
COMMENT ON VIEW reporting.limit_usage IS
    'How much of each limit is used in the bucket that runs now: a row for each user with usage in '
    'it, or one for the realm. Of a limit of every user, ask for a realm or for users';
COMMENT ON COLUMN reporting.limit_usage.user_id IS
    'User whose usage it is, empty when absent or erased; null for a limit of the realm';
COMMENT ON COLUMN reporting.limit_usage.user_key IS
    'Opaque key of that user; null for a limit of the realm';
COMMENT ON COLUMN reporting.limit_usage.usage IS 'Usage of the bucket, in the unit of amount';
COMMENT ON COLUMN reporting.limit_usage.percent IS
    'Usage as percent of amount, rounded down to a tenth';

-- Now, for readers: what `--since today` means is decided here.
CREATE FUNCTION reporting.database_now() RETURNS timestamptz
LANGUAGE sql STABLE SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
    SELECT accounting.database_now()
$$;
COMMENT ON FUNCTION reporting.database_now() IS 'The clock that the books follow';
REVOKE ALL ON FUNCTION reporting.database_now() FROM PUBLIC;
GRANT EXECUTE ON FUNCTION reporting.database_now()
    TO turn_accounting_reader, turn_accounting_writer;

-- What an operator should know of the sources beyond their row in reporting.sources.
CREATE FUNCTION reporting.source_notices()
RETURNS TABLE (source text, is_error boolean, notice text)
LANGUAGE sql STABLE SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
    SELECT n.source, n.is_error, n.notice FROM cell.source_notices n
$$;
COMMENT ON FUNCTION reporting.source_notices() IS
    'What needs attention of the sources; is_error: usage is lost or not captured';
REVOKE ALL ON FUNCTION reporting.source_notices() FROM PUBLIC;
GRANT EXECUTE ON FUNCTION reporting.source_notices()
    TO turn_accounting_reader, turn_accounting_writer;

-- Names for the check of a command's arguments, and for the message about an unknown one.
CREATE FUNCTION reporting.known_realms() RETURNS SETOF text
LANGUAGE sql STABLE SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
    SELECT DISTINCT n.realm FROM cell.realm_numbers n ORDER BY n.realm
$$;
COMMENT ON FUNCTION reporting.known_realms() IS 'Every realm, also without usage';
REVOKE ALL ON FUNCTION reporting.known_realms() FROM PUBLIC;
GRANT EXECUTE ON FUNCTION reporting.known_realms()
    TO turn_accounting_reader, turn_accounting_writer;

-- The users to whom a name can belong, so that their sessions are found by an index: the billed user
-- of a username is all of it, a side of a realm's separator, or '' where it is all digits. In a name
-- with escaped bytes a separator may stand within an escape; those names are looked up one by one.
CREATE FUNCTION reporting.possible_user_keys(of_user text, of_realm text DEFAULT NULL)
RETURNS SETOF uuid
LANGUAGE sql STABLE SECURITY DEFINER SET search_path = pg_catalog, pg_temp
SET enable_seqscan = off SET enable_hashjoin = off AS $$
    SELECT u.user_key
    FROM cell.user_names u
    WHERE (of_realm IS NULL OR u.realm = of_realm) AND u.user_id = ANY (ARRAY(
        SELECT of_user
        UNION
        SELECT '' WHERE of_user ~ '^[0-9]+$'
        UNION
        SELECT side.user_id
        FROM (SELECT DISTINCT separator FROM cell.separators) s
        CROSS JOIN LATERAL (VALUES
            (left(of_user, strpos(of_user, s.separator) - 1)),
            (substr(of_user, strpos(of_user, s.separator) + length(s.separator)))
        ) AS side (user_id)
        WHERE strpos(of_user, s.separator) > 0
    ))
    UNION
    SELECT n.user_key FROM cell.usernames n
    WHERE strpos(of_user, '\') > 0 AND n.username = of_user
        AND (of_realm IS NULL OR n.realm = of_realm)
$$;
COMMENT ON FUNCTION reporting.possible_user_keys(text, text) IS
    'The user_keys of all users whose user_id, or one of whose usernames, can be this name. of_realm '
    'null: in all realms';
REVOKE ALL ON FUNCTION reporting.possible_user_keys(text, text) FROM PUBLIC;
GRANT EXECUTE ON FUNCTION reporting.possible_user_keys(text, text)
    TO turn_accounting_reader, turn_accounting_writer;

-- The exact name is found by indexes. Similar ones are looked for among a limited number of users.
CREATE FUNCTION reporting.known_users(of_realm text, of_user text) RETURNS SETOF text
LANGUAGE sql STABLE SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
    SELECT n.name FROM (
        SELECT u.user_id AS name FROM cell.user_names u
        WHERE (of_realm IS NULL OR u.realm = of_realm) AND u.user_id = of_user
        UNION
        SELECT of_user WHERE EXISTS (
            SELECT FROM reporting.sessions e
            WHERE e.user_key = ANY (ARRAY(
                    SELECT reporting.possible_user_keys(of_user, of_realm)))
                AND e.username = of_user AND (of_realm IS NULL OR e.realm = of_realm)
        )
        UNION
        (
            SELECT u.user_id FROM (
                SELECT a.user_id FROM cell.user_names a
                WHERE of_realm IS NULL OR a.realm = of_realm
                LIMIT 50000
            ) u
            WHERE starts_with(u.user_id, left(of_user, 2))
                OR right(u.user_id, 2) = right(of_user, 2)
            LIMIT 10000
        )
    ) n
    ORDER BY n.name <> of_user, abs(length(n.name) - length(of_user)), n.name
    LIMIT 2000
$$;
COMMENT ON FUNCTION reporting.known_users(text, text) IS
    'A user_id or username if it is known, and user_ids that begin or end like it. of_realm null: '
    'in all realms';
REVOKE ALL ON FUNCTION reporting.known_users(text, text) FROM PUBLIC;
GRANT EXECUTE ON FUNCTION reporting.known_users(text, text)
    TO turn_accounting_reader, turn_accounting_writer;

CREATE FUNCTION reporting.erased_users(user_keys uuid[]) RETURNS SETOF uuid
LANGUAGE sql STABLE SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
    SELECT DISTINCT u.user_key FROM cell.user_names u
    WHERE u.user_key = ANY (user_keys) AND u.is_erased
$$;
COMMENT ON FUNCTION reporting.erased_users(uuid[]) IS
    'Those of the users whose name was erased, and not published again since';
REVOKE ALL ON FUNCTION reporting.erased_users(uuid[]) FROM PUBLIC;
GRANT EXECUTE ON FUNCTION reporting.erased_users(uuid[])
    TO turn_accounting_reader, turn_accounting_writer;

-- What a span lacks, as sentences without an end; null if nothing. For exports and empty lists, whose
-- login may not read the private tables.
CREATE FUNCTION reporting.span_waits_for(
    realm text, from_at timestamptz, to_at timestamptz, of_usage boolean
)
RETURNS text
LANGUAGE sql STABLE SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
    SELECT CASE WHEN NOT EXISTS (SELECT FROM cell.source_progress)
    THEN 'no source is captured yet'
    ELSE (SELECT string_agg(w.wait, '; ' ORDER BY w.rank, w.wait) FROM (
        SELECT 1, CASE WHEN s.settled_until IS NULL
            THEN format('source ''%s'' is not settled yet', s.source)
            ELSE format('source ''%s'' is settled only until %s', s.source,
                to_char(s.settled_until AT TIME ZONE 'UTC', 'YYYY-MM-DD HH24:MI:SS"Z"')) END
        FROM cell.source_progress s
        WHERE CASE WHEN to_at IS NULL
            THEN s.last_received_at > coalesce(s.settled_until, '-infinity')
            ELSE s.retired_at IS NULL AND to_at > coalesce(s.settled_until, '-infinity') END
        UNION ALL
        SELECT 2, 'open sessions may have ended in it' WHERE of_usage AND EXISTS (
            SELECT FROM cell.unended_sessions e
            WHERE e.last_seen_at < to_at
                AND (span_waits_for.realm IS NULL OR e.realm = span_waits_for.realm)
        )
        UNION ALL
        SELECT 3, 'the roll-up has not counted all of it' WHERE of_usage AND EXISTS (
            SELECT FROM cell.pending_usage t
            WHERE (span_waits_for.realm IS NULL OR t.realm = span_waits_for.realm)
                AND (from_at IS NULL OR t.starts_at >= from_at)
                AND (to_at IS NULL OR t.starts_at < to_at)
        )
    ) w (rank, wait)) END
$$;
COMMENT ON FUNCTION reporting.span_waits_for(text, timestamptz, timestamptz, boolean) IS
    'What a span lacks, in words; null if it is complete. realm null: all realms; to_at null: up to '
    'what was received. Of usage, else of the sessions that were open in it';
REVOKE ALL ON FUNCTION reporting.span_waits_for(text, timestamptz, timestamptz, boolean)
    FROM PUBLIC;
GRANT EXECUTE ON FUNCTION reporting.span_waits_for(text, timestamptz, timestamptz, boolean)
    TO turn_accounting_reader, turn_accounting_writer;

-- The traffic that a source reported lately, for `turn-accounting top`: by allocation and second. It
-- reads the reports after one position up to another that were received since a time, and sums the
-- newest of them, at most so many. Its cost grows with what is reported, not with the sessions: names
-- and open sessions are looked up one by one, by their keys. enable_seqscan: a new partition has no
-- statistics, by which Postgres would use its index.
CREATE FUNCTION reporting.recent_traffic(
    of_source text, since timestamptz,
    after_epoch integer, after_position bigint, to_epoch integer, to_position bigint, most integer
)
RETURNS TABLE (
    realm text, user_id text, user_key uuid, session_id uuid, confirmed boolean,
    received_at timestamptz, received_bytes bigint, sent_bytes bigint, covered_from timestamptz
)
LANGUAGE plpgsql STABLE SECURITY DEFINER SET search_path = pg_catalog, pg_temp
SET enable_seqscan = off AS $$
DECLARE
    source_number smallint;
BEGIN
    SELECT s.source_id INTO source_number FROM accounting.sources s WHERE s.source = of_source;
    RETURN QUERY
    WITH newest AS (
        SELECT r.database, r.realm_id, r.user_key, r.username_key, r.allocation_id, r.received_at,
            r.kind, r.side, r.received_bytes, r.sent_bytes
        FROM accounting.reports r
        WHERE r.source_id = source_number AND r.received_at >= since
            AND (r.epoch, r.position) > (after_epoch, after_position)
            AND (r.epoch, r.position) <= (to_epoch, to_position)
        ORDER BY r.epoch DESC, r.position DESC
        LIMIT most
    ), seconds AS (
        SELECT n.database, n.realm_id, n.user_key, n.username_key, n.allocation_id,
            max(n.received_at) AS received_at, bool_or(n.kind <> 4) AS has_status,
            coalesce(sum(n.received_bytes) FILTER (WHERE n.kind = 4), 0)::bigint
                AS received_bytes,
            coalesce(sum(n.sent_bytes) FILTER (WHERE n.kind = 4), 0)::bigint AS sent_bytes
        FROM newest n
        WHERE n.kind <> 4 OR n.side = 0
        GROUP BY n.database, n.realm_id, n.user_key, n.username_key, n.allocation_id,
            date_bin('1 second', n.received_at, since)
    )
    SELECT
        (SELECT re.realm FROM accounting.realms re WHERE re.realm_id = t.realm_id),
        (SELECT u.user_id FROM accounting.users u
            WHERE u.user_key = t.user_key AND u.realm_id = t.realm_id),
        t.user_key, e.session_id,
        coalesce(e.confirmed, false) OR bool_or(t.has_status) OVER (
            PARTITION BY t.database, t.username_key, t.allocation_id),
        t.received_at, t.received_bytes, t.sent_bytes,
        (SELECT CASE WHEN count(*) < most THEN since ELSE min(n.received_at) END FROM newest n)
    FROM seconds t
    LEFT JOIN LATERAL (
        SELECT o.session_id, o.confirmed
        FROM accounting.sessions_open o
        WHERE o.username_key = t.username_key AND o.allocation_id = t.allocation_id
            AND o.source_id = source_number AND o.database = t.database AND o.phase = 1
            AND o.ended_at IS NULL
        LIMIT 1
    ) e ON true;
END
$$;
COMMENT ON FUNCTION reporting.recent_traffic(
    text, timestamptz, integer, bigint, integer, bigint, integer
) IS
    'Interims of a source by allocation and second, and whether coturn confirmed the allocation. '
    'session_id: the open session, null if it ended. covered_from: later than since where more '
    'reports were received than it sums';
REVOKE ALL ON FUNCTION reporting.recent_traffic(
    text, timestamptz, integer, bigint, integer, bigint, integer
) FROM PUBLIC;
GRANT EXECUTE ON FUNCTION reporting.recent_traffic(
    text, timestamptz, integer, bigint, integer, bigint, integer
) TO turn_accounting_reader, turn_accounting_writer;

-- A page of sessions, newest first, in time that does not depend on how many there are: it reads
-- along the indexes of realms, of users or of live sessions, and names the sessions of the page. Of
-- all realms it reads only those whose newest sessions can be on the page. Sessions that were open at
-- `since` and started before follow last: the live ones, and of those that ended later the ones that
-- started within the two hours before, or have usage in the hour of `since`, as every session has in
-- each hour in which it was open.
CREATE FUNCTION reporting.session_page(
    of_realm text, of_user text, of_user_key uuid, since timestamptz, until timestamptz,
    is_live boolean, before_at timestamptz, before_id uuid, most integer
)
RETURNS TABLE (page_session_id uuid, page_user_key uuid)
LANGUAGE plpgsql STABLE SECURITY DEFINER ROWS 100 SET search_path = pg_catalog, pg_temp
SET plan_cache_mode = force_custom_plan SET enable_seqscan = off SET enable_bitmapscan = off AS $$
DECLARE
    realm_ids integer[];
    user_keys uuid[];
    keys_by_username uuid[] := '{}';
    is_of_user boolean := of_user IS NOT NULL OR of_user_key IS NOT NULL;
    from_at timestamptz := '-infinity';
    to_at timestamptz := coalesce(until, 'infinity');
    last_at timestamptz := coalesce(before_at, 'infinity');
    last_id uuid := coalesce(before_id, 'ffffffff-ffff-ffff-ffff-ffffffffffff');
    newest_at timestamptz;
    found_rows bigint;
BEGIN
    realm_ids := ARRAY(SELECT r.realm_id FROM accounting.realms r
        WHERE of_realm IS NULL OR r.realm = of_realm);
    IF of_user IS NULL THEN
        user_keys := ARRAY(SELECT of_user_key WHERE of_user_key IS NOT NULL);
    ELSE
        user_keys := ARRAY(SELECT u.user_key FROM unnest(realm_ids) r (realm_id)
            JOIN accounting.users u ON u.realm_id = r.realm_id AND u.user_id = of_user
            WHERE of_user_key IS NULL OR u.user_key = of_user_key);
        keys_by_username := ARRAY(SELECT k.user_key
            FROM reporting.possible_user_keys(of_user, of_realm) k (user_key)
            WHERE (of_user_key IS NULL OR k.user_key = of_user_key)
                AND k.user_key <> ALL (user_keys));
    END IF;
    IF since IS NOT NULL AND NOT is_live THEN
        from_at := since;
    END IF;

    IF is_live THEN
        RETURN QUERY
        SELECT e.session_id, e.user_key FROM accounting.sessions e
        WHERE e.ended_at IS NULL AND e.confirmed
            AND (of_realm IS NULL OR e.realm_id = ANY (realm_ids))
            AND (NOT is_of_user OR e.user_key = ANY (user_keys || keys_by_username))
            AND (keys_by_username = '{}' OR e.user_key = ANY (user_keys) OR EXISTS (
                SELECT FROM accounting.usernames n WHERE n.username_key = e.username_key
                    AND n.user_key = e.user_key AND n.username = of_user))
            AND e.started_at < to_at AND e.started_at <= last_at
            AND (e.started_at, e.session_id) < (last_at, last_id)
        ORDER BY e.started_at DESC, e.session_id DESC LIMIT most;
        RETURN;
    ELSIF is_of_user THEN
        RETURN QUERY
        SELECT t.session_id, t.user_key
        FROM unnest(user_keys || keys_by_username) k (user_key) CROSS JOIN LATERAL (
            SELECT e.session_id, e.user_key, e.started_at FROM accounting.sessions e
            WHERE e.user_key = k.user_key AND e.confirmed
                AND (of_realm IS NULL OR e.realm_id = ANY (realm_ids))
                AND (keys_by_username = '{}' OR e.user_key = ANY (user_keys) OR EXISTS (
                    SELECT FROM accounting.usernames n WHERE n.username_key = e.username_key
                        AND n.user_key = e.user_key AND n.username = of_user))
                AND e.started_at >= from_at AND e.started_at < to_at AND e.started_at <= last_at
                AND (e.started_at, e.session_id) < (last_at, last_id)
            ORDER BY e.started_at DESC, e.session_id DESC LIMIT most
        ) t
        ORDER BY t.started_at DESC, t.session_id DESC LIMIT most;
    ELSE
        -- The newest session of each realm: no other is newer than these.
        SELECT array_agg(n.realm_id), CASE WHEN count(*) = most THEN min(n.started_at) END
        INTO realm_ids, newest_at
        FROM (
            SELECT r.realm_id, t.started_at
            FROM unnest(realm_ids) r (realm_id) CROSS JOIN LATERAL (
                SELECT e.started_at FROM accounting.sessions e
                WHERE e.realm_id = r.realm_id AND e.confirmed
                    AND e.started_at >= from_at AND e.started_at < to_at
                    AND e.started_at <= last_at
                    AND (e.started_at, e.session_id) < (last_at, last_id)
                ORDER BY e.started_at DESC LIMIT 1
            ) t
            ORDER BY t.started_at DESC LIMIT most
        ) n;
        RETURN QUERY
        SELECT t.session_id, t.user_key
        FROM unnest(realm_ids) r (realm_id) CROSS JOIN LATERAL (
            SELECT e.session_id, e.user_key, e.started_at FROM accounting.sessions e
            WHERE e.realm_id = r.realm_id AND e.confirmed
                AND e.started_at >= greatest(from_at, newest_at)
                AND e.started_at < to_at AND e.started_at <= last_at
                AND (e.started_at, e.session_id) < (last_at, last_id)
            ORDER BY e.started_at DESC, e.session_id DESC LIMIT most
        ) t
        ORDER BY t.started_at DESC, t.session_id DESC LIMIT most;
    END IF;
    GET DIAGNOSTICS found_rows = ROW_COUNT;
    IF since IS NULL OR found_rows >= most THEN
        RETURN;
    END IF;

    realm_ids := ARRAY(SELECT r.realm_id FROM accounting.realms r
        WHERE of_realm IS NULL OR r.realm = of_realm);
    RETURN QUERY
    SELECT e.session_id, e.user_key
    FROM (
        SELECT c.session_id, c.user_key
        FROM unnest(realm_ids) r (realm_id)
        JOIN accounting.session_usage c ON c.realm_id = r.realm_id AND NOT c.started
            AND c.starts_at > since - interval '2 hours' AND c.starts_at <= since
        WHERE NOT is_of_user OR c.user_key = ANY (user_keys || keys_by_username)
        UNION
        SELECT t.session_id, t.user_key
        FROM unnest(realm_ids) r (realm_id)
        JOIN accounting.sessions t ON t.realm_id = r.realm_id
            AND t.started_at >= since - interval '2 hours' AND t.started_at < since
            AND t.ended_at > since
        WHERE NOT is_of_user OR t.user_key = ANY (user_keys || keys_by_username)
        UNION
        SELECT t.session_id, t.user_key
        FROM accounting.sessions t
        WHERE t.ended_at IS NULL AND t.confirmed AND t.started_at < since
            AND (of_realm IS NULL OR t.realm_id = ANY (realm_ids))
            AND (NOT is_of_user OR t.user_key = ANY (user_keys || keys_by_username))
    ) c
    JOIN accounting.sessions e ON e.session_id = c.session_id AND e.user_key = c.user_key
    WHERE e.confirmed AND (e.ended_at IS NULL OR e.ended_at > since)
        AND (keys_by_username = '{}' OR e.user_key = ANY (user_keys) OR EXISTS (
            SELECT FROM accounting.usernames n WHERE n.username_key = e.username_key
                AND n.user_key = e.user_key AND n.username = of_user))
        AND e.started_at < since AND e.started_at < to_at AND e.started_at <= last_at
        AND (e.started_at, e.session_id) < (last_at, last_id)
    ORDER BY e.started_at DESC, e.session_id DESC LIMIT most - found_rows;
END
$$;
COMMENT ON FUNCTION reporting.session_page(
    text, text, uuid, timestamptz, timestamptz, boolean, timestamptz, uuid, integer
) IS
    'The newest sessions that were open in a span, at most so many; with before_at and before_id '
    'those after that one. A null filter is none';
REVOKE ALL ON FUNCTION reporting.session_page(
    text, text, uuid, timestamptz, timestamptz, boolean, timestamptz, uuid, integer
) FROM PUBLIC;
GRANT EXECUTE ON FUNCTION reporting.session_page(
    text, text, uuid, timestamptz, timestamptz, boolean, timestamptz, uuid, integer
) TO turn_accounting_reader, turn_accounting_writer;

-- A page of limit_states, newest buckets first: along an index of each realm, or of each key of a user.
CREATE FUNCTION reporting.limit_state_page(
    of_realm text, of_user text, of_user_key uuid, since timestamptz, until timestamptz,
    before_at timestamptz, before_limit integer, before_threshold integer, before_key uuid,
    most integer
)
RETURNS SETOF reporting.limit_states
LANGUAGE plpgsql STABLE SECURITY DEFINER ROWS 100 SET search_path = pg_catalog, pg_temp
SET plan_cache_mode = force_custom_plan SET enable_seqscan = off SET enable_bitmapscan = off AS $$
DECLARE
    realm_ids integer[] := ARRAY(SELECT r.realm_id FROM accounting.realms r
        WHERE of_realm IS NULL OR r.realm = of_realm);
    user_keys uuid[];
    from_at timestamptz := coalesce(since, '-infinity');
    to_at timestamptz := coalesce(until, 'infinity');
    last_at timestamptz := coalesce(before_at, 'infinity');
    last_limit integer := coalesce(before_limit, 0);
    last_threshold integer := coalesce(before_threshold, 0);
BEGIN
    IF of_user IS NOT NULL THEN
        user_keys := ARRAY(SELECT u.user_key FROM unnest(realm_ids) r (realm_id)
            JOIN accounting.users u ON u.realm_id = r.realm_id AND u.user_id = of_user
            WHERE of_user_key IS NULL OR u.user_key = of_user_key);
    ELSIF of_user_key IS NOT NULL THEN
        user_keys := ARRAY[of_user_key];
    END IF;
    RETURN QUERY
    SELECT p.limit_id, r.realm, l.whom,
        CASE WHEN l.whom <> 'realm' THEN coalesce(u.user_id, '') END,
        nullif(p.user_key, '00000000-0000-0000-0000-000000000000'::uuid),
        l.measure, l.direction, l.per, p.amount, p.threshold, p.starts_at, p.ends_at, p.time_zone,
        p.usage, p.reached_at, p.cleared_at, p.times_reached
    FROM (
        (SELECT t.* FROM unnest(realm_ids) n (realm_id) CROSS JOIN LATERAL (
            SELECT * FROM accounting.limit_states s
            WHERE s.realm_id = n.realm_id AND s.starts_at >= from_at AND s.starts_at < to_at
                AND s.starts_at <= last_at
                AND (s.starts_at, s.limit_id, s.threshold,
                    nullif(s.user_key, '00000000-0000-0000-0000-000000000000'::uuid))
                    < (last_at, last_limit, last_threshold, before_key)
            ORDER BY s.starts_at DESC, s.limit_id DESC, s.threshold DESC,
                nullif(s.user_key, '00000000-0000-0000-0000-000000000000'::uuid) DESC
            LIMIT most
        ) t WHERE user_keys IS NULL)
        UNION ALL
        (SELECT t.* FROM unnest(user_keys) k (user_key) CROSS JOIN LATERAL (
            SELECT * FROM accounting.limit_states s
            WHERE nullif(s.user_key, '00000000-0000-0000-0000-000000000000'::uuid) = k.user_key
                AND s.realm_id = ANY (realm_ids)
                AND s.starts_at >= from_at AND s.starts_at < to_at AND s.starts_at <= last_at
                AND (s.starts_at, s.limit_id, s.threshold, s.user_key)
                    < (last_at, last_limit, last_threshold, before_key)
            ORDER BY s.starts_at DESC, s.limit_id DESC, s.threshold DESC
            LIMIT most
        ) t)
        ORDER BY starts_at DESC, limit_id DESC, threshold DESC, user_key DESC LIMIT most
    ) p
    JOIN accounting.limits l USING (limit_id)
    JOIN accounting.realms r ON r.realm_id = p.realm_id
    LEFT JOIN accounting.users u ON u.user_key = p.user_key
    ORDER BY p.starts_at DESC, p.limit_id DESC, p.threshold DESC, p.user_key DESC;
END
$$;
COMMENT ON FUNCTION reporting.limit_state_page(
    text, text, uuid, timestamptz, timestamptz, timestamptz, integer, integer, uuid, integer
) IS
    'The thresholds that were reached in buckets that start in a span, the newest at most so many; with '
    'before_... those after that one. A null filter is none';
REVOKE ALL ON FUNCTION reporting.limit_state_page(
    text, text, uuid, timestamptz, timestamptz, timestamptz, integer, integer, uuid, integer
) FROM PUBLIC;
GRANT EXECUTE ON FUNCTION reporting.limit_state_page(
    text, text, uuid, timestamptz, timestamptz, timestamptz, integer, integer, uuid, integer
) TO turn_accounting_reader, turn_accounting_writer;

-- How often these limits are reached in buckets that run now, each counted up to most.
CREATE FUNCTION reporting.limits_reached(limit_ids integer[], most integer)
RETURNS TABLE (limit_id integer, reached bigint)
LANGUAGE sql STABLE SECURITY DEFINER ROWS 10 SET search_path = pg_catalog, pg_temp
SET enable_seqscan = off AS $$
    SELECT i.limit_id, n.reached
    FROM unnest(limit_ids) i (limit_id)
    CROSS JOIN LATERAL (
        SELECT count(*) AS reached FROM (
            SELECT FROM accounting.limit_states s
            WHERE s.limit_id = i.limit_id AND s.threshold = 100 AND s.cleared_at IS NULL
                AND s.ends_at > accounting.database_now()
            LIMIT most
        ) s
    ) n
$$;
COMMENT ON FUNCTION reporting.limits_reached(integer[], integer) IS
    'How often each of these limits is reached in an hour, day, month or period that runs now, counted '
    'up to most';
REVOKE ALL ON FUNCTION reporting.limits_reached(integer[], integer) FROM PUBLIC;
GRANT EXECUTE ON FUNCTION reporting.limits_reached(integer[], integer)
    TO turn_accounting_reader, turn_accounting_writer;

-- How much of a limit is used in the bucket that runs now: by the users nearest to it, or by the realm.
-- The view would make whole days or months of all users before it sorts them; this adds up what the
-- limit counts.
CREATE FUNCTION reporting.nearest_to_limit(of_limit integer, most integer)
RETURNS SETOF reporting.limit_usage
LANGUAGE plpgsql STABLE SECURITY DEFINER ROWS 100 SET search_path = pg_catalog, pg_temp
SET plan_cache_mode = force_custom_plan SET enable_seqscan = off AS $$
DECLARE
    l record;
    counted text;
BEGIN
    SELECT w.*, r.realm, b.starts_at, b.ends_at, b.time_zone, f.folded_until INTO l
    FROM accounting.limits w
    JOIN accounting.realms r USING (realm_id)
    JOIN accounting.fold_watermarks f USING (realm_id)
    CROSS JOIN LATERAL accounting.limit_bucket_now(w.realm_id, w.per) b
    WHERE w.limit_id = of_limit;
    IF l.whom = 'realm' THEN
        RETURN QUERY SELECT * FROM reporting.limit_usage v WHERE v.limit_id = of_limit;
        RETURN;
    END IF;
    counted := CASE l.measure WHEN 'sessions' THEN 'sessions_started'
        WHEN 'session_seconds' THEN 'session_microseconds'
        ELSE CASE l.direction WHEN 'received' THEN 'received_bytes' WHEN 'sent' THEN 'sent_bytes'
            ELSE 'received_bytes + sent_bytes' END END;
    RETURN QUERY EXECUTE format($query$
        SELECT $1, $2, $3, coalesce(u.user_id, ''), p.user_key, $4, $5, $6, $7, $8, $9, $10,
            p.usage, trunc(100 * p.usage / $7, 1)
        FROM (
            SELECT n.user_key, sum(n.counted) * CASE WHEN $4 = 'session_seconds' THEN 0.000001
                ELSE 1 END AS usage
            FROM (
                SELECT d.user_key, %1$s AS counted FROM accounting.%2$I d
                WHERE d.realm_id = $11 AND d.starts_at >= $8 AND d.starts_at < $9
                    AND ($12 IS NULL OR d.user_key = $12)
                UNION ALL
                SELECT h.user_key, %1$s FROM accounting.user_usage_hourly h
                WHERE h.realm_id = $11 AND h.starts_at >= greatest($8, $13) AND h.starts_at < $9
                    AND ($12 IS NULL OR h.user_key = $12)
            ) n
            GROUP BY n.user_key
            ORDER BY usage DESC, n.user_key LIMIT $14
        ) p
        LEFT JOIN accounting.users u ON u.user_key = p.user_key
        ORDER BY p.usage DESC, p.user_key
        $query$, counted,
        CASE l.per WHEN 'hour' THEN 'user_usage_hourly' WHEN 'month' THEN 'user_usage_monthly'
            ELSE 'user_usage_daily' END)
    USING l.limit_id, l.realm, l.whom, l.measure, l.direction, l.per, l.amount, l.starts_at,
        l.ends_at, l.time_zone, l.realm_id, l.user_key,
        CASE WHEN l.per = 'hour' THEN 'infinity' ELSE l.folded_until END, most;
END
$$;
COMMENT ON FUNCTION reporting.nearest_to_limit(integer, integer) IS
    'How much of a limit is used in the bucket that runs now, by the users nearest to it: at most so '
    'many, or all for null';
REVOKE ALL ON FUNCTION reporting.nearest_to_limit(integer, integer) FROM PUBLIC;
GRANT EXECUTE ON FUNCTION reporting.nearest_to_limit(integer, integer)
    TO turn_accounting_reader, turn_accounting_writer;

-- The users on a page of the usage of a realm's hour, day or month, in the order of their names. The
-- views would add up the hours that are not folded yet of every user before they sort. Where many
-- have usage, it reads along the index of names until the page is full; else it sorts these few.
CREATE FUNCTION reporting.usage_page(
    per text, of_realm text, bucket_starts_at timestamptz, after_user text, after_key uuid,
    most integer
)
RETURNS SETOF uuid
LANGUAGE plpgsql STABLE SECURITY DEFINER ROWS 100 SET search_path = pg_catalog, pg_temp
SET plan_cache_mode = force_custom_plan SET enable_seqscan = off AS $$
DECLARE
    table_name text := CASE per WHEN 'hour' THEN 'user_usage_hourly' WHEN 'day'
        THEN 'user_usage_daily' WHEN 'month' THEN 'user_usage_monthly' END;
    number integer := (SELECT r.realm_id FROM accounting.realms r WHERE r.realm = of_realm);
    many constant integer := 2000;
    counted integer;
BEGIN
    EXECUTE format($query$
        SELECT count(*) FROM (SELECT FROM accounting.%I d
            WHERE d.realm_id = $1 AND d.starts_at = $2 LIMIT $3) s
    $query$, table_name) INTO counted USING number, bucket_starts_at, many;
    IF counted < many THEN
        RETURN QUERY EXECUTE format($query$
            SELECT d.user_key
            FROM accounting.%I d
            LEFT JOIN accounting.users u ON u.user_key = d.user_key AND u.realm_id = d.realm_id
            WHERE d.realm_id = $1 AND d.starts_at = $2
                AND ($3 IS NULL OR (u.user_id, d.user_key) > ($3, $4))
            ORDER BY u.user_id, d.user_key LIMIT $5
        $query$, table_name) USING number, bucket_starts_at, after_user, after_key, most;
    ELSE
        RETURN QUERY EXECUTE format($query$
            SELECT u.user_key
            FROM accounting.users u CROSS JOIN LATERAL (
                SELECT FROM accounting.%I d
                WHERE d.user_key = u.user_key AND d.starts_at = $2 AND d.realm_id = $1 OFFSET 0
            ) d
            WHERE u.realm_id = $1 AND u.user_id >= coalesce($3, '')
                AND ($3 IS NULL OR (u.user_id, u.user_key) > ($3, $4))
            ORDER BY u.user_id, u.user_key LIMIT $5
        $query$, table_name) USING number, bucket_starts_at, after_user, after_key, most;
    END IF;
END
$$;
COMMENT ON FUNCTION reporting.usage_page(text, text, timestamptz, text, uuid, integer) IS
    'The first users with usage in a realm''s bucket, by name, at most so many; with after_user '
    'and after_key those after that one. per: hour, day or month';
REVOKE ALL ON FUNCTION reporting.usage_page(text, text, timestamptz, text, uuid, integer)
    FROM PUBLIC;
GRANT EXECUTE ON FUNCTION reporting.usage_page(text, text, timestamptz, text, uuid, integer)
    TO turn_accounting_reader, turn_accounting_writer;

-- How many users have usage in a realm's month, and how many of them have estimated usage.
CREATE FUNCTION reporting.users_of_month(of_realm text, month_starts_at timestamptz)
RETURNS TABLE (users bigint, estimated_users bigint)
LANGUAGE sql STABLE SECURITY DEFINER ROWS 1 SET search_path = pg_catalog, pg_temp
SET enable_seqscan = off AS $$
    WITH month AS MATERIALIZED (
        SELECT b.realm_id, b.starts_at, b.ends_at, f.folded_until
        FROM accounting.realms r
        JOIN accounting.buckets b USING (realm_id)
        JOIN accounting.fold_watermarks f USING (realm_id)
        WHERE r.realm = of_realm AND b.level = 'month' AND b.starts_at = month_starts_at
    )
    SELECT count(*), count(*) FILTER (WHERE u.estimated_bytes > 0) + (
        SELECT count(DISTINCT h.user_key)
        FROM month m JOIN accounting.user_usage_hourly h ON h.realm_id = m.realm_id
            AND h.starts_at >= greatest(m.starts_at, m.folded_until) AND h.starts_at < m.ends_at
        WHERE h.estimated_bytes > 0 AND NOT EXISTS (
            SELECT FROM accounting.user_usage_monthly e
            WHERE e.user_key = h.user_key AND e.starts_at = m.starts_at AND e.estimated_bytes > 0
        )
    )
    FROM month m JOIN accounting.user_usage_monthly u USING (realm_id, starts_at)
$$;
COMMENT ON FUNCTION reporting.users_of_month(text, timestamptz) IS
    'How many users have usage in a realm''s month, and how many of them have estimated usage';
REVOKE ALL ON FUNCTION reporting.users_of_month(text, timestamptz) FROM PUBLIC;
GRANT EXECUTE ON FUNCTION reporting.users_of_month(text, timestamptz)
    TO turn_accounting_reader, turn_accounting_writer;

-- The hours with unattributed usage, so that lists and charts read the names of few or of none.
CREATE FUNCTION reporting.unattributed_hours(
    of_realm text, from_at timestamptz, to_at timestamptz
)
RETURNS TABLE (hour_starts_at timestamptz, bytes numeric)
LANGUAGE sql STABLE SECURITY DEFINER ROWS 1000 SET search_path = pg_catalog, pg_temp
SET max_parallel_workers_per_gather = 0 AS $$
    SELECT h.starts_at, sum(h.bytes)
    FROM accounting.realms r CROSS JOIN LATERAL (
        SELECT e.single_hour, e.received_bytes + e.sent_bytes
        FROM accounting.sessions e
        WHERE e.realm_id = r.realm_id AND NOT e.confirmed AND e.single_hour IS NOT NULL
            AND e.single_hour >= coalesce(from_at, '-infinity')
            AND e.single_hour < coalesce(to_at, 'infinity')
        UNION ALL
        SELECT u.starts_at, u.received_bytes + u.sent_bytes
        FROM accounting.session_usage u
        WHERE u.realm_id = r.realm_id AND NOT u.confirmed
            AND u.starts_at >= coalesce(from_at, '-infinity')
            AND u.starts_at < coalesce(to_at, 'infinity')
        UNION ALL
        SELECT p.starts_at, p.received_bytes + p.sent_bytes
        FROM accounting.pruned_usage p
        WHERE p.realm_id = r.realm_id
            AND p.starts_at >= coalesce(from_at, '-infinity')
            AND p.starts_at < coalesce(to_at, 'infinity')
    ) h (starts_at, bytes)
    WHERE of_realm IS NULL OR r.realm = of_realm
    GROUP BY h.starts_at
$$;
COMMENT ON FUNCTION reporting.unattributed_hours(text, timestamptz, timestamptz) IS
    'The hours of a span in which a realm, or any for null, has unattributed usage, and its bytes '
    'received and sent';
REVOKE ALL ON FUNCTION reporting.unattributed_hours(text, timestamptz, timestamptz) FROM PUBLIC;
GRANT EXECUTE ON FUNCTION reporting.unattributed_hours(text, timestamptz, timestamptz)
    TO turn_accounting_reader, turn_accounting_writer;

-- Names are counted by user_key: the usernames of one TURN REST user are one name.
CREATE FUNCTION reporting.unattributed_names(of_realm text, borders timestamptz[])
RETURNS TABLE (starts_at timestamptz, bytes numeric, names bigint, new_names bigint)
LANGUAGE sql STABLE SECURITY DEFINER ROWS 100 SET search_path = pg_catalog, pg_temp
SET max_parallel_workers_per_gather = 0 AS $$
    SELECT borders[b.bucket], sum(b.bytes), count(b.user_key),
        count(b.user_key) FILTER (WHERE b.bucket = b.first_bucket)
    FROM (
        SELECT h.user_key, width_bucket(h.at, borders) AS bucket, sum(h.bytes) AS bytes,
            min(width_bucket(h.at, borders)) OVER (PARTITION BY h.user_key) AS first_bucket
        FROM accounting.realms r CROSS JOIN LATERAL (
            SELECT e.user_key, e.single_hour, e.received_bytes + e.sent_bytes
            FROM accounting.sessions e
            WHERE e.realm_id = r.realm_id AND NOT e.confirmed AND e.single_hour IS NOT NULL
                AND e.single_hour >= borders[1]
                AND e.single_hour < borders[cardinality(borders)]
            UNION ALL
            SELECT u.user_key, u.starts_at, u.received_bytes + u.sent_bytes
            FROM accounting.session_usage u
            WHERE u.realm_id = r.realm_id AND NOT u.confirmed
                AND u.starts_at >= borders[1] AND u.starts_at < borders[cardinality(borders)]
            UNION ALL
            SELECT NULL, p.starts_at, p.received_bytes + p.sent_bytes
            FROM accounting.pruned_usage p
            WHERE p.realm_id = r.realm_id
                AND p.starts_at >= borders[1] AND p.starts_at < borders[cardinality(borders)]
        ) h (user_key, at, bytes)
        WHERE r.realm = of_realm
        GROUP BY h.user_key, width_bucket(h.at, borders)
    ) b
    GROUP BY b.bucket
$$;
COMMENT ON FUNCTION reporting.unattributed_names(text, timestamptz[]) IS
    'Unattributed usage of a realm between each border and the next, with the number of names that '
    'it is under, and of those that were not there since the first border; names that are pruned '
    'are not counted';
REVOKE ALL ON FUNCTION reporting.unattributed_names(text, timestamptz[]) FROM PUBLIC;
GRANT EXECUTE ON FUNCTION reporting.unattributed_names(text, timestamptz[])
    TO turn_accounting_reader, turn_accounting_writer;

-- It reads the names of those few only.
CREATE FUNCTION reporting.top_unattributed_names(
    of_realm text, from_at timestamptz, most integer
)
RETURNS TABLE (username text, bytes numeric, hours bigint, last_hour timestamptz)
LANGUAGE sql STABLE SECURITY DEFINER ROWS 100 SET search_path = pg_catalog, pg_temp
SET max_parallel_workers_per_gather = 0 AS $$
    SELECT coalesce(n.username, ''), t.bytes, t.hours, t.last_hour
    FROM (
        SELECT h.user_key, h.username_key, sum(h.bytes) AS bytes,
            count(DISTINCT h.at) AS hours, max(h.at) AS last_hour
        FROM accounting.realms r CROSS JOIN LATERAL (
            SELECT e.user_key, e.username_key, e.single_hour, e.received_bytes + e.sent_bytes
            FROM accounting.sessions e
            WHERE e.realm_id = r.realm_id AND NOT e.confirmed AND e.single_hour IS NOT NULL
                AND e.single_hour >= from_at
            UNION ALL
            SELECT u.user_key, e.username_key, u.starts_at, u.received_bytes + u.sent_bytes
            FROM accounting.session_usage u
            JOIN accounting.sessions e USING (session_id, user_key)
            WHERE u.realm_id = r.realm_id AND NOT u.confirmed AND u.starts_at >= from_at
        ) h (user_key, username_key, at, bytes)
        WHERE r.realm = of_realm
        GROUP BY h.user_key, h.username_key
        ORDER BY bytes DESC, h.username_key
        LIMIT most
    ) t
    LEFT JOIN accounting.usernames n USING (username_key, user_key)
    ORDER BY t.bytes DESC, n.username
$$;
COMMENT ON FUNCTION reporting.top_unattributed_names(text, timestamptz, integer) IS
    'The usernames with most unattributed bytes of a realm since a time, as far as names are kept';
REVOKE ALL ON FUNCTION reporting.top_unattributed_names(text, timestamptz, integer) FROM PUBLIC;
GRANT EXECUTE ON FUNCTION reporting.top_unattributed_names(text, timestamptz, integer)
    TO turn_accounting_reader, turn_accounting_writer;

-- The users with most traffic in some buckets, each of a realm. It sums two columns, and leaves the
-- names and all else of those few to the views.
CREATE FUNCTION reporting.top_users(
    per text, of_realms text[], buckets_start_at timestamptz[], most integer
)
RETURNS TABLE (top_user_key uuid, top_starts_at timestamptz)
LANGUAGE plpgsql STABLE SECURITY DEFINER ROWS 100 SET search_path = pg_catalog, pg_temp
SET plan_cache_mode = force_custom_plan SET enable_seqscan = off AS $$
DECLARE
    usage text := CASE per WHEN 'hour' THEN 'user_usage_hourly' WHEN 'day' THEN 'user_usage_daily'
        ELSE 'user_usage_monthly' END;
BEGIN
    RETURN QUERY EXECUTE format(
        'WITH wanted AS MATERIALIZED ('
        '    SELECT r.realm_id, b.starts_at, b.ends_at,'
        '        CASE WHEN $3 = ''hour'' THEN ''infinity'' ELSE f.folded_until END AS folded_until'
        '    FROM unnest($1, $2) w (realm, starts_at)'
        '    JOIN accounting.realms r ON r.realm = w.realm'
        '    JOIN accounting.buckets b ON b.realm_id = r.realm_id AND b.level = $3'
        '        AND b.starts_at = w.starts_at'
        '    JOIN accounting.fold_watermarks f ON f.realm_id = r.realm_id'
        '), traffic AS ('
        '    SELECT u.user_key, w.starts_at, u.received_bytes + u.sent_bytes AS bytes'
        '    FROM wanted w JOIN accounting.%I u'
        '        ON u.realm_id = w.realm_id AND u.starts_at = w.starts_at'
        '    UNION ALL'
        '    SELECT h.user_key, w.starts_at, h.received_bytes + h.sent_bytes'
        '    FROM wanted w JOIN accounting.user_usage_hourly h ON h.realm_id = w.realm_id'
        '        AND h.starts_at >= greatest(w.starts_at, w.folded_until)'
        '        AND h.starts_at < w.ends_at'
        ')'
        ' SELECT user_key, starts_at FROM traffic GROUP BY user_key, starts_at'
        ' ORDER BY accounting.bigint_sum(bytes) DESC FETCH FIRST $4 ROWS WITH TIES', usage)
    USING of_realms, buckets_start_at, per, most;
END
$$;
COMMENT ON FUNCTION reporting.top_users(text, text[], timestamptz[], integer) IS
    'The users with most traffic in hours, days or months of realms, at most so many, and those '
    'with as much as the last';
REVOKE ALL ON FUNCTION reporting.top_users(text, text[], timestamptz[], integer) FROM PUBLIC;
GRANT EXECUTE ON FUNCTION reporting.top_users(text, text[], timestamptz[], integer)
    TO turn_accounting_reader, turn_accounting_writer;

-- The most sessions of a user that were open at one moment of a span, counted from the sessions when
-- it is asked: a user has few, and is asked for seldom.
CREATE FUNCTION reporting.user_peak_sessions(
    of_user_key uuid, from_at timestamptz, to_at timestamptz
)
RETURNS bigint
LANGUAGE sql STABLE SECURITY DEFINER SET search_path = pg_catalog, pg_temp
SET max_parallel_workers_per_gather = 0 AS $$
    WITH spans AS (
        SELECT greatest(s.started_at, from_at) AS begins, s.ended_at AS ends
        FROM reporting.sessions s
        WHERE s.user_key = of_user_key
            AND s.started_at < coalesce(to_at, 'infinity')
            AND (s.ended_at IS NULL
                OR s.ended_at > greatest(s.started_at, coalesce(from_at, '-infinity')))
    ), steps AS (
        SELECT begins AS at, 1 AS step FROM spans
        UNION ALL
        SELECT ends, -1 FROM spans WHERE ends IS NOT NULL
    )
    SELECT coalesce(max(live), 0) FROM (
        SELECT sum(step) OVER (ORDER BY at, step ROWS UNBOUNDED PRECEDING) AS live FROM steps
    ) counted
$$;
COMMENT ON FUNCTION reporting.user_peak_sessions(uuid, timestamptz, timestamptz) IS
    'The most sessions of a user that were open at one moment of a span; null for no bound';
REVOKE ALL ON FUNCTION reporting.user_peak_sessions(uuid, timestamptz, timestamptz) FROM PUBLIC;
GRANT EXECUTE ON FUNCTION reporting.user_peak_sessions(uuid, timestamptz, timestamptz)
    TO turn_accounting_reader, turn_accounting_writer;

-- The reports of a session. They have no key, so that it reads all reports of the session's time, in
-- slices whose length follows from how many were in the last one. It ends after about most_scanned
-- reports, with a row of nulls whose scanned_until says where to go on; there is none at the end.
CREATE FUNCTION reporting.session_reports(
    of_session uuid, after_at timestamptz, after_epoch integer, after_position bigint,
    most integer, most_scanned integer
)
RETURNS TABLE (
    source text, epoch integer, "position" bigint, received_at timestamptz, time_estimated boolean,
    event text, side text, lifetime integer, transport text, client_address text,
    server_address text, received_packets bigint, received_bytes bigint, sent_packets bigint,
    sent_bytes bigint, scanned_until timestamptz
)
LANGUAGE plpgsql STABLE SECURITY DEFINER SET search_path = pg_catalog, pg_temp
SET plan_cache_mode = force_custom_plan SET enable_seqscan = off AS $$
DECLARE
    s record;
    slice_from timestamptz;
    slice_to timestamptz;
    width interval := interval '2 seconds';
    scanned bigint := 0;
    slices integer := 0;
    in_slice bigint;
    matches accounting.reports[];
    report accounting.reports;
    found_rows integer := 0;
BEGIN
    SELECT e.source_id, e.database, e.realm_id, e.username_key, e.user_key, e.allocation_id,
        e.started_at, e.last_seen_at, n.source INTO s
    FROM accounting.sessions e JOIN accounting.sources n USING (source_id)
    WHERE e.session_id = of_session AND e.confirmed;
    IF NOT FOUND THEN
        RETURN;
    END IF;
    slice_from := greatest(s.started_at, after_at);
    WHILE slice_from <= s.last_seen_at LOOP
        IF slices > 0 AND (scanned >= most_scanned OR slices >= 8) THEN
            scanned_until := slice_from;
            RETURN NEXT;
            RETURN;
        END IF;
        slice_to := least(slice_from + width, s.last_seen_at + interval '1 microsecond');
        SELECT count(*), array_agg(r ORDER BY r.received_at, r.epoch, r.position) FILTER (
            WHERE r.source_id = s.source_id AND r.database = s.database
                AND r.realm_id = s.realm_id AND r.username_key = s.username_key
                AND r.user_key = s.user_key AND r.allocation_id = s.allocation_id
                AND (after_at IS NULL OR (r.received_at, r.epoch, r.position)
                    > (after_at, after_epoch, after_position)))
        INTO in_slice, matches
        FROM (
            SELECT * FROM accounting.reports q
            WHERE q.received_at >= slice_from AND q.received_at < slice_to
            LIMIT CASE WHEN width > interval '2 milliseconds' THEN most_scanned + 1 END
        ) r;
        scanned := scanned + in_slice;
        IF in_slice > most_scanned AND width > interval '2 milliseconds' THEN
            width := width / 16;
            CONTINUE;
        END IF;
        FOREACH report IN ARRAY coalesce(matches, '{}') LOOP
            source := s.source;
            epoch := report.epoch;
            "position" := report.position;
            received_at := report.received_at;
            time_estimated := report.time_estimated;
            event := (ARRAY['new', 'refreshed', 'deleted', 'interim', 'total'])[report.kind];
            side := CASE report.side WHEN 0 THEN 'client' WHEN 1 THEN 'peer' END;
            lifetime := report.lifetime;
            transport := report.transport;
            client_address := report.client_address;
            server_address := report.server_address;
            received_packets := report.received_packets;
            received_bytes := report.received_bytes;
            sent_packets := report.sent_packets;
            sent_bytes := report.sent_bytes;
            RETURN NEXT;
            found_rows := found_rows + 1;
            IF found_rows = most THEN
                RETURN;
            END IF;
        END LOOP;
        slices := slices + 1;
        slice_from := slice_to;
        width := width * least(16, greatest(0.1, most_scanned / 4.0 / greatest(in_slice, 1)));
        source := NULL;
        epoch := NULL;
        "position" := NULL;
        received_at := NULL;
        time_estimated := NULL;
        event := NULL;
        side := NULL;
        lifetime := NULL;
        transport := NULL;
        client_address := NULL;
        server_address := NULL;
        received_packets := NULL;
        received_bytes := NULL;
        sent_packets := NULL;
        sent_bytes := NULL;
    END LOOP;
END
$$;
COMMENT ON FUNCTION reporting.session_reports(
    uuid, timestamptz, integer, bigint, integer, integer
) IS
    'The reports of a session in order, after one of them, at most so many. A last row with '
    'scanned_until: go on after that time';
REVOKE ALL ON FUNCTION reporting.session_reports(
    uuid, timestamptz, integer, bigint, integer, integer
) FROM PUBLIC;
GRANT EXECUTE ON FUNCTION reporting.session_reports(
    uuid, timestamptz, integer, bigint, integer, integer
) TO turn_accounting_reader, turn_accounting_writer;

-- Comments on the columns that have none yet. The migration fails if a column has none then.
DO $$
DECLARE
    entry record;
BEGIN
    FOR entry IN
        SELECT c.relname AS view_name, a.attname AS column_name, shared.comment
        FROM pg_class c
        JOIN pg_attribute a ON a.attrelid = c.oid AND a.attnum > 0
        LEFT JOIN (VALUES
            ('source', 'Name of the source: a Redis that a collector captures'),
            ('database',
                'Number of the Redis database in which the event was published; 0 when captured by '
                'subscription'),
            ('epoch',
                'Number of a run of rising positions of the source; a new one starts where '
                'continuity was lost'),
            ('position', 'Position of the message within its source and epoch; rises'),
            ('received_at', 'When the collector received it; coturn''s reports have no time'),
            ('time_estimated', 'Whether received_at was interpolated after an outage'),
            ('realm', 'TURN realm, empty when absent; bytes that are not UTF-8 as \xNN'),
            ('username',
                'Username as published, empty when absent or erased; bytes that are not UTF-8 '
                'as \xNN'),
            ('user_id',
                'User to bill: the username without the time of a TURN REST credential; empty when '
                'absent or erased'),
            ('user_key', 'Opaque key of realm and user_id; unchanged when the name is erased'),
            ('allocation_id',
                'coturn''s allocation id, 18 digits: relay thread, then a counter that restarts '
                'with the server'),
            ('transport',
                'Transport between client and server as coturn reports it; null before coturn 4.6'),
            ('client_address',
                'Address and port of the client, or its network where no more is kept; null before '
                'coturn 4.6, and where nothing is kept'),
            ('server_address',
                'Address and port of the server that the client used; null before coturn 4.6'),
            ('limit_id', 'Number of the limit'),
            ('whom', 'Whose usage is limited: realm, user or every_user'),
            ('measure', 'What is limited: bytes, sessions (that start) or session_seconds'),
            ('direction', 'Bytes that count: both, received (from clients) or sent (to them)'),
            ('per', 'Length of the bucket: hour, day, month or period (the billing period)'),
            ('amount', 'The limit: bytes, sessions or seconds'),
            ('starts_at', 'Start of the bucket, inclusive'),
            ('ends_at', 'End of the bucket, exclusive'),
            ('time_zone', 'Time zone of the bucket''s bounds'),
            ('received_packets', 'Packets that the server received from the client'),
            ('received_bytes', 'Bytes that the server received from the client'),
            ('sent_packets', 'Packets that the server sent to the client'),
            ('sent_bytes', 'Bytes that the server sent to the client'),
            ('peer_received_packets', 'Packets that the server received from the peers'),
            ('peer_received_bytes', 'Bytes that the server received from the peers'),
            ('peer_sent_packets', 'Packets that the server sent to the peers'),
            ('peer_sent_bytes',
                'Bytes that the server sent to the peers; with the ChannelData header since '
                'coturn 4.11'),
            ('sessions_started', 'Sessions whose first report is in the bucket'),
            ('sessions_ended', 'Sessions that ended in the bucket'),
            ('session_seconds',
                'Seconds that sessions were open in the bucket, split at its bounds, never '
                'rounded; an open one counts to last_seen_at'),
            ('estimated_bytes', 'received_bytes + sent_bytes of sessions that are estimated'),
            ('peak_sessions',
                'Most sessions open at one moment of the bucket; one that has not ended counts to '
                'the end of the hour of last_seen_at. For days and months that of the highest hour')
        ) AS shared (column_name, comment) ON shared.column_name = a.attname
        WHERE c.relnamespace = 'reporting'::regnamespace
            AND col_description(c.oid, a.attnum) IS NULL
    LOOP
        IF entry.comment IS NULL THEN
            RAISE EXCEPTION 'column reporting.%.% has no comment',
                entry.view_name, entry.column_name;
        END IF;
        EXECUTE format('COMMENT ON COLUMN reporting.%I.%I IS %L',
            entry.view_name, entry.column_name, entry.comment);
    END LOOP;
END
$$;
