-- name: is_front
-- Whether this database is a front.
SELECT EXISTS (SELECT FROM accounting.front);

-- name: was_away
-- Whether the feed of a cell, or of one of all, could not be read the last time.
SELECT EXISTS (
    SELECT FROM accounting.cells
    WHERE feed_failing_since IS NOT NULL AND (CAST(:cell AS text) IS NULL OR cell = :cell));

-- name: touch_cells
-- Reads a row of each cell, or of one: those whose database is not that cell of this front.
SELECT n.cell
FROM accounting.cells n
LEFT JOIN (
    SELECT s.cell, s.database_id FROM cells.status s
    WHERE s.member = s.cell AND s.front = reporting.feed_source()
        AND s.installation = reporting.feed_source()
        AND (CAST(:cell AS text) IS NULL OR s.cell = :cell)
) s USING (cell, database_id)
WHERE s.cell IS NULL AND (CAST(:cell AS text) IS NULL OR n.cell = :cell)
ORDER BY n.cell;

-- name: forget_plans
-- Makes Postgres plan again what functions run: plans contain which cells a session read before, perhaps
-- of another client of a pooler.
DISCARD PLANS;

-- name: limit_statements
-- Ends each later statement of this transaction that takes longer; 0: none.
SELECT set_config('statement_timeout', :milliseconds, true);

-- name: find_source
-- The cells that have a source.
SELECT DISTINCT cell FROM cells.sources WHERE source = :source ORDER BY cell;

-- name: make_front
-- Makes this database a front.
INSERT INTO accounting.front DEFAULT VALUES ON CONFLICT DO NOTHING;

-- name: has_own_books
-- Whether anything was captured into this database.
SELECT EXISTS (SELECT FROM accounting.sources);

-- name: create_extension
-- Foreign tables over other Postgres servers.
CREATE EXTENSION IF NOT EXISTS postgres_fdw;

-- name: let_owner_use_extension
-- So that the owner of the schema may make foreign servers.
GRANT USAGE ON FOREIGN DATA WRAPPER postgres_fdw TO turn_accounting_owner;

-- name: become_owner
-- Takes the owner's role for this transaction.
SET LOCAL ROLE turn_accounting_owner;

-- name: reset_role
-- Gives the role of the login back.
RESET ROLE;

-- name: read_cells
-- The cells of this front, by name.
SELECT cell_id, cell, url, revision, front_revision, joined_at, bill_from
FROM accounting.cells ORDER BY cell;

-- name: cell_password
-- The password of the front's login to a cell.
SELECT accounting.cell_password(:cell);

-- name: identity_key
-- The key of this installation.
SELECT identity_key FROM accounting.installation;

-- name: installation_uri
-- The name of this installation: a hash of its key.
SELECT reporting.feed_source();

-- name: database_collation
-- How this database sorts texts.
SELECT cell.database_collation();

-- name: read_membership
-- The front of this cell, and the cell's name there.
SELECT front, cell FROM accounting.membership;

-- name: has_users
-- Whether any name was made into a key.
SELECT EXISTS (SELECT FROM accounting.users) OR EXISTS (SELECT FROM accounting.sources);

-- name: has_keys
-- In a front: whether it knows a cell, present or former, or a user by a key.
SELECT EXISTS (SELECT FROM accounting.cells) OR EXISTS (SELECT FROM accounting.feed_positions)
    OR EXISTS (SELECT FROM accounting.users) OR EXISTS (SELECT FROM accounting.erasures)
    OR EXISTS (SELECT FROM accounting.limits WHERE user_key IS NOT NULL)
    OR EXISTS (SELECT FROM access.tokens WHERE user_key IS NOT NULL)
    OR EXISTS (SELECT FROM accounting.webhook_customers);

-- name: set_identity_key
-- Gives this database the key of the installation. The owner may.
UPDATE accounting.installation SET identity_key = :key;

-- name: database_id
-- Which database of the installation this is.
SELECT database_id FROM accounting.installation;

-- name: set_database_id
-- Makes this another database than the one that it is a copy of. The owner may.
UPDATE accounting.installation SET database_id = gen_random_uuid() RETURNING database_id;

-- name: known_databases
-- The databases of the other cells, with their names, and of those that have left, without one.
SELECT database_id, cell FROM accounting.cells WHERE cell <> :cell
UNION ALL SELECT DISTINCT p.database_id, NULL FROM accounting.feed_positions p
WHERE NOT EXISTS (SELECT FROM accounting.cells n WHERE n.database_id = p.database_id);

