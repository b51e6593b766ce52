-- The feed: what the billing worker is told, in one order that never changes.

-- Written in the transaction of what it tells; numbered later, by one job.
CREATE TABLE accounting.feed_outbox (
    outbox_id bigint GENERATED ALWAYS AS IDENTITY,
    event_id uuid NOT NULL,
    type text NOT NULL,
    realm_id integer NOT NULL,
    payload jsonb NOT NULL,
    created_at timestamptz NOT NULL DEFAULT now(),
    CONSTRAINT feed_outbox_pkey PRIMARY KEY (outbox_id)
);

-- seq has no sequence behind it: one that is taken and not committed yet would be missed by a
-- reader who saw a higher one.
CREATE TABLE accounting.feed (
    seq bigint NOT NULL,
    event_id uuid NOT NULL,
    type text NOT NULL,
    realm_id integer NOT NULL,
    payload jsonb NOT NULL,
    created_at timestamptz NOT NULL,
    CONSTRAINT feed_pkey PRIMARY KEY (seq),
    CONSTRAINT event_is_told_once UNIQUE (event_id)
);

CREATE FUNCTION accounting.refuse_change_of_feed() RETURNS trigger
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    RAISE EXCEPTION 'the feed is append only: what was told stays told'
        USING ERRCODE = 'integrity_constraint_violation';
END
$$;
CREATE TRIGGER feed_is_append_only BEFORE UPDATE OR DELETE ON accounting.feed
    FOR EACH ROW EXECUTE FUNCTION accounting.refuse_change_of_feed();
CREATE TRIGGER feed_is_not_emptied BEFORE TRUNCATE ON accounting.feed
    FOR EACH STATEMENT EXECUTE FUNCTION accounting.refuse_change_of_feed();

-- How far each named consumer has come, and the login that it belongs to.
CREATE TABLE accounting.feed_consumers (
    consumer text NOT NULL,
    login text NOT NULL,
    seq bigint NOT NULL DEFAULT 0,
    moved_at timestamptz NOT NULL DEFAULT now(),
    CONSTRAINT feed_consumers_pkey PRIMARY KEY (consumer),
    CONSTRAINT consumer_has_a_name CHECK (consumer <> ''),
    CONSTRAINT cursor_is_not_negative CHECK (seq >= 0)
) WITH (fillfactor = 50);

-- How often the end of a session was told: the number of its last session.ended.
ALTER TABLE accounting.sessions ADD COLUMN ends integer NOT NULL DEFAULT 0;

-- The id of an event, the same whenever the same is told again.
CREATE FUNCTION accounting.event_id(type text, key text) RETURNS uuid
LANGUAGE sql IMMUTABLE PARALLEL SAFE
RETURN encode(substring(sha256(convert_to(type || chr(10) || key, 'UTF8')) FOR 16), 'hex')::uuid;

