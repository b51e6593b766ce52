-- Realms' months: the sums of their hours within each, and the highest of their peaks.
INSERT INTO proof_realm_usage_monthly (
    realm_id, starts_at,
    received_packets, received_bytes, sent_packets, sent_bytes,
    peer_received_packets, peer_received_bytes, peer_sent_packets, peer_sent_bytes,
    sessions_started, sessions_ended, session_microseconds, estimated_bytes, peak_sessions
)
SELECT u.realm_id, h.month_starts_at,
    sum(u.received_packets), sum(u.received_bytes), sum(u.sent_packets), sum(u.sent_bytes),
    sum(u.peer_received_packets), sum(u.peer_received_bytes), sum(u.peer_sent_packets), sum(u.peer_sent_bytes),
    sum(u.sessions_started), sum(u.sessions_ended), sum(u.session_microseconds), sum(u.estimated_bytes), max(u.peak_sessions)
FROM proof_realm_usage_hourly u
JOIN proof_hours h USING (realm_id, starts_at)
GROUP BY u.realm_id, h.month_starts_at
