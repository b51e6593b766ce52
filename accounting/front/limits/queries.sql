-- name: has_limits
-- Whether the usage of any realm is limited.
SELECT EXISTS (SELECT FROM accounting.limits);

-- name: limited_realms
-- The realms with limits.
SELECT r.realm_id, r.realm FROM accounting.realms r
WHERE EXISTS (SELECT FROM accounting.limits l WHERE l.realm_id = r.realm_id);

-- name: has_other_cells
-- Whether the cells are others than those whose usage was compared with the limits.
SELECT EXISTS (
    SELECT FROM accounting.cells c FULL JOIN accounting.limit_cells l USING (cell_id, joined_at)
    WHERE c.cell_id IS NULL OR l.cell_id IS NULL
);

-- name: waiting_limits
-- The realms whose limits wait.
SELECT realm_id FROM accounting.waiting_limits;

-- name: let_limits_wait
-- Sets the realms whose limits wait.
WITH others AS (
    DELETE FROM accounting.waiting_limits
    WHERE realm_id <> ALL (CAST(:realm_ids AS integer[]))
)
INSERT INTO accounting.waiting_limits
SELECT unnest(CAST(:realm_ids AS integer[])) ON CONFLICT DO NOTHING;

-- name: changed_hours
-- The hours of realms that changed in any cell since the limits were compared with them.
SELECT DISTINCT h.realm, h.starts_at
FROM cells.changed_hours h
JOIN accounting.cells c USING (cell)
JOIN accounting.limit_cells l USING (cell_id)
WHERE h.changed_at > (SELECT min(changed_until) FROM accounting.limit_cells)
    AND h.changed_at > l.changed_until;

-- name: last_changes
-- Reads when an hour changed last in each cell.
SELECT c.cell_id, c.joined_at, coalesce(h.changed_at, 'epoch') AS changed_until
FROM cells.last_change h JOIN accounting.cells c USING (cell);

-- name: store_last_changes
-- Stores up to which changes of the cells the limits are compared.
WITH now AS (
    SELECT * FROM unnest(
        CAST(:cell_ids AS smallint[]), CAST(:joined AS timestamptz[]),
        CAST(:changed AS timestamptz[])
    ) AS n (cell_id, joined_at, changed_until)
),
gone AS (
    DELETE FROM accounting.limit_cells WHERE cell_id NOT IN (SELECT cell_id FROM now)
)
INSERT INTO accounting.limit_cells AS l (cell_id, joined_at, changed_until)
SELECT cell_id, joined_at, changed_until FROM now
ON CONFLICT (cell_id) DO UPDATE SET
    joined_at = excluded.joined_at, changed_until = excluded.changed_until
WHERE (l.joined_at, l.changed_until) <> (excluded.joined_at, excluded.changed_until);

-- name: other_calendars
-- The cells that would put usage of these realms into other days, months or periods than the front.
SELECT DISTINCT realm, cell
FROM (
    SELECT r.realm, c.cell, l.holds_from, l.time_zone, l.anchor_day
    FROM accounting.realms r
    JOIN accounting.realm_rules l USING (realm_id)
    JOIN (
        SELECT DISTINCT realm, cell FROM cells.realm_rules
        WHERE realm = ANY (CAST(:realms AS text[]))
    ) c USING (realm)
) f
FULL JOIN (
    SELECT realm, cell, holds_from, time_zone, anchor_day FROM cells.realm_rules
    WHERE realm = ANY (CAST(:realms AS text[]))
) c USING (realm, cell, holds_from, time_zone, anchor_day)
WHERE f IS NULL OR c IS NULL
ORDER BY realm, cell;

-- name: hours_of_cells
-- The hours in which a realm has usage in any cell.
SELECT DISTINCT starts_at FROM cells.realm_usage_hourly
WHERE realm = :realm AND starts_at >= :since;

-- name: staged_limit_buckets
-- The staged buckets.
SELECT realm_id, per, starts_at, ends_at FROM staged_limit_buckets
ORDER BY realm_id, per, starts_at;

-- name: stage_candidates
-- Stages the users who may have reached a limit in a bucket.
INSERT INTO staged_limit_users
SELECT :realm_id, c, :starts_at
FROM accounting.limit_candidates(
    :realm_id, :per, CAST(:starts_at AS timestamptz), CAST(:ends_at AS timestamptz)
) c;

-- name: stage_one_user
-- Stages one user in the staged buckets.
INSERT INTO staged_limit_users
SELECT realm_id, CAST(:user_key AS uuid), starts_at FROM staged_limit_buckets;

-- name: stage_reached_states
-- Stages the users who have reached something in the staged buckets: they may have it no longer.
INSERT INTO staged_limit_users
SELECT s.realm_id, s.user_key, s.starts_at
FROM staged_limit_buckets b
JOIN accounting.limit_states s ON s.realm_id = b.realm_id AND s.starts_at = b.starts_at
WHERE s.cleared_at IS NULL AND s.user_key <> CAST(:realm_key AS uuid);

