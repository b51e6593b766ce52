-- Proofs of closed periods, rebuilds, and what replaces reports that were dropped.

-- When and why the sessions and usage of a realm were rebuilt from the reports. Never deleted.
CREATE TABLE accounting.rebuilds (
    rebuild_id uuid NOT NULL DEFAULT gen_random_uuid(),
    realm_id integer NOT NULL,
    rebuilt_at timestamptz NOT NULL DEFAULT now(),
    reason text NOT NULL CONSTRAINT rebuild_has_a_reason CHECK (reason <> ''),
    rows_replaced bigint NOT NULL,
    CONSTRAINT rebuilds_pkey PRIMARY KEY (rebuild_id)
);
GRANT SELECT, INSERT ON accounting.rebuilds TO turn_accounting_writer;

-- The last proof of each closed period. verified_at: when it was last compared with all of its
-- reports; checked_at: when it was last compared with those that were left; differences: how many
-- the comparison found.
CREATE TABLE accounting.proofs (
    realm_id integer NOT NULL,
    period date NOT NULL,
    digest text NOT NULL CONSTRAINT proof_digest_is_sha256 CHECK (digest ~ '^[0-9a-f]{64}$'),
    positions text NOT NULL,
    verified_at timestamptz NOT NULL,
    checked_at timestamptz NOT NULL,
    differences bigint NOT NULL,
    CONSTRAINT proofs_pkey PRIMARY KEY (realm_id, period),
    CONSTRAINT check_comes_after_proof CHECK (checked_at >= verified_at)
);
GRANT SELECT, INSERT, UPDATE ON accounting.proofs TO turn_accounting_writer;

-- How many reports of each day (UTC) of receipt were dropped.
CREATE TABLE accounting.dropped_reports (
    day date NOT NULL,
    realm_id integer NOT NULL,
    source_id smallint NOT NULL,
    reports bigint NOT NULL,
    dropped_at timestamptz NOT NULL DEFAULT now(),
    CONSTRAINT dropped_reports_pkey PRIMARY KEY (day, realm_id, source_id)
);
GRANT SELECT, INSERT, UPDATE ON accounting.dropped_reports TO turn_accounting_writer;

-- The last dropped report of each source. last_session_id: the highest id that a session which
-- started by then can have.
CREATE TABLE accounting.dropped_positions (
    source_id smallint NOT NULL,
    epoch integer NOT NULL,
    position bigint NOT NULL,
    received_at timestamptz NOT NULL,
    last_session_id uuid NOT NULL,
    CONSTRAINT dropped_positions_pkey PRIMARY KEY (source_id)
);
GRANT SELECT, INSERT, UPDATE ON accounting.dropped_positions TO turn_accounting_writer;

-- The days (UTC) of reports that were archived: the place, the digest of the manifest there, how many
-- rows, when they were last read back and found right, and when the day was dropped. part: 1, or
-- higher where reports came after the day had been dropped. Never changed once it is dropped.
CREATE TABLE accounting.report_archives (
    day date NOT NULL,
    part smallint NOT NULL CONSTRAINT parts_begin_with_1 CHECK (part >= 1),
    place text NOT NULL,
    manifest_sha256 text NOT NULL
        CONSTRAINT manifest_digest_is_sha256 CHECK (manifest_sha256 ~ '^[0-9a-f]{64}$'),
    reports bigint NOT NULL,
    sightings bigint NOT NULL,
    archived_at timestamptz NOT NULL DEFAULT now(),
    checked_at timestamptz NOT NULL,
    dropped_at timestamptz,
    CONSTRAINT report_archives_pkey PRIMARY KEY (day, part)
);
GRANT SELECT, INSERT, UPDATE ON accounting.report_archives TO turn_accounting_writer;
CREATE TRIGGER archives_of_dropped_days_are_immutable
    BEFORE UPDATE OR DELETE ON accounting.report_archives
    FOR EACH ROW WHEN (OLD.dropped_at IS NOT NULL) EXECUTE FUNCTION accounting.refuse_change();
ALTER TABLE accounting.report_archives
    ENABLE ALWAYS TRIGGER archives_of_dropped_days_are_immutable;

