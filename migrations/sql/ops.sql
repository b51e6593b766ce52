-- The runs of each job of the service.

CREATE TABLE accounting.job_runs (
    job text NOT NULL,
    runs bigint NOT NULL DEFAULT 0,
    failures bigint NOT NULL DEFAULT 0,
    failures_in_a_row integer NOT NULL DEFAULT 0,
    last_succeeded_at timestamptz,
    last_seconds double precision,
    last_failed_at timestamptz,
    last_error text,
    blocked_since timestamptz,
    blocked_at timestamptz,
    blocked_by text,
    CONSTRAINT job_runs_pkey PRIMARY KEY (job)
) WITH (fillfactor = 50);
GRANT SELECT, INSERT, UPDATE ON accounting.job_runs TO turn_accounting_writer;
