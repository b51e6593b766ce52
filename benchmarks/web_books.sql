-- Books with a month of sessions, for benchmarks/web.py: rows of the private tables, as the service
-- would have left them, without what it does for them. Temporary table `size` has one row:
-- sessions, users, live, feed_events, begins_at, now_at. Each statement begins with a comment on one line.

-- no log and no waits
SET synchronous_commit = off; SET work_mem = '256MB'; SET maintenance_work_mem = '512MB';

-- the clock stands still
UPDATE test_clock.clock SET fixed_at = (SELECT now_at FROM size);

-- realms: the first has a third of the users
INSERT INTO accounting.realms (realm, realm_bytes)
SELECT name, convert_to(name, 'UTF8') FROM generate_series(0, 9) n
CROSS JOIN LATERAL (SELECT 'realm' || n || '.example.org') AS r (name);

-- rules
INSERT INTO accounting.realm_rules (
    realm_id, holds_from, time_zone, anchor_day, grace_seconds, username_rule, separator)
SELECT realm_id, '-infinity', CASE WHEN realm LIKE 'realm1%' THEN 'Europe/Berlin' ELSE 'UTC' END,
    1, 3600, 'auto', ':'
FROM accounting.realms;

-- sources
INSERT INTO accounting.sources (
    source, mode, epoch, position, captured_until, loaded_until, last_received_at)
SELECT name, 'replication', 1, extract(epoch FROM now_at - begins_at)::bigint * 1000000,
    now_at, now_at, now_at
FROM size, unnest(ARRAY['turn-a', 'turn-b']) name;

-- settled
INSERT INTO accounting.settle_watermarks (source_id, epoch, position, received_at, settled_until)
SELECT source_id, epoch, position, last_received_at, captured_until FROM accounting.sources;

-- gaps
INSERT INTO accounting.capture_gaps (
    source_id, token, gap, from_at, to_at, cause, detail, epoch, position, outcome)
SELECT source_id, 'token', n, at, at + n * interval '1 second', 'connection_lost', 'no route', 1,
    n, '3 sessions went on'
FROM accounting.sources, size, generate_series(1, 200) n
CROSS JOIN LATERAL (SELECT now_at - n * interval '213 minutes') AS t (at);

-- numbers of users
CREATE TEMP TABLE numbered AS
SELECT n, md5('user' || n)::uuid AS user_key, md5('name' || n)::uuid AS username_key,
    'user' || lpad(n::text, 6, '0') AS user_id,
    (SELECT min(realm_id) FROM accounting.realms)
        + floor(10 * (n::float8 / users) ^ 2)::integer AS realm_id
FROM size, generate_series(0, users - 1) n;

-- users
INSERT INTO accounting.users (user_key, realm_id, user_id, radacct_suffix)
SELECT user_key, realm_id, user_id, accounting.radacct_suffix(user_id, realm, named_in_radacct)
FROM numbered JOIN accounting.realms USING (realm_id);

-- usernames
INSERT INTO accounting.usernames (user_key, username_key, username)
SELECT user_key, username_key, '1800000000:' || user_id FROM numbered;

-- limits: of each realm, of every user in it, and of each tenth user
INSERT INTO accounting.limits (
    realm_id, whom, user_key, measure, direction, per, amount, thresholds, set_at)
SELECT realm_id, whom, user_key, measure, 'both', per, amount, '{50,80,100}', begins_at
FROM size, (
    SELECT realm_id, 'realm' AS whom, NULL::uuid AS user_key, 'bytes' AS measure, per, 10::bigint ^ 12
    FROM accounting.realms, unnest(ARRAY['day', 'month']) per
    UNION ALL
    SELECT realm_id, 'every_user', NULL, measure, per, 1000
    FROM accounting.realms, unnest(ARRAY['hour', 'day', 'month', 'period']) per,
        unnest(ARRAY['bytes', 'session_seconds']) measure
    UNION ALL
    SELECT realm_id, 'user', user_key, 'bytes', 'month', 10::bigint ^ 9 FROM numbered WHERE n % 10 = 0
) l (realm_id, whom, user_key, measure, per, amount);

