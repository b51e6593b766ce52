-- Replaces the touched hours of realms by the sums of their users' hours. The peak is counted along
-- the sessions' begins and ends: half-open, ends before starts; a live one lasts to the hour's end.
WITH spans AS (
    SELECT h.realm_id, h.starts_at, h.active_from,
        CASE WHEN h.ended THEN h.active_to ELSE t.ends_at END AS active_to, t.ends_at
    FROM staged_hours t
    JOIN accounting.session_usage h USING (realm_id, starts_at)
    -- An empty span that neither starts nor ends here only holds a late total.
    WHERE h.vouched AND (h.active_to > h.active_from OR (h.started AND NOT h.ended))
), steps AS (
    SELECT realm_id, starts_at, active_from AS at, 1 AS step FROM spans WHERE active_to > active_from
    UNION ALL
    SELECT realm_id, starts_at, active_to, -1 FROM spans
    WHERE active_to > active_from AND active_to < ends_at
), counts AS (
    SELECT realm_id, starts_at, sum(step) OVER (
        PARTITION BY realm_id, starts_at ORDER BY at, step ROWS UNBOUNDED PRECEDING
    ) AS alive
    FROM steps
), peaks AS (
    SELECT realm_id, starts_at, max(alive) AS peak_sessions FROM counts GROUP BY realm_id, starts_at
)
INSERT INTO accounting.realm_usage_hourly (
    realm_id, starts_at, received_packets, received_bytes,
    sent_packets, sent_bytes, peer_received_packets, peer_received_bytes,
    peer_sent_packets, peer_sent_bytes, sessions_started, sessions_ended,
    session_microseconds, estimated_bytes, peak_sessions
)
SELECT u.realm_id, u.starts_at,
    sum(u.received_packets), sum(u.received_bytes), sum(u.sent_packets), sum(u.sent_bytes),
    sum(u.peer_received_packets), sum(u.peer_received_bytes), sum(u.peer_sent_packets), sum(u.peer_sent_bytes),
    sum(u.sessions_started), sum(u.sessions_ended), sum(u.session_microseconds), sum(u.estimated_bytes),
    coalesce(max(p.peak_sessions), 0)
FROM staged_hours t
JOIN accounting.user_usage_hourly u USING (realm_id, starts_at)
LEFT JOIN peaks p USING (realm_id, starts_at)
GROUP BY u.realm_id, u.starts_at
ON CONFLICT (realm_id, starts_at) DO UPDATE SET
    received_packets = excluded.received_packets, received_bytes = excluded.received_bytes,
    sent_packets = excluded.sent_packets, sent_bytes = excluded.sent_bytes,
    peer_received_packets = excluded.peer_received_packets, peer_received_bytes = excluded.peer_received_bytes,
    peer_sent_packets = excluded.peer_sent_packets, peer_sent_bytes = excluded.peer_sent_bytes,
    sessions_started = excluded.sessions_started, sessions_ended = excluded.sessions_ended,
    session_microseconds = excluded.session_microseconds, estimated_bytes = excluded.estimated_bytes,
    peak_sessions = excluded.peak_sessions
