-- Takes marks of touched hours: at most :limit of them, removed here and added up by user and hour.
WITH taken AS (
    DELETE FROM accounting.touched_hours
    WHERE ctid = ANY (ARRAY(SELECT ctid FROM accounting.touched_hours LIMIT :limit))
    RETURNING *
)
INSERT INTO staged_touched (
    realm_id, user_key, starts_at,
    received_packets, received_bytes, sent_packets, sent_bytes,
    peer_received_packets, peer_received_bytes, peer_sent_packets, peer_sent_bytes,
    sessions_started, sessions_ended, session_microseconds, estimated_bytes,
    sessions_carried
)
SELECT realm_id, user_key, starts_at,
    sum(received_packets), sum(received_bytes), sum(sent_packets), sum(sent_bytes),
    sum(peer_received_packets), sum(peer_received_bytes), sum(peer_sent_packets), sum(peer_sent_bytes),
    sum(sessions_started), sum(sessions_ended), sum(session_microseconds), sum(estimated_bytes),
    sum(sessions_carried)
FROM taken
GROUP BY realm_id, user_key, starts_at
