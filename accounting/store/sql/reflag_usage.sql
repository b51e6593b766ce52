-- Carries what a session is (vouched for, estimated) to all its hours, and marks what that changes.
-- The only hour of one that lives within it is written with the session itself, after this.
WITH before AS (
    SELECT h.*, f.vouched AS is_vouched, f.estimated AS is_estimated,
        f.vouched::integer - h.vouched::integer AS sign,
        (f.vouched AND f.estimated)::integer - (h.vouched AND h.estimated)::integer AS estimated_sign
    FROM staged_flags f
    CROSS JOIN LATERAL (  -- OFFSET 0: along the keys, session by session
        SELECT * FROM accounting.session_hours h WHERE h.session_id = f.session_id OFFSET 0
    ) h
    WHERE (h.vouched, h.estimated) IS DISTINCT FROM (f.vouched, f.estimated)
),
changed AS (
    UPDATE accounting.session_usage h
    SET vouched = b.is_vouched, estimated = b.is_estimated
    FROM before b
    WHERE h.session_id = b.session_id AND h.starts_at = b.starts_at AND h.user_key = b.user_key
)
INSERT INTO accounting.touched_hours (
    realm_id, user_key, starts_at,
    received_packets, received_bytes, sent_packets, sent_bytes,
    peer_received_packets, peer_received_bytes, peer_sent_packets, peer_sent_bytes,
    sessions_started, sessions_ended, session_microseconds, estimated_bytes,
    sessions_carried
)
SELECT realm_id, user_key, starts_at,
    sign * received_packets, sign * received_bytes, sign * sent_packets, sign * sent_bytes,
    sign * peer_received_packets, sign * peer_received_bytes, sign * peer_sent_packets, sign * peer_sent_bytes,
    sign * started::integer, sign * ended::integer,
    sign * round(extract(epoch FROM active_to - active_from) * 1000000),
    estimated_sign * (received_bytes + sent_bytes),
    sign * (NOT started AND active_to > active_from)::integer
FROM before
WHERE sign <> 0 OR estimated_sign <> 0
