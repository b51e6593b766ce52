-- Moves the oldest events of the outbox into the feed, numbered on from its last, and wakes those
-- who wait for it. An event that was told before is told no second time. Only under the lock.
WITH taken AS (
    DELETE FROM accounting.feed_outbox
    WHERE outbox_id IN (
        SELECT outbox_id FROM accounting.feed_outbox ORDER BY outbox_id LIMIT :limit
    )
    RETURNING outbox_id, event_id, type, realm_id, payload, created_at
),
fresh AS (
    SELECT DISTINCT ON (event_id) * FROM taken t
    WHERE NOT EXISTS (SELECT FROM accounting.feed f WHERE f.event_id = t.event_id)
    ORDER BY event_id, outbox_id
),
told AS (
    INSERT INTO accounting.feed (seq, event_id, type, realm_id, payload, created_at)
    SELECT
        (SELECT coalesce(max(seq), 0) FROM accounting.feed) + row_number() OVER (ORDER BY outbox_id),
        event_id, type, realm_id, payload, created_at
    FROM fresh
    RETURNING seq
),
woken AS (
    SELECT pg_notify('accounting_feed', max(seq)::text) FROM told HAVING count(*) > 0
)
SELECT (SELECT count(*) FROM taken), (SELECT count(*) FROM woken)
