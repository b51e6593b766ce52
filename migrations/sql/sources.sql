-- Sources: how far each is captured and loaded, which collector has it, and what capture missed.

-- retired_at: null while the source is in service. reopened_at: when it returned to service after it
-- was retired.
CREATE TABLE accounting.sources (
    source_id smallint NOT NULL,
    source text NOT NULL,
    mode text NOT NULL CONSTRAINT mode_is_known CHECK (
        mode IN ('auto', 'replication', 'subscribe')),
    epoch integer NOT NULL DEFAULT 0,
    position bigint NOT NULL DEFAULT 0,
    captured_until timestamptz,
    loaded_until timestamptz,
    last_received_at timestamptz,
    retired_at timestamptz,
    reopened_at timestamptz,
    replication_id text,
    stream_database integer,
    loaded_by_host text,
    CONSTRAINT sources_pkey PRIMARY KEY (source_id),
    CONSTRAINT source_is_unique UNIQUE (source)
);
GRANT SELECT, INSERT, UPDATE, DELETE ON accounting.sources TO turn_accounting_writer;

-- In a cell: the present and former names and the numbers of the sources of its front's other cells.
-- No new source of this cell gets one of them.
CREATE TABLE accounting.other_sources (
    source text NOT NULL,
    source_id smallint NOT NULL,
    cell text NOT NULL,
    CONSTRAINT other_sources_pkey PRIMARY KEY (source)
);
CREATE INDEX other_sources_by_number ON accounting.other_sources (source_id);
GRANT SELECT, INSERT, DELETE ON accounting.other_sources TO turn_accounting_writer;

-- Numbers a source by its name, so that session ids, which contain the number, are the same when
-- sources come in another order after a restore. A number that a source has, here or in another cell
-- of a front, is skipped.
CREATE FUNCTION accounting.number_source() RETURNS trigger
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    hash bytea := sha256(convert_to(NEW.source, 'UTF8'));
    number integer := (get_byte(hash, 0) * 256 + get_byte(hash, 1)) % 32767;
BEGIN
    WHILE EXISTS (SELECT FROM accounting.sources s WHERE s.source_id = number + 1)
        OR EXISTS (SELECT FROM accounting.other_sources o WHERE o.source_id = number + 1)
    LOOP
        number := (number + 1) % 32767;
    END LOOP;
    NEW.source_id := number + 1;
    RETURN NEW;
END
$$;
REVOKE ALL ON FUNCTION accounting.number_source() FROM PUBLIC;
CREATE TRIGGER sources_are_numbered_by_name BEFORE INSERT ON accounting.sources
    FOR EACH ROW WHEN (NEW.source_id IS NULL) EXECUTE FUNCTION accounting.number_source();
-- ENABLE ALWAYS: also where a database turns triggers off (session_replication_role = replica).
ALTER TABLE accounting.sources ENABLE ALWAYS TRIGGER sources_are_numbered_by_name;

-- The lock of settling a source exists before the source can be settled: two sessions that insert the
-- same name would wait for one another.
CREATE FUNCTION accounting.insert_source_lock() RETURNS trigger
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    INSERT INTO accounting.locks (name) VALUES ('settle.' || NEW.source_id) ON CONFLICT DO NOTHING;
    RETURN NULL;
END
$$;
REVOKE ALL ON FUNCTION accounting.insert_source_lock() FROM PUBLIC;
CREATE TRIGGER source_has_a_lock AFTER INSERT ON accounting.sources
    FOR EACH ROW EXECUTE FUNCTION accounting.insert_source_lock();
ALTER TABLE accounting.sources ENABLE ALWAYS TRIGGER source_has_a_lock;

-- Names that a source had before it was renamed: statements' cutoffs have them, so they are not given
-- to another source.
CREATE TABLE accounting.former_source_names (
    former_name text NOT NULL,
    source_id smallint NOT NULL,
    renamed_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    CONSTRAINT former_source_names_pkey PRIMARY KEY (former_name)
);
GRANT SELECT, INSERT, DELETE ON accounting.former_source_names TO turn_accounting_writer;

