-- Users of a closed period whose line and adjustments for late usage are not the sum of its hours.
-- The hours are those recomputed from the reports.
SELECT user_key, CAST(ARRAY[
    coalesce(sum(received_packets) FILTER (WHERE billed), 0),
    coalesce(sum(received_bytes) FILTER (WHERE billed), 0),
    coalesce(sum(sent_packets) FILTER (WHERE billed), 0),
    coalesce(sum(sent_bytes) FILTER (WHERE billed), 0),
    coalesce(sum(peer_received_packets) FILTER (WHERE billed), 0),
    coalesce(sum(peer_received_bytes) FILTER (WHERE billed), 0),
    coalesce(sum(peer_sent_packets) FILTER (WHERE billed), 0),
    coalesce(sum(peer_sent_bytes) FILTER (WHERE billed), 0),
    coalesce(sum(session_microseconds) FILTER (WHERE billed), 0)
] AS numeric[]) AS booked, CAST(ARRAY[
    coalesce(sum(received_packets) FILTER (WHERE NOT billed), 0),
    coalesce(sum(received_bytes) FILTER (WHERE NOT billed), 0),
    coalesce(sum(sent_packets) FILTER (WHERE NOT billed), 0),
    coalesce(sum(sent_bytes) FILTER (WHERE NOT billed), 0),
    coalesce(sum(peer_received_packets) FILTER (WHERE NOT billed), 0),
    coalesce(sum(peer_received_bytes) FILTER (WHERE NOT billed), 0),
    coalesce(sum(peer_sent_packets) FILTER (WHERE NOT billed), 0),
    coalesce(sum(peer_sent_bytes) FILTER (WHERE NOT billed), 0),
    coalesce(sum(session_microseconds) FILTER (WHERE NOT billed), 0)
] AS numeric[]) AS proved
FROM (
    SELECT true AS billed, user_key,
        received_packets, received_bytes, sent_packets, sent_bytes,
        peer_received_packets, peer_received_bytes, peer_sent_packets, peer_sent_bytes,
        session_microseconds
    FROM accounting.statements WHERE realm_id = :realm_id AND period = :period
    UNION ALL
    SELECT true, user_key,
        received_packets, received_bytes, sent_packets, sent_bytes,
        peer_received_packets, peer_received_bytes, peer_sent_packets, peer_sent_bytes,
        session_microseconds
    FROM accounting.adjustments
    WHERE realm_id = :realm_id AND period = :period AND NOT manual
    UNION ALL
    SELECT false, user_key,
        received_packets, received_bytes, sent_packets, sent_bytes,
        peer_received_packets, peer_received_bytes, peer_sent_packets, peer_sent_bytes,
        session_microseconds
    FROM proof_user_usage_hourly
    WHERE realm_id = :realm_id AND starts_at >= :starts_at AND starts_at < :ends_at
) lines
GROUP BY user_key
HAVING coalesce(sum(CASE WHEN billed THEN received_packets ELSE -received_packets END), 0) <> 0
    OR coalesce(sum(CASE WHEN billed THEN received_bytes ELSE -received_bytes END), 0) <> 0
    OR coalesce(sum(CASE WHEN billed THEN sent_packets ELSE -sent_packets END), 0) <> 0
    OR coalesce(sum(CASE WHEN billed THEN sent_bytes ELSE -sent_bytes END), 0) <> 0
    OR coalesce(sum(CASE WHEN billed THEN peer_received_packets ELSE -peer_received_packets END), 0) <> 0
    OR coalesce(sum(CASE WHEN billed THEN peer_received_bytes ELSE -peer_received_bytes END), 0) <> 0
    OR coalesce(sum(CASE WHEN billed THEN peer_sent_packets ELSE -peer_sent_packets END), 0) <> 0
    OR coalesce(sum(CASE WHEN billed THEN peer_sent_bytes ELSE -peer_sent_bytes END), 0) <> 0
    OR coalesce(sum(CASE WHEN billed THEN session_microseconds ELSE -session_microseconds END), 0) <> 0
ORDER BY user_key
