-- Writes the staged lives: inserts those that began, replaces what changes of the others.
-- due_at is only ever brought forward here, so that most refreshes change no indexed column.
INSERT INTO accounting.sessions AS e (
    session_id, user_key, username_key, realm_id,
    source_id, database, allocation_id, started_at,
    last_seen_at, expires_at, due_at, start_known,
    lifetime_known, ended_at, end_cause, standing,
    vouched, transport, client_address, server_address,
    received_packets, received_bytes, sent_packets, sent_bytes,
    peer_received_packets, peer_received_bytes, peer_sent_packets, peer_sent_bytes,
    news, deletes, client_totals, peer_totals,
    client_total, peer_total, estimated, disputed, ends, only_hour
)
SELECT
    session_id, user_key, username_key, realm_id,
    source_id, database, allocation_id, started_at,
    last_seen_at, expires_at, due_at, start_known,
    lifetime_known, ended_at, end_cause, standing,
    vouched, transport, client_address, server_address,
    received_packets, received_bytes, sent_packets, sent_bytes,
    peer_received_packets, peer_received_bytes, peer_sent_packets, peer_sent_bytes,
    news, deletes, client_totals, peer_totals,
    client_total, peer_total, estimated, disputed, ends, only_hour
FROM staged_sessions
ON CONFLICT (session_id, user_key) DO UPDATE SET
    due_at = CASE WHEN e.ended_at IS NOT NULL OR excluded.due_at < e.due_at
        THEN excluded.due_at ELSE e.due_at END,
    last_seen_at = excluded.last_seen_at, expires_at = excluded.expires_at,
    lifetime_known = excluded.lifetime_known, ended_at = excluded.ended_at,
    end_cause = excluded.end_cause, standing = excluded.standing,
    vouched = excluded.vouched, transport = excluded.transport,
    client_address = excluded.client_address, server_address = excluded.server_address,
    received_packets = excluded.received_packets, received_bytes = excluded.received_bytes,
    sent_packets = excluded.sent_packets, sent_bytes = excluded.sent_bytes,
    peer_received_packets = excluded.peer_received_packets, peer_received_bytes = excluded.peer_received_bytes,
    peer_sent_packets = excluded.peer_sent_packets, peer_sent_bytes = excluded.peer_sent_bytes,
    news = excluded.news, deletes = excluded.deletes,
    client_totals = excluded.client_totals, peer_totals = excluded.peer_totals,
    client_total = excluded.client_total, peer_total = excluded.peer_total,
    estimated = excluded.estimated, disputed = excluded.disputed,
    ends = greatest(e.ends, excluded.ends), only_hour = excluded.only_hour
