-- For each realm and day: how many sealed sessions began then, and a sum of hashes over the rows of
-- the sessions and their hours. Times in seconds: no setting of the connection changes a digest.
SELECT realm_id, day, count(*) FILTER (WHERE is_session) AS sessions, sum(hash) AS digest
FROM (
    SELECT l.realm_id, l.day, true AS is_session, accounting.row_hash(jsonb_build_array(
        s.session_id, s.user_key, s.username_key, s.realm_id, s.source_id, s.database,
        s.allocation_id, extract(epoch FROM s.started_at), extract(epoch FROM s.last_seen_at),
        extract(epoch FROM s.expires_at), s.start_known, s.lifetime_known,
        extract(epoch FROM s.ended_at), s.end_cause, s.standing, s.vouched, s.transport,
        s.client_address, s.server_address, s.received_packets, s.received_bytes, s.sent_packets,
        s.sent_bytes, s.peer_received_packets, s.peer_received_bytes, s.peer_sent_packets,
        s.peer_sent_bytes, s.news, s.deletes, s.client_totals, s.peer_totals, s.client_total,
        s.peer_total, s.estimated, s.disputed
    )) AS hash
    FROM sealed l
    JOIN accounting.sessions s ON s.session_id = l.session_id AND s.user_key = l.user_key
    UNION ALL
    SELECT l.realm_id, l.day, false, accounting.row_hash(jsonb_build_array(
        h.session_id, extract(epoch FROM h.starts_at), h.user_key, h.realm_id, h.vouched,
        h.estimated, h.started, h.ended, extract(epoch FROM h.active_from),
        extract(epoch FROM h.active_to), h.received_packets, h.received_bytes, h.sent_packets,
        h.sent_bytes, h.peer_received_packets, h.peer_received_bytes, h.peer_sent_packets,
        h.peer_sent_bytes
    ))
    FROM sealed l
    JOIN accounting.session_hours h ON h.session_id = l.session_id AND h.user_key = l.user_key
) hashes
GROUP BY realm_id, day
