-- name: create_staged_limit_realms
-- Scratch table for the realms whose users have limits, with their last hour, and the weights of the
-- scores of that hour.
CREATE TEMP TABLE IF NOT EXISTS staged_limit_realms (
    realm_id integer PRIMARY KEY, last_hour timestamptz,
    bytes_weight bigint, sessions_weight bigint, microseconds_weight bigint
) ON COMMIT DELETE ROWS;

-- name: create_staged_limit_users
-- Scratch table for the users whose limits are to be looked at, with an hour that changed.
CREATE TEMP TABLE IF NOT EXISTS staged_limit_users (
    realm_id integer, user_key uuid, starts_at timestamptz
) ON COMMIT DELETE ROWS;

-- name: create_staged_limit_buckets
-- Scratch table for the buckets to be looked at. level: the length of the usage that they are summed
-- from; folded_until: from there on it is only in the hours of users.
CREATE TEMP TABLE IF NOT EXISTS staged_limit_buckets (
    realm_id integer, per text, level text,
    starts_at timestamptz, ends_at timestamptz, time_zone text, folded_until timestamptz,
    PRIMARY KEY (realm_id, per, starts_at)
) ON COMMIT DELETE ROWS;

-- name: create_staged_limit_checks
-- Scratch table for the limits to be looked at, by user and bucket.
-- counted_until: the end of the bucket, or its start where the bucket no longer exists.
CREATE TEMP TABLE IF NOT EXISTS staged_limit_checks (
    limit_id integer, realm_id integer, user_key uuid, level text,
    starts_at timestamptz, ends_at timestamptz, time_zone text,
    counted_until timestamptz, folded_until timestamptz
) ON COMMIT DELETE ROWS;

-- name: create_staged_limit_usage
-- Scratch table for the usage that is compared with limits, in their unit.
CREATE TEMP TABLE IF NOT EXISTS staged_limit_usage (
    limit_id integer, realm_id integer, user_key uuid,
    starts_at timestamptz, ends_at timestamptz, time_zone text, usage numeric
) ON COMMIT DELETE ROWS;

-- name: create_staged_next_checks
-- Scratch table for the next_check_score of the last hours of the staged users.
CREATE TEMP TABLE IF NOT EXISTS staged_next_checks (
    user_key uuid, starts_at timestamptz, next_check_score bigint
) ON COMMIT DELETE ROWS;

-- name: limited_lengths
-- The lengths of the limits of some realms, and since when the oldest holds: from an index, since a realm
-- can have a limit for each user.
SELECT r.realm_id, p.per, l.set_at
FROM unnest(CAST(:realm_ids AS integer[])) AS r (realm_id)
CROSS JOIN (VALUES ('hour'), ('day'), ('month'), ('period')) AS p (per)
CROSS JOIN LATERAL (
    SELECT set_at FROM accounting.limits
    WHERE realm_id = r.realm_id AND per = p.per
    ORDER BY set_at LIMIT 1
) l;

-- name: read_limits
-- Limits by their numbers.
SELECT limit_id, realm_id, whom, measure, direction, per, amount
FROM accounting.limits WHERE limit_id = ANY (CAST(:limit_ids AS integer[]));

-- name: find_limit
-- The limit of the same usage.
SELECT limit_id, amount, thresholds FROM accounting.limits
WHERE realm_id = :realm_id AND whom = :whom AND measure = :measure AND direction = :direction
    AND per = :per AND (
        user_key = CAST(:user_key AS uuid)
        OR CAST(:user_key AS uuid) IS NULL AND user_key IS NULL
    );

-- name: insert_limit
-- Inserts a limit; returns its number.
INSERT INTO accounting.limits (
    realm_id, whom, user_key, measure, direction, per, amount, thresholds, set_at
)
VALUES (
    :realm_id, :whom, :user_key, :measure, :direction, :per, :amount,
    CAST(:thresholds AS integer[]), accounting.database_now()
)
RETURNING limit_id;

-- name: change_limit
-- Changes the amount and the thresholds of a limit.
UPDATE accounting.limits SET
    amount = :amount, thresholds = CAST(:thresholds AS integer[]),
    set_at = accounting.database_now()
WHERE limit_id = :limit_id;

-- name: whose_limit
-- The realm of a limit, its user if it is of one, and what it counts.
SELECT realm_id, user_key, measure FROM accounting.limits WHERE limit_id = :limit_id;

-- name: counts_measure
-- Whether another limit of a realm's users than this one counts the same.
SELECT EXISTS (
    SELECT FROM accounting.limits
    WHERE realm_id = :realm_id AND measure = :measure AND whom <> 'realm' AND limit_id <> :limit_id
);