-- statistics of users
ANALYZE numbered;

-- sessions
INSERT INTO accounting.sessions (
    session_id, user_key, username_key, realm_id, database, allocation_id,
    started_at, last_seen_at, expires_at, recheck_at,
    received_packets, received_bytes, sent_packets, sent_bytes,
    peer_received_packets, peer_received_bytes, peer_sent_packets, peer_sent_bytes,
    source_id, new_count, deleted_count, client_total_count, peer_total_count, phase,
    start_known, lifetime_known, confirmed, estimated, disputed, ended_at, single_hour, end_cause,
    transport, client_address, server_address, client_total, peer_total)
SELECT
    (lpad(to_hex(sources.ids[1 + g.n % 2]), 4, '0') || '0000-0001-8000-8000-'
        || lpad(to_hex((extract(epoch FROM t.at - size.begins_at) * 1000000)::bigint), 12, '0')
    )::uuid,
    u.user_key, u.username_key, u.realm_id, 0, 1000000000000000 * (g.n % 8) + g.n,
    t.at, t.seen, t.seen + interval '10 minutes', t.seen + interval '10 minutes',
    t.bytes / 1000, t.bytes, t.bytes / 900, t.bytes * 9 / 10,
    t.bytes / 1000, t.bytes, t.bytes / 900, t.bytes * 9 / 10,
    sources.ids[1 + g.n % 2], c.news, c.news - l.lives, c.news - l.lives, c.news - l.lives, l.lives,
    c.news = 1, c.news = 1, c.news = 1, g.n % 500 = 3, g.n % 50000 = 11,
    CASE l.lives WHEN 0 THEN t.seen END,
    CASE WHEN date_trunc('hour', t.at) = date_trunc('hour', t.seen)
        THEN date_trunc('hour', t.at) END,
    CASE WHEN l.lives = 0 AND c.news = 1 THEN 'deleted' WHEN l.lives = 0 THEN 'expired' END,
    'UDP', format(CASE u.n % 5 WHEN 0 THEN '[2001:db8::%s:%s]:%s' ELSE '198.51.%s.%s:%s' END,
        u.n / 250 % 250, u.n % 250, 20000 + g.n % 40000),
    CASE g.n % 4 WHEN 0 THEN '[2001:db8::53]:5349' WHEN 1 THEN '192.0.2.2:3478'
        ELSE '192.0.2.1:3478' END, '{}', '{}'
FROM size
CROSS JOIN (
    SELECT array_agg(source_id::integer ORDER BY source) FROM accounting.sources
) sources (ids)
CROSS JOIN generate_series(0::bigint, size.sessions - 1) g (n)
JOIN numbered u ON u.n = g.n * 7919 % size.users
CROSS JOIN LATERAL (SELECT (g.n >= size.sessions - size.live)::integer) AS l (lives)
CROSS JOIN LATERAL (SELECT CASE WHEN g.n % 1000 = 7 AND l.lives = 0 THEN 0 ELSE 1 END) AS c (news)
CROSS JOIN LATERAL (
    SELECT at, CASE l.lives WHEN 1 THEN greatest(at, size.now_at - g.n % 60 * interval '1 second')
            ELSE at + (30 + g.n * 31 % 900) * interval '1 second' END AS seen,
        1000 * (100 + g.n * 7919 % 9973) AS bytes
    FROM (SELECT size.begins_at
        + g.n * ((size.now_at - size.begins_at) / size.sessions)) AS s (at)
) t;

-- hours of sessions that have several
INSERT INTO accounting.session_usage (
    session_id, starts_at, user_key, realm_id, confirmed, estimated, started, ended,
    active_from, active_to,
    received_packets, received_bytes, sent_packets, sent_bytes,
    peer_received_packets, peer_received_bytes, peer_sent_packets, peer_sent_bytes)
