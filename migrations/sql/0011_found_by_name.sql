-- Views that find a user by name along indexes, however many sessions there are.

-- Every key of a report has its rows in users and usernames: the loader writes them in one
-- transaction, and erasing empties names but keeps the rows. So these are inner joins, and a name
-- leads to its user's rows; over an outer join it could only filter all of them.
CREATE OR REPLACE VIEW reporting.allocation_events AS
SELECT s.source, r.database, r.epoch, r.position, r.received_at, r.time_estimated,
    re.realm, n.username, u.user_id, r.user_key,
    lpad(r.allocation_id::text, 18, '0') AS allocation_id,
    CASE r.kind WHEN 1 THEN 'new' WHEN 2 THEN 'refreshed' ELSE 'deleted' END AS event,
    r.lifetime, r.transport, r.client_address, r.server_address
FROM accounting.reports r
JOIN accounting.sources s USING (source_id)
JOIN accounting.realms re USING (realm_id)
JOIN accounting.users u USING (user_key, realm_id)
JOIN accounting.usernames n USING (username_key, user_key)
WHERE r.kind <= 3;
