-- What a second collector needs to go on, and what a scan of the status keys saw.

ALTER TABLE accounting.sources
    ADD COLUMN replication_id text,
    ADD COLUMN stream_database integer,
    ADD COLUMN loaded_by text;

-- Who may load a source now. By the database's clock; a holder that is late has lost it.
CREATE TABLE accounting.source_leases (
    source_id smallint NOT NULL,
    holder text NOT NULL,
    host text NOT NULL,
    renewed_at timestamptz NOT NULL,
    expires_at timestamptz NOT NULL,
    CONSTRAINT source_leases_pkey PRIMARY KEY (source_id)
);

-- Status keys found in Redis after a gap. Placed among the reports: after that position.
CREATE TABLE accounting.key_sightings (
    source_id smallint NOT NULL,
    epoch integer NOT NULL,
    position bigint NOT NULL,
    sighting bigint NOT NULL,
    database integer NOT NULL,
    realm_id integer NOT NULL,
    username_key uuid NOT NULL,
    user_key uuid NOT NULL,
    allocation_id bigint NOT NULL,
    began_at timestamptz NOT NULL,
    seen_at timestamptz NOT NULL,
    idle_seconds integer NOT NULL CONSTRAINT idle_is_not_negative CHECK (idle_seconds >= 0),
    CONSTRAINT key_sightings_pkey PRIMARY KEY (source_id, epoch, position, sighting, user_key)
);

ALTER TABLE accounting.settling
    ADD COLUMN sighted_epoch integer NOT NULL DEFAULT 0,
    ADD COLUMN sighted_position bigint NOT NULL DEFAULT 0,
    ADD COLUMN sighted bigint NOT NULL DEFAULT 0;

-- Where a gap stands among the reports, after that position; and what became of it.
ALTER TABLE accounting.capture_gaps
    ADD COLUMN epoch integer NOT NULL DEFAULT 0,
    ADD COLUMN position bigint NOT NULL DEFAULT 0,
    ADD COLUMN outcome text NOT NULL DEFAULT '';

CREATE OR REPLACE VIEW reporting.capture_gaps AS
SELECT g.gap_id, s.source, g.from_at, g.to_at, g.cause,
    concat_ws('; ', nullif(g.detail, ''), nullif(g.outcome, '')) AS detail
FROM accounting.capture_gaps g JOIN accounting.sources s USING (source_id);

COMMENT ON COLUMN reporting.capture_gaps.detail IS
    'More on the cause, and what became of the sessions that lived through it';

GRANT SELECT, INSERT, UPDATE, DELETE ON accounting.source_leases TO turn_accounting_writer;
-- Sightings are evidence, as reports are: append only.
GRANT SELECT, INSERT ON accounting.key_sightings TO turn_accounting_writer;