SELECT e.session_id, h, e.user_key, e.realm_id, e.confirmed, e.estimated,
    h <= e.started_at, e.ended_at IS NOT NULL AND l.lasts,
    greatest(h, e.started_at), least(h + interval '1 hour', e.last_seen_at),
    l.part * e.received_packets, l.part * e.received_bytes, l.part * e.sent_packets,
    l.part * e.sent_bytes, l.part * e.peer_received_packets, l.part * e.peer_received_bytes,
    l.part * e.peer_sent_packets, l.part * e.peer_sent_bytes
FROM accounting.sessions e
CROSS JOIN LATERAL generate_series(
    date_trunc('hour', e.started_at), e.last_seen_at, interval '1 hour') h
CROSS JOIN LATERAL (SELECT h = date_trunc('hour', e.last_seen_at),
    (h = date_trunc('hour', e.last_seen_at))::integer) AS l (lasts, part)
WHERE e.single_hour IS NULL;

-- statistics of sessions
VACUUM ANALYZE accounting.sessions, accounting.session_usage;

-- hours of users
INSERT INTO accounting.user_usage_hourly (
    user_key, starts_at, realm_id,
    received_packets, received_bytes, sent_packets, sent_bytes,
    peer_received_packets, peer_received_bytes, peer_sent_packets, peer_sent_bytes,
    sessions_started, sessions_ended, session_microseconds, estimated_bytes)
SELECT user_key, starts_at, realm_id,
    sum(received_packets), sum(received_bytes), sum(sent_packets), sum(sent_bytes),
    sum(peer_received_packets), sum(peer_received_bytes),
    sum(peer_sent_packets), sum(peer_sent_bytes),
    count(*) FILTER (WHERE started), count(*) FILTER (WHERE ended),
    sum(extract(epoch FROM active_to - active_from)) * 1000000,
    coalesce(sum(received_bytes + sent_bytes) FILTER (WHERE estimated), 0)
FROM accounting.session_hours WHERE confirmed
GROUP BY user_key, starts_at, realm_id ORDER BY starts_at;

-- the current hour is not folded
INSERT INTO accounting.fold_watermarks (realm_id, folded_until)
SELECT realm_id, date_trunc('hour', now_at) FROM accounting.realms, size;

-- days of users
INSERT INTO accounting.user_usage_daily
SELECT user_key, date_trunc('day', h.starts_at, r.time_zone) AS day, realm_id,
    sum(received_packets * f.folded), sum(received_bytes * f.folded),
    sum(sent_packets * f.folded), sum(sent_bytes * f.folded),
    sum(peer_received_packets * f.folded), sum(peer_received_bytes * f.folded),
    sum(peer_sent_packets * f.folded), sum(peer_sent_bytes * f.folded),
    sum(sessions_started * f.folded), sum(sessions_ended * f.folded),
    sum(session_microseconds * f.folded), sum(estimated_bytes * f.folded)
FROM accounting.user_usage_hourly h
JOIN accounting.realm_rules r USING (realm_id)
JOIN accounting.fold_watermarks w USING (realm_id)
CROSS JOIN LATERAL (SELECT (h.starts_at < w.folded_until)::integer) AS f (folded)
GROUP BY user_key, day, realm_id ORDER BY day;

-- reached thresholds: each user on each day
INSERT INTO accounting.limit_states (
    limit_id, realm_id, user_key, starts_at, threshold, ends_at, time_zone, amount, usage, reached_at,
    times_reached)
SELECT limit_id, realm_id, d.user_key, d.starts_at, threshold, d.starts_at + interval '1 day', 'UTC',
    amount, 1000, d.starts_at + interval '9 hours', 1
