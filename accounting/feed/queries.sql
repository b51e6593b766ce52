-- name: number_feed
-- Moves the oldest events of the outbox into the feed, numbered on from its last, and wakes those
-- who wait for it. An event that was told before is told no second time. Only under the lock.
-- What is sorted is an id and a place; the rest goes from table to table.
WITH waiting AS (
    SELECT ctid AS place, outbox_id, event_id
    FROM accounting.feed_outbox ORDER BY outbox_id LIMIT :limit
),
fresh AS (
    SELECT DISTINCT ON (event_id) place, outbox_id FROM waiting w
    WHERE NOT EXISTS (SELECT FROM accounting.feed f WHERE f.event_id = w.event_id)
    ORDER BY event_id, outbox_id
),
numbered AS (
    SELECT place, row_number() OVER (ORDER BY outbox_id) AS number FROM fresh
),
told AS (
    INSERT INTO accounting.feed (
        seq, event_id,
        type, realm_id, payload, created_at, allocation_id, started_at, ended_at, received_packets,
        received_bytes, sent_packets, sent_bytes, peer_received_packets, peer_received_bytes,
        peer_sent_packets, peer_sent_bytes, session_id, user_key, number, database, source_id,
        start_known, total_reported, estimated, disputed, end_cause
    )
    SELECT
        (SELECT coalesce(max(seq), 0) FROM accounting.feed) + n.number, o.event_id,
        o.type, o.realm_id, o.payload, o.created_at, o.allocation_id, o.started_at, o.ended_at,
        o.received_packets, o.received_bytes, o.sent_packets, o.sent_bytes,
        o.peer_received_packets, o.peer_received_bytes, o.peer_sent_packets, o.peer_sent_bytes,
        o.session_id, o.user_key, o.number, o.database, o.source_id, o.start_known,
        o.total_reported, o.estimated, o.disputed, o.end_cause
    FROM numbered n JOIN accounting.feed_outbox o ON o.ctid = n.place
    RETURNING seq
),
taken AS (
    DELETE FROM accounting.feed_outbox WHERE ctid = ANY (ARRAY(SELECT place FROM waiting))
    RETURNING outbox_id
),
woken AS (
    SELECT pg_notify('accounting_feed', max(seq)::text) FROM told HAVING count(*) > 0
)
SELECT (SELECT count(*) FROM taken), (SELECT count(*) FROM woken);
