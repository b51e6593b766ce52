-- Adds to the touched months of realms what changed in their users' hours. Peaks are counted apart.
INSERT INTO accounting.realm_usage_monthly AS u (
    realm_id, starts_at,
    received_packets, received_bytes, sent_packets, sent_bytes,
    peer_received_packets, peer_received_bytes, peer_sent_packets, peer_sent_bytes,
    sessions_started, sessions_ended, session_microseconds, estimated_bytes,
    peak_sessions
)
SELECT t.realm_id, h.month_starts_at,
    sum(t.received_packets), sum(t.received_bytes), sum(t.sent_packets),
    sum(t.sent_bytes), sum(t.peer_received_packets), sum(t.peer_received_bytes),
    sum(t.peer_sent_packets), sum(t.peer_sent_bytes), sum(t.sessions_started),
    sum(t.sessions_ended), sum(t.session_microseconds), sum(t.estimated_bytes),
    0
FROM staged_touched t JOIN staged_hours h USING (realm_id, starts_at)
GROUP BY t.realm_id, h.month_starts_at
ON CONFLICT (realm_id, starts_at) DO UPDATE SET
    received_packets = u.received_packets + excluded.received_packets, received_bytes = u.received_bytes + excluded.received_bytes,
    sent_packets = u.sent_packets + excluded.sent_packets, sent_bytes = u.sent_bytes + excluded.sent_bytes,
    peer_received_packets = u.peer_received_packets + excluded.peer_received_packets, peer_received_bytes = u.peer_received_bytes + excluded.peer_received_bytes,
    peer_sent_packets = u.peer_sent_packets + excluded.peer_sent_packets, peer_sent_bytes = u.peer_sent_bytes + excluded.peer_sent_bytes,
    sessions_started = u.sessions_started + excluded.sessions_started, sessions_ended = u.sessions_ended + excluded.sessions_ended,
    session_microseconds = u.session_microseconds + excluded.session_microseconds, estimated_bytes = u.estimated_bytes + excluded.estimated_bytes