FROM accounting.user_usage_daily d
JOIN accounting.limits l USING (realm_id)
CROSS JOIN LATERAL unnest(ARRAY[80, 100]) t (threshold)
WHERE l.whom = 'every_user' AND l.per = 'day' AND l.measure = 'bytes'
ORDER BY d.starts_at;

-- months of users
INSERT INTO accounting.user_usage_monthly
SELECT user_key, date_trunc('month', starts_at, r.time_zone) AS month, realm_id,
    sum(received_packets), sum(received_bytes), sum(sent_packets), sum(sent_bytes),
    sum(peer_received_packets), sum(peer_received_bytes),
    sum(peer_sent_packets), sum(peer_sent_bytes),
    sum(sessions_started), sum(sessions_ended),
    sum(session_microseconds), sum(estimated_bytes)
FROM accounting.user_usage_daily JOIN accounting.realm_rules r USING (realm_id)
GROUP BY user_key, month, realm_id ORDER BY month;

-- hours of realms
INSERT INTO accounting.realm_usage_hourly
SELECT realm_id, starts_at,
    sum(received_packets), sum(received_bytes), sum(sent_packets), sum(sent_bytes),
    sum(peer_received_packets), sum(peer_received_bytes),
    sum(peer_sent_packets), sum(peer_sent_bytes),
    sum(sessions_started), sum(sessions_ended),
    sum(session_microseconds), sum(estimated_bytes), sum(sessions_started) / 7 + 1
FROM accounting.user_usage_hourly GROUP BY realm_id, starts_at;

-- days of realms
INSERT INTO accounting.realm_usage_daily
SELECT realm_id, date_trunc('day', starts_at, r.time_zone) AS day,
    sum(received_packets), sum(received_bytes), sum(sent_packets), sum(sent_bytes),
    sum(peer_received_packets), sum(peer_received_bytes),
    sum(peer_sent_packets), sum(peer_sent_bytes),
    sum(sessions_started), sum(sessions_ended),
    sum(session_microseconds), sum(estimated_bytes), max(peak_sessions)
FROM accounting.realm_usage_hourly JOIN accounting.realm_rules r USING (realm_id)
GROUP BY realm_id, day;

-- months of realms
INSERT INTO accounting.realm_usage_monthly
SELECT realm_id, date_trunc('month', starts_at, r.time_zone) AS month,
    sum(received_packets), sum(received_bytes), sum(sent_packets), sum(sent_bytes),
    sum(peer_received_packets), sum(peer_received_bytes),
    sum(peer_sent_packets), sum(peer_sent_bytes),
    sum(sessions_started), sum(sessions_ended),
    sum(session_microseconds), sum(estimated_bytes), max(peak_sessions)
FROM accounting.realm_usage_daily JOIN accounting.realm_rules r USING (realm_id)
GROUP BY realm_id, month;

-- hours of servers and transports
INSERT INTO accounting.server_usage_hourly
SELECT realm_id, starts_at, accounting.server_host(server_address), transport,
    sum(received_packets), sum(received_bytes), sum(sent_packets), sum(sent_bytes),
    sum(peer_received_packets), sum(peer_received_bytes),
    sum(peer_sent_packets), sum(peer_sent_bytes),
    count(*) FILTER (WHERE started), count(*) FILTER (WHERE ended), sum(seconds) * 1000000,
    coalesce(sum(received_bytes + sent_bytes) FILTER (WHERE estimated), 0)
FROM (
    SELECT realm_id, single_hour AS starts_at, server_address, transport,
        received_packets, received_bytes, sent_packets, sent_bytes,
        peer_received_packets, peer_received_bytes, peer_sent_packets, peer_sent_bytes,
        true AS started, ended_at IS NOT NULL AS ended, estimated,
        extract(epoch FROM last_seen_at - started_at) AS seconds
    FROM accounting.sessions WHERE confirmed AND single_hour IS NOT NULL
    UNION ALL
    SELECT u.realm_id, starts_at, server_address, transport,
        u.received_packets, u.received_bytes, u.sent_packets, u.sent_bytes,
        u.peer_received_packets, u.peer_received_bytes, u.peer_sent_packets, u.peer_sent_bytes,
        started, ended, u.estimated, extract(epoch FROM active_to - active_from)
    FROM accounting.session_usage u JOIN accounting.sessions e USING (session_id, user_key)
    WHERE u.confirmed
) h
GROUP BY 1, 2, 3, 4 ORDER BY 1, 2, 3, 4;

