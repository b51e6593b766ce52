-- name: enqueue_events
-- Enqueues events in order, in one statement: a limit of every user may be reached by all at once.
INSERT INTO accounting.feed_outbox (event_id, type, realm_id, payload)
SELECT accounting.event_id(e.type, e.unique_key), e.type, e.realm_id, e.payload::jsonb
FROM unnest(
    CAST(:types AS text[]), CAST(:realm_ids AS integer[]), CAST(:payloads AS text[]),
    CAST(:keys AS text[])
) WITH ORDINALITY AS e (type, realm_id, payload, unique_key, place)
ORDER BY e.place;

-- name: number_events
-- Moves the oldest events of the outbox into the feed, numbered on from its last event. Drops an
-- event whose id is in the feed already. Needs the lock "feed". Sorts only row ids, so that payloads
-- are copied once. The batch's history is a hash of that of the batch before and of the new event
-- ids in order.
WITH oldest AS (
    SELECT ctid AS row_id, outbox_id, event_id
    FROM accounting.feed_outbox ORDER BY outbox_id LIMIT :limit
),
new_events AS (
    SELECT DISTINCT ON (event_id) row_id, outbox_id FROM oldest o
    WHERE NOT EXISTS (SELECT FROM accounting.feed f WHERE f.event_id = o.event_id)
    ORDER BY event_id, outbox_id
),
numbered AS (
    SELECT row_id, row_number() OVER (ORDER BY outbox_id) AS number FROM new_events
),
published AS (
    INSERT INTO accounting.feed (
        seq, event_id,
        type, realm_id, payload, created_at, allocation_id, started_at, ended_at, received_packets,
        received_bytes, sent_packets, sent_bytes, peer_received_packets, peer_received_bytes,
        peer_sent_packets, peer_sent_bytes, session_id, user_key, number, database, source_id,
        start_known, total_reported, estimated, disputed, end_cause, sessions_started, sessions_ended,
        session_microseconds, estimated_bytes, is_correction
    )
    SELECT
        (SELECT coalesce(max(seq), 0) FROM accounting.feed) + n.number, o.event_id,
        o.type, o.realm_id, o.payload, o.created_at, o.allocation_id, o.started_at, o.ended_at,
        o.received_packets, o.received_bytes, o.sent_packets, o.sent_bytes,
        o.peer_received_packets, o.peer_received_bytes, o.peer_sent_packets, o.peer_sent_bytes,
        o.session_id, o.user_key, o.number, o.database, o.source_id, o.start_known,
        o.total_reported, o.estimated, o.disputed, o.end_cause,
        o.sessions_started, o.sessions_ended, o.session_microseconds, o.estimated_bytes,
        o.is_correction
    FROM numbered n JOIN accounting.feed_outbox o ON o.ctid = n.row_id
    RETURNING seq, event_id
),
batch AS (
    INSERT INTO accounting.feed_batches (last_seq, history)
    SELECT max(seq), encode(substring(sha256(coalesce(
        (SELECT uuid_send(history) FROM accounting.feed_batches ORDER BY last_seq DESC LIMIT 1), ''
    ) || string_agg(uuid_send(event_id), '' ORDER BY seq)) FOR 16), 'hex')::uuid
    FROM published HAVING count(*) > 0
),
dequeued AS (
    DELETE FROM accounting.feed_outbox WHERE ctid = ANY (ARRAY(SELECT row_id FROM oldest))
    RETURNING outbox_id
)
SELECT (SELECT count(*) FROM dequeued) AS dequeued, (SELECT max(seq) FROM published) AS last_seq;

-- name: notify_consumers
-- Wakes the consumers that wait for events up to this number.
SELECT pg_notify('accounting_feed', :last_seq);
