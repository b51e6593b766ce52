-- name: count_gaps
-- The gaps so far, by source and cause.
SELECT s.source, g.cause, count(*) AS gaps
FROM accounting.capture_gaps g
JOIN accounting.sources s USING (source_id)
GROUP BY s.source, g.cause
ORDER BY s.source, g.cause;

-- name: recent_gaps
-- The gaps that ended within the last day and the last week: how many, how long they were together
-- within that span, and the cause of the longest.
SELECT w.hours, g.gaps, g.seconds, g.cause
FROM unnest(ARRAY[24, 168]) AS w (hours)
CROSS JOIN LATERAL (
    SELECT count(*) AS gaps, coalesce(sum(l.seconds), 0)::float8 AS seconds,
        coalesce((array_agg(l.cause ORDER BY l.seconds DESC, l.gap_id))[1], '') AS cause
    FROM (
        SELECT gap_id, cause, extract(epoch FROM to_at - greatest(
            from_at, accounting.database_now() - make_interval(hours => w.hours))) AS seconds
        FROM accounting.capture_gaps
        WHERE to_at > accounting.database_now() - make_interval(hours => w.hours)
    ) l
) g
ORDER BY w.hours;

-- name: count_set_aside
-- How many reports of each source are set aside, counted up to :limit, and why the last one is.
SELECT s.source, a.reports, a.reason
FROM accounting.sources s
CROSS JOIN LATERAL (
    SELECT count(*) AS reports, (array_agg(reason ORDER BY epoch DESC, position DESC))[1] AS reason
    FROM (
        SELECT epoch, position, reason FROM accounting.set_aside_reports
        WHERE source_id = s.source_id
        ORDER BY epoch DESC, position DESC LIMIT :limit
    ) latest
) a
ORDER BY s.source;

-- name: is_front
-- Whether this database is a front.
SELECT EXISTS (SELECT FROM accounting.front);

-- name: cell_statuses
-- Each cell of a front: for how long its feed can't be read, why, and up to where it was forwarded. It
-- asks no cell.
SELECT n.cell,
    coalesce(extract(epoch FROM clock_timestamp() - n.feed_failing_since), 0)::float8
        AS failing_seconds,
    n.feed_error, coalesce(p.seq, 0) AS forwarded_seq
FROM accounting.cells n
LEFT JOIN LATERAL (
    SELECT f.seq FROM accounting.feed_positions f
    WHERE f.database_id = n.database_id ORDER BY f.number DESC LIMIT 1
) p ON true
ORDER BY n.cell;

-- name: webhook_statuses
-- Each endpoint of webhooks: how many events it took, for how long the next one fails, why it is
-- disabled, how many events it is still to get, and how many were refused, counted up to 10,000.
SELECT w.number, w.delivered_events,
    coalesce(extract(epoch FROM accounting.database_now() - w.failing_since), 0)::float8
        AS failing_seconds,
    w.disabled_cause, accounting.events_behind(w) AS events_behind,
    (
        SELECT count(*) FROM (
            SELECT FROM accounting.webhook_refusals r WHERE r.number = w.number LIMIT 10000
        ) counted
    ) AS refused_events
FROM accounting.webhooks w ORDER BY w.number;

-- name: count_usage_deltas
-- The usage deltas that are not rolled up yet, counted up to :limit.
SELECT count(*) FROM (SELECT FROM accounting.usage_deltas LIMIT :limit) deltas;

-- name: limit_statuses
-- For each realm with limits and each threshold of its limits: how many limits the realm has, how many
-- of its own have reached that in a bucket that runs now, and how often users have, counted up to
-- :limit. Limits of one user add no thresholds, of which there could be any number.
SELECT r.realm, t.threshold, l.limits, o.reached AS realm_reached, u.reached AS users_reached
FROM (SELECT realm_id, count(*) AS limits FROM accounting.limits GROUP BY realm_id) l
JOIN accounting.realms r USING (realm_id)
CROSS JOIN LATERAL (
    SELECT 100 AS threshold
    UNION
    SELECT unnest(w.thresholds) FROM accounting.limits w
    WHERE w.realm_id = l.realm_id AND w.whom IN ('realm', 'every_user')
) t
CROSS JOIN LATERAL (
    SELECT count(*) AS reached
    FROM accounting.limits w JOIN accounting.limit_states s USING (limit_id)
    WHERE w.realm_id = l.realm_id AND w.whom = 'realm' AND s.threshold = t.threshold
        AND s.cleared_at IS NULL AND s.ends_at > accounting.database_now()
) o
CROSS JOIN LATERAL (
    SELECT count(*) AS reached FROM (
        SELECT FROM accounting.limit_states s
        WHERE s.realm_id = l.realm_id AND s.threshold = t.threshold AND s.cleared_at IS NULL
            AND s.ends_at > accounting.database_now() AND s.user_key <> CAST(:realm_key AS uuid)
        LIMIT :limit
    ) s
) u
ORDER BY r.realm, t.threshold;

