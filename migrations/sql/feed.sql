-- The feed: events for billing, in one order that never changes.

-- Events that are not numbered yet, inserted in the transaction of the change that they report; one
-- job numbers them later. session.ended and usage.counted, which are nearly all of the feed, are
-- stored in columns: as JSON they take several times the space. All other events have a payload.
-- started_at, ended_at: of the session, or the bounds of the hour. realm_id null: of no realm.
CREATE TABLE accounting.feed_outbox (
    outbox_id bigint GENERATED ALWAYS AS IDENTITY,
    event_id uuid NOT NULL,
    type text NOT NULL,
    realm_id integer,
    payload jsonb,
    created_at timestamptz NOT NULL DEFAULT now(),
    allocation_id bigint,
    started_at timestamptz,
    ended_at timestamptz,
    received_packets bigint,
    received_bytes bigint,
    sent_packets bigint,
    sent_bytes bigint,
    peer_received_packets bigint,
    peer_received_bytes bigint,
    peer_sent_packets bigint,
    peer_sent_bytes bigint,
    session_id uuid,
    user_key uuid,
    number integer,
    database integer,
    source_id smallint,
    start_known boolean,
    total_reported boolean,
    estimated boolean,
    disputed boolean,
    end_cause text,
    sessions_started bigint,
    sessions_ended bigint,
    session_microseconds bigint,
    estimated_bytes bigint,
    is_correction boolean,
    CONSTRAINT feed_outbox_pkey PRIMARY KEY (outbox_id),
    CONSTRAINT waits_with_payload_or_columns CHECK (
        num_nulls(
            user_key, started_at, ended_at, received_packets, received_bytes, sent_packets,
            sent_bytes, peer_received_packets, peer_received_bytes, peer_sent_packets,
            peer_sent_bytes
        ) = CASE WHEN payload IS NULL THEN 0 ELSE 11 END
        AND num_nulls(
            session_id, allocation_id, number, database, source_id, start_known, total_reported,
            estimated, disputed, end_cause
        ) = CASE WHEN payload IS NULL AND type <> 'usage.counted' THEN 0 ELSE 10 END
        AND num_nulls(
            sessions_started, sessions_ended, session_microseconds, estimated_bytes, is_correction
        ) = CASE WHEN payload IS NULL AND type = 'usage.counted' THEN 0 ELSE 5 END
    )
);
GRANT SELECT, INSERT, DELETE ON accounting.feed_outbox TO turn_accounting_writer;
CREATE INDEX feed_outbox_corrections ON accounting.feed_outbox (user_key, started_at)
    WHERE is_correction;

-- The numbered events. Append only. seq does not come from a sequence: a reader that has seen a
-- number would miss a lower one that is committed later. The outbox has checked the columns.
CREATE TABLE accounting.feed (
    seq bigint NOT NULL,
    event_id uuid NOT NULL,
    type text NOT NULL,
    realm_id integer,
    payload jsonb,
    created_at timestamptz NOT NULL,
    allocation_id bigint,
    started_at timestamptz,
    ended_at timestamptz,
    received_packets bigint,
    received_bytes bigint,
    sent_packets bigint,
    sent_bytes bigint,
    peer_received_packets bigint,
    peer_received_bytes bigint,
    peer_sent_packets bigint,
    peer_sent_bytes bigint,
    session_id uuid,
    user_key uuid,
    number integer,
    database integer,
    source_id smallint,
    start_known boolean,
    total_reported boolean,
    estimated boolean,
    disputed boolean,
    end_cause text,
    sessions_started bigint,
    sessions_ended bigint,
    session_microseconds bigint,
    estimated_bytes bigint,
    is_correction boolean,
    CONSTRAINT feed_pkey PRIMARY KEY (seq),
    CONSTRAINT event_is_numbered_once UNIQUE (event_id)
);
GRANT SELECT, INSERT ON accounting.feed TO turn_accounting_writer;
-- What the feed has of the hours of a realm, and how often an hour of a user was corrected.
CREATE INDEX feed_counted_hours ON accounting.feed (realm_id, started_at)
    WHERE is_correction IS NOT NULL;
CREATE INDEX feed_corrections ON accounting.feed (user_key, started_at) WHERE is_correction;

-- What the feed has of the hours of users, numbered or not. started_at: of the hour.
CREATE VIEW accounting.counted_usage AS
SELECT realm_id, user_key, started_at, ended_at,
    received_packets, received_bytes, sent_packets, sent_bytes, peer_received_packets,
    peer_received_bytes, peer_sent_packets, peer_sent_bytes, sessions_started, sessions_ended,
    session_microseconds, estimated_bytes
