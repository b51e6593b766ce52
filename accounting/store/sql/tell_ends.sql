-- Tells the feed of the staged lives that ended, or whose end or sums are others than were told.
-- Before they are written: the stored row is what was told last.
WITH ended AS (
    UPDATE staged_sessions s SET ends = 1 + coalesce((
        SELECT e.ends FROM accounting.sessions e
        WHERE e.session_id = s.session_id AND e.user_key = s.user_key
    ), 0)
    WHERE s.ended_at IS NOT NULL AND s.vouched AND NOT EXISTS (
        SELECT FROM accounting.sessions e
        WHERE e.session_id = s.session_id AND e.user_key = s.user_key AND e.ends > 0 AND e.vouched
            AND (
                e.ended_at, e.end_cause, e.client_totals > 0, e.estimated, e.disputed,
                e.received_packets, e.received_bytes, e.sent_packets, e.sent_bytes,
                e.peer_received_packets, e.peer_received_bytes, e.peer_sent_packets, e.peer_sent_bytes
            ) IS NOT DISTINCT FROM (
                s.ended_at, s.end_cause, s.client_totals > 0, s.estimated, s.disputed,
                s.received_packets, s.received_bytes, s.sent_packets, s.sent_bytes,
                s.peer_received_packets, s.peer_received_bytes, s.peer_sent_packets, s.peer_sent_bytes
            )
    )
    RETURNING s.*
)
INSERT INTO accounting.feed_outbox (event_id, type, realm_id, payload)
SELECT
    accounting.event_id('session.ended', s.session_id || ' ' || s.ends),
    'session.ended',
    s.realm_id,
    jsonb_build_object(
        'session_id', s.session_id, 'number', s.ends, 'user_key', s.user_key,
        'source', o.source, 'database', s.database,
        'allocation_id', lpad(s.allocation_id::text, 18, '0'),
        'started_at', accounting.iso_time(s.started_at), 'start_known', s.start_known,
        'ended_at', accounting.iso_time(s.ended_at), 'end_cause', s.end_cause,
        'received_packets', s.received_packets, 'received_bytes', s.received_bytes,
        'sent_packets', s.sent_packets, 'sent_bytes', s.sent_bytes,
        'peer_received_packets', s.peer_received_packets,
        'peer_received_bytes', s.peer_received_bytes,
        'peer_sent_packets', s.peer_sent_packets, 'peer_sent_bytes', s.peer_sent_bytes,
        'total_reported', s.client_totals > 0,
        'estimated', s.estimated, 'disputed', s.disputed
    )
FROM ended s JOIN accounting.sources o USING (source_id)
ORDER BY s.ended_at, s.session_id
