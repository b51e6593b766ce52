-- name: create_staged_limit_buckets
-- Scratch table for the buckets to be evaluated. level: whose usage has this length; folded_until: from
-- there on its users' usage is only in their hours.
CREATE TEMP TABLE IF NOT EXISTS staged_limit_buckets (
    limit_id integer, realm_id integer, whom text, user_key uuid, level text,
    starts_at timestamptz, ends_at timestamptz, time_zone text, folded_until timestamptz
) ON COMMIT DELETE ROWS;

-- name: create_staged_limit_checks
-- Scratch table for the users, or the realm, whose usage of a bucket is to be looked at. counted_until:
-- the end of the bucket, or its start where the bucket no longer exists.
CREATE TEMP TABLE IF NOT EXISTS staged_limit_checks (
    limit_id integer, user_key uuid, level text,
    starts_at timestamptz, ends_at timestamptz, time_zone text,
    counted_until timestamptz, folded_until timestamptz
) ON COMMIT DELETE ROWS;

-- name: create_staged_limit_usage
-- Scratch table for the usage of what is to be looked at, in the unit of its limit.
CREATE TEMP TABLE IF NOT EXISTS staged_limit_usage (
    limit_id integer, user_key uuid,
    starts_at timestamptz, ends_at timestamptz, time_zone text, usage numeric
) ON COMMIT DELETE ROWS;

-- name: read_limits
-- The limits of some realms, or of one.
SELECT limit_id, realm_id, whom, user_key, measure, direction, per, amount, thresholds, set_at
FROM accounting.limits
WHERE realm_id = ANY (CAST(:realm_ids AS integer[]))
    AND (CAST(:limit_id AS integer) IS NULL OR limit_id = :limit_id)
ORDER BY limit_id;

-- name: put_limit
-- Inserts a limit, or changes the one that limits the same. Nothing is returned where nothing changes.
INSERT INTO accounting.limits AS l (
    realm_id, whom, user_key, measure, direction, per, amount, thresholds, set_at
)
VALUES (
    :realm_id, :whom, :user_key, :measure, :direction, :per, :amount,
    CAST(:thresholds AS integer[]), accounting.database_now()
)
ON CONFLICT ON CONSTRAINT limit_is_set_once DO UPDATE SET
    amount = excluded.amount, thresholds = excluded.thresholds, set_at = excluded.set_at
WHERE (l.amount, l.thresholds) <> (excluded.amount, excluded.thresholds)
RETURNING limit_id;

-- name: find_limit
-- The number of the limit that limits the same.
SELECT limit_id FROM accounting.limits
WHERE realm_id = :realm_id AND whom = :whom AND measure = :measure AND direction = :direction
    AND per = :per AND user_key IS NOT DISTINCT FROM CAST(:user_key AS uuid);

-- name: delete_limit
-- Deletes a limit and its states; returns its realm.
WITH removed AS (
    DELETE FROM accounting.limits WHERE limit_id = :limit_id RETURNING limit_id, realm_id
), states AS (
    DELETE FROM accounting.limit_states s USING removed r WHERE s.limit_id = r.limit_id
)
SELECT realm_id FROM removed;

-- name: stage_all_users
-- Stages everyone who has usage in the staged buckets of one length, by :"usage".
INSERT INTO staged_limit_checks
SELECT DISTINCT b.limit_id, u.user_key, b.level, b.starts_at, b.ends_at, b.time_zone, b.ends_at,
    b.folded_until
FROM staged_limit_buckets b
JOIN accounting.:"usage" u
    ON u.realm_id = b.realm_id AND u.starts_at >= b.starts_at AND u.starts_at < b.ends_at
WHERE b.whom <> 'realm' AND b.level = :level
    AND (b.user_key IS NULL OR u.user_key = b.user_key);

-- name: stage_realms
-- Stages the realms of the staged buckets. Their key is zero.
INSERT INTO staged_limit_checks
SELECT limit_id, '00000000-0000-0000-0000-000000000000', level, starts_at, ends_at, time_zone,
    ends_at, folded_until
FROM staged_limit_buckets WHERE whom = 'realm';

-- name: stage_lost_states
-- Stages what is reached of limits in buckets that are not staged: they have no usage any more.
INSERT INTO staged_limit_checks
SELECT DISTINCT s.limit_id, s.user_key, 'hour', s.starts_at, s.ends_at, s.time_zone, s.starts_at,
    CAST('infinity' AS timestamptz)
FROM accounting.limit_states s
JOIN accounting.limits l USING (limit_id)
WHERE s.limit_id = ANY (CAST(:limit_ids AS integer[]))
    AND s.cleared_at IS NULL AND s.ends_at > l.set_at
    AND NOT EXISTS (
        SELECT FROM staged_limit_checks c
        WHERE c.limit_id = s.limit_id AND c.user_key = s.user_key AND c.starts_at = s.starts_at
    );

-- name: count_user_usage
-- Sums the usage of the staged users in their buckets of one length, by :"usage", and by the hours that
-- are not folded into it.
INSERT INTO staged_limit_usage
SELECT c.limit_id, c.user_key, c.starts_at, c.ends_at, c.time_zone,
    accounting.limited_usage(l.measure, l.direction, s.received_bytes, s.sent_bytes,
        s.sessions_started, s.session_microseconds)