-- name: joined_database
-- The database that joined under a name that has not left.
SELECT database_id FROM accounting.cells WHERE cell = :cell;

-- name: periods_in_cell
-- In a cell: its periods with usage, with the cutoffs of those that are closed. Usage after the last
-- period, which comes up to a minute before its own period, is named by its first day.
SELECT r.realm, p.period, true AS has_period, p.cutoff
FROM accounting.periods p JOIN accounting.realms r USING (realm_id)
WHERE EXISTS (
    SELECT FROM accounting.realm_usage_hourly h
    WHERE h.realm_id = p.realm_id AND h.starts_at >= p.starts_at AND h.starts_at < p.ends_at)
UNION ALL
SELECT r.realm, CAST(u.starts_at AT TIME ZONE 'UTC' AS date), false, NULL
FROM accounting.realms r
CROSS JOIN LATERAL (
    SELECT min(h.starts_at) AS starts_at FROM accounting.realm_usage_hourly h
    WHERE h.realm_id = r.realm_id AND h.starts_at >= coalesce(
        (SELECT max(p.ends_at) FROM accounting.periods p WHERE p.realm_id = r.realm_id), '-infinity')
) u
WHERE u.starts_at IS NOT NULL
ORDER BY 1, 2;

-- name: adjustments_copied_since
-- From when on adjustments of a cell may not be copied yet: the time of its clock, as a text.
SELECT CAST(adjustments_until - interval '1 day' AS text) FROM accounting.cells WHERE cell = :cell;

-- name: late_in_cell
-- In a cell: its adjustments since then, and, without a number, the periods with usage that is not rolled
-- up or not posted yet.
SELECT a.adjustment_id, a.realm, a.period FROM reporting.adjustments a
WHERE a.posted_at >= CAST(:since AS timestamptz)
UNION ALL
SELECT DISTINCT CAST(NULL AS uuid), r.realm, d.period
FROM accounting.periods_to_adjust d JOIN accounting.realms r USING (realm_id)
UNION ALL
SELECT DISTINCT CAST(NULL AS uuid), r.realm, p.period
FROM accounting.usage_deltas d
JOIN accounting.realms r USING (realm_id)
JOIN accounting.periods p ON p.realm_id = d.realm_id AND d.starts_at >= p.starts_at
    AND d.starts_at < p.ends_at;

-- name: not_copied
-- The first of these adjustments of a cell that the front has to bill and has not.
SELECT c.realm, c.period
FROM unnest(CAST(:ids AS uuid[]), CAST(:realms AS text[]), CAST(:periods AS date[]))
    AS c (id, realm, period)
JOIN accounting.realms r USING (realm)
JOIN accounting.billing_cells w ON w.realm_id = r.realm_id AND w.period = c.period AND w.cell = :cell
WHERE NOT EXISTS (
    SELECT FROM accounting.adjustments a
    WHERE a.adjustment_id
        = accounting.event_id('adjustment of a cell', w.database_id || ' ' || c.id))
ORDER BY c.realm, c.period LIMIT 1;

-- name: billed_of_database
-- The closings of a cell's database that are in the books of the front.
SELECT r.realm, b.period, b.cutoff
FROM accounting.billed_closings b JOIN accounting.realms r USING (realm_id)
WHERE b.database_id = :database_id;

-- name: billed_of_former_databases
-- What was billed of databases that have left, of the same name or with a source of these.
SELECT b.cell, min(b.period) AS first, max(b.period) AS last
FROM accounting.billed_closings b
WHERE b.database_id <> :database_id
    AND NOT EXISTS (SELECT FROM accounting.cells n WHERE n.database_id = b.database_id)
    AND (b.cell = :cell OR jsonb_exists_any(
        CAST(b.cutoff AS jsonb) -> 'sources', CAST(:sources AS text[])))
GROUP BY b.cell ORDER BY b.cell;

-- name: source_names
-- In a cell: its sources.
SELECT source FROM reporting.sources ORDER BY source;

-- name: closed_in_cell
-- In a cell: its closed periods with usage. ends_on: the first day after it.
SELECT r.realm, p.period, CAST(p.ends_at AT TIME ZONE p.time_zone AS date) AS ends_on
FROM accounting.periods p JOIN accounting.realms r USING (realm_id)
WHERE p.closed_at IS NOT NULL AND EXISTS (
    SELECT FROM accounting.statements s WHERE s.realm_id = p.realm_id AND s.period = p.period);

