-- A scratch table for lives of which only time and counters moved.
CREATE TEMP TABLE IF NOT EXISTS staged_moves (
    session_id uuid, user_key uuid, last_seen_at timestamptz, expires_at timestamptz, due_at timestamptz,
    received_packets bigint, received_bytes bigint, sent_packets bigint, sent_bytes bigint,
    peer_received_packets bigint, peer_received_bytes bigint, peer_sent_packets bigint, peer_sent_bytes bigint
) ON COMMIT DELETE ROWS