-- name: realm_statuses
-- Each realm's live sessions, and its usage of the last day with its estimated and unattributed
-- parts; of the latter also the number of names, and of those that came in the hour until eleven minutes
-- ago: a session that began before capture did is confirmed when its client refreshes it, which most do
-- within ten. Uses indexes of live sessions and of hours.
WITH live AS (
    SELECT realm_id, count(*) AS sessions FROM accounting.sessions
    WHERE ended_at IS NULL AND phase = 1 AND confirmed
    GROUP BY realm_id
)
SELECT
    r.realm, coalesce(live.sessions, 0) AS live_sessions,
    coalesce(u.used_bytes, 0)::bigint AS used_bytes,
    coalesce(u.estimated_bytes, 0)::bigint AS estimated_bytes,
    coalesce(n.unattributed_bytes, 0)::bigint AS unattributed_bytes,
    n.unattributed_names, n.new_unattributed_names
FROM accounting.realms r
LEFT JOIN live USING (realm_id)
CROSS JOIN LATERAL (
    SELECT sum(received_bytes + sent_bytes) AS used_bytes, sum(estimated_bytes) AS estimated_bytes
    FROM accounting.realm_usage_hourly h
    WHERE h.realm_id = r.realm_id AND h.starts_at > now() - interval '24 hours'
) u
CROSS JOIN LATERAL (
    SELECT sum(bytes) AS unattributed_bytes, count(user_key) AS unattributed_names,
        count(user_key) FILTER (
            WHERE first_at > now() - interval '71 minutes'
                AND first_at <= now() - interval '11 minutes'
        ) AS new_unattributed_names
    FROM (
        SELECT user_key, sum(bytes) AS bytes, min(active_from) AS first_at FROM (
            SELECT h.user_key, h.active_from, received_bytes + sent_bytes AS bytes
            FROM accounting.session_hours h
            WHERE h.realm_id = r.realm_id AND h.starts_at > now() - interval '24 hours'
                AND NOT h.confirmed
            UNION ALL
            SELECT NULL, NULL, p.received_bytes + p.sent_bytes
            FROM accounting.sources s JOIN accounting.pruned_usage p USING (source_id)
            WHERE p.realm_id = r.realm_id AND p.starts_at > now() - interval '24 hours'
        ) unattributed
        GROUP BY user_key
    ) names
) n
ORDER BY r.realm;

-- name: role_privileges
-- The privileges that the roles and this user lack, and those that they should not have: reports
-- are evidence and must not change, and the tables are private.
WITH views AS (
    SELECT c.oid FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
    WHERE n.nspname = 'reporting' AND c.relkind = 'v'
), tables AS (
    SELECT c.oid, c.relname FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
    WHERE n.nspname = 'accounting' AND c.relkind IN ('r', 'p')
)
SELECT
    ARRAY(
        SELECT privilege FROM (VALUES
            (current_user || ': INSERT on reports',
                has_table_privilege('accounting.reports', 'INSERT')),
            ('turn_accounting_writer: INSERT on reports',
                has_table_privilege('turn_accounting_writer', 'accounting.reports', 'INSERT')),
            ('turn_accounting_writer: UPDATE on sessions',
                has_table_privilege('turn_accounting_writer', 'accounting.sessions', 'UPDATE')),
            ('turn_accounting_reader: SELECT on all views of reporting',
                NOT EXISTS (SELECT FROM views
                    WHERE NOT has_table_privilege('turn_accounting_reader', oid, 'SELECT')))
        ) AS required (privilege, is_granted) WHERE NOT is_granted
    ) AS missing_privileges,
    ARRAY(
        SELECT privilege FROM (VALUES
            ('turn_accounting_writer: UPDATE or DELETE on reports',
                has_table_privilege('turn_accounting_writer', 'accounting.reports', 'UPDATE, DELETE')),
            ('turn_accounting_reader: SELECT on tables of accounting',
                EXISTS (SELECT FROM tables
                    WHERE has_table_privilege('turn_accounting_reader', oid, 'SELECT')))
        ) AS forbidden (privilege, is_granted) WHERE is_granted
    ) AS excess_privileges;