FROM staged_limit_checks c
JOIN accounting.limits l USING (limit_id)
CROSS JOIN LATERAL (
    SELECT coalesce(sum(p.received_bytes), 0) AS received_bytes,
        coalesce(sum(p.sent_bytes), 0) AS sent_bytes,
        coalesce(sum(p.sessions_started), 0) AS sessions_started,
        coalesce(sum(p.session_microseconds), 0) AS session_microseconds
    FROM (
        SELECT u.received_bytes, u.sent_bytes, u.sessions_started, u.session_microseconds
        FROM accounting.:"usage" u
        WHERE u.user_key = c.user_key
            AND u.starts_at >= c.starts_at AND u.starts_at < c.counted_until
        UNION ALL
        SELECT h.received_bytes, h.sent_bytes, h.sessions_started, h.session_microseconds
        FROM accounting.user_usage_hourly h
        WHERE h.user_key = c.user_key AND h.starts_at >= greatest(c.starts_at, c.folded_until)
            AND h.starts_at < c.counted_until
    ) p
) s
WHERE l.whom <> 'realm' AND c.level = :level;

-- name: count_realm_usage
-- Sums the usage of the staged realms in their buckets of one length, by :"usage".
INSERT INTO staged_limit_usage
SELECT c.limit_id, c.user_key, c.starts_at, c.ends_at, c.time_zone,
    accounting.limited_usage(l.measure, l.direction, s.received_bytes, s.sent_bytes,
        s.sessions_started, s.session_microseconds)
FROM staged_limit_checks c
JOIN accounting.limits l USING (limit_id)
CROSS JOIN LATERAL (
    SELECT coalesce(sum(u.received_bytes), 0) AS received_bytes,
        coalesce(sum(u.sent_bytes), 0) AS sent_bytes,
        coalesce(sum(u.sessions_started), 0) AS sessions_started,
        coalesce(sum(u.session_microseconds), 0) AS session_microseconds
    FROM accounting.:"usage" u
    WHERE u.realm_id = l.realm_id
        AND u.starts_at >= c.starts_at AND u.starts_at < c.counted_until
) s
WHERE l.whom = 'realm' AND c.level = :level;

-- name: change_states
-- Records which thresholds the staged usage has reached that were not, and which it no longer reaches;
-- returns both. reached_amount: the amount at which the threshold was reached.
WITH bounds AS MATERIALIZED (
    SELECT l.limit_id, l.realm_id, t.threshold, l.amount,
        CAST(l.amount AS numeric) * t.threshold * 0.01 AS bound
    FROM accounting.limits l CROSS JOIN LATERAL unnest(l.thresholds) AS t (threshold)
    WHERE l.limit_id = ANY (CAST(:limit_ids AS integer[]))
),
reached AS MATERIALIZED (
    SELECT u.limit_id, b.realm_id, u.user_key, u.starts_at, b.threshold, u.ends_at, u.time_zone,
        b.amount, u.usage
    FROM staged_limit_usage u
    JOIN bounds b ON b.limit_id = u.limit_id AND u.usage >= b.bound
    WHERE NOT EXISTS (
        SELECT FROM accounting.limit_states s
        WHERE s.limit_id = u.limit_id AND s.user_key = u.user_key AND s.starts_at = u.starts_at
            AND s.threshold = b.threshold AND s.cleared_at IS NULL
    )
),
no_longer AS MATERIALIZED (
    SELECT s.limit_id, s.user_key, s.starts_at, s.threshold, u.usage
    FROM staged_limit_usage u
    JOIN accounting.limit_states s
        ON s.limit_id = u.limit_id AND s.user_key = u.user_key AND s.starts_at = u.starts_at
    WHERE s.cleared_at IS NULL AND NOT EXISTS (
        SELECT FROM bounds b
        WHERE b.limit_id = s.limit_id AND b.threshold = s.threshold AND u.usage >= b.bound
    )
),
inserted AS (
    INSERT INTO accounting.limit_states AS s (
        limit_id, realm_id, user_key, starts_at, threshold, ends_at, time_zone, amount, usage,
        reached_at, times_reached
    )
    SELECT limit_id, realm_id, user_key, starts_at, threshold, ends_at, time_zone, amount, usage,
        accounting.database_now(), 1
    FROM reached
    ON CONFLICT (limit_id, user_key, starts_at, threshold) DO UPDATE SET
        ends_at = excluded.ends_at, time_zone = excluded.time_zone, amount = excluded.amount,
        usage = excluded.usage, reached_at = excluded.reached_at, cleared_at = NULL,
        times_reached = s.times_reached + 1
    RETURNING limit_id, user_key, starts_at, threshold, ends_at, usage, amount, times_reached
),
cleared AS (
    UPDATE accounting.limit_states s SET cleared_at = accounting.database_now()
    FROM no_longer n
    WHERE s.limit_id = n.limit_id AND s.user_key = n.user_key AND s.starts_at = n.starts_at
        AND s.threshold = n.threshold
    RETURNING s.limit_id, s.user_key, s.starts_at, s.threshold, s.ends_at, n.usage, s.amount,
        s.times_reached
)
SELECT 'limit.reached' AS type, limit_id, user_key, starts_at, threshold, ends_at, usage,
    amount AS reached_amount, times_reached
FROM inserted
UNION ALL
SELECT 'limit.cleared', limit_id, user_key, starts_at, threshold, ends_at, usage, amount,
    times_reached
FROM cleared
ORDER BY limit_id, user_key, starts_at, threshold;
