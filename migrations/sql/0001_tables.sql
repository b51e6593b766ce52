-- The private tables. Growing tables have user_key in their primary key and no foreign key,
-- sequence or unique key across users, so that they can be distributed by it.

CREATE TABLE accounting.installation (
    id boolean NOT NULL DEFAULT true CONSTRAINT installation_has_one_row CHECK (id),
    identity_key bytea NOT NULL CONSTRAINT identity_key_is_long CHECK (length(identity_key) = 32),
    CONSTRAINT installation_pkey PRIMARY KEY (id)
);
-- 32 bytes from the server's strong random source: gen_random_uuid() is the one in core Postgres.
INSERT INTO accounting.installation (identity_key)
VALUES (sha256(uuid_send(gen_random_uuid()) || uuid_send(gen_random_uuid()) || uuid_send(gen_random_uuid())));

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
    CONSTRAINT sources_pkey PRIMARY KEY (source_id),
    CONSTRAINT source_is_unique UNIQUE (source)
);

-- How far settling has come. Not a part of sources: loading and settling would wait for each other.
CREATE TABLE accounting.settling (
    source_id smallint NOT NULL,
    epoch integer NOT NULL DEFAULT 0,
    position bigint NOT NULL DEFAULT 0,
    received_at timestamptz,
    until timestamptz,
    CONSTRAINT settling_pkey PRIMARY KEY (source_id)
);

CREATE TABLE accounting.epochs (
    source_id smallint NOT NULL,
    epoch integer NOT NULL,
    token text NOT NULL,
    began_at timestamptz NOT NULL,
    cause text NOT NULL,
    CONSTRAINT epochs_pkey PRIMARY KEY (source_id, epoch),
    CONSTRAINT epoch_token_is_unique UNIQUE (source_id, token)
);

CREATE TABLE accounting.capture_gaps (
    gap_id bigint GENERATED ALWAYS AS IDENTITY,
    source_id smallint NOT NULL,
    token text NOT NULL,
    gap integer NOT NULL,
    from_at timestamptz NOT NULL,
    to_at timestamptz,
    cause text NOT NULL,
    detail text NOT NULL DEFAULT '',
    CONSTRAINT capture_gaps_pkey PRIMARY KEY (gap_id),
    CONSTRAINT gap_is_recorded_once UNIQUE (source_id, token, gap),
    CONSTRAINT gap_is_not_backwards CHECK (to_at >= from_at)
);

CREATE TABLE accounting.realms (
    realm_id integer GENERATED ALWAYS AS IDENTITY,
    realm text NOT NULL,
    realm_bytes bytea NOT NULL,
    CONSTRAINT realms_pkey PRIMARY KEY (realm_id),
    CONSTRAINT realm_is_unique UNIQUE (realm_bytes)
);

CREATE TABLE accounting.realm_rules (
    realm_id integer NOT NULL,
    holds_from timestamptz NOT NULL,
    time_zone text NOT NULL,
    anchor_day smallint NOT NULL CONSTRAINT anchor_day_is_in_every_month CHECK (anchor_day BETWEEN 1 AND 28),
    grace_seconds integer NOT NULL CONSTRAINT grace_is_not_negative CHECK (grace_seconds >= 0),
    username_rule text NOT NULL
        CONSTRAINT username_rule_is_known CHECK (username_rule IN ('auto', 'rest', 'plain')),
    separator text NOT NULL CONSTRAINT separator_is_not_empty CHECK (separator <> ''),
    CONSTRAINT realm_rules_pkey PRIMARY KEY (realm_id, holds_from)
);

CREATE TABLE accounting.users (
    user_key uuid NOT NULL,
    realm_id integer NOT NULL,
    user_id text NOT NULL,
    CONSTRAINT users_pkey PRIMARY KEY (user_key)
);
CREATE INDEX users_by_name ON accounting.users (realm_id, user_id);

CREATE TABLE accounting.usernames (
    user_key uuid NOT NULL,
    username_key uuid NOT NULL,
    username text NOT NULL,
    CONSTRAINT usernames_pkey PRIMARY KEY (username_key, user_key)
);

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

CREATE TABLE accounting.sessions (
    session_id uuid NOT NULL,
    user_key uuid NOT NULL,
    username_key uuid NOT NULL,
    realm_id integer NOT NULL,
    source_id smallint NOT NULL,
    database integer NOT NULL,
    allocation_id bigint NOT NULL,
    started_at timestamptz NOT NULL,
    last_seen_at timestamptz NOT NULL,
    expires_at timestamptz NOT NULL,
    due_at timestamptz NOT NULL,
    start_known boolean NOT NULL,
    lifetime_known boolean NOT NULL,
    ended_at timestamptz,
    end_cause text CONSTRAINT end_cause_is_known CHECK (end_cause IN ('deleted', 'expired', 'superseded')),
    standing smallint NOT NULL,
    vouched boolean NOT NULL,
    transport text,
    client_address text,
    server_address text,
    received_packets bigint NOT NULL,
    received_bytes bigint NOT NULL,
    sent_packets bigint NOT NULL,
    sent_bytes bigint NOT NULL,
    peer_received_packets bigint NOT NULL,
    peer_received_bytes bigint NOT NULL,
    peer_sent_packets bigint NOT NULL,
    peer_sent_bytes bigint NOT NULL,
    news smallint NOT NULL,
    deletes smallint NOT NULL,
    client_totals smallint NOT NULL,
    peer_totals smallint NOT NULL,
    client_total bigint[] NOT NULL,
    peer_total bigint[] NOT NULL,
    estimated boolean NOT NULL,
    disputed boolean NOT NULL,
    CONSTRAINT sessions_pkey PRIMARY KEY (session_id, user_key),
    CONSTRAINT end_has_time_and_cause CHECK ((ended_at IS NULL) = (end_cause IS NULL)),
    CONSTRAINT session_is_not_backwards CHECK (last_seen_at >= started_at AND ended_at >= started_at)
) WITH (fillfactor = 80);
-- The lives that a next report of their key may belong to: few, however long the history.
CREATE INDEX sessions_standing ON accounting.sessions
    (username_key, allocation_id, source_id, database) WHERE standing > 0;
