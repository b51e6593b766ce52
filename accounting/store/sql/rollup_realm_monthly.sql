-- Replaces the touched months of realms by the sums of their days.
INSERT INTO accounting.realm_usage_monthly (
    realm_id, starts_at, received_packets, received_bytes,
    sent_packets, sent_bytes, peer_received_packets, peer_received_bytes,
    peer_sent_packets, peer_sent_bytes, sessions_started, sessions_ended,
    session_microseconds, estimated_bytes, peak_sessions
)
SELECT u.realm_id, t.starts_at,
    sum(u.received_packets), sum(u.received_bytes), sum(u.sent_packets), sum(u.sent_bytes),
    sum(u.peer_received_packets), sum(u.peer_received_bytes), sum(u.peer_sent_packets), sum(u.peer_sent_bytes),
    sum(u.sessions_started), sum(u.sessions_ended), sum(u.session_microseconds), sum(u.estimated_bytes),
    max(u.peak_sessions)
FROM (
    SELECT DISTINCT realm_id, month_starts_at AS starts_at, month_ends_at AS ends_at
    FROM staged_hours
) t
JOIN accounting.realm_usage_daily u
    ON u.realm_id = t.realm_id AND u.starts_at >= t.starts_at AND u.starts_at < t.ends_at
GROUP BY u.realm_id, t.starts_at
ON CONFLICT (realm_id, starts_at) DO UPDATE SET
    received_packets = excluded.received_packets, received_bytes = excluded.received_bytes,
    sent_packets = excluded.sent_packets, sent_bytes = excluded.sent_bytes,
    peer_received_packets = excluded.peer_received_packets, peer_received_bytes = excluded.peer_received_bytes,
    peer_sent_packets = excluded.peer_sent_packets, peer_sent_bytes = excluded.peer_sent_bytes,
    sessions_started = excluded.sessions_started, sessions_ended = excluded.sessions_ended,
    session_microseconds = excluded.session_microseconds, estimated_bytes = excluded.estimated_bytes,
    peak_sessions = excluded.peak_sessions