-- name: create_staged_cell_usage
-- Scratch table for the sums over all cells, by user and bucket.
CREATE TEMP TABLE IF NOT EXISTS staged_cell_usage (
    realm_id integer, user_key uuid, level text, starts_at timestamptz, counted_until timestamptz,
    received_bytes numeric, sent_bytes numeric, sessions_started numeric,
    session_microseconds numeric
) ON COMMIT DELETE ROWS;

-- name: staged_sums
-- The buckets of the staged checks that are to be summed, by length of the usage that they consist of.
SELECT DISTINCT c.realm_id, r.realm, c.level, c.starts_at, c.counted_until,
    c.user_key = CAST(:realm_key AS uuid) AS is_of_realm
FROM staged_limit_checks c JOIN accounting.realms r USING (realm_id)
WHERE c.counted_until > c.starts_at
ORDER BY c.realm_id, c.level, c.starts_at;

-- name: sum_users
-- Sums the usage of the users of the staged checks of a bucket over all cells.
INSERT INTO staged_cell_usage
SELECT :realm_id, u.user_key, :level, :starts_at, :counted_until,
    sum(u.received_bytes), sum(u.sent_bytes), sum(u.sessions_started), sum(u.session_microseconds)
FROM cells.limited_usage u
WHERE u.realm = :realm AND u.level = :level
    AND u.starts_at >= :starts_at AND u.starts_at < :counted_until
    AND u.user_key = ANY (ARRAY(
        SELECT DISTINCT c.user_key FROM staged_limit_checks c
        WHERE c.realm_id = :realm_id AND c.level = :level AND c.starts_at = :starts_at
            AND c.counted_until = :counted_until
    ))
GROUP BY u.user_key;

-- name: sum_realm
-- Sums the usage of a realm in a bucket over all cells.
INSERT INTO staged_cell_usage
SELECT :realm_id, CAST(:realm_key AS uuid), :level, :starts_at, :counted_until,
    sum(u.received_bytes), sum(u.sent_bytes), sum(u.sessions_started), sum(u.session_microseconds)
FROM cells.limited_realm_usage u
WHERE u.realm = :realm AND u.level = :level
    AND u.starts_at >= :starts_at AND u.starts_at < :counted_until;

-- name: count_staged_sums
-- Stages what is compared with limits, from the sums over all cells.
INSERT INTO staged_limit_usage
SELECT c.limit_id, c.realm_id, c.user_key, c.starts_at, c.ends_at, c.time_zone,
    accounting.limited_usage(l.measure, l.direction, coalesce(s.received_bytes, 0),
        coalesce(s.sent_bytes, 0), coalesce(s.sessions_started, 0),
        coalesce(s.session_microseconds, 0))
FROM staged_limit_checks c
LEFT JOIN staged_cell_usage s USING (realm_id, user_key, level, starts_at, counted_until)
JOIN accounting.limits l USING (limit_id);

-- name: clear_staged_limits
-- Deletes what is staged, so that more can be staged in the same transaction.
WITH users AS (DELETE FROM staged_limit_users),
buckets AS (DELETE FROM staged_limit_buckets),
checks AS (DELETE FROM staged_limit_checks),
usage AS (DELETE FROM staged_limit_usage)
DELETE FROM staged_cell_usage;

-- name: users_of_limits
-- The users without a name here whose staged usage reaches something.
SELECT DISTINCT g.user_key
FROM staged_limit_usage g
JOIN accounting.limits l USING (limit_id)
WHERE l.whom <> 'realm' AND g.usage * 100 >= CAST(l.amount AS numeric) * l.thresholds[1]
    AND NOT EXISTS (SELECT FROM accounting.users u WHERE u.user_key = g.user_key);

-- name: add_users_of_cells
-- Stores the names of users as the cells know them.
INSERT INTO accounting.users (user_key, realm_id, user_id, radacct_suffix)
SELECT n.user_key, n.realm_id, n.user_id,
    accounting.radacct_suffix(n.user_id, n.realm, n.named_in_radacct)
FROM (
    SELECT n.user_key, r.realm_id, r.realm, r.named_in_radacct,
        coalesce(max(n.user_id) FILTER (WHERE e.user_key IS NULL), '') AS user_id
    FROM cells.user_names n
    JOIN accounting.realms r USING (realm)
    LEFT JOIN accounting.erased_names e USING (cell, user_key)
    WHERE n.user_key = ANY (CAST(:user_keys AS uuid[]))
    GROUP BY n.user_key, r.realm_id, r.realm, r.named_in_radacct
) n
ON CONFLICT DO NOTHING;