CREATE INDEX sessions_due ON accounting.sessions (source_id, due_at)
    WHERE ended_at IS NULL AND standing = 1;
CREATE INDEX sessions_by_user ON accounting.sessions (user_key, started_at);
CREATE INDEX sessions_by_realm ON accounting.sessions (realm_id, started_at);

CREATE TABLE accounting.session_usage (
    session_id uuid NOT NULL,
    starts_at timestamptz NOT NULL,
    user_key uuid NOT NULL,
    realm_id integer NOT NULL,
    vouched boolean NOT NULL,
    estimated boolean NOT NULL,
    started boolean NOT NULL,
    ended boolean NOT NULL,
    active_from timestamptz NOT NULL,
    active_to timestamptz NOT NULL,
    received_packets bigint NOT NULL,
    received_bytes bigint NOT NULL,
    sent_packets bigint NOT NULL,
    sent_bytes bigint NOT NULL,
    peer_received_packets bigint NOT NULL,
    peer_received_bytes bigint NOT NULL,
    peer_sent_packets bigint NOT NULL,
    peer_sent_bytes bigint NOT NULL,
    CONSTRAINT session_usage_pkey PRIMARY KEY (session_id, starts_at, user_key),
    CONSTRAINT active_is_not_backwards CHECK (active_to >= active_from)
) WITH (fillfactor = 80);
CREATE INDEX session_usage_by_user ON accounting.session_usage (user_key, starts_at);
CREATE INDEX session_usage_by_realm ON accounting.session_usage (realm_id, starts_at);

-- What settling touched and rolling up has not replaced yet. Appended to, never updated, so that
-- a roll-up in flight can't swallow the mark of a settling that it did not see.
CREATE TABLE accounting.touched_hours (
    realm_id integer NOT NULL,
    user_key uuid NOT NULL,
    starts_at timestamptz NOT NULL
);

CREATE TABLE accounting.buckets (
    realm_id integer NOT NULL,
    level text NOT NULL CONSTRAINT level_is_known CHECK (level IN ('hour', 'day', 'month')),
    starts_at timestamptz NOT NULL,
    ends_at timestamptz NOT NULL,
    time_zone text NOT NULL,
    CONSTRAINT buckets_pkey PRIMARY KEY (realm_id, level, starts_at),
    CONSTRAINT bucket_is_not_empty CHECK (ends_at > starts_at)
);

DO $$
DECLARE
    level text;
BEGIN
    FOREACH level IN ARRAY ARRAY['hourly', 'daily', 'monthly'] LOOP
        EXECUTE format($table$
            CREATE TABLE accounting.user_usage_%1$s (
                user_key uuid NOT NULL,
                starts_at timestamptz NOT NULL,
                realm_id integer NOT NULL,
                received_packets bigint NOT NULL,
                received_bytes bigint NOT NULL,
                sent_packets bigint NOT NULL,
                sent_bytes bigint NOT NULL,
                peer_received_packets bigint NOT NULL,
                peer_received_bytes bigint NOT NULL,
                peer_sent_packets bigint NOT NULL,
                peer_sent_bytes bigint NOT NULL,
                sessions_started bigint NOT NULL,
                sessions_ended bigint NOT NULL,
                session_microseconds numeric NOT NULL,
                estimated_bytes bigint NOT NULL,
                CONSTRAINT user_usage_%1$s_pkey PRIMARY KEY (user_key, starts_at)
            ) WITH (fillfactor = 80);
            CREATE INDEX user_usage_%1$s_by_realm ON accounting.user_usage_%1$s (realm_id, starts_at);
            CREATE TABLE accounting.realm_usage_%1$s (
                realm_id integer NOT NULL,
                starts_at timestamptz NOT NULL,
                received_packets bigint NOT NULL,
                received_bytes bigint NOT NULL,
                sent_packets bigint NOT NULL,
                sent_bytes bigint NOT NULL,
                peer_received_packets bigint NOT NULL,
                peer_received_bytes bigint NOT NULL,
                peer_sent_packets bigint NOT NULL,
                peer_sent_bytes bigint NOT NULL,
                sessions_started bigint NOT NULL,
                sessions_ended bigint NOT NULL,
                session_microseconds numeric NOT NULL,
                estimated_bytes bigint NOT NULL,
                peak_sessions bigint NOT NULL,
                CONSTRAINT realm_usage_%1$s_pkey PRIMARY KEY (realm_id, starts_at)
            ) WITH (fillfactor = 80);
        $table$, level);
    END LOOP;
END
$$;

-- Partitions by day of receipt, made by whoever needs them first. ATTACH, not CREATE ... PARTITION
-- OF: it takes the weaker lock, so that a loader in flight is not blocked.
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
GRANT USAGE ON SCHEMA accounting TO turn_accounting_writer;
GRANT SELECT, INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA accounting TO turn_accounting_writer;
-- Reports are evidence: append only, for the service too.
REVOKE UPDATE, DELETE ON accounting.reports, accounting.rejected_messages,
    accounting.installation, accounting.epochs FROM turn_accounting_writer;
REVOKE INSERT ON accounting.installation FROM turn_accounting_writer;
REVOKE ALL ON accounting.alembic_version FROM turn_accounting_writer;
GRANT SELECT ON accounting.alembic_version TO turn_accounting_writer;
