-- Posts what the staged users' hours in closed periods hold more, or less, than their statement and
-- the usage adjustments so far. Nothing where nothing differs: run twice, it is posted once.
INSERT INTO accounting.adjustments (
    adjustment_id, user_key, realm_id, period, posted_in,
    received_packets, received_bytes, sent_packets, sent_bytes,
    peer_received_packets, peer_received_bytes, peer_sent_packets, peer_sent_bytes,
    session_microseconds,
    reason, author, manual
)
SELECT gen_random_uuid(), m.user_key, m.realm_id, m.period, o.period,
    h.received_packets - coalesce(l.received_packets, 0) - a.received_packets,
    h.received_bytes - coalesce(l.received_bytes, 0) - a.received_bytes,
    h.sent_packets - coalesce(l.sent_packets, 0) - a.sent_packets,
    h.sent_bytes - coalesce(l.sent_bytes, 0) - a.sent_bytes,
    h.peer_received_packets - coalesce(l.peer_received_packets, 0) - a.peer_received_packets,
    h.peer_received_bytes - coalesce(l.peer_received_bytes, 0) - a.peer_received_bytes,
    h.peer_sent_packets - coalesce(l.peer_sent_packets, 0) - a.peer_sent_packets,
    h.peer_sent_bytes - coalesce(l.peer_sent_bytes, 0) - a.peer_sent_bytes,
    h.session_microseconds - coalesce(l.session_microseconds, 0) - a.session_microseconds,
    'late usage', 'turn-accounting', false
FROM staged_touched_periods m
JOIN accounting.periods p ON p.realm_id = m.realm_id AND p.period = m.period
CROSS JOIN LATERAL (
    SELECT b.period FROM accounting.periods b
    WHERE b.realm_id = p.realm_id AND b.starts_at > p.starts_at AND b.closed_at IS NULL
    ORDER BY b.starts_at LIMIT 1
) o
CROSS JOIN LATERAL (
    SELECT coalesce(sum(received_packets), 0) AS received_packets, coalesce(sum(received_bytes), 0) AS received_bytes,
        coalesce(sum(sent_packets), 0) AS sent_packets, coalesce(sum(sent_bytes), 0) AS sent_bytes,
        coalesce(sum(peer_received_packets), 0) AS peer_received_packets, coalesce(sum(peer_received_bytes), 0) AS peer_received_bytes,
        coalesce(sum(peer_sent_packets), 0) AS peer_sent_packets, coalesce(sum(peer_sent_bytes), 0) AS peer_sent_bytes,
        coalesce(sum(session_microseconds), 0) AS session_microseconds
    FROM accounting.user_usage_hourly
    WHERE user_key = m.user_key AND starts_at >= p.starts_at AND starts_at < p.ends_at
) h
LEFT JOIN accounting.statements l
    ON l.user_key = m.user_key AND l.realm_id = m.realm_id AND l.period = m.period
CROSS JOIN LATERAL (
    SELECT coalesce(sum(received_packets), 0) AS received_packets, coalesce(sum(received_bytes), 0) AS received_bytes,
        coalesce(sum(sent_packets), 0) AS sent_packets, coalesce(sum(sent_bytes), 0) AS sent_bytes,
        coalesce(sum(peer_received_packets), 0) AS peer_received_packets, coalesce(sum(peer_received_bytes), 0) AS peer_received_bytes,
        coalesce(sum(peer_sent_packets), 0) AS peer_sent_packets, coalesce(sum(peer_sent_bytes), 0) AS peer_sent_bytes,
        coalesce(sum(session_microseconds), 0) AS session_microseconds
    FROM accounting.adjustments
    WHERE realm_id = m.realm_id AND period = m.period AND user_key = m.user_key AND NOT manual
) a
WHERE (h.received_packets, h.received_bytes, h.sent_packets, h.sent_bytes, h.peer_received_packets,
    h.peer_received_bytes, h.peer_sent_packets, h.peer_sent_bytes, h.session_microseconds) IS DISTINCT FROM (
    coalesce(l.received_packets, 0) + a.received_packets, coalesce(l.received_bytes, 0) + a.received_bytes,
    coalesce(l.sent_packets, 0) + a.sent_packets, coalesce(l.sent_bytes, 0) + a.sent_bytes,
    coalesce(l.peer_received_packets, 0) + a.peer_received_packets, coalesce(l.peer_received_bytes, 0) + a.peer_received_bytes,
    coalesce(l.peer_sent_packets, 0) + a.peer_sent_packets, coalesce(l.peer_sent_bytes, 0) + a.peer_sent_bytes,
    coalesce(l.session_microseconds, 0) + a.session_microseconds)
RETURNING adjustment_id