-- name: delete_limit
-- Deletes a limit and its states.
WITH states AS (
    DELETE FROM accounting.limit_states WHERE limit_id = :limit_id
),
periods AS (
    DELETE FROM accounting.limit_periods p USING accounting.limits l
    WHERE l.limit_id = :limit_id AND p.realm_id = l.realm_id AND NOT EXISTS (
        SELECT FROM accounting.limits o
        WHERE o.realm_id = l.realm_id AND o.per = 'period' AND o.limit_id <> l.limit_id
    )
)
DELETE FROM accounting.limits WHERE limit_id = :limit_id;

-- name: clear_limit_realms
-- Deletes the staged realms, whose limits have changed.
DELETE FROM staged_limit_realms;

-- name: stage_limit_realms
-- Stages the realms whose users have limits, from an index as above. The unit of scores is a microsecond
-- of a session. A byte weighs as much as ten, and a session as ten seconds: an open allocation relays
-- some 100 kB a second, so that what grows all the time uses up no other's distance long before.
INSERT INTO staged_limit_realms
SELECT r.realm_id,
    (SELECT max(b.starts_at) FROM accounting.buckets b
        WHERE b.realm_id = r.realm_id AND b.level = 'hour'),
    CASE WHEN EXISTS (
        SELECT FROM accounting.limits l
        WHERE l.realm_id = r.realm_id AND l.whom <> 'realm' AND l.measure = 'bytes'
    ) THEN 10 ELSE 0 END,
    CASE WHEN EXISTS (
        SELECT FROM accounting.limits l
        WHERE l.realm_id = r.realm_id AND l.whom <> 'realm' AND l.measure = 'sessions'
    ) THEN 10000000 ELSE 0 END,
    CASE WHEN EXISTS (
        SELECT FROM accounting.limits l
        WHERE l.realm_id = r.realm_id AND l.whom <> 'realm' AND l.measure = 'session_seconds'
    ) THEN 1 ELSE 0 END
FROM unnest(CAST(:realm_ids AS integer[])) AS r (realm_id)
WHERE EXISTS (
    SELECT FROM accounting.limits l WHERE l.realm_id = r.realm_id AND l.whom <> 'realm'
);

-- name: read_last_hours
-- The last hours of the staged realms that have usage.
SELECT realm_id, last_hour FROM staged_limit_realms WHERE last_hour IS NOT NULL;

-- name: note_limit_periods
-- Notes the last of the staged periods of each realm.
INSERT INTO accounting.limit_periods AS p (realm_id, starts_at, ends_at, time_zone)
SELECT DISTINCT ON (realm_id) realm_id, starts_at, ends_at, time_zone
FROM staged_limit_buckets WHERE per = 'period'
ORDER BY realm_id, starts_at DESC
ON CONFLICT (realm_id) DO UPDATE SET
    starts_at = excluded.starts_at, ends_at = excluded.ends_at, time_zone = excluded.time_zone
WHERE p.starts_at <= excluded.starts_at
    AND (p.starts_at, p.ends_at, p.time_zone)
        <> (excluded.starts_at, excluded.ends_at, excluded.time_zone);

-- name: stage_users
-- Stages everyone who has usage in the staged buckets of one length, by :"usage"; or only one of them.
INSERT INTO staged_limit_users
SELECT DISTINCT b.realm_id, u.user_key, b.starts_at
FROM staged_limit_buckets b
JOIN accounting.:"usage" u
    ON u.realm_id = b.realm_id AND u.starts_at >= b.starts_at AND u.starts_at < b.ends_at
WHERE b.level = :level
    AND (CAST(:user_key AS uuid) IS NULL OR u.user_key = CAST(:user_key AS uuid));

-- name: stage_last_hours
-- Stages the last hour for users with another hour that changed: its score holds only while no other
-- hour changes.
INSERT INTO staged_limit_users
SELECT DISTINCT u.realm_id, u.user_key, r.last_hour
FROM staged_limit_users u
JOIN staged_limit_realms r USING (realm_id)
WHERE u.starts_at <> r.last_hour;

-- name: stage_checks
-- Stages the limits of the staged users, in the buckets of their hours, and those of realms.
INSERT INTO staged_limit_checks
SELECT DISTINCT l.limit_id, u.realm_id, u.user_key, b.level, b.starts_at, b.ends_at, b.time_zone,
    b.ends_at, b.folded_until
FROM staged_limit_users u
JOIN staged_limit_buckets b
    ON b.realm_id = u.realm_id AND u.starts_at >= b.starts_at AND u.starts_at < b.ends_at
