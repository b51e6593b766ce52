-- The lives of the staged keys that another report may still belong to.
-- OFFSET 0: key by key along the index, also where statistics were made when no life stood.
SELECT
    e.source_id, e.database, e.username_key, e.allocation_id, e.session_id,
    e.user_key, e.realm_id, e.started_at, e.last_seen_at, e.expires_at,
    e.start_known, e.lifetime_known, e.ended_at, e.end_cause, e.standing,
    e.vouched, e.transport, e.client_address, e.server_address, e.received_packets,
    e.received_bytes, e.sent_packets, e.sent_bytes, e.peer_received_packets, e.peer_received_bytes,
    e.peer_sent_packets, e.peer_sent_bytes, e.news, e.deletes, e.client_totals,
    e.peer_totals, CASE WHEN e.client_totals > 0 THEN e.client_total END,
    CASE WHEN e.peer_totals > 0 THEN e.peer_total END, e.estimated, e.disputed, e.only_hour
FROM staged_keys k
CROSS JOIN LATERAL (
    SELECT * FROM accounting.sessions s
    WHERE s.username_key = k.username_key AND s.allocation_id = k.allocation_id
        AND s.source_id = k.source_id AND s.database = k.database AND s.standing > 0
    OFFSET 0
) e
