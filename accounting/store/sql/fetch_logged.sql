-- The billed sessions of keys as coturn's log names them, oldest first.
SELECT
    k.realm, k.username, k.allocation_id, e.session_id, e.estimated, e.disputed,
    e.received_packets, e.received_bytes, e.sent_packets, e.sent_bytes,
    e.peer_received_packets, e.peer_received_bytes, e.peer_sent_packets, e.peer_sent_bytes
FROM unnest(CAST(:realms AS text[]), CAST(:usernames AS text[]), CAST(:allocations AS bigint[]))
    AS k (realm, username, allocation_id)
JOIN accounting.realms r ON r.realm = k.realm
JOIN accounting.users u USING (realm_id)
JOIN accounting.usernames n USING (user_key)
JOIN accounting.sessions e
    ON e.user_key = u.user_key AND e.username_key = n.username_key
    AND e.allocation_id = k.allocation_id
WHERE n.username = k.username AND e.vouched
ORDER BY e.started_at, e.session_id
