-- name: roles
-- Creates the missing ones of the three roles, and makes this user a member of the owner.
DO $$
DECLARE
    role_name text;
BEGIN
    FOREACH role_name IN ARRAY
        ARRAY['turn_accounting_owner', 'turn_accounting_writer', 'turn_accounting_reader']
    LOOP
        BEGIN
            IF NOT EXISTS (SELECT FROM pg_roles WHERE rolname = role_name) THEN
                EXECUTE format('CREATE ROLE %I NOLOGIN', role_name);
            END IF;
        EXCEPTION WHEN duplicate_object OR unique_violation THEN
            NULL;  -- roles belong to the cluster: another database's upgrade created it meanwhile
        END;
    END LOOP;
    -- So that every login of the service may give up what the reader has not: see become_reader.
    FOREACH role_name IN ARRAY ARRAY['turn_accounting_owner', 'turn_accounting_writer']
    LOOP
        BEGIN
            IF NOT pg_has_role(role_name, 'turn_accounting_reader', 'MEMBER') THEN
                EXECUTE format('GRANT turn_accounting_reader TO %I', role_name);
            END IF;
        EXCEPTION WHEN insufficient_privilege THEN
            NULL;  -- others created the roles; only the page needs this
        END;
    END LOOP;
    IF NOT pg_has_role(current_user, 'turn_accounting_owner', 'MEMBER') THEN
        EXECUTE format('GRANT turn_accounting_owner TO %I', current_user);
    END IF;
    EXECUTE format('GRANT CONNECT, CREATE, TEMPORARY ON DATABASE %I TO turn_accounting_owner',
        current_database());
    EXECUTE format('GRANT CONNECT, TEMPORARY ON DATABASE %I TO turn_accounting_writer',
        current_database());
    EXECUTE format('GRANT CONNECT ON DATABASE %I TO turn_accounting_reader', current_database());
END
$$;

-- name: become_reader
-- Takes the reader's role for this transaction, instead of the rights of the login.
SET LOCAL ROLE turn_accounting_reader;

-- name: locks
-- The locks, before any migration runs: an upgrade takes one of them.
CREATE TABLE IF NOT EXISTS accounting.locks (
    name text NOT NULL,
    CONSTRAINT locks_pkey PRIMARY KEY (name)
);
INSERT INTO accounting.locks (name) VALUES ('migrations') ON CONFLICT DO NOTHING;

-- name: lock_holder
-- The session that holds a lock: the owner of the transaction that locked its row last.
SELECT
    l.pid, coalesce(a.usename, '?') AS role, coalesce(a.application_name, '?') AS application,
    extract(epoch FROM clock_timestamp() - a.xact_start)::float8 AS seconds
FROM accounting.locks k
JOIN pg_locks l ON l.locktype = 'transactionid' AND l.transactionid = k.xmax AND l.granted
LEFT JOIN pg_stat_activity a ON a.pid = l.pid
WHERE k.name = :name AND l.pid IS NOT NULL;

-- name: source_holder
-- The session that has locked sources for the longest time, as loaders do, but not :waiting.
SELECT
    l.pid, coalesce(a.usename, '?') AS role, coalesce(a.application_name, '?') AS application,
    extract(epoch FROM clock_timestamp() - a.xact_start)::float8 AS seconds
FROM pg_locks l
LEFT JOIN pg_stat_activity a ON a.pid = l.pid
WHERE l.relation = 'accounting.sources'::regclass AND l.granted AND l.pid <> :waiting
    AND l.mode IN ('RowShareLock', 'RowExclusiveLock', 'ExclusiveLock')
ORDER BY a.xact_start LIMIT 1;

-- name: views_holder
-- The session that has read the views over cells, or the foreign tables below them, for the longest
-- time, but not :waiting.
SELECT
    l.pid, coalesce(a.usename, '?') AS role, coalesce(a.application_name, '?') AS application,
    extract(epoch FROM clock_timestamp() - a.xact_start)::float8 AS seconds
FROM pg_locks l
JOIN pg_class c ON c.oid = l.relation
JOIN pg_namespace n ON n.oid = c.relnamespace
LEFT JOIN pg_stat_activity a ON a.pid = l.pid
WHERE (n.nspname IN ('reporting', 'cell', 'cells') OR n.nspname LIKE 'cell\_%')
    AND l.granted AND l.pid <> :waiting
    AND l.database = (SELECT d.oid FROM pg_database d WHERE d.datname = current_database())
ORDER BY a.xact_start LIMIT 1;

-- name: database_encoding
-- The name and the encoding of this database.
SELECT datname, pg_encoding_to_char(encoding) FROM pg_database WHERE datname = current_database();

-- name: forget_plans
-- Makes Postgres plan again what functions of this session run.
DISCARD PLANS;

-- name: settings
-- What every transaction relies on, whatever the database and the login have set.
-- Texts that are sent and read.
SET LOCAL client_encoding = 'UTF8';
SET LOCAL datestyle = 'ISO, YMD';
SET LOCAL intervalstyle = 'postgres';
SET LOCAL timezone = 'UTC';
SET LOCAL timezone_abbreviations = 'Default';
SET LOCAL bytea_output = 'hex';
SET LOCAL extra_float_digits = 1;
SET LOCAL standard_conforming_strings = on;
SET LOCAL array_nulls = on;
SET LOCAL transform_null_equals = off;
SET LOCAL search_path = pg_catalog, pg_temp;
-- On a front: all cells, unless a reader says that it leaves some out.
SET LOCAL turn_accounting.without_cells = '';
-- Long work is not an error, and an error does not end the session.
SET LOCAL statement_timeout = 0;
SET LOCAL lock_timeout = 0;
SET LOCAL idle_in_transaction_session_timeout = 0;
SET LOCAL exit_on_error = off;
SET LOCAL client_min_messages = 'warning';
-- Plans that read along indexes and leave partitions out: the tables grow without bound.
SET LOCAL enable_seqscan = on;
SET LOCAL enable_indexscan = on;
SET LOCAL enable_indexonlyscan = on;
SET LOCAL enable_bitmapscan = on;
SET LOCAL enable_nestloop = on;
SET LOCAL enable_hashjoin = on;
SET LOCAL enable_mergejoin = on;
SET LOCAL enable_partition_pruning = on;
SET LOCAL join_collapse_limit = 8;
SET LOCAL from_collapse_limit = 8;
-- Compiling takes seconds where statistics or costs mislead; statements here are short.
SET LOCAL jit = off;

-- name: settings_restricted_kinds
-- Allows reading views, which this setting can forbid.
SET LOCAL restrict_nonsystem_relation_kind = '';

-- name: settings_transaction_timeout
-- Long transactions are not an error.
SET LOCAL transaction_timeout = 0;
