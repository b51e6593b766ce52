-- A user's sessions that ended with the dropped reports, with what they have in a span.
SELECT
    e.source_id, e.database, e.username_key, e.allocation_id, e.session_id,
    e.user_key, e.realm_id, e.started_at, e.last_seen_at, e.expires_at,
    e.start_known, e.lifetime_known, e.ended_at, e.end_cause, e.standing,
    e.vouched, e.transport, e.client_address, e.server_address, e.received_packets,
    e.received_bytes, e.sent_packets, e.sent_bytes, e.peer_received_packets, e.peer_received_bytes,
    e.peer_sent_packets, e.peer_sent_bytes, e.news, e.deletes, e.client_totals,
    e.peer_totals, e.client_total, e.peer_total, e.estimated, e.disputed,
    CAST(ARRAY[
        h.received_packets, h.received_bytes, h.sent_packets, h.sent_bytes,
        h.peer_received_packets, h.peer_received_bytes, h.peer_sent_packets, h.peer_sent_bytes,
        h.session_microseconds
    ] AS numeric[]) AS numbers
FROM accounting.sessions e
JOIN accounting.dropped_positions z
    ON z.source_id = e.source_id AND e.session_id <= z.last_session_id
CROSS JOIN LATERAL (
    SELECT
        sum(received_packets) AS received_packets, sum(received_bytes) AS received_bytes,
        sum(sent_packets) AS sent_packets, sum(sent_bytes) AS sent_bytes,
        sum(peer_received_packets) AS peer_received_packets,
        sum(peer_received_bytes) AS peer_received_bytes,
        sum(peer_sent_packets) AS peer_sent_packets, sum(peer_sent_bytes) AS peer_sent_bytes,
        sum(round(extract(epoch FROM active_to - active_from) * 1000000)) AS session_microseconds
    FROM accounting.session_hours
    WHERE session_id = e.session_id AND user_key = e.user_key AND vouched
        AND starts_at >= CAST(:starts_at AS timestamptz)
        AND starts_at < CAST(:ends_at AS timestamptz)
    HAVING count(*) > 0
) h
WHERE e.user_key = CAST(:user_key AS uuid) AND e.realm_id = CAST(:realm_id AS integer)
    AND e.started_at < CAST(:ends_at AS timestamptz)
    AND NOT EXISTS (
        SELECT FROM accounting.carried_lives c
        WHERE c.session_id = e.session_id AND c.user_key = e.user_key
    )
ORDER BY e.session_id
