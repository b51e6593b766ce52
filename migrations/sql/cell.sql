-- Schema cell: what a front reads of a cell beyond the contract, and what the functions of schema
-- reporting read in either. In a front these views, too, are over those of its cells. They may change
-- with any version. A condition on a key or a name uses the indexes of the tables below.
CREATE SCHEMA cell;
GRANT USAGE ON SCHEMA cell TO turn_accounting_reader, turn_accounting_writer;
ALTER DEFAULT PRIVILEGES IN SCHEMA cell
    GRANT SELECT ON TABLES TO turn_accounting_reader, turn_accounting_writer;

-- The realms, with their numbers in this database.
CREATE VIEW cell.realm_numbers AS SELECT realm_id, realm FROM accounting.realms;

-- The separators of all rules of realms.
CREATE VIEW cell.separators AS SELECT DISTINCT separator FROM accounting.realm_rules;

-- The users. is_erased: the name was erased, and not published again since.
CREATE VIEW cell.user_names AS
SELECT r.realm, u.user_id, u.user_key,
    u.user_id = '' AND EXISTS (
        SELECT FROM accounting.erasures e WHERE e.user_key = u.user_key
    ) AS is_erased
FROM accounting.realms r JOIN accounting.users u USING (realm_id);

CREATE VIEW cell.usernames AS
SELECT r.realm, n.username, n.user_key
FROM accounting.usernames n
JOIN accounting.users u USING (user_key)
JOIN accounting.realms r USING (realm_id);

CREATE VIEW cell.source_progress AS
SELECT s.source, s.retired_at, s.last_received_at, t.settled_until, s.captured_until
FROM accounting.sources s LEFT JOIN accounting.settle_watermarks t USING (source_id);

-- What an operator should know of the sources beyond their row in reporting.sources.
CREATE VIEW cell.source_notices AS
SELECT s.source, false AS is_error, format('returned to service at %s, after it was retired',
    to_char(s.reopened_at AT TIME ZONE 'UTC', 'YYYY-MM-DD HH24:MI:SS"Z"')) AS notice
FROM accounting.sources s
WHERE s.reopened_at > accounting.database_now() - interval '7 days'
UNION ALL
SELECT s.source, true, format('since %s, %s', to_char(
    c.from_at AT TIME ZONE 'UTC', 'YYYY-MM-DD HH24:MI:SS"Z"'), c.message)
FROM accounting.source_conflicts c JOIN accounting.sources s USING (source_id)
WHERE c.last_seen_at > clock_timestamp() - interval '1 day';

-- The hours with usage that the roll-up has not added yet.
CREATE VIEW cell.pending_usage AS
SELECT DISTINCT r.realm, t.starts_at
FROM accounting.usage_deltas t JOIN accounting.realms r USING (realm_id);

-- The hours that changed since this database is a cell.
CREATE VIEW cell.changed_hours AS
SELECT r.realm, h.starts_at, h.changed_at
FROM accounting.changed_hours h JOIN accounting.realms r USING (realm_id);

-- When an hour changed last; no time if none did.
CREATE VIEW cell.last_change AS SELECT max(changed_at) AS changed_at FROM accounting.changed_hours;

-- What is limited, by user: the hours, and the folded days and months with the hours that are not
-- folded yet, apart from each other. A condition on level leaves the tables that it needs.
CREATE VIEW cell.limited_usage AS
SELECT r.realm, 'hour' AS level, u.user_key, u.starts_at, u.received_bytes, u.sent_bytes,
    u.sessions_started, u.session_microseconds
FROM accounting.user_usage_hourly u JOIN accounting.realms r USING (realm_id)
UNION ALL
SELECT r.realm, 'day', u.user_key, u.starts_at, u.received_bytes, u.sent_bytes,
    u.sessions_started, u.session_microseconds
FROM accounting.user_usage_daily u JOIN accounting.realms r USING (realm_id)
UNION ALL
SELECT r.realm, 'month', u.user_key, u.starts_at, u.received_bytes, u.sent_bytes,
    u.sessions_started, u.session_microseconds
FROM accounting.user_usage_monthly u JOIN accounting.realms r USING (realm_id)
UNION ALL
SELECT r.realm, l.level, u.user_key, u.starts_at, u.received_bytes, u.sent_bytes,
    u.sessions_started, u.session_microseconds
FROM accounting.user_usage_hourly u
JOIN accounting.realms r USING (realm_id)
JOIN accounting.fold_watermarks f USING (realm_id)
CROSS JOIN (VALUES ('day'), ('month')) AS l (level)
WHERE u.starts_at >= f.folded_until;

-- The same of realms, whose days and months have all hours.
CREATE VIEW cell.limited_realm_usage AS
SELECT r.realm, 'hour' AS level, u.starts_at, u.received_bytes, u.sent_bytes,
    u.sessions_started, u.session_microseconds
FROM accounting.realm_usage_hourly u JOIN accounting.realms r USING (realm_id)
UNION ALL
SELECT r.realm, 'day', u.starts_at, u.received_bytes, u.sent_bytes,
    u.sessions_started, u.session_microseconds
FROM accounting.realm_usage_daily u JOIN accounting.realms r USING (realm_id)
UNION ALL
SELECT r.realm, 'month', u.starts_at, u.received_bytes, u.sent_bytes,
    u.sessions_started, u.session_microseconds
FROM accounting.realm_usage_monthly u JOIN accounting.realms r USING (realm_id);

