-- What was received. Reports are evidence: the service may insert them, but not change them, except
-- that it may empty the client addresses of a person whom it forgets, and reduce those of a realm.
--
-- Tables that grow have user_key in their primary key, and no foreign key, sequence or unique key
-- across users, so that they can be distributed by user_key.

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
    received_packets bigint NOT NULL,
    received_bytes bigint NOT NULL,
    sent_packets bigint NOT NULL,
    sent_bytes bigint NOT NULL
) PARTITION BY RANGE (received_at);
-- In place of a key. The times of a source rise with its positions, so a query for reports
-- bounds the time. The loader moves the source from the position before in the same transaction, so
-- no report comes twice; verify checks both.
CREATE INDEX reports_by_time ON accounting.reports USING brin (received_at)
    WITH (pages_per_range = 512, autosummarize = on);
GRANT SELECT, INSERT ON accounting.reports TO turn_accounting_writer;

-- Creates the partition of a day of receipt (UTC) unless it exists; true when it was created.
-- ATTACH takes a weaker lock than CREATE ... PARTITION OF, so that it does not block a loader.
-- DateStyle and TimeZone are set because the borders are written as text and read again.
CREATE FUNCTION accounting.ensure_report_partition(day date) RETURNS boolean
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp
SET DateStyle = 'ISO, YMD' SET TimeZone = 'UTC' AS $$
DECLARE
    name text := 'reports_' || to_char(day, 'YYYYMMDD');