-- The state after the dropped reports of sessions to which a later report may still belong.
-- hourly_usage: their usage until then, nine numbers for each hour: its start, and the counters.
CREATE TABLE accounting.carried_sessions (
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
    start_known boolean NOT NULL,
    lifetime_known boolean NOT NULL,
    ended_at timestamptz,
    end_cause text,
    phase smallint NOT NULL,
    confirmed boolean NOT NULL,
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
    new_count smallint NOT NULL,
    deleted_count smallint NOT NULL,
    client_total_count smallint NOT NULL,
    peer_total_count smallint NOT NULL,
    client_total bigint[] NOT NULL,
    peer_total bigint[] NOT NULL,
    estimated boolean NOT NULL,
    disputed boolean NOT NULL,
    hourly_usage bigint[] NOT NULL,
    CONSTRAINT carried_sessions_pkey PRIMARY KEY (session_id, user_key)
);
CREATE INDEX carried_sessions_by_name ON accounting.carried_sessions (username_key);
GRANT SELECT, INSERT, UPDATE, DELETE ON accounting.carried_sessions TO turn_accounting_writer;

-- The sessions whose last report was dropped, by the day (UTC) of their start: their number, and
-- the sum of row_hash over them.
CREATE TABLE accounting.finalized_sessions (
    realm_id integer NOT NULL,
    day date NOT NULL,
    sessions bigint NOT NULL,
    digest numeric NOT NULL,
    CONSTRAINT finalized_sessions_pkey PRIMARY KEY (realm_id, day)
);
GRANT SELECT, INSERT, UPDATE, DELETE ON accounting.finalized_sessions TO turn_accounting_writer;

CREATE FUNCTION accounting.row_hash(fields jsonb) RETURNS bigint
LANGUAGE sql IMMUTABLE PARALLEL SAFE
RETURN ('x' || left(encode(sha256(convert_to(fields::text, 'UTF8')), 'hex'), 15))::bit(60)::bigint;

-- Drops the reports of a day (UTC). Raises an error if a report lies beyond the
-- position up to which sessions were carried over, or if a period of the day's realms that
-- overlaps the day is not closed and proved. The job retain checks the same and more before; for
-- it, this fails only where the state has changed in between.
CREATE FUNCTION accounting.drop_report_partition(day date) RETURNS void
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    name text := 'reports_' || to_char(day, 'YYYYMMDD');
    is_beyond boolean;
BEGIN
    -- A scan: so it only keeps loaders out of this day. Waits are short, by the caller's lock_timeout.
    EXECUTE format('LOCK TABLE accounting.%I IN SHARE MODE', name);
    EXECUTE format(
        'SELECT EXISTS (SELECT FROM accounting.%I r '
        'LEFT JOIN accounting.dropped_positions z USING (source_id) '
        'WHERE ((r.epoch, r.position) <= (z.epoch, z.position)) IS NOT TRUE)', name)
    INTO is_beyond;
    IF is_beyond THEN
        RAISE EXCEPTION 'dropping the reports of % refused: some were not carried over', day
            USING ERRCODE = 'integrity_constraint_violation';
    END IF;
    IF EXISTS (
        SELECT FROM accounting.dropped_reports d
        JOIN accounting.periods p ON p.realm_id = d.realm_id
            AND p.starts_at < (d.day + 1)::timestamp AT TIME ZONE 'UTC'
            AND p.ends_at > d.day::timestamp AT TIME ZONE 'UTC'
        LEFT JOIN accounting.proofs f ON f.realm_id = p.realm_id AND f.period = p.period
        WHERE d.day = drop_report_partition.day
            AND (p.closed_at IS NULL OR f.differences IS DISTINCT FROM 0)
    ) THEN
        RAISE EXCEPTION 'dropping the reports of % refused: a period is not closed and proved', day
            USING ERRCODE = 'integrity_constraint_violation';
    END IF;
    LOCK TABLE ONLY accounting.reports IN ACCESS EXCLUSIVE MODE;
    EXECUTE format('DROP TABLE accounting.%I', name);
END
$$;
REVOKE ALL ON FUNCTION accounting.drop_report_partition(date) FROM PUBLIC;
GRANT EXECUTE ON FUNCTION accounting.drop_report_partition(date) TO turn_accounting_writer;

