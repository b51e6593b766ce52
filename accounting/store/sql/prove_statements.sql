-- A closed period's lines beside what the staged hours up to its cutoff come to; for each user.
SELECT coalesce(l.user_key, u.user_key) AS user_key, l.digest,
    CASE WHEN l.user_key IS NOT NULL THEN CAST(ARRAY[
        l.received_packets, l.received_bytes, l.sent_packets, l.sent_bytes,
        l.peer_received_packets, l.peer_received_bytes, l.peer_sent_packets, l.peer_sent_bytes,
        l.sessions_started, l.sessions_ended, l.session_microseconds, l.estimated_bytes
    ] AS numeric[]) END AS booked,
    CASE WHEN u.user_key IS NOT NULL THEN CAST(ARRAY[
        u.received_packets, u.received_bytes, u.sent_packets, u.sent_bytes,
        u.peer_received_packets, u.peer_received_bytes, u.peer_sent_packets, u.peer_sent_bytes,
        u.sessions_started, u.sessions_ended, u.session_microseconds, u.estimated_bytes
    ] AS numeric[]) END AS proved
FROM (
    SELECT * FROM accounting.statements WHERE realm_id = :realm_id AND period = :period
) l
FULL JOIN (
    SELECT user_key,
        sum(received_packets) AS received_packets, sum(received_bytes) AS received_bytes,
        sum(sent_packets) AS sent_packets, sum(sent_bytes) AS sent_bytes,
        sum(peer_received_packets) AS peer_received_packets, sum(peer_received_bytes) AS peer_received_bytes,
        sum(peer_sent_packets) AS peer_sent_packets, sum(peer_sent_bytes) AS peer_sent_bytes,
        count(*) FILTER (WHERE started) AS sessions_started,
        count(*) FILTER (WHERE ended) AS sessions_ended,
        sum(round(extract(epoch FROM active_to - active_from) * 1000000)) AS session_microseconds,
        coalesce(sum(received_bytes + sent_bytes) FILTER (WHERE estimated), 0) AS estimated_bytes
    FROM proof_period_usage
    WHERE vouched AND realm_id = :realm_id AND starts_at >= :starts_at AND starts_at < :ends_at
    GROUP BY user_key
) u ON u.user_key = l.user_key
ORDER BY 1
