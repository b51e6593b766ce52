-- Writes the staged lives: inserts those that began, replaces what changes of the others.
-- due_at is only ever brought forward here, so that most refreshes change no indexed column.
-- Nobody else writes sessions of this source meanwhile: MERGE need not wait for, nor lock, anybody.
MERGE INTO accounting.sessions e
USING staged_sessions s ON e.session_id = s.session_id AND e.user_key = s.user_key
WHEN MATCHED THEN UPDATE SET
    due_at = CASE WHEN e.ended_at IS NOT NULL OR s.due_at < e.due_at
        THEN s.due_at ELSE e.due_at END,
    last_seen_at = s.last_seen_at, expires_at = s.expires_at, lifetime_known = s.lifetime_known,
    ended_at = s.ended_at, end_cause = s.end_cause, standing = s.standing, vouched = s.vouched,
    transport = s.transport, client_address = s.client_address, server_address = s.server_address,
    received_packets = s.received_packets, received_bytes = s.received_bytes,
    sent_packets = s.sent_packets, sent_bytes = s.sent_bytes,
    peer_received_packets = s.peer_received_packets, peer_received_bytes = s.peer_received_bytes,
    peer_sent_packets = s.peer_sent_packets, peer_sent_bytes = s.peer_sent_bytes, news = s.news,
    deletes = s.deletes, client_totals = s.client_totals, peer_totals = s.peer_totals,
    client_total = coalesce(s.client_total, '{0,0,0,0}'),
    peer_total = coalesce(s.peer_total, '{0,0,0,0}'),
    estimated = s.estimated, disputed = s.disputed,
    ends = greatest(e.ends, s.ends), only_hour = s.only_hour
WHEN NOT MATCHED THEN INSERT (
    session_id, user_key, username_key, realm_id, source_id, database, allocation_id, started_at,
    last_seen_at, expires_at, due_at, start_known, lifetime_known, ended_at, end_cause, standing,
    vouched, transport, client_address, server_address, received_packets, received_bytes,
    sent_packets, sent_bytes, peer_received_packets, peer_received_bytes, peer_sent_packets,
    peer_sent_bytes, news, deletes, client_totals, peer_totals, client_total, peer_total,
    estimated, disputed, ends, only_hour
) VALUES (
    s.session_id, s.user_key, s.username_key, s.realm_id, s.source_id, s.database, s.allocation_id,
    s.started_at, s.last_seen_at, s.expires_at, s.due_at, s.start_known, s.lifetime_known,
    s.ended_at, s.end_cause, s.standing, s.vouched, s.transport, s.client_address,
    s.server_address, s.received_packets, s.received_bytes, s.sent_packets, s.sent_bytes,
    s.peer_received_packets, s.peer_received_bytes, s.peer_sent_packets, s.peer_sent_bytes, s.news,
    s.deletes, s.client_totals, s.peer_totals, coalesce(s.client_total, '{0,0,0,0}'),
    coalesce(s.peer_total, '{0,0,0,0}'), s.estimated, s.disputed, coalesce(s.ends, 0), s.only_hour
)