FROM accounting.feed WHERE is_correction IS NOT NULL
UNION ALL
SELECT realm_id, user_key, started_at, ended_at,
    received_packets, received_bytes, sent_packets, sent_bytes, peer_received_packets,
    peer_received_bytes, peer_sent_packets, peer_sent_bytes, sessions_started, sessions_ended,
    session_microseconds, estimated_bytes
FROM accounting.feed_outbox WHERE is_correction IS NOT NULL;
GRANT SELECT ON accounting.counted_usage TO turn_accounting_writer;

CREATE FUNCTION accounting.refuse_change_of_feed() RETURNS trigger
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    RAISE EXCEPTION 'the feed is append only'
        USING ERRCODE = 'integrity_constraint_violation';
END
$$;
REVOKE ALL ON FUNCTION accounting.refuse_change_of_feed() FROM PUBLIC;
-- ENABLE ALWAYS: also in a session that turns triggers off (session_replication_role = replica).
CREATE TRIGGER feed_is_append_only BEFORE UPDATE OR DELETE ON accounting.feed
    FOR EACH ROW EXECUTE FUNCTION accounting.refuse_change_of_feed();
ALTER TABLE accounting.feed ENABLE ALWAYS TRIGGER feed_is_append_only;
CREATE TRIGGER feed_is_not_emptied BEFORE TRUNCATE ON accounting.feed
    FOR EACH STATEMENT EXECUTE FUNCTION accounting.refuse_change_of_feed();
ALTER TABLE accounting.feed ENABLE ALWAYS TRIGGER feed_is_not_emptied;

-- What the feed is up to a number: a hash of all event ids up to the end of the batch that was
-- numbered with it. After a restore the same number may be another event; then the hash differs.
CREATE TABLE accounting.feed_batches (
    last_seq bigint NOT NULL,
    history uuid NOT NULL,
    CONSTRAINT feed_batches_pkey PRIMARY KEY (last_seq)
);
GRANT SELECT, INSERT ON accounting.feed_batches TO turn_accounting_writer;

-- The position of each named consumer, and the login that owns it. worker: the name of the process
-- that moved it last, which distinguishes a retry of a move from the same move by another process.
CREATE TABLE accounting.feed_consumers (
    consumer text NOT NULL,
    login text NOT NULL,
    seq bigint NOT NULL DEFAULT 0,
    moved_at timestamptz NOT NULL DEFAULT now(),
    worker text NOT NULL DEFAULT '',
    CONSTRAINT feed_consumers_pkey PRIMARY KEY (consumer),
    CONSTRAINT consumer_has_a_name CHECK (length(consumer) BETWEEN 1 AND 200),
    CONSTRAINT worker_is_short CHECK (length(worker) <= 200),
    CONSTRAINT cursor_is_not_negative CHECK (seq >= 0)
) WITH (fillfactor = 50);
GRANT SELECT ON accounting.feed_consumers TO turn_accounting_writer;

-- The id of an event: a function of its type and of what it says, so that it is the same when the
-- event is written again, also from the spool after a restore.
CREATE FUNCTION accounting.event_id(type text, key text) RETURNS uuid
LANGUAGE sql IMMUTABLE PARALLEL SAFE
RETURN encode(substring(sha256(convert_to(type || chr(10) || key, 'UTF8')) FOR 16), 'hex')::uuid;

