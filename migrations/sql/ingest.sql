-- What was captured: sources, their reports, and what capture missed. Reports are evidence: the
-- service may insert them, but not change them.
--
-- Tables that grow have user_key in their primary key, and no foreign key, sequence or unique key
-- across users, so that they can be distributed by user_key.

CREATE TABLE accounting.sources (
    source_id smallint GENERATED ALWAYS AS IDENTITY,
    source text NOT NULL,
    mode text NOT NULL CONSTRAINT mode_is_known CHECK (mode IN ('replication', 'subscribe')),
    epoch integer NOT NULL DEFAULT 0,
    position bigint NOT NULL DEFAULT 0,
    captured_until timestamptz,
    loaded_until timestamptz,
    last_received_at timestamptz,
    retired_at timestamptz,
    replication_id text,
    stream_database integer,
    loaded_by_host text,
    CONSTRAINT sources_pkey PRIMARY KEY (source_id),
    CONSTRAINT source_is_unique UNIQUE (source)
);
GRANT SELECT, INSERT, UPDATE, DELETE ON accounting.sources TO turn_accounting_writer;

-- Which collector may load a source now. Times are of the database's clock; a holder that renews
-- too late has lost the lease.
CREATE TABLE accounting.source_leases (
    source_id smallint NOT NULL,
    holder text NOT NULL,
    host text NOT NULL,
    renewed_at timestamptz NOT NULL,
    expires_at timestamptz NOT NULL,
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

-- epoch, position: where the gap stands among the reports, after that position. outcome: what
-- became of the sessions that were live in it.
CREATE TABLE accounting.capture_gaps (
    gap_id bigint GENERATED ALWAYS AS IDENTITY,
    source_id smallint NOT NULL,
    token text NOT NULL,
    gap integer NOT NULL,
    from_at timestamptz NOT NULL,
    to_at timestamptz,
    cause text NOT NULL,
    detail text NOT NULL DEFAULT '',
    epoch integer NOT NULL DEFAULT 0,
    position bigint NOT NULL DEFAULT 0,
    outcome text NOT NULL DEFAULT '',
    CONSTRAINT capture_gaps_pkey PRIMARY KEY (gap_id),
    CONSTRAINT gap_is_recorded_once UNIQUE (source_id, token, gap),
    CONSTRAINT gap_is_not_backwards CHECK (to_at >= from_at)
);
CREATE INDEX capture_gaps_open ON accounting.capture_gaps (source_id) WHERE to_at IS NULL;
GRANT SELECT, INSERT, UPDATE, DELETE ON accounting.capture_gaps TO turn_accounting_writer;

CREATE TABLE accounting.reports (
    source_id smallint NOT NULL,
    epoch integer NOT NULL,
    position bigint NOT NULL,
    received_at timestamptz NOT NULL,
    time_estimated boolean NOT NULL,
    database integer NOT NULL,
    realm_id integer NOT NULL,
    username_key uuid NOT NULL,
    user_key uuid NOT NULL,
    allocation_id bigint NOT NULL,
    kind smallint NOT NULL,
    side smallint,
    lifetime integer,
    transport text,
    server_address text,
    client_address text,
    received_packets bigint NOT NULL DEFAULT 0,
    received_bytes bigint NOT NULL DEFAULT 0,
    sent_packets bigint NOT NULL DEFAULT 0,
    sent_bytes bigint NOT NULL DEFAULT 0,
    CONSTRAINT reports_pkey PRIMARY KEY (source_id, epoch, position, user_key, received_at)
) PARTITION BY RANGE (received_at);
GRANT SELECT, INSERT ON accounting.reports TO turn_accounting_writer;

-- Creates the partition of a day of receipt (UTC) unless it exists; true when it was created.
-- ATTACH instead of CREATE ... PARTITION OF takes a weaker lock, which does not block a loader in
-- flight.
CREATE FUNCTION accounting.ensure_report_partition(day date) RETURNS boolean
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    name text := 'reports_' || to_char(day, 'YYYYMMDD');
BEGIN
    PERFORM pg_advisory_xact_lock(hashtext('accounting.ensure_report_partition'));
    IF to_regclass('accounting.' || quote_ident(name)) IS NOT NULL THEN
        RETURN false;
    END IF;
    EXECUTE format(
        'CREATE TABLE accounting.%I (LIKE accounting.reports INCLUDING DEFAULTS, '
        'CONSTRAINT %I CHECK (received_at >= %L AND received_at < %L))',
        name, name || '_day',
        day::timestamp AT TIME ZONE 'UTC', (day + 1)::timestamp AT TIME ZONE 'UTC');
    EXECUTE format('GRANT SELECT, INSERT ON accounting.%I TO turn_accounting_writer', name);
    EXECUTE format(
        'ALTER TABLE accounting.reports ATTACH PARTITION accounting.%I FOR VALUES FROM (%L) TO (%L)',
        name, day::timestamp AT TIME ZONE 'UTC', (day + 1)::timestamp AT TIME ZONE 'UTC');
    EXECUTE format('ALTER TABLE accounting.%I DROP CONSTRAINT %I', name, name || '_day');
    RETURN true;
END
$$;
REVOKE ALL ON FUNCTION accounting.ensure_report_partition(date) FROM PUBLIC;
GRANT EXECUTE ON FUNCTION accounting.ensure_report_partition(date) TO turn_accounting_writer;

CREATE TABLE accounting.rejected_messages (
    source_id smallint NOT NULL,
    epoch integer NOT NULL,
    position bigint NOT NULL,
    received_at timestamptz NOT NULL,
    database integer NOT NULL,
    channel bytea NOT NULL,
    payload bytea NOT NULL,
    reason text NOT NULL,
    CONSTRAINT rejected_messages_pkey PRIMARY KEY (source_id, epoch, position)
);
GRANT SELECT, INSERT ON accounting.rejected_messages TO turn_accounting_writer;

-- Deletes the rejected messages whose channel begins so, and counts them: they may hold the name of
-- a person. The service may not delete them otherwise.
CREATE FUNCTION accounting.erase_rejected(channel_starts bytea[]) RETURNS bigint
LANGUAGE sql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
    WITH erased AS (
        DELETE FROM accounting.rejected_messages m
        WHERE EXISTS (
            SELECT FROM unnest(channel_starts) AS c (start)
            WHERE substr(m.channel, 1, length(c.start)) = c.start
        )
        RETURNING 1
    )
    SELECT count(*) FROM erased
$$;
REVOKE ALL ON FUNCTION accounting.erase_rejected(bytea[]) FROM PUBLIC;
GRANT EXECUTE ON FUNCTION accounting.erase_rejected(bytea[]) TO turn_accounting_writer;

-- Status keys found in Redis after a gap: evidence, as reports are. They stand among the reports,
-- after that position.
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
    scan_started_at timestamptz NOT NULL,
    seen_at timestamptz NOT NULL,
    idle_seconds integer NOT NULL CONSTRAINT idle_is_not_negative CHECK (idle_seconds >= 0),
    CONSTRAINT key_sightings_pkey PRIMARY KEY (source_id, epoch, position, sighting, user_key)
);
GRANT SELECT, INSERT ON accounting.key_sightings TO turn_accounting_writer;

-- Counts of loaded messages, which only grow. Kept here because counting the rows themselves takes
-- longer the more there are.
CREATE TABLE accounting.message_counts (
    source_id smallint NOT NULL,
    outcome text NOT NULL,
    reason text NOT NULL DEFAULT '',
    total bigint NOT NULL,
    CONSTRAINT message_counts_pkey PRIMARY KEY (source_id, outcome, reason)
) WITH (fillfactor = 50);
GRANT SELECT, INSERT, UPDATE ON accounting.message_counts TO turn_accounting_writer;