-- Pruning: what is left of sessions that were never confirmed, which the job retain deletes.

-- Their usage by realm and hour.
CREATE TABLE accounting.pruned_usage (
    source_id smallint NOT NULL,
    realm_id integer NOT NULL,
    starts_at timestamptz NOT NULL,
    sessions_started bigint NOT NULL,
    received_packets numeric NOT NULL,
    received_bytes numeric NOT NULL,
    sent_packets numeric NOT NULL,
    sent_bytes numeric NOT NULL,
    peer_received_packets numeric NOT NULL,
    peer_received_bytes numeric NOT NULL,
    peer_sent_packets numeric NOT NULL,
    peer_sent_bytes numeric NOT NULL,
    CONSTRAINT pruned_usage_pkey PRIMARY KEY (source_id, realm_id, starts_at)
);
GRANT SELECT, INSERT, UPDATE ON accounting.pruned_usage TO turn_accounting_writer;

-- How many sessions, reports, usernames and key sightings were pruned, and the time up to which
-- sightings were considered. A loader that finds another
-- number of usernames than before forgets which names are stored.
CREATE TABLE accounting.pruned_counts (
    source_id smallint NOT NULL,
    sessions bigint NOT NULL,
    reports bigint NOT NULL,
    usernames bigint NOT NULL,
    sightings bigint NOT NULL,
    sightings_until timestamptz,
    CONSTRAINT pruned_counts_pkey PRIMARY KEY (source_id)
) WITH (fillfactor = 50);
GRANT SELECT, INSERT, UPDATE ON accounting.pruned_counts TO turn_accounting_writer;

-- Deletes the reports of some sessions of a source, which were never confirmed and are over, and
-- returns how many. They lie between two positions. Raises an error unless what
-- it deletes is exactly the usage of those sessions: so it can't delete a report that was billed.
-- Without statistics, as after a restore, a nested loop would compare each report with each session.
CREATE FUNCTION accounting.delete_unattributed_reports(
    of_source smallint, session_ids uuid[],
    from_epoch integer, from_position bigint, to_epoch integer, to_position bigint
) RETURNS bigint
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp SET enable_nestloop = off
AS $$
DECLARE
    since timestamptz;
    until timestamptz;
    deleted_count bigint;
    is_exact boolean;
BEGIN
    SELECT min(s.started_at), max(s.last_seen_at) INTO since, until
    FROM accounting.sessions s WHERE s.session_id = ANY (session_ids);
    WITH pruned AS MATERIALIZED (
        SELECT s.* FROM accounting.sessions s
        WHERE s.session_id = ANY (session_ids) AND s.source_id = of_source
            AND NOT s.confirmed AND s.phase = 0
    ), deleted AS (
        DELETE FROM accounting.reports r USING pruned p
        WHERE r.source_id = of_source AND r.kind = 4
            AND (r.epoch, r.position) >= (from_epoch, from_position)
            AND (r.epoch, r.position) <= (to_epoch, to_position)
            AND r.received_at >= since AND r.received_at <= until
            AND r.username_key = p.username_key AND r.allocation_id = p.allocation_id
            AND r.database = p.database
            AND r.received_at >= p.started_at AND r.received_at <= p.last_seen_at
        RETURNING p.session_id, r.side,
            r.received_packets, r.received_bytes, r.sent_packets, r.sent_bytes
    ), sums AS (
        SELECT session_id, count(*) AS reports,
            sum(received_packets) FILTER (WHERE side = 0) AS received_packets,
            sum(received_bytes) FILTER (WHERE side = 0) AS received_bytes,
            sum(sent_packets) FILTER (WHERE side = 0) AS sent_packets,
            sum(sent_bytes) FILTER (WHERE side = 0) AS sent_bytes,
            sum(received_packets) FILTER (WHERE side = 1) AS peer_received_packets,
            sum(received_bytes) FILTER (WHERE side = 1) AS peer_received_bytes,
            sum(sent_packets) FILTER (WHERE side = 1) AS peer_sent_packets,
            sum(sent_bytes) FILTER (WHERE side = 1) AS peer_sent_bytes
        FROM deleted GROUP BY session_id
    )
    SELECT coalesce(sum(d.reports), 0),
        count(*) = cardinality(session_ids) AND bool_and(
            (p.received_packets, p.received_bytes, p.sent_packets, p.sent_bytes,
            p.peer_received_packets, p.peer_received_bytes,
            p.peer_sent_packets, p.peer_sent_bytes)
            = (coalesce(d.received_packets, 0), coalesce(d.received_bytes, 0),
            coalesce(d.sent_packets, 0), coalesce(d.sent_bytes, 0),
            coalesce(d.peer_received_packets, 0), coalesce(d.peer_received_bytes, 0),
            coalesce(d.peer_sent_packets, 0), coalesce(d.peer_sent_bytes, 0)))
    INTO deleted_count, is_exact
    FROM pruned p LEFT JOIN sums d USING (session_id);
    IF NOT is_exact THEN
        RAISE EXCEPTION 'deleting reports refused: they are not the usage of those sessions'
            USING ERRCODE = 'integrity_constraint_violation';
    END IF;
    RETURN deleted_count;