-- name: database_clock
-- The database's now, and the latest time of rows that were written by its clock.
SELECT accounting.database_now() AS now, greatest(
    (SELECT max(captured_until) FROM accounting.sources),
    (SELECT max(renewed_at) FROM accounting.source_leases),
    (SELECT max(greatest(last_succeeded_at, last_failed_at)) FROM accounting.job_runs),
    (SELECT max(closed_at) FROM accounting.periods),
    (SELECT max(posted_at) FROM accounting.adjustments),
    (SELECT max(erased_at) FROM accounting.erasures),
    (SELECT created_at FROM accounting.feed ORDER BY seq DESC LIMIT 1)
) AS newest_row_at;

-- name: login
-- Which of the roles this login has the rights of. A superuser has those of every role.
SELECT current_user::text AS name,
    (SELECT rolsuper FROM pg_roles WHERE rolname = current_user) AS is_superuser,
    coalesce((SELECT pg_has_role(oid, 'USAGE') FROM pg_roles
        WHERE rolname = 'turn_accounting_owner'), false) AS is_owner,
    coalesce((SELECT pg_has_role(oid, 'USAGE') FROM pg_roles
        WHERE rolname = 'turn_accounting_writer'), false) AS is_writer,
    coalesce((SELECT pg_has_role(oid, 'USAGE') FROM pg_roles
        WHERE rolname = 'turn_accounting_reader'), false) AS is_reader;

-- name: server_facts
-- The server and its database. The data directory is shown only over a local socket, and only to a
-- user who may read that setting.
SELECT
    current_setting('server_version_num')::integer AS version,
    pg_encoding_to_char(d.encoding) AS encoding,
    pg_is_in_recovery() AS in_recovery,
    current_setting('transaction_read_only')::boolean AS read_only,
    pg_database_size(d.oid) AS size_bytes,
    (clock_timestamp() AT TIME ZONE 'UTC')::date AS today,
    CASE WHEN inet_server_addr() IS NULL
        THEN (SELECT setting FROM pg_settings WHERE name = 'data_directory') END AS data_directory,
    ARRAY(
        SELECT role
        FROM unnest(ARRAY['turn_accounting_owner', 'turn_accounting_writer',
            'turn_accounting_reader']) AS role
        WHERE NOT EXISTS (SELECT FROM pg_roles WHERE rolname = role)
    ) AS missing_roles
FROM pg_database d WHERE d.datname = current_database();

-- name: source_statuses
-- How many seconds the stages of each source are behind now, its open gap, and its lease.
SELECT
    s.source_id, s.source,
    extract(epoch FROM clock_timestamp() - s.captured_until)::float8 AS captured_lag_seconds,
    extract(epoch FROM clock_timestamp() - s.loaded_until)::float8 AS loaded_lag_seconds,
    extract(epoch FROM clock_timestamp() - t.settled_until)::float8 AS settled_lag_seconds,
    t.settled_until,
    s.last_received_at,
    g.from_at AS gap_from, g.cause AS gap_cause,
    l.holder, l.host, l.clock_ahead_seconds
FROM accounting.sources s
LEFT JOIN accounting.settle_watermarks t USING (source_id)
LEFT JOIN accounting.source_leases l
    ON l.source_id = s.source_id AND l.expires_at > clock_timestamp()
LEFT JOIN LATERAL (
    SELECT from_at, cause FROM accounting.capture_gaps
    WHERE source_id = s.source_id AND to_at IS NULL
    ORDER BY from_at LIMIT 1
) g ON true
WHERE s.retired_at IS NULL
ORDER BY s.source;