-- peaks of servers and transports
INSERT INTO accounting.dimension_peaks_hourly (realm_id, starts_at, dimension, name, peak_sessions)
SELECT realm_id, starts_at, dimension, name, sum(sessions_started) / 7 + 1
FROM accounting.server_usage_hourly
JOIN accounting.fold_watermarks USING (realm_id)
CROSS JOIN LATERAL (VALUES ('server', server), ('transport', transport)) d (dimension, name)
WHERE starts_at < folded_until
GROUP BY 1, 2, 3, 4 ORDER BY 1, 2, 3, 4;

-- slices of the current hour
INSERT INTO accounting.realm_peak_slices (
    realm_id, starts_at, slice_at, dimension, name, session_delta, session_peak)
SELECT realm_id, starts_at, slice_at, dimension, name, 1 - number % 3, 1
FROM accounting.server_usage_hourly
JOIN accounting.fold_watermarks USING (realm_id)
CROSS JOIN size
CROSS JOIN LATERAL generate_series(starts_at, now_at, interval '2 seconds')
    WITH ORDINALITY s (slice_at, number)
CROSS JOIN LATERAL (VALUES ('realm', ''), ('server', server), ('transport', transport))
    d (dimension, name)
WHERE starts_at >= folded_until
GROUP BY 1, 2, 3, 4, 5, number ORDER BY 1, 2, 3, 4, 5;

-- open sessions by server
INSERT INTO accounting.server_load (realm_id, server, live_sessions)
SELECT realm_id, accounting.server_host(server_address), count(*)
FROM accounting.sessions WHERE ended_at IS NULL AND confirmed GROUP BY 1, 2;

-- traffic of the last ten minutes
INSERT INTO accounting.server_traffic
SELECT slot_at, realm_id, server, 5000000, 5000000, 3
FROM accounting.server_load, size, generate_series(
    now_at - interval '10 minutes', now_at, interval '10 seconds') slot_at;

-- small realms: more than a page lists; with usage as the last large one has, and no sessions
INSERT INTO accounting.realms (realm, realm_bytes)
SELECT name, convert_to(name, 'UTF8') FROM generate_series(1, 60) n
CROSS JOIN LATERAL (SELECT 'small' || n || '.example.org') AS r (name);

-- rules of small realms
INSERT INTO accounting.realm_rules (
    realm_id, holds_from, time_zone, anchor_day, grace_seconds, username_rule, separator)
SELECT realm_id, '-infinity', 'UTC', 1, 3600, 'auto', ':'
FROM accounting.realms WHERE realm LIKE 'small%';

-- folds of small realms
INSERT INTO accounting.fold_watermarks (realm_id, folded_until)
SELECT realm_id, date_trunc('hour', now_at) FROM accounting.realms, size WHERE realm LIKE 'small%';

-- usage of small realms
DO $$
DECLARE
    level text;
    small integer;
BEGIN
    FOREACH level IN ARRAY ARRAY['hourly', 'daily', 'monthly'] LOOP
        EXECUTE format('CREATE TEMP TABLE copied AS SELECT u.* FROM accounting.realm_usage_%s u'
            ' JOIN accounting.realms USING (realm_id) WHERE realm LIKE %L', level, 'realm9%');
        FOR small IN SELECT realm_id FROM accounting.realms WHERE realm LIKE 'small%' LOOP
            UPDATE copied SET realm_id = small;
            EXECUTE format('INSERT INTO accounting.realm_usage_%s TABLE copied', level);
        END LOOP;
        DROP TABLE copied;
    END LOOP;