-- The confirmed sessions by their keys.
CREATE VIEW cell.session_keys AS
SELECT e.realm_id, e.session_id, e.user_key, n.username, e.started_at, e.ended_at
FROM accounting.sessions e
LEFT JOIN accounting.usernames n USING (username_key, user_key)
WHERE e.confirmed;

-- The sessions that go on, as far as is known, of sources in service.
CREATE VIEW cell.unended_sessions AS
SELECT r.realm, e.last_seen_at
FROM accounting.sessions e
JOIN accounting.realms r USING (realm_id)
JOIN accounting.sources s USING (source_id)
WHERE e.ended_at IS NULL AND e.phase = 1 AND e.confirmed AND s.retired_at IS NULL;

-- The hours into which sessions continued.
CREATE VIEW cell.continued_sessions AS
SELECT u.realm_id, u.session_id, u.user_key, u.starts_at
FROM accounting.session_usage u WHERE NOT u.started;

-- Unattributed usage by the key of the user whose name it is under; null where the names are pruned.
CREATE VIEW cell.unattributed_keys AS
SELECT r.realm, e.user_key, n.username, e.single_hour AS starts_at,
    e.received_bytes + e.sent_bytes AS bytes
FROM accounting.sessions e
JOIN accounting.realms r USING (realm_id)
LEFT JOIN accounting.usernames n USING (username_key, user_key)
WHERE NOT e.confirmed AND e.single_hour IS NOT NULL
UNION ALL
SELECT r.realm, u.user_key, n.username, u.starts_at, u.received_bytes + u.sent_bytes
FROM accounting.session_usage u
JOIN accounting.realms r USING (realm_id)
JOIN accounting.sessions e USING (session_id, user_key)
LEFT JOIN accounting.usernames n USING (username_key, user_key)
WHERE NOT u.confirmed
UNION ALL
SELECT r.realm, NULL, NULL, p.starts_at, p.received_bytes + p.sent_bytes
FROM accounting.pruned_usage p JOIN accounting.realms r USING (realm_id);

-- The realms with their rules. realm_bytes: the name as coturn publishes it.
CREATE VIEW cell.realm_rules AS
SELECT r.realm, r.realm_bytes, r.client_addresses, r.named_in_radacct, l.holds_from, l.time_zone,
    l.anchor_day, l.grace_seconds, l.username_rule, l.separator
FROM accounting.realms r JOIN accounting.realm_rules l USING (realm_id);

-- The billing periods. waits_for: null for one that is closed, and for one that can be.
CREATE VIEW cell.closings AS
SELECT r.realm, p.period, p.starts_at, p.ends_at, p.due_at, p.time_zone, p.closed_at, p.cutoff,
    CASE WHEN p.closed_at IS NULL THEN accounting.period_waits(p.realm_id, p.period) END AS waits_for
FROM accounting.periods p JOIN accounting.realms r USING (realm_id);

-- What the feed is up to the end of each batch of numbered events, in this database.
CREATE VIEW cell.feed_batches AS
SELECT (SELECT i.database_id FROM accounting.installation i) AS database_id, b.last_seq, b.history
FROM accounting.feed_batches b;

-- The hours of realms whose peaks were counted, with a version that is another one after every change.
-- ends_at: null where a rebuild left no usage. has_slices: in cell.peak_slices. is_changing: the roll-up
-- has changes of it to count.
CREATE VIEW cell.peak_hours AS
SELECT r.realm, v.starts_at, b.ends_at, v.version, v.changed_at,
    EXISTS (
        SELECT FROM accounting.realm_peak_slices s
        WHERE s.realm_id = v.realm_id AND s.starts_at = v.starts_at AND s.slice_at = '-infinity'
    ) AS has_slices,
    EXISTS (
        SELECT FROM accounting.peak_deltas d
        WHERE d.realm_id = v.realm_id AND d.starts_at = v.starts_at
    ) OR EXISTS (
        SELECT FROM accounting.server_deltas d
        WHERE d.realm_id = v.realm_id AND d.starts_at = v.starts_at AND d.sessions_carried <> 0
    ) AS is_changing
FROM accounting.peak_versions v
JOIN accounting.realms r USING (realm_id)
LEFT JOIN accounting.buckets b
    ON b.realm_id = v.realm_id AND b.level = 'hour' AND b.starts_at = v.starts_at;

-- The slices of the last days' hours: see accounting.realm_peak_slices.
CREATE VIEW cell.peak_slices AS
SELECT s.realm_id, s.starts_at, s.slice_at, s.dimension, s.name, s.session_delta, s.session_peak
FROM accounting.realm_peak_slices s;

-- What peaks are counted from: the confirmed sessions, and those that were open when an hour started.
CREATE VIEW cell.session_spans AS
SELECT e.realm_id, e.started_at, e.ended_at, e.server_address, e.transport
FROM accounting.sessions e WHERE e.confirmed;

CREATE VIEW cell.carried_sessions AS
SELECT u.realm_id, u.starts_at, e.server_address, e.transport
FROM accounting.session_usage u JOIN accounting.sessions e USING (session_id, user_key)
WHERE NOT u.started AND u.confirmed AND u.active_to > u.active_from;

-- The erasures that the front recorded and that were carried out here. of_front: when it did.
CREATE VIEW cell.erasures AS
SELECT e.user_key, e.of_front FROM accounting.erasures e WHERE e.of_front IS NOT NULL;
