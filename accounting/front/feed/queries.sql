-- name: cells_to_forward
-- The cells by name; those whose feed could not be read are last, the one that waits longest first, and
-- not before the time of the next attempt.
SELECT cell, feed_failing_since IS NOT NULL AS is_failing FROM accounting.cells
WHERE feed_retry_at IS NULL OR feed_retry_at <= clock_timestamp()
ORDER BY feed_failing_since IS NOT NULL, feed_retry_at, cell;

-- name: common_position
-- Up to where the feed of a cell is forwarded, if the cell still has that; else the newest position that
-- it has.
SELECT number, seq, is_newest FROM accounting.common_position(:cell);

-- name: create_events_of_cell
-- The temporary table that read_events_of_cell fills.
CREATE TEMP TABLE IF NOT EXISTS events_of_cell (
    seq bigint, event_id uuid, type text, realm text, payload jsonb
) ON COMMIT DELETE ROWS;

-- name: read_events_of_cell
-- Reads the next events of a cell.
WITH events AS (
    INSERT INTO events_of_cell SELECT * FROM accounting.feed_of_cell(:cell, :seq, :limit)
    RETURNING seq
)
SELECT count(*) AS events, max(seq) AS last_seq FROM events;

-- name: missing_realms
-- The realms of these events that the front does not know.
SELECT DISTINCT e.realm FROM events_of_cell e
WHERE NOT EXISTS (SELECT FROM accounting.realms r WHERE r.realm = e.realm)
    AND NOT (e.realm = '' AND e.type IN ('source.trouble', 'webhook.disabled'));

-- name: take_up_realms_of_cell
-- Adds realms that one cell has.
INSERT INTO accounting.realms (realm, realm_bytes, client_addresses, named_in_radacct)
SELECT DISTINCT c.realm, c.realm_bytes, c.client_addresses,
    c.named_in_radacct OR EXISTS (SELECT FROM accounting.realms r WHERE NOT r.named_in_radacct)
FROM cells.realm_rules c WHERE c.cell = :cell AND c.realm = ANY (CAST(:realms AS text[]))
ON CONFLICT DO NOTHING;

-- name: take_up_rules_of_cell
-- Adds the rules that one cell has of realms that have none here.
INSERT INTO accounting.realm_rules (
    realm_id, holds_from, time_zone, anchor_day, grace_seconds, username_rule, separator
)
SELECT r.realm_id, c.holds_from, c.time_zone, c.anchor_day, c.grace_seconds, c.username_rule,
    c.separator
FROM cells.realm_rules c JOIN accounting.realms r USING (realm)
WHERE c.cell = :cell AND c.realm = ANY (CAST(:realms AS text[]))
    AND NOT EXISTS (SELECT FROM accounting.realm_rules l WHERE l.realm_id = r.realm_id);

-- name: missing_users
-- The users of these events that the front does not know, or knows without a name.
SELECT DISTINCT CAST(e.payload ->> 'user_key' AS uuid) FROM events_of_cell e
WHERE e.payload ->> 'user_key' IS NOT NULL AND NOT EXISTS (
    SELECT FROM accounting.users u
    WHERE u.user_key = CAST(e.payload ->> 'user_key' AS uuid) AND u.user_id <> '');

-- name: take_up_users_of_cell
-- Stores the names of users of one cell: endpoints of webhooks may bill by name.
WITH named AS (
    SELECT u.user_key, u.realm, CASE WHEN e.user_key IS NULL THEN u.user_id ELSE '' END AS user_id
    FROM cells.user_names u
    LEFT JOIN accounting.erased_names e ON e.cell = :cell AND e.user_key = u.user_key
    WHERE u.cell = :cell AND u.user_key = ANY (CAST(:user_keys AS uuid[]))
)
INSERT INTO accounting.users (user_key, realm_id, user_id, radacct_suffix)
SELECT u.user_key, r.realm_id, u.user_id,
    accounting.radacct_suffix(u.user_id, r.realm, r.named_in_radacct)
FROM named u JOIN accounting.realms r USING (realm)
ON CONFLICT (user_key) DO UPDATE SET
    user_id = excluded.user_id, radacct_suffix = excluded.radacct_suffix
WHERE users.user_id = '' AND excluded.user_id <> '';

-- name: forward_events
-- Enqueues the events that were read of a cell, in their order. The id is a function of that in the
-- cell and of its database: two cells may count the same of a user's hour. Not what the front posts
-- itself. created_at is that of the front: its feed is nearly in the order of that.
INSERT INTO accounting.feed_outbox (event_id, type, realm_id, payload)
SELECT accounting.event_id('event of a cell', n.database_id || ' ' || e.event_id), e.type,
    CASE WHEN e.realm <> '' OR e.type NOT IN ('source.trouble', 'webhook.disabled')
        THEN r.realm_id END,
    e.payload || jsonb_build_object('cell', n.cell)
FROM events_of_cell e
JOIN accounting.cells n ON n.cell = :cell
LEFT JOIN accounting.realms r USING (realm)
WHERE e.type NOT IN ('period.closed', 'adjustment.posted')
ORDER BY e.seq;

-- name: record_closings
-- Records the periods that the cell closed, among the events that were read.
INSERT INTO accounting.forwarded_closings AS f (database_id, realm, period, seq)
SELECT n.database_id, e.payload ->> 'realm', CAST(e.payload ->> 'period' AS date), max(e.seq)
FROM events_of_cell e JOIN accounting.cells n ON n.cell = :cell
WHERE e.type = 'period.closed'
GROUP BY 1, 2, 3
ON CONFLICT ON CONSTRAINT forwarded_closings_pkey DO UPDATE SET seq = excluded.seq;

-- name: forget_positions
-- Forgets what a restored cell has no more.
DELETE FROM accounting.feed_positions p USING accounting.cells n
WHERE n.cell = :cell AND p.database_id = n.database_id AND p.number > :number;

-- name: forget_closings
-- Forgets the closed periods that a restored cell has not closed yet.
DELETE FROM accounting.forwarded_closings f USING accounting.cells n
WHERE n.cell = :cell AND f.database_id = n.database_id AND f.seq > :seq;

-- name: write_position
-- Moves the cursor of a cell, and keeps the position that it had.
INSERT INTO accounting.feed_positions (database_id, number, seq, history)
SELECT n.database_id, :number, :seq, accounting.feed_history_of_cell(n.cell, :seq)
FROM accounting.cells n WHERE n.cell = :cell;

-- name: thin_positions
-- Deletes positions, so that about 64 are left of those that are between n and 2n steps old: after a
-- restore, a thirtieth more than what the cell lost is read again at the most.
DELETE FROM accounting.feed_positions p USING accounting.cells n
WHERE n.cell = :cell AND p.database_id = n.database_id
    AND (p.number & -p.number) * 64 < :number - p.number;

-- name: record_readable
-- Records that a cell's feed can be read; a row if it could not before.
UPDATE accounting.cells SET feed_failing_since = NULL, feed_retry_at = NULL, feed_error = NULL
WHERE cell = :cell AND feed_failing_since IS NOT NULL RETURNING cell;

-- name: record_unreadable
-- Records why a cell's feed can't be read, and when it is tried again; returns what was recorded before.
WITH before AS (SELECT feed_error FROM accounting.cells WHERE cell = :cell)
UPDATE accounting.cells SET feed_failing_since = coalesce(feed_failing_since, clock_timestamp()),
    feed_retry_at = clock_timestamp() + make_interval(secs => :pause_seconds), feed_error = :error
WHERE cell = :cell RETURNING (SELECT before.feed_error FROM before);