END
$$;

-- bounds of hours, days and months
INSERT INTO accounting.buckets (realm_id, level, starts_at, ends_at, time_zone, tzdata_version)
SELECT realm_id, 'hour', starts_at, starts_at + interval '1 hour', r.time_zone, ''
FROM accounting.realm_usage_hourly JOIN accounting.realm_rules r USING (realm_id)
UNION
SELECT realm_id, 'hour', single_hour, single_hour + interval '1 hour', r.time_zone, ''
FROM accounting.sessions JOIN accounting.realm_rules r USING (realm_id)
WHERE NOT confirmed AND single_hour IS NOT NULL
UNION
SELECT realm_id, 'day', starts_at, date_add(starts_at, interval '1 day', r.time_zone),
    r.time_zone, ''
FROM accounting.realm_usage_daily JOIN accounting.realm_rules r USING (realm_id)
UNION
SELECT realm_id, 'month', starts_at, date_add(starts_at, interval '1 month', r.time_zone),
    r.time_zone, ''
FROM accounting.realm_usage_monthly JOIN accounting.realm_rules r USING (realm_id);

-- periods
INSERT INTO accounting.periods (realm_id, period, starts_at, ends_at, due_at, time_zone)
SELECT realm_id, (starts_at AT TIME ZONE time_zone)::date, starts_at, ends_at,
    ends_at + interval '1 hour', time_zone
FROM accounting.buckets WHERE level = 'month';

-- statistics before the statements
ANALYZE accounting.user_usage_hourly, accounting.periods;

-- statements of the first month
INSERT INTO accounting.statements
SELECT user_key, realm_id, period,
    received_packets, received_bytes, sent_packets, sent_bytes,
    peer_received_packets, peer_received_bytes, peer_sent_packets, peer_sent_bytes,
    sessions_started, sessions_ended, session_microseconds, estimated_bytes,
    encode(sha256(uuid_send(user_key)), 'hex')
FROM accounting.open_period_lines, size WHERE period < date_trunc('month', now_at);

-- closed
UPDATE accounting.periods SET closed_at = due_at, cutoff = jsonb_build_object('gap', 0,
    'without', '[]'::jsonb, 'sources', (SELECT jsonb_object_agg(source, jsonb_build_object(
        'epoch', 1, 'position', 1, 'until', (extract(epoch FROM due_at) * 1000000)::bigint,
        'sighted', jsonb_build_array(0, 0, 0)))
        FROM accounting.sources))::text
FROM size WHERE period < date_trunc('month', now_at);

-- adjustments of the closed month
INSERT INTO accounting.adjustments (
    adjustment_id, user_key, realm_id, period, posted_in,
    received_packets, received_bytes, sent_packets, sent_bytes,
    peer_received_packets, peer_received_bytes, peer_sent_packets, peer_sent_bytes,
    session_microseconds, reason, author, manual, posted_at)
SELECT gen_random_uuid(), user_key, s.realm_id, s.period, o.period, 1, 200, 3, 400, 0, 0, 0, 0, 0,
    'late usage', 'turn-accounting', false, s.closed_at + interval '1 day'
FROM (SELECT l.user_key, l.realm_id, l.period, p.closed_at,
        row_number() OVER (ORDER BY l.user_key) AS n
    FROM accounting.statements l JOIN accounting.periods p USING (realm_id, period)) s
JOIN accounting.periods o ON o.realm_id = s.realm_id AND o.closed_at IS NULL
WHERE s.n % 5 = 0;

-- days of reports
SELECT accounting.ensure_report_partition(day::date) FROM size, generate_series(
    date_trunc('day', now_at AT TIME ZONE 'UTC') - interval '3 days',
    date_trunc('day', now_at AT TIME ZONE 'UTC') + interval '1 day', interval '1 day') day;