-- name: first_open_in_cell
-- In a cell: the first of the periods that it has not closed, of all realms.
SELECT min(period) FROM accounting.periods WHERE closed_at IS NULL;

-- name: cut_period
-- In a cell: a period that this day lies within, where none begins on it. ends_on: the first day after it.
SELECT r.realm, p.period, p.ends_on
FROM (
    SELECT *, CAST(ends_at AT TIME ZONE time_zone AS date) AS ends_on FROM accounting.periods
) p
JOIN accounting.realms r USING (realm_id)
WHERE p.period < :day AND p.ends_on > :day
    AND NOT EXISTS (SELECT FROM accounting.periods WHERE period = :day)
ORDER BY p.period DESC, r.realm LIMIT 1;

-- name: join_front
-- Records the front of this cell.
INSERT INTO accounting.membership (front, cell) VALUES (:front, :cell)
ON CONFLICT (id) DO UPDATE SET front = excluded.front, cell = excluded.cell;

-- name: leave_front
-- Forgets the front of this cell.
DELETE FROM accounting.membership WHERE front = :front;

-- name: free_cell_id
-- The smallest number that no cell of this front has.
SELECT min(n) FROM generate_series(1, 1023) n
WHERE n NOT IN (SELECT cell_id FROM accounting.cells);

-- name: add_cell
-- Records a cell, or what is new of it.
INSERT INTO accounting.cells AS n (
    cell_id, cell, url, revision, front_revision, database_id, bill_from
)
VALUES (
    :cell_id, :cell, :url, :revision, :front_revision, :database_id, CAST(:bill_from AS date)
)
ON CONFLICT (cell_id) DO UPDATE SET url = excluded.url, database_id = excluded.database_id,
    bill_from = coalesce(excluded.bill_from, n.bill_from), adjustments_until = '-infinity',
    feed_retry_at = NULL;

-- name: forget_cell
-- Forgets a cell.
WITH forgotten AS (DELETE FROM accounting.sources_of_cells WHERE cell = :cell)
DELETE FROM accounting.cells WHERE cell = :cell;

-- name: log_no_passwords
-- Keeps the statements of this transaction out of the server's log, where the login may.
SELECT set_config(s.name, s.value, true)
FROM (VALUES ('log_statement', 'none'), ('log_min_duration_statement', '-1'),
    ('log_min_duration_sample', '-1'), ('log_transaction_sample_rate', '0'),
    ('log_min_error_statement', 'panic')) AS s (name, value)
WHERE has_parameter_privilege(s.name, 'SET');

-- name: has_server
-- Whether there is a foreign server of this name.
SELECT EXISTS (SELECT FROM pg_foreign_server WHERE srvname = :server);

-- name: import_cell
-- Makes the foreign tables of a cell, and the views over them.
SELECT accounting.import_cell(:cell, :revision, :front_revision);

-- name: define_front_views
-- Defines the views over the cells.
SELECT accounting.define_front_views();

-- name: known_periods
-- The realms, each with its periods.
SELECT r.realm, p.period FROM accounting.realms r LEFT JOIN accounting.periods p USING (realm_id);

-- name: periods_of_cell
-- The periods of a realm, or of all, in a cell.
SELECT r.realm, p.period FROM accounting.realms r LEFT JOIN accounting.periods p USING (realm_id)
WHERE CAST(:realm AS text) IS NULL OR r.realm = :realm;

-- name: compare_all_peaks
-- Makes the next run compare all hours of all cells.
UPDATE accounting.front SET peaks_compared_at = '-infinity';

-- name: forget_peaks_of_cell
-- Deletes the hours that were counted with a cell; the next run counts them without it.
WITH compared AS (
    UPDATE accounting.front SET peaks_compared_at = '-infinity'
),
deleted AS (
    DELETE FROM accounting.front_peak_hours WHERE jsonb_exists(counted_from, :cell)
    RETURNING realm, starts_at
)
DELETE FROM accounting.front_peaks p USING deleted d
WHERE p.realm = d.realm AND p.starts_at = d.starts_at;

-- name: cells_of_period
-- The cells that the front bills a period of.
SELECT cell FROM accounting.billing_cells WHERE realm_id = :realm_id AND period = :period;