-- A time in the format of payloads: ISO 8601, UTC, microseconds.
CREATE FUNCTION accounting.iso_time(moment timestamptz) RETURNS text
LANGUAGE sql STABLE PARALLEL SAFE
RETURN to_char(moment AT TIME ZONE 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS.US"+00:00"');

-- For workers that store their cursor themselves: stored beside the number, it shows whether the
-- feed up to there is still the same.
CREATE FUNCTION reporting.feed_history(seq bigint) RETURNS uuid
LANGUAGE sql STABLE SECURITY DEFINER SET search_path = pg_catalog, pg_temp
RETURN CASE WHEN seq = 0 THEN '00000000-0000-0000-0000-000000000000'::uuid ELSE (
    SELECT b.history FROM accounting.feed_batches b
    WHERE b.last_seq >= feed_history.seq ORDER BY b.last_seq LIMIT 1
) END;
COMMENT ON FUNCTION reporting.feed_history(bigint) IS
    'Identifies the events up to a number: if it changes, the feed was restored from a backup. '
    'Null beyond the end of the feed';
REVOKE ALL ON FUNCTION reporting.feed_history(bigint) FROM PUBLIC;
GRANT EXECUTE ON FUNCTION reporting.feed_history(bigint)
    TO turn_accounting_reader, turn_accounting_writer;

-- Names the installation: a hash of its key, which can't be computed back. Half of the hash, in a
-- context of its own, so that it is no prefix of a user's key either.
CREATE FUNCTION reporting.feed_source() RETURNS text
LANGUAGE sql STABLE SECURITY DEFINER SET search_path = pg_catalog, pg_temp
RETURN (
    SELECT 'urn:uuid:' || encode(substring(
        sha256(convert_to('turn-accounting feed', 'UTF8') || i.identity_key) FOR 16
    ), 'hex')::uuid
    FROM accounting.installation i
);
COMMENT ON FUNCTION reporting.feed_source() IS
    'URI of this installation, the source of its events; with an event''s id it is unique anywhere';
REVOKE ALL ON FUNCTION reporting.feed_source() FROM PUBLIC;
GRANT EXECUTE ON FUNCTION reporting.feed_source()
    TO turn_accounting_reader, turn_accounting_writer;

-- The position of a consumer; inserts it at 0 if it is new. Nothing deletes consumers, so that a
-- login may have only so many.
-- lock_timeout: another login may have inserted the same name in a transaction that does not end.
CREATE FUNCTION reporting.feed_cursor(consumer text) RETURNS bigint
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp SET lock_timeout = '2s'
AS $$
DECLARE
    owner_login text;
    current_seq bigint;
BEGIN
    SELECT c.login, c.seq INTO owner_login, current_seq
    FROM accounting.feed_consumers c WHERE c.consumer = feed_cursor.consumer;
    IF NOT FOUND THEN
        IF 1000 <= (
            SELECT count(*) FROM accounting.feed_consumers c WHERE c.login = session_user
        ) THEN
            RAISE EXCEPTION 'the login % has 1000 consumers of the feed already', session_user
                USING ERRCODE = 'program_limit_exceeded';
        END IF;
        INSERT INTO accounting.feed_consumers AS c (consumer, login)
        VALUES (feed_cursor.consumer, session_user) ON CONFLICT DO NOTHING;
        SELECT c.login, c.seq INTO owner_login, current_seq
        FROM accounting.feed_consumers c WHERE c.consumer = feed_cursor.consumer;
    END IF;
    IF owner_login <> session_user THEN
        RAISE EXCEPTION 'the consumer % belongs to the login %',
            quote_literal(consumer), owner_login USING ERRCODE = 'insufficient_privilege';
    END IF;
    RETURN current_seq;
END
$$;
COMMENT ON FUNCTION reporting.feed_cursor(text) IS
    'The number up to which this consumer has processed the feed; 0 if it is new';
REVOKE ALL ON FUNCTION reporting.feed_cursor(text) FROM PUBLIC;
GRANT EXECUTE ON FUNCTION reporting.feed_cursor(text)
    TO turn_accounting_reader, turn_accounting_writer;

-- Moves a consumer; false if it is not at from_seq, because another process consumes under the same
-- name. True for a retry of the same move by the same worker, for example after a lost answer.
CREATE FUNCTION reporting.feed_advance(
    consumer text, from_seq bigint, to_seq bigint, worker text DEFAULT ''
) RETURNS boolean
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    current_seq bigint;
    moved_by text;
BEGIN
    PERFORM reporting.feed_cursor(consumer);
    IF to_seq < from_seq OR to_seq > (SELECT coalesce(max(f.seq), 0) FROM accounting.feed f) THEN
        RAISE EXCEPTION 'a cursor moves forward, to a number of the feed: not from % to %',
            from_seq, to_seq USING ERRCODE = 'invalid_parameter_value';
    END IF;
    SELECT c.seq, c.worker INTO current_seq, moved_by FROM accounting.feed_consumers c
    WHERE c.consumer = feed_advance.consumer FOR UPDATE;
    IF current_seq = from_seq THEN
        UPDATE accounting.feed_consumers c
        SET seq = to_seq, worker = feed_advance.worker, moved_at = now()
        WHERE c.consumer = feed_advance.consumer;
        RETURN true;
    END IF;
    RETURN current_seq = to_seq AND moved_by = feed_advance.worker;
END
$$;
COMMENT ON FUNCTION reporting.feed_advance(text, bigint, bigint, text) IS
    'Moves a consumer from one number to another; false if it is not at the first, unless this '
    'worker made the same move before';
REVOKE ALL ON FUNCTION reporting.feed_advance(text, bigint, bigint, text) FROM PUBLIC;
GRANT EXECUTE ON FUNCTION reporting.feed_advance(text, bigint, bigint, text)
    TO turn_accounting_reader, turn_accounting_writer;
