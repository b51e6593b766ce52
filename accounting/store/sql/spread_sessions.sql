-- Gives the staged sessions rows for the only hour that they had so far, before they have another.
WITH spread AS (
    UPDATE accounting.sessions e SET only_hour = NULL
    FROM staged_spread s WHERE e.session_id = s.session_id AND e.only_hour IS NOT NULL
)
INSERT INTO accounting.session_usage (
    session_id, starts_at, user_key, realm_id, vouched, estimated, started, ended,
    active_from, active_to,
    received_packets, received_bytes, sent_packets, sent_bytes,
    peer_received_packets, peer_received_bytes, peer_sent_packets, peer_sent_bytes
)
SELECT
    session_id, only_hour, user_key, realm_id, vouched, estimated, true, ended_at IS NOT NULL,
    started_at, coalesce(ended_at, last_seen_at),
    received_packets, received_bytes, sent_packets, sent_bytes,
    peer_received_packets, peer_received_bytes, peer_sent_packets, peer_sent_bytes
FROM staged_spread JOIN accounting.sessions USING (session_id)
WHERE only_hour IS NOT NULL
