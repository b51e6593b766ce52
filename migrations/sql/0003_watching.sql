-- What is watched: relay threads that fall silent, jobs that fail, how much was loaded.

-- One row for each relay thread of coturn that was heard: how long ago, and which of its lives ran
-- out since without a word. Few rows: settling keeps them, and drops those of servers long gone.
CREATE TABLE accounting.relay_threads (
    source_id smallint NOT NULL,
    database integer NOT NULL,
    server text NOT NULL,
    thread smallint NOT NULL,
    heard_at timestamptz NOT NULL,
    highest_id bigint NOT NULL DEFAULT 0,
    highest_at timestamptz,
    restarted_at timestamptz,
    unheard integer NOT NULL DEFAULT 0,
    certain boolean NOT NULL DEFAULT false,
    owed_since timestamptz,
    CONSTRAINT relay_threads_pkey PRIMARY KEY (source_id, database, server, thread),
    CONSTRAINT unheard_lives_owe_something CHECK ((unheard > 0) = (owed_since IS NOT NULL))
) WITH (fillfactor = 50);

CREATE TABLE accounting.job_runs (
    job text NOT NULL,
    runs bigint NOT NULL DEFAULT 0,
    failures bigint NOT NULL DEFAULT 0,
    failures_in_a_row integer NOT NULL DEFAULT 0,
    last_succeeded_at timestamptz,
    last_seconds double precision,
    last_failed_at timestamptz,
    last_error text,
    CONSTRAINT job_runs_pkey PRIMARY KEY (job)
) WITH (fillfactor = 50);

-- Counts that only grow, kept beside the rows that they count: counting those would take longer
-- the more there are.
CREATE TABLE accounting.tallies (
    source_id smallint NOT NULL,
    counted text NOT NULL,
    detail text NOT NULL DEFAULT '',
    total bigint NOT NULL,
    CONSTRAINT tallies_pkey PRIMARY KEY (source_id, counted, detail)
) WITH (fillfactor = 50);

-- Few, among many: what is open, and what is a stranger's.
CREATE INDEX capture_gaps_open ON accounting.capture_gaps (source_id) WHERE to_at IS NULL;
CREATE INDEX session_usage_unattributed ON accounting.session_usage (realm_id, starts_at)
    WHERE NOT vouched;

GRANT SELECT, INSERT, UPDATE, DELETE ON accounting.relay_threads TO turn_accounting_writer;
GRANT SELECT, INSERT, UPDATE ON accounting.job_runs, accounting.tallies TO turn_accounting_writer;