END
$$;
REVOKE ALL ON FUNCTION accounting.delete_unattributed_reports(
    smallint, uuid[], integer, bigint, integer, bigint) FROM PUBLIC;
GRANT EXECUTE ON FUNCTION accounting.delete_unattributed_reports(
    smallint, uuid[], integer, bigint, integer, bigint) TO turn_accounting_writer;

-- Deletes sightings of a source that no report can need, and returns their names: of users without
-- any session, among those seen in a span and those of some users; and at most so many from before
-- the dropped reports. Sightings that are not settled stay.
CREATE FUNCTION accounting.prune_sightings(
    of_source smallint, since timestamptz, before timestamptz, user_keys uuid[], most integer
) RETURNS TABLE (user_key uuid, username_key uuid)
LANGUAGE sql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
    WITH settled AS MATERIALIZED (
        SELECT * FROM accounting.settle_watermarks t WHERE t.source_id = of_source
    ), candidates AS (
        (SELECT k.* FROM accounting.key_sightings k
        WHERE k.source_id = of_source AND k.seen_at >= since AND k.seen_at < before
        ORDER BY k.seen_at LIMIT 2 * most)
        UNION ALL
        SELECT k.* FROM unnest(user_keys) AS u (user_key) CROSS JOIN LATERAL (
            SELECT * FROM accounting.key_sightings k WHERE k.user_key = u.user_key OFFSET 0
        ) k
        WHERE k.source_id = of_source
    ), unneeded AS (
        SELECT k.* FROM candidates k
        WHERE (SELECT s.session_id FROM accounting.sessions s
            WHERE s.user_key = k.user_key LIMIT 1) IS NULL
        UNION ALL
        SELECT k.* FROM accounting.dropped_positions z CROSS JOIN LATERAL (
            SELECT * FROM accounting.key_sightings k
            WHERE k.source_id = of_source AND (k.epoch, k.position) < (z.epoch, z.position)
            ORDER BY k.epoch, k.position, k.sighting LIMIT most
        ) k
        WHERE z.source_id = of_source
    )
    DELETE FROM accounting.key_sightings d
    WHERE d.ctid = ANY (ARRAY(
        SELECT k.ctid FROM unneeded u JOIN settled t USING (source_id)
        CROSS JOIN LATERAL (
            SELECT k.ctid FROM accounting.key_sightings k
            WHERE k.source_id = u.source_id AND k.epoch = u.epoch AND k.position = u.position
                AND k.sighting = u.sighting AND k.user_key = u.user_key OFFSET 0
        ) k
        WHERE (u.epoch, u.position) < (t.epoch, t.position)
            AND (u.epoch, u.position, u.sighting) <= (
                t.last_sighting_epoch, t.last_sighting_position, t.last_sighting)
    ))
    RETURNING d.user_key, d.username_key
$$;
REVOKE ALL ON FUNCTION accounting.prune_sightings(
    smallint, timestamptz, timestamptz, uuid[], integer) FROM PUBLIC;
GRANT EXECUTE ON FUNCTION accounting.prune_sightings(
    smallint, timestamptz, timestamptz, uuid[], integer) TO turn_accounting_writer;