-- reports of the sessions of the last four days
INSERT INTO accounting.reports (
    source_id, epoch, position, received_at, time_estimated, database, realm_id,
    username_key, user_key, allocation_id, kind, side, lifetime,
    transport, server_address, client_address,
    received_packets, received_bytes, sent_packets, sent_bytes)
SELECT e.source_id, 1, (extract(epoch FROM t.at - size.begins_at) * 1000000)::bigint + k.n, t.at,
    false, 0, e.realm_id, e.username_key, e.user_key, e.allocation_id, k.kind, k.side,
    CASE WHEN k.n IN (0, 1) THEN 600 WHEN k.n = 4 THEN 0 END,
    CASE k.kind WHEN 1 THEN e.transport END, CASE k.kind WHEN 1 THEN e.server_address END,
    CASE k.kind WHEN 1 THEN e.client_address END,
    CASE WHEN k.side = 0 THEN e.received_packets WHEN k.side = 1 THEN e.peer_received_packets
        ELSE 0 END,
    CASE WHEN k.side = 0 THEN e.received_bytes WHEN k.side = 1 THEN e.peer_received_bytes
        ELSE 0 END,
    CASE WHEN k.side = 0 THEN e.sent_packets WHEN k.side = 1 THEN e.peer_sent_packets ELSE 0 END,
    CASE WHEN k.side = 0 THEN e.sent_bytes WHEN k.side = 1 THEN e.peer_sent_bytes ELSE 0 END
FROM size JOIN accounting.sessions e ON e.started_at >= date_trunc('day', now_at, 'UTC')
    - interval '3 days'
CROSS JOIN (VALUES (0, 1, NULL, 0.0), (1, 2, NULL, 0.5), (2, 4, 0, 0.5), (3, 4, 1, 0.5),
    (4, 2, NULL, 1), (5, 3, NULL, 1), (6, 5, 0, 1), (7, 5, 1, 1)) k (n, kind, side, part)
CROSS JOIN LATERAL (SELECT e.started_at + k.part * (e.last_seen_at - e.started_at)) AS t (at)
WHERE (k.part < 1 OR e.ended_at IS NOT NULL) AND (e.confirmed OR k.kind = 4)
ORDER BY t.at, k.n;

-- feed
INSERT INTO accounting.feed (
    seq, event_id, type, realm_id, created_at, allocation_id, started_at, ended_at,
    received_packets, received_bytes, sent_packets, sent_bytes,
    peer_received_packets, peer_received_bytes, peer_sent_packets, peer_sent_bytes,
    session_id, user_key, number, database, source_id, start_known, total_reported,
    estimated, disputed, end_cause)
SELECT row_number() OVER (ORDER BY e.started_at), gen_random_uuid(), 'session.ended', e.realm_id,
    e.ended_at, e.allocation_id, e.started_at, e.ended_at,
    received_packets, received_bytes, sent_packets, sent_bytes,
    peer_received_packets, peer_received_bytes, peer_sent_packets, peer_sent_bytes,
    e.session_id, e.user_key, 1, e.database, e.source_id, e.start_known, true,
    e.estimated, e.disputed, e.end_cause
FROM (SELECT * FROM accounting.sessions WHERE ended_at IS NOT NULL AND confirmed
    ORDER BY started_at DESC LIMIT (SELECT feed_events FROM size)) e;

-- batches of the feed
INSERT INTO accounting.feed_batches (last_seq, history)
SELECT seq, event_id FROM accounting.feed
WHERE seq % 1000 = 0 OR seq = (SELECT max(seq) FROM accounting.feed);

-- statistics
VACUUM ANALYZE;

-- ranges of reports: a VACUUM ends an automatic summary of some, and what it leaves matches any time
REINDEX INDEX accounting.reports_by_time;

-- to disk
CHECKPOINT;