-- A time as payloads spell it: ISO 8601, UTC, microseconds.
CREATE FUNCTION accounting.iso_time(moment timestamptz) RETURNS text
LANGUAGE sql STABLE PARALLEL SAFE
RETURN to_char(moment AT TIME ZONE 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS.US"+00:00"');

CREATE VIEW reporting.feed AS
SELECT f.seq, f.event_id, f.type, r.realm, f.payload, f.created_at
FROM accounting.feed f JOIN accounting.realms r USING (realm_id);

COMMENT ON VIEW reporting.feed IS
    'What happened, for billing: append only; whoever saw a number never misses a smaller one';
COMMENT ON COLUMN reporting.feed.seq IS 'Number of the event: 1, 2, 3, without a hole';
COMMENT ON COLUMN reporting.feed.event_id IS 'Id of the event, by which a repetition is known';
COMMENT ON COLUMN reporting.feed.type IS 'session.ended, period.closed or adjustment.posted';
COMMENT ON COLUMN reporting.feed.realm IS
    'TURN realm, empty when absent; bytes that are not UTF-8 as \xNN';
COMMENT ON COLUMN reporting.feed.payload IS
    'What happened: an object whose names are those of the views; no names of users';
COMMENT ON COLUMN reporting.feed.created_at IS
    'When it happened in the books; not always in the order of seq';

-- Where a consumer stands, made with 0 when it is new.
CREATE FUNCTION reporting.feed_cursor(consumer text) RETURNS bigint
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    found_login text;
    found_seq bigint;
BEGIN
    INSERT INTO accounting.feed_consumers AS c (consumer, login)
    VALUES (feed_cursor.consumer, session_user) ON CONFLICT DO NOTHING;
    SELECT c.login, c.seq INTO found_login, found_seq
    FROM accounting.feed_consumers c WHERE c.consumer = feed_cursor.consumer;
    IF found_login <> session_user THEN
        RAISE EXCEPTION 'the consumer % belongs to the login %', quote_literal(consumer), found_login
            USING ERRCODE = 'insufficient_privilege';
    END IF;
    RETURN found_seq;
END
$$;
COMMENT ON FUNCTION reporting.feed_cursor(text) IS
    'The number up to which this consumer has handled the feed; 0 when it is new';

-- Moves a consumer on; false when it stood elsewhere: somebody else consumes under that name. A
-- repetition of the same move, after a lost answer say, is true.
CREATE FUNCTION reporting.feed_advance(consumer text, from_seq bigint, to_seq bigint) RETURNS boolean
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    stands_at bigint;
BEGIN
    PERFORM reporting.feed_cursor(consumer);
    IF to_seq < from_seq OR to_seq > (SELECT coalesce(max(f.seq), 0) FROM accounting.feed f) THEN
        RAISE EXCEPTION 'a cursor moves forward, to a number of the feed: not from % to %',
            from_seq, to_seq USING ERRCODE = 'invalid_parameter_value';
    END IF;
    SELECT c.seq INTO stands_at FROM accounting.feed_consumers c
    WHERE c.consumer = feed_advance.consumer FOR UPDATE;
    IF stands_at = from_seq THEN
        UPDATE accounting.feed_consumers c SET seq = to_seq, moved_at = now()
        WHERE c.consumer = feed_advance.consumer;
        RETURN true;
    END IF;
    RETURN stands_at = to_seq;
END
$$;
COMMENT ON FUNCTION reporting.feed_advance(text, bigint, bigint) IS
    'Moves a consumer from one number to another; false when it did not stand at the first';

-- What the usage and the ended sessions of a span still wait for, in words; null when nothing. For
-- exports, whose login sees no private table.
CREATE FUNCTION reporting.span_waits_for(realm text, from_at timestamptz, to_at timestamptz)
RETURNS text
LANGUAGE sql STABLE SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
    SELECT string_agg(w.wait, '; ' ORDER BY w.rank, w.wait) FROM (
        SELECT 1, format('source ''%s'' to be settled', s.source)
        FROM accounting.sources s LEFT JOIN accounting.settling t USING (source_id)
        WHERE s.retired_at IS NULL AND (t.until IS NULL OR t.until < to_at)
        UNION ALL
        SELECT 2, 'sessions that may have ended' WHERE EXISTS (
            SELECT FROM accounting.sessions e JOIN accounting.realms r USING (realm_id)
            JOIN accounting.sources s USING (source_id)
            WHERE e.ended_at IS NULL AND e.standing = 1 AND e.vouched AND e.last_seen_at < to_at
                AND s.retired_at IS NULL
                AND (span_waits_for.realm IS NULL OR r.realm = span_waits_for.realm)
        )
        UNION ALL
        SELECT 3, 'the roll-up' WHERE EXISTS (
            SELECT FROM accounting.touched_hours t JOIN accounting.realms r USING (realm_id)
            WHERE (span_waits_for.realm IS NULL OR r.realm = span_waits_for.realm)
                AND (from_at IS NULL OR t.starts_at >= from_at) AND t.starts_at < to_at
        )
    ) w (rank, wait)
$$;
COMMENT ON FUNCTION reporting.span_waits_for(text, timestamptz, timestamptz) IS
    'What the usage of a span waits for, in words; null when it is complete. realm null: of all';

REVOKE ALL ON FUNCTION reporting.feed_cursor(text), reporting.feed_advance(text, bigint, bigint),
    reporting.span_waits_for(text, timestamptz, timestamptz), accounting.refuse_change_of_feed()
    FROM PUBLIC;
GRANT EXECUTE ON FUNCTION reporting.feed_cursor(text),
    reporting.feed_advance(text, bigint, bigint),
    reporting.span_waits_for(text, timestamptz, timestamptz)
    TO turn_accounting_reader, turn_accounting_writer;
GRANT SELECT, INSERT, DELETE ON accounting.feed_outbox TO turn_accounting_writer;
GRANT SELECT, INSERT ON accounting.feed TO turn_accounting_writer;
GRANT SELECT ON accounting.feed_consumers TO turn_accounting_writer;
