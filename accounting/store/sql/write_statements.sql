-- Writes the lines of a closing period: the sums of its hours, each with the digest over realm,
-- period, user_key, all numbers and the cutoff, as model.statements.digest() computes it.
INSERT INTO accounting.statements (
    user_key, realm_id, period,
    received_packets, received_bytes, sent_packets, sent_bytes,
    peer_received_packets, peer_received_bytes, peer_sent_packets, peer_sent_bytes,
    sessions_started, sessions_ended, session_microseconds, estimated_bytes, digest
)
SELECT u.user_key, u.realm_id, u.period,
    u.received_packets, u.received_bytes, u.sent_packets, u.sent_bytes,
    u.peer_received_packets, u.peer_received_bytes, u.peer_sent_packets, u.peer_sent_bytes,
    u.sessions_started, u.sessions_ended, u.session_microseconds, u.estimated_bytes,
    encode(sha256(convert_to(concat_ws(chr(10), to_char(u.period, 'YYYY-MM-DD'), u.user_key,
        u.received_packets, u.received_bytes, u.sent_packets, u.sent_bytes,
        u.peer_received_packets, u.peer_received_bytes, u.peer_sent_packets, u.peer_sent_bytes,
        u.sessions_started, u.sessions_ended, u.session_microseconds, u.estimated_bytes,
        CAST(:cutoff AS text), r.realm), 'UTF8')), 'hex')
FROM (
    SELECT h.user_key, p.realm_id, p.period,
        sum(h.received_packets)::bigint AS received_packets, sum(h.received_bytes)::bigint AS received_bytes,
        sum(h.sent_packets)::bigint AS sent_packets, sum(h.sent_bytes)::bigint AS sent_bytes,
        sum(h.peer_received_packets)::bigint AS peer_received_packets, sum(h.peer_received_bytes)::bigint AS peer_received_bytes,
        sum(h.peer_sent_packets)::bigint AS peer_sent_packets, sum(h.peer_sent_bytes)::bigint AS peer_sent_bytes,
        sum(h.sessions_started)::bigint AS sessions_started, sum(h.sessions_ended)::bigint AS sessions_ended,
        round(sum(h.session_microseconds)) AS session_microseconds, sum(h.estimated_bytes)::bigint AS estimated_bytes
    FROM accounting.periods p
    JOIN accounting.user_usage_hourly h
        ON h.realm_id = p.realm_id AND h.starts_at >= p.starts_at AND h.starts_at < p.ends_at
    WHERE p.realm_id = :realm_id AND p.period = :period
    GROUP BY h.user_key, p.realm_id, p.period
) u
JOIN accounting.realms r USING (realm_id)