-- The histories that belong to a source: 'run ' and a server's run id, 'history ' and a replication
-- id, 'following ' and that of a replica's master, 'node ' and the id of a node of a cluster. A history
-- belongs to one source for good.
CREATE TABLE accounting.source_histories (
    history text NOT NULL,
    source_id smallint NOT NULL,
    claimed_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    CONSTRAINT source_histories_pkey PRIMARY KEY (history)
);
CREATE INDEX source_histories_by_source ON accounting.source_histories (source_id, claimed_at);
GRANT SELECT, INSERT, DELETE ON accounting.source_histories TO turn_accounting_writer;

-- Collectors that were refused: a second name on the history of a source, or a second Redis under
-- its name. holder: the collector, as in source_leases. from_at: since when it could not capture.
-- server: the Redis that it saw.
CREATE TABLE accounting.source_conflicts (
    conflict_id bigint GENERATED ALWAYS AS IDENTITY,
    source_id smallint NOT NULL,
    holder text NOT NULL,
    server text NOT NULL,
    message text NOT NULL,
    from_at timestamptz NOT NULL,
    last_seen_at timestamptz NOT NULL,
    CONSTRAINT source_conflicts_pkey PRIMARY KEY (conflict_id),
    CONSTRAINT conflict_is_recorded_once UNIQUE (source_id, holder)
);
GRANT SELECT, INSERT, UPDATE, DELETE ON accounting.source_conflicts TO turn_accounting_writer;

-- Which collector may load a source. Times are those of the database's clock. A lease that is not
-- renewed in time can be taken by another collector. clock_ahead_seconds: how far the clock of the
-- collector's machine is ahead of the database's. server: the Redis that it saw at server_seen_at;
-- '' while it does not know.
CREATE TABLE accounting.source_leases (
    source_id smallint NOT NULL,
    holder text NOT NULL,
    host text NOT NULL,
    renewed_at timestamptz NOT NULL,
    expires_at timestamptz NOT NULL,
    clock_ahead_seconds double precision,
    server text NOT NULL DEFAULT '',
    server_seen_at timestamptz,
    CONSTRAINT source_leases_pkey PRIMARY KEY (source_id)
);
GRANT SELECT, INSERT, UPDATE, DELETE ON accounting.source_leases TO turn_accounting_writer;

CREATE TABLE accounting.epochs (
    source_id smallint NOT NULL,
    epoch integer NOT NULL,
    token text NOT NULL,
    started_at timestamptz NOT NULL,
    cause text NOT NULL,
    CONSTRAINT epochs_pkey PRIMARY KEY (source_id, epoch),
    CONSTRAINT epoch_token_is_unique UNIQUE (source_id, token)
);
GRANT SELECT, INSERT ON accounting.epochs TO turn_accounting_writer;

-- epoch, position: the gap lies after this position. outcome: what became of the sessions that were
-- open during the gap.
CREATE TABLE accounting.capture_gaps (
    gap_id bigint GENERATED ALWAYS AS IDENTITY,
    source_id smallint NOT NULL,
    token text NOT NULL,
    gap integer NOT NULL,
    from_at timestamptz NOT NULL,
    to_at timestamptz,
    cause text NOT NULL,
    detail text NOT NULL,
    epoch integer NOT NULL,
    position bigint NOT NULL,
    outcome text NOT NULL DEFAULT '',
    CONSTRAINT capture_gaps_pkey PRIMARY KEY (gap_id),
    CONSTRAINT gap_is_recorded_once UNIQUE (source_id, token, gap),
    CONSTRAINT gap_is_not_backwards CHECK (to_at >= from_at)
);
CREATE INDEX capture_gaps_open ON accounting.capture_gaps (source_id) WHERE to_at IS NULL;
GRANT SELECT, INSERT, UPDATE, DELETE ON accounting.capture_gaps TO turn_accounting_writer;