JOIN accounting.limits l
    ON l.realm_id = b.realm_id AND l.whom = 'every_user' AND l.per = b.per AND l.set_at < b.ends_at
UNION ALL
SELECT DISTINCT l.limit_id, u.realm_id, u.user_key, b.level, b.starts_at, b.ends_at, b.time_zone,
    b.ends_at, b.folded_until
FROM staged_limit_users u
JOIN staged_limit_buckets b
    ON b.realm_id = u.realm_id AND u.starts_at >= b.starts_at AND u.starts_at < b.ends_at
JOIN accounting.limits l
    ON l.realm_id = b.realm_id AND l.whom = 'user' AND l.user_key = u.user_key AND l.per = b.per
    AND l.set_at < b.ends_at
UNION ALL
SELECT l.limit_id, b.realm_id, CAST(:realm_key AS uuid), b.level, b.starts_at,
    b.ends_at, b.time_zone, b.ends_at, b.folded_until
FROM staged_limit_buckets b
JOIN accounting.limits l
    ON l.realm_id = b.realm_id AND l.whom = 'realm' AND l.per = b.per AND l.set_at < b.ends_at;

-- name: stage_lost_states
-- Stages what a realm, or one user, has reached where no usage is staged: the bucket or its usage no
-- longer exists.
INSERT INTO staged_limit_checks
SELECT DISTINCT s.limit_id, l.realm_id, s.user_key, 'hour', s.starts_at, s.ends_at, s.time_zone,
    s.starts_at, s.starts_at
FROM accounting.limit_states s
JOIN accounting.limits l USING (limit_id)
WHERE l.realm_id = :realm_id AND s.cleared_at IS NULL AND s.ends_at > l.set_at
    AND (CAST(:user_key AS uuid) IS NULL OR s.user_key = CAST(:user_key AS uuid))
    AND NOT EXISTS (
        SELECT FROM staged_limit_checks c
        WHERE c.limit_id = s.limit_id AND c.user_key = s.user_key AND c.starts_at = s.starts_at
    );

-- name: count_user_usage
-- Sums the usage of the staged users in their buckets of one length, by :"usage", and by the hours that
-- are not folded into it.
INSERT INTO staged_limit_usage
SELECT c.limit_id, c.realm_id, c.user_key, c.starts_at, c.ends_at, c.time_zone,
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
SELECT c.limit_id, c.realm_id, c.user_key, c.starts_at, c.ends_at, c.time_zone,
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
    WHERE u.realm_id = c.realm_id
        AND u.starts_at >= c.starts_at AND u.starts_at < c.counted_until
) s
WHERE l.whom = 'realm' AND c.level = :level;

