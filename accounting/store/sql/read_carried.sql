-- The lives that the dropped reports left to later ones, key by key, the one under way first. With
-- :since and :until only what the reports of that span may touch, and what only awaits its end.
SELECT
    c.source_id, c.database, c.username_key, c.allocation_id, c.session_id,
    c.user_key, c.realm_id, c.started_at, c.last_seen_at, c.expires_at,
    c.start_known, c.lifetime_known, c.ended_at, c.end_cause, c.standing,
    c.vouched, c.transport, c.client_address, c.server_address, c.received_packets,
    c.received_bytes, c.sent_packets, c.sent_bytes, c.peer_received_packets, c.peer_received_bytes,
    c.peer_sent_packets, c.peer_sent_bytes, c.news, c.deletes, c.client_totals,
    c.peer_totals, c.client_total, c.peer_total, c.estimated, c.disputed, c.entries
FROM accounting.carried_lives c
WHERE c.source_id = ANY (CAST(:sources AS smallint[]))
    AND c.realm_id = ANY (CAST(:realms AS integer[]))
    AND (CAST(:usernames AS uuid[]) IS NULL OR c.username_key = ANY (CAST(:usernames AS uuid[])))
    AND (
        CAST(:since AS timestamptz) IS NULL
        OR (NOT c.vouched AND c.standing = 1)
        OR (c.source_id, c.database, c.username_key, c.allocation_id) IN (
            SELECT r.source_id, r.database, r.username_key, r.allocation_id
            FROM accounting.reports r
            WHERE r.received_at >= CAST(:since AS timestamptz)
                AND r.received_at < CAST(:until AS timestamptz)
        )
    )
ORDER BY c.source_id, c.database, c.username_key, c.allocation_id, c.standing