BEGIN
    PERFORM FROM accounting.locks l WHERE l.name = 'report_partition' FOR UPDATE;
    IF to_regclass('accounting.' || quote_ident(name)) IS NOT NULL THEN
        RETURN false;
    END IF;
    EXECUTE format(
        'CREATE TABLE accounting.%I (LIKE accounting.reports, '
        'CONSTRAINT %I CHECK (received_at >= %L AND received_at < %L))',
        name, name || '_day',
        day::timestamp AT TIME ZONE 'UTC', (day + 1)::timestamp AT TIME ZONE 'UTC');
    EXECUTE format('GRANT SELECT, INSERT ON accounting.%I TO turn_accounting_writer', name);
    EXECUTE format(
        'ALTER TABLE accounting.reports ATTACH PARTITION accounting.%I '
        'FOR VALUES FROM (%L) TO (%L)',
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
CREATE INDEX rejected_messages_by_time ON accounting.rejected_messages (received_at);
GRANT SELECT, INSERT ON accounting.rejected_messages TO turn_accounting_writer;

-- How many messages of each hour (UTC) were rejected, and how many of them rejected_messages got:
-- the loader stores at most a set number of each hour.
CREATE TABLE accounting.rejected_counts (
    source_id smallint NOT NULL,
    starts_at timestamptz NOT NULL,
    reason text NOT NULL,
    messages bigint NOT NULL,
    stored bigint NOT NULL,
    CONSTRAINT rejected_counts_pkey PRIMARY KEY (source_id, starts_at, reason),
    CONSTRAINT stored_messages_are_counted CHECK (stored BETWEEN 0 AND messages)
);
GRANT SELECT, INSERT, UPDATE ON accounting.rejected_counts TO turn_accounting_writer;

-- Deletes at most so many rejected messages received before that time, and never those of the last
-- day; returns how many. They stay counted.
CREATE FUNCTION accounting.prune_rejected(before timestamptz, most integer) RETURNS bigint
LANGUAGE sql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
    WITH pruned AS (
        DELETE FROM accounting.rejected_messages
        WHERE ctid = ANY (ARRAY(
            SELECT ctid FROM accounting.rejected_messages
            WHERE received_at < least(before, accounting.database_now() - interval '1 day')
            ORDER BY received_at LIMIT most
        ))
        RETURNING 1
    )
    SELECT count(*) FROM pruned
$$;
REVOKE ALL ON FUNCTION accounting.prune_rejected(timestamptz, integer) FROM PUBLIC;
GRANT EXECUTE ON FUNCTION accounting.prune_rejected(timestamptz, integer)
    TO turn_accounting_writer;

-- Deletes the rejected messages whose channel starts with one of the prefixes, since they may
-- contain the name of a person; returns how many. The service can't delete them otherwise.
CREATE FUNCTION accounting.erase_rejected(prefixes bytea[]) RETURNS bigint
LANGUAGE sql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
    WITH erased AS (
        DELETE FROM accounting.rejected_messages m
        WHERE EXISTS (
            SELECT FROM unnest(prefixes) AS p (prefix)
            WHERE substr(m.channel, 1, length(p.prefix)) = p.prefix
        )
        RETURNING 1
    )
    SELECT count(*) FROM erased
$$;
REVOKE ALL ON FUNCTION accounting.erase_rejected(bytea[]) FROM PUBLIC;
GRANT EXECUTE ON FUNCTION accounting.erase_rejected(bytea[]) TO turn_accounting_writer;

-- Deletes the rejected messages whose channel names no realm of the books, so that no realm's erasure
-- reaches them; returns how many. The realm ends at the first /user/.
CREATE FUNCTION accounting.erase_rejected_of_no_realm() RETURNS bigint
LANGUAGE sql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
    WITH erased AS (
        DELETE FROM accounting.rejected_messages m
        WHERE NOT EXISTS (
            SELECT FROM accounting.realms r
            WHERE r.realm_bytes = CASE
                WHEN substr(m.channel, 1, 10) = 'turn/user/' THEN ''
                WHEN substr(m.channel, 1, 11) = 'turn/realm/'
                    AND position('/user/'::bytea IN substr(m.channel, 12)) > 0
                THEN substr(m.channel, 12, position('/user/'::bytea IN substr(m.channel, 12)) - 1)
            END
        )
        RETURNING 1
    )
    SELECT count(*) FROM erased
$$;
REVOKE ALL ON FUNCTION accounting.erase_rejected_of_no_realm() FROM PUBLIC;
GRANT EXECUTE ON FUNCTION accounting.erase_rejected_of_no_realm() TO turn_accounting_writer;

-- Empties the client addresses in the reports of these usernames; returns in how many. The service
-- can't change reports otherwise. A report with an address lies within a session of its username, or
-- is set aside or not settled yet: so this reads only the days of such sessions, the hours of
-- reports that are set aside, and what is not settled.
CREATE FUNCTION accounting.erase_client_addresses(username_keys uuid[]) RETURNS bigint
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    span tstzrange;
    erased bigint;
    total bigint := 0;
BEGIN
    FOR span IN
        SELECT unnest(range_agg(times)) FROM (
            SELECT tstzrange(
                date_trunc('day', s.started_at, 'UTC'),
                date_trunc('day', s.last_seen_at, 'UTC') + interval '1 day', '[]') AS times
            FROM accounting.sessions s
            WHERE s.username_key = ANY (username_keys) AND s.user_key IN (
                SELECT n.user_key FROM accounting.usernames n
                WHERE n.username_key = ANY (username_keys)
            )
            UNION ALL
            SELECT tstzrange(
                date_trunc('hour', a.received_at, 'UTC'),
                date_trunc('hour', a.received_at, 'UTC') + interval '1 hour', '[]')
            FROM accounting.set_aside_reports a
            UNION ALL
            SELECT tstzrange(w.received_at, NULL)
            FROM accounting.sources s LEFT JOIN accounting.settle_watermarks w USING (source_id)
            WHERE (s.epoch, s.position) > (coalesce(w.epoch, 0), coalesce(w.position, 0))
        ) spans
    LOOP
        UPDATE accounting.reports r SET client_address = NULL
        WHERE r.received_at >= coalesce(lower(span), '-infinity')
            AND r.received_at <= coalesce(upper(span), 'infinity')
            AND r.username_key = ANY (username_keys) AND r.client_address IS NOT NULL;
        GET DIAGNOSTICS erased = ROW_COUNT;
        total := total + erased;
    END LOOP;
    RETURN total;
END
$$;
REVOKE ALL ON FUNCTION accounting.erase_client_addresses(uuid[]) FROM PUBLIC;
GRANT EXECUTE ON FUNCTION accounting.erase_client_addresses(uuid[]) TO turn_accounting_writer;

-- What is kept of a client's address: 'keep', 'network' or 'drop', as the loader does it in
-- accounting.domain.client_addresses. Null for what is not an address, unless it is kept. Not in
-- parallel, where there are no subtransactions.
CREATE FUNCTION accounting.reduced_address(address text, kept text) RETURNS text
LANGUAGE plpgsql IMMUTABLE SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    host text;
    ip inet;
    bytes bytea;
BEGIN
    IF kept = 'keep' OR address IS NULL THEN
        RETURN address;
    ELSIF kept = 'drop' THEN
        RETURN NULL;
    END IF;
    host := split_part(CASE
        WHEN left(address, 1) = '[' THEN split_part(substr(address, 2), ']', 1)
        WHEN length(address) - length(replace(address, ':', '')) = 1
            THEN split_part(address, ':', 1)
        ELSE split_part(address, '/', 1)
    END, '%', 1);
    IF host !~ '^([0-9]{1,3}([.][0-9]{1,3}){3}|[0-9A-Fa-f:.]*:[0-9A-Fa-f:.]*)$' THEN
        RETURN NULL;
    END IF;
    ip := host::inet;
    IF ip <<= '::ffff:0:0/96' THEN
        ip := split_part(host(ip), ':', 4)::inet;
    ELSIF ip <<= '2002::/16' THEN  -- 6to4: the 32 bits behind are an IPv4 address
        bytes := substr(inet_send(ip), 7, 4);
        ip := concat_ws('.', get_byte(bytes, 0), get_byte(bytes, 1), get_byte(bytes, 2), 0);
    END IF;
    RETURN network(set_masklen(ip, CASE family(ip) WHEN 4 THEN 24 ELSE 48 END))::text;
EXCEPTION WHEN invalid_text_representation THEN
    RETURN NULL;
END
$$;
REVOKE ALL ON FUNCTION accounting.reduced_address(text, text) FROM PUBLIC;
GRANT EXECUTE ON FUNCTION accounting.reduced_address(text, text) TO turn_accounting_writer;

-- Reduces the client addresses in a realm's reports of a day (UTC) to 'network', or drops them;
-- returns in how many. The service can't change reports otherwise.
CREATE FUNCTION accounting.reduce_client_addresses(of_realm integer, kept text, day date)
RETURNS bigint
LANGUAGE sql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
    WITH reduced AS (
        UPDATE accounting.reports r
        SET client_address = accounting.reduced_address(r.client_address, kept)
        WHERE r.received_at >= day::timestamp AT TIME ZONE 'UTC'
            AND r.received_at < (day + 1)::timestamp AT TIME ZONE 'UTC'
            AND r.realm_id = of_realm AND r.client_address IS NOT NULL
            AND r.client_address
                IS DISTINCT FROM accounting.reduced_address(r.client_address, kept)
        RETURNING 1
    )
    SELECT count(*) FROM reduced
$$;
REVOKE ALL ON FUNCTION accounting.reduce_client_addresses(integer, text, date) FROM PUBLIC;
GRANT EXECUTE ON FUNCTION accounting.reduce_client_addresses(integer, text, date)
    TO turn_accounting_writer;

-- Status keys found in Redis after a gap: evidence, like reports. Each lies after the report at its
-- position; sighting numbers those at one position.
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
CREATE INDEX key_sightings_by_time ON accounting.key_sightings (source_id, seen_at);
CREATE INDEX key_sightings_by_user ON accounting.key_sightings (user_key);
GRANT SELECT, INSERT ON accounting.key_sightings TO turn_accounting_writer;

-- Counts of loaded and rejected messages, which never decrease: counting the rows would take longer
-- the more there are.
CREATE TABLE accounting.message_counts (
    source_id smallint NOT NULL,
    outcome text NOT NULL,
    reason text NOT NULL,
    total bigint NOT NULL,
    CONSTRAINT message_counts_pkey PRIMARY KEY (source_id, outcome, reason)
) WITH (fillfactor = 50);
GRANT SELECT, INSERT, UPDATE ON accounting.message_counts TO turn_accounting_writer;
