-- Views that find a user by name along indexes; indexes for what asks for few of all sessions.

-- A name in a condition leads to its user's rows only where nothing is made of it on the way: over
-- coalesce() every session of the realm was read. There is nothing to make of it: the loader writes
-- the names with the first report, and erasing empties them where they stand.

CREATE OR REPLACE VIEW reporting.allocation_events AS
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

CREATE OR REPLACE VIEW reporting.traffic_reports AS
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

CREATE OR REPLACE VIEW reporting.sessions AS
SELECT e.session_id, s.source, e.database, re.realm, n.username,
    u.user_id, e.user_key,
    lpad(e.allocation_id::text, 18, '0') AS allocation_id,
    e.started_at, e.start_known, e.last_seen_at, e.ended_at, e.end_cause,
    e.transport, e.client_address, e.server_address,
    e.received_packets, e.received_bytes, e.sent_packets, e.sent_bytes,
    e.peer_received_packets, e.peer_received_bytes, e.peer_sent_packets, e.peer_sent_bytes,
    e.client_totals > 0 AS total_reported, e.estimated, e.disputed
FROM accounting.sessions e
JOIN accounting.sources s USING (source_id)
JOIN accounting.realms re USING (realm_id)
LEFT JOIN accounting.users u USING (user_key, realm_id)
LEFT JOIN accounting.usernames n USING (username_key, user_key)
WHERE e.vouched;

DO $$
DECLARE
    length text[];
BEGIN
    FOREACH length SLICE 1 IN ARRAY
        ARRAY[['hourly', 'hour'], ['daily', 'day'], ['monthly', 'month']]
    LOOP
        EXECUTE format($view$
            CREATE OR REPLACE VIEW reporting.user_usage_%1$s AS
            SELECT r.realm, u.user_id, h.user_key, h.starts_at, b.ends_at, b.time_zone,
                h.received_packets, h.received_bytes, h.sent_packets, h.sent_bytes,
                h.peer_received_packets, h.peer_received_bytes,
                h.peer_sent_packets, h.peer_sent_bytes,
                h.sessions_started, h.sessions_ended,
                h.session_microseconds * 0.000001 AS session_seconds, h.estimated_bytes
            FROM accounting.user_usage_%1$s h
            JOIN accounting.realms r USING (realm_id)
            JOIN accounting.buckets b
                ON b.realm_id = h.realm_id AND b.level = %2$L AND b.starts_at = h.starts_at
            LEFT JOIN accounting.users u ON u.user_key = h.user_key AND u.realm_id = h.realm_id;
        $view$, length[1], length[2]);
    END LOOP;
END
$$;

-- Few among many: those that live, and those that are disputed.
CREATE INDEX sessions_live ON accounting.sessions (started_at) WHERE ended_at IS NULL AND vouched;
CREATE INDEX sessions_disputed ON accounting.sessions (started_at) WHERE disputed AND vouched;