-- name: change_states
-- Records which thresholds the staged usage has reached that were not, and which it no longer reaches;
-- returns both. reached_amount: the amount at which the threshold was reached. The limit :removed reaches
-- none in a bucket that runs now.
WITH reached AS MATERIALIZED (
    SELECT u.limit_id, l.realm_id, u.user_key, u.starts_at, t.threshold, u.ends_at, u.time_zone,
        l.amount, u.usage
    FROM staged_limit_usage u
    JOIN accounting.limits l USING (limit_id)
    CROSS JOIN LATERAL unnest(l.thresholds) AS t (threshold)
    WHERE u.usage * 100 >= CAST(l.amount AS numeric) * t.threshold
        AND u.limit_id IS DISTINCT FROM CAST(:removed AS integer) AND NOT EXISTS (
            SELECT FROM accounting.limit_states s
            WHERE s.limit_id = u.limit_id AND s.user_key = u.user_key AND s.starts_at = u.starts_at
                AND s.threshold = t.threshold AND s.cleared_at IS NULL
        )
),
no_longer AS MATERIALIZED (
    SELECT s.limit_id, s.user_key, s.starts_at, s.threshold, u.usage
    FROM staged_limit_usage u
    JOIN accounting.limit_states s
        ON s.limit_id = u.limit_id AND s.user_key = u.user_key AND s.starts_at = u.starts_at
    JOIN accounting.limits l ON l.limit_id = u.limit_id
    WHERE s.cleared_at IS NULL AND (
        s.limit_id = CAST(:removed AS integer) AND s.ends_at > accounting.database_now()
        OR NOT (
            s.threshold = ANY (l.thresholds)
            AND u.usage * 100 >= CAST(l.amount AS numeric) * s.threshold
        )
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

-- name: change_reached_amounts
-- Sets the amount and the usage of what a limit that was changed still reaches.
UPDATE accounting.limit_states s SET amount = l.amount, usage = u.usage
FROM staged_limit_usage u
JOIN accounting.limits l USING (limit_id)
WHERE s.limit_id = u.limit_id AND s.user_key = u.user_key AND s.starts_at = u.starts_at
    AND s.cleared_at IS NULL AND s.amount <> l.amount;

-- name: stage_next_checks
-- Stages up to which score the last hour of the staged users may grow before one of their limits can be
-- reached. Usage that grows by the distance to a threshold makes the score grow by at least that times
-- the weight of its measure, so the smallest of these products bounds it. A user whose limits are all
-- reached, or that has none, needs no other look.
INSERT INTO staged_next_checks
SELECT h.user_key, h.starts_at, n.distance + accounting.limit_score(
    n.bytes_weight, n.sessions_weight, n.microseconds_weight,
    h.received_bytes, h.sent_bytes, h.sessions_started, h.session_microseconds)
FROM (
    SELECT d.user_key, r.last_hour, r.bytes_weight, r.sessions_weight, r.microseconds_weight,
        CAST(floor(least(4611686018427387904, min(d.distance * CASE d.measure
            WHEN 'bytes' THEN r.bytes_weight
            WHEN 'sessions' THEN r.sessions_weight
            ELSE r.microseconds_weight * 1000000 END))) AS bigint) AS distance
    FROM (
        SELECT u.realm_id, u.user_key, u.starts_at, CAST('infinity' AS timestamptz) AS ends_at,
            '' AS measure, CAST(NULL AS numeric) AS distance
        FROM staged_limit_users u
        UNION ALL
        SELECT g.realm_id, g.user_key, g.starts_at, g.ends_at, l.measure,
            CAST(l.amount AS numeric) * t.threshold * 0.01 - g.usage
        FROM staged_limit_usage g
        JOIN accounting.limits l USING (limit_id)
        CROSS JOIN LATERAL unnest(l.thresholds) AS t (threshold)
        WHERE l.whom <> 'realm' AND g.usage * 100 < CAST(l.amount AS numeric) * t.threshold
    ) d
    JOIN staged_limit_realms r ON r.realm_id = d.realm_id
        AND r.last_hour >= d.starts_at AND r.last_hour < d.ends_at
    GROUP BY d.user_key, r.realm_id
) n
JOIN accounting.user_usage_hourly h ON h.user_key = n.user_key AND h.starts_at = n.last_hour;

-- name: set_next_checks
-- Sets the staged scores.
UPDATE accounting.user_usage_hourly h SET next_check_score = n.next_check_score
FROM staged_next_checks n
WHERE h.user_key = n.user_key AND h.starts_at = n.starts_at;

-- name: find_late_checks
-- The last hours of users whose limits would be looked at too late, with the score as it is and as it
-- should be at most.
SELECT h.user_key, h.starts_at, h.next_check_score, n.next_check_score AS highest
FROM staged_next_checks n
JOIN accounting.user_usage_hourly h USING (user_key, starts_at)
WHERE h.next_check_score > n.next_check_score
ORDER BY h.user_key;

-- name: find_wrong_states
-- The thresholds that the staged usage reaches where there is no such state, and the states of
-- thresholds that it does not reach.
SELECT 'missing' AS kind, u.limit_id, u.user_key, u.starts_at, t.threshold, u.usage,
    CAST(NULL AS numeric) AS stored_usage
FROM staged_limit_usage u
JOIN accounting.limits l USING (limit_id)
CROSS JOIN LATERAL unnest(l.thresholds) AS t (threshold)
LEFT JOIN accounting.limit_states s ON s.limit_id = u.limit_id AND s.user_key = u.user_key
    AND s.starts_at = u.starts_at AND s.threshold = t.threshold AND s.cleared_at IS NULL
WHERE u.usage * 100 >= CAST(l.amount AS numeric) * t.threshold AND s.limit_id IS NULL
UNION ALL
SELECT 'unfounded', u.limit_id, u.user_key, u.starts_at, s.threshold, u.usage, s.usage
FROM staged_limit_usage u
JOIN accounting.limits l USING (limit_id)
JOIN accounting.limit_states s
    ON s.limit_id = u.limit_id AND s.user_key = u.user_key AND s.starts_at = u.starts_at
WHERE s.cleared_at IS NULL AND NOT (
    s.threshold = ANY (l.thresholds)
    AND u.usage * 100 >= CAST(l.amount AS numeric) * s.threshold
)
ORDER BY starts_at, limit_id, user_key, threshold;
