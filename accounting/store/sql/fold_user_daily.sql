-- Adds to the days of users their hours that are over.
MERGE INTO accounting.user_usage_daily u
USING (
    SELECT u.user_key, h.day_starts_at AS starts_at, u.realm_id,
        sum(u.received_packets)::bigint AS received_packets,
        sum(u.received_bytes)::bigint AS received_bytes,
        sum(u.sent_packets)::bigint AS sent_packets, sum(u.sent_bytes)::bigint AS sent_bytes,
        sum(u.peer_received_packets)::bigint AS peer_received_packets,
        sum(u.peer_received_bytes)::bigint AS peer_received_bytes,
        sum(u.peer_sent_packets)::bigint AS peer_sent_packets,
        sum(u.peer_sent_bytes)::bigint AS peer_sent_bytes,
        sum(u.sessions_started)::bigint AS sessions_started,
        sum(u.sessions_ended)::bigint AS sessions_ended,
        sum(u.session_microseconds) AS session_microseconds,
        sum(u.estimated_bytes)::bigint AS estimated_bytes
    FROM staged_folds h JOIN accounting.user_usage_hourly u USING (realm_id, starts_at)
    GROUP BY u.user_key, h.day_starts_at, u.realm_id
    ORDER BY u.user_key
) t
ON u.user_key = t.user_key AND u.starts_at = t.starts_at
WHEN MATCHED THEN UPDATE SET
    received_packets = u.received_packets + t.received_packets,
    received_bytes = u.received_bytes + t.received_bytes,
    sent_packets = u.sent_packets + t.sent_packets, sent_bytes = u.sent_bytes + t.sent_bytes,
    peer_received_packets = u.peer_received_packets + t.peer_received_packets,
    peer_received_bytes = u.peer_received_bytes + t.peer_received_bytes,
    peer_sent_packets = u.peer_sent_packets + t.peer_sent_packets,
    peer_sent_bytes = u.peer_sent_bytes + t.peer_sent_bytes,
    sessions_started = u.sessions_started + t.sessions_started,
    sessions_ended = u.sessions_ended + t.sessions_ended,
    session_microseconds = u.session_microseconds + t.session_microseconds,
    estimated_bytes = u.estimated_bytes + t.estimated_bytes
WHEN NOT MATCHED THEN INSERT (
    user_key, starts_at, realm_id,
    received_packets, received_bytes, sent_packets, sent_bytes, peer_received_packets,
    peer_received_bytes, peer_sent_packets, peer_sent_bytes, sessions_started, sessions_ended,
    session_microseconds, estimated_bytes
) VALUES (
    t.user_key, t.starts_at, t.realm_id,
    t.received_packets, t.received_bytes, t.sent_packets, t.sent_bytes, t.peer_received_packets,
    t.peer_received_bytes, t.peer_sent_packets, t.peer_sent_bytes, t.sessions_started,
    t.sessions_ended, t.session_microseconds, t.estimated_bytes
)
