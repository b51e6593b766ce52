-- Billing periods, their statements, and adjustments of closed periods.

-- One row for each month of a realm. A change of the realm's rules changes the bounds of open
-- periods, not of closed ones. due_at: the end plus the grace.
CREATE TABLE accounting.periods (
    realm_id integer NOT NULL,
    period date NOT NULL,
    starts_at timestamptz NOT NULL,
    ends_at timestamptz NOT NULL,
    due_at timestamptz NOT NULL,
    time_zone text NOT NULL,
    closed_at timestamptz,
    cutoff text,
    CONSTRAINT periods_pkey PRIMARY KEY (realm_id, period),
    CONSTRAINT period_is_not_empty CHECK (ends_at > starts_at AND due_at >= ends_at),
    CONSTRAINT closed_period_has_a_cutoff CHECK ((closed_at IS NULL) = (cutoff IS NULL))
);
GRANT SELECT, INSERT, UPDATE, DELETE ON accounting.periods TO turn_accounting_writer;

-- What the lines of each period that is not closed would be now: for each user the sums of its hours.
-- Closing stores them; reporting.statement_previews shows them before.
CREATE VIEW accounting.open_period_lines AS
SELECT h.user_key, p.realm_id, r.realm, p.period,
    sum(h.received_packets)::bigint AS received_packets,
    sum(h.received_bytes)::bigint AS received_bytes,
    sum(h.sent_packets)::bigint AS sent_packets,
    sum(h.sent_bytes)::bigint AS sent_bytes,
    sum(h.peer_received_packets)::bigint AS peer_received_packets,
    sum(h.peer_received_bytes)::bigint AS peer_received_bytes,
    sum(h.peer_sent_packets)::bigint AS peer_sent_packets,
    sum(h.peer_sent_bytes)::bigint AS peer_sent_bytes,
    sum(h.sessions_started)::bigint AS sessions_started,
    sum(h.sessions_ended)::bigint AS sessions_ended,
    round(sum(h.session_microseconds)) AS session_microseconds,
    sum(h.estimated_bytes)::bigint AS estimated_bytes
FROM accounting.periods p
JOIN accounting.realms r USING (realm_id)
JOIN accounting.user_usage_hourly h
    ON h.realm_id = p.realm_id AND h.starts_at >= p.starts_at AND h.starts_at < p.ends_at
WHERE p.closed_at IS NULL
GROUP BY h.user_key, p.realm_id, r.realm, p.period;
GRANT SELECT ON accounting.open_period_lines TO turn_accounting_writer;

-- One line for each user with usage in a closed period. Append only, also for the service.
CREATE TABLE accounting.statements (
    user_key uuid NOT NULL,
    realm_id integer NOT NULL,
    period date NOT NULL,
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
    digest text NOT NULL CONSTRAINT digest_is_sha256 CHECK (digest ~ '^[0-9a-f]{64}$'),
    CONSTRAINT statements_pkey PRIMARY KEY (user_key, realm_id, period)
);
CREATE INDEX statements_by_period ON accounting.statements (realm_id, period);
GRANT SELECT, INSERT ON accounting.statements TO turn_accounting_writer;

-- manual: posted by a person, and not part of "statement + adjustments = hours". Append only, also
-- for the service. Readers of the view recognize late usage by its author. database_id: on a front, of
-- the cell that it comes from.
CREATE TABLE accounting.adjustments (
    adjustment_id uuid NOT NULL,
    user_key uuid NOT NULL,
    realm_id integer NOT NULL,
    period date NOT NULL,
    posted_in date NOT NULL,
    received_packets bigint NOT NULL,
    received_bytes bigint NOT NULL,
    sent_packets bigint NOT NULL,
    sent_bytes bigint NOT NULL,
    peer_received_packets bigint NOT NULL,
    peer_received_bytes bigint NOT NULL,
    peer_sent_packets bigint NOT NULL,
    peer_sent_bytes bigint NOT NULL,
    session_microseconds numeric NOT NULL,
    reason text NOT NULL CONSTRAINT adjustment_has_a_reason CHECK (reason <> ''),
    author text NOT NULL CONSTRAINT adjustment_has_an_author CHECK (author <> ''),
    manual boolean NOT NULL,
    posted_at timestamptz NOT NULL DEFAULT now(),
    database_id uuid,
    CONSTRAINT adjustments_pkey PRIMARY KEY (adjustment_id, user_key),
    CONSTRAINT posted_after_what_it_corrects CHECK (posted_in > period),
    CONSTRAINT late_usage_has_one_author CHECK (manual = (author <> 'turn-accounting'))
);
CREATE INDEX adjustments_by_period ON accounting.adjustments (realm_id, period, user_key);
CREATE INDEX adjustments_by_user ON accounting.adjustments (user_key);
CREATE INDEX adjustments_by_posting ON accounting.adjustments (realm_id, posted_in);
GRANT SELECT, INSERT ON accounting.adjustments TO turn_accounting_writer;

-- Users whose hours in a closed period changed. Rows are inserted and deleted, as in usage_deltas.
CREATE TABLE accounting.periods_to_adjust (
    realm_id integer NOT NULL,
    period date NOT NULL,
    user_key uuid NOT NULL
);
GRANT SELECT, INSERT, DELETE ON accounting.periods_to_adjust TO turn_accounting_writer;

-- Triggers keep what was billed from being changed. ENABLE ALWAYS: also in a session that turns
-- triggers off (session_replication_role = replica).
CREATE FUNCTION accounting.refuse_change() RETURNS trigger
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    RAISE EXCEPTION '% of accounting.% refused: what was billed is kept as it is',
        TG_OP, TG_TABLE_NAME
        USING ERRCODE = 'integrity_constraint_violation', HINT = 'Post an adjustment instead.';
END
$$;

CREATE TRIGGER statements_are_immutable BEFORE UPDATE OR DELETE ON accounting.statements
    FOR EACH ROW EXECUTE FUNCTION accounting.refuse_change();
ALTER TABLE accounting.statements ENABLE ALWAYS TRIGGER statements_are_immutable;
CREATE TRIGGER statements_are_kept BEFORE TRUNCATE ON accounting.statements
    FOR EACH STATEMENT EXECUTE FUNCTION accounting.refuse_change();
ALTER TABLE accounting.statements ENABLE ALWAYS TRIGGER statements_are_kept;
CREATE TRIGGER adjustments_are_immutable BEFORE UPDATE OR DELETE ON accounting.adjustments
    FOR EACH ROW EXECUTE FUNCTION accounting.refuse_change();
ALTER TABLE accounting.adjustments ENABLE ALWAYS TRIGGER adjustments_are_immutable;
CREATE TRIGGER adjustments_are_kept BEFORE TRUNCATE ON accounting.adjustments
    FOR EACH STATEMENT EXECUTE FUNCTION accounting.refuse_change();
ALTER TABLE accounting.adjustments ENABLE ALWAYS TRIGGER adjustments_are_kept;
CREATE TRIGGER closed_periods_are_not_deleted BEFORE DELETE ON accounting.periods
    FOR EACH ROW WHEN (OLD.closed_at IS NOT NULL) EXECUTE FUNCTION accounting.refuse_change();
ALTER TABLE accounting.periods ENABLE ALWAYS TRIGGER closed_periods_are_not_deleted;
-- Lists the columns: one that a migration adds may be written after the close.
CREATE TRIGGER closed_periods_are_immutable BEFORE UPDATE ON accounting.periods
    FOR EACH ROW WHEN (OLD.closed_at IS NOT NULL AND (
        (OLD.realm_id, OLD.period, OLD.starts_at, OLD.ends_at, OLD.due_at, OLD.time_zone,
            OLD.closed_at, OLD.cutoff)
        IS DISTINCT FROM
        (NEW.realm_id, NEW.period, NEW.starts_at, NEW.ends_at, NEW.due_at, NEW.time_zone,
            NEW.closed_at, NEW.cutoff)
    )) EXECUTE FUNCTION accounting.refuse_change();
ALTER TABLE accounting.periods ENABLE ALWAYS TRIGGER closed_periods_are_immutable;
CREATE TRIGGER periods_are_kept BEFORE TRUNCATE ON accounting.periods
    FOR EACH STATEMENT EXECUTE FUNCTION accounting.refuse_change();
ALTER TABLE accounting.periods ENABLE ALWAYS TRIGGER periods_are_kept;

-- The lines of a statement are inserted in the transaction that closes its period, before that.
CREATE FUNCTION accounting.check_statements() RETURNS trigger
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    IF EXISTS (
        SELECT FROM (SELECT DISTINCT realm_id, period FROM added) a
        LEFT JOIN accounting.periods p USING (realm_id, period)
        WHERE p.realm_id IS NULL OR p.closed_at IS NOT NULL
    ) THEN
        RAISE EXCEPTION 'a statement line can only be written while its period is closing'
            USING ERRCODE = 'integrity_constraint_violation';
    END IF;
    RETURN NULL;
END
$$;
CREATE TRIGGER statements_come_before_the_close AFTER INSERT ON accounting.statements
    REFERENCING NEW TABLE AS added
    FOR EACH STATEMENT EXECUTE FUNCTION accounting.check_statements();
ALTER TABLE accounting.statements ENABLE ALWAYS TRIGGER statements_come_before_the_close;

-- An adjustment corrects a closed period, and is posted in one that is not closed.
CREATE FUNCTION accounting.check_adjustments() RETURNS trigger
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    IF EXISTS (
        SELECT FROM (SELECT DISTINCT realm_id, period, posted_in FROM added) a
        LEFT JOIN accounting.periods c ON c.realm_id = a.realm_id AND c.period = a.period
        LEFT JOIN accounting.periods o ON o.realm_id = a.realm_id AND o.period = a.posted_in
        WHERE c.closed_at IS NULL OR o.realm_id IS NULL OR o.closed_at IS NOT NULL
    ) THEN
        RAISE EXCEPTION 'an adjustment names a closed period and is posted in an open one'
            USING ERRCODE = 'integrity_constraint_violation';
    END IF;
    RETURN NULL;
END
$$;
CREATE TRIGGER adjustments_correct_what_is_closed AFTER INSERT ON accounting.adjustments
    REFERENCING NEW TABLE AS added
    FOR EACH STATEMENT EXECUTE FUNCTION accounting.check_adjustments();
ALTER TABLE accounting.adjustments ENABLE ALWAYS TRIGGER adjustments_correct_what_is_closed;

-- What an open period waits for, in words; null when it can be closed. Its end and its grace pass on
-- the database's clock, whatever a collector's clock says; excluding a source does not change that.
-- Where the clocks of all collectors' machines are before that, the database's may be the wrong one.
CREATE FUNCTION accounting.period_waits(
    of_realm integer, of_period date, excluded_sources text[] DEFAULT '{}'
) RETURNS text
LANGUAGE sql STABLE SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
    SELECT CASE
        WHEN c.database_now < p.ends_at THEN 'its end'
        ELSE (SELECT string_agg(w.wait, '; ' ORDER BY w.rank, w.wait) FROM (
            SELECT 1, 'its grace' WHERE c.database_now <= p.due_at
            UNION ALL
            SELECT 1, format('the clocks: its grace is over on the database''s, but not on any '
                'collector''s, of which the furthest is at %s', to_char(
                    max(c.database_now + make_interval(secs => l.clock_ahead_seconds))
                    AT TIME ZONE 'UTC', 'YYYY-MM-DD HH24:MI:SS"Z"'))
            FROM accounting.sources s JOIN accounting.source_leases l USING (source_id)
            WHERE s.retired_at IS NULL AND s.source <> ALL (excluded_sources)
            HAVING max(c.database_now + make_interval(secs => l.clock_ahead_seconds)) <= p.due_at
                AND c.database_now > p.due_at
            UNION ALL
            SELECT 2, format('source ''%s'' %s', s.source, CASE
                WHEN s.captured_until IS NULL OR s.captured_until <= p.due_at
                THEN coalesce('captured until ' || to_char(
                    s.captured_until AT TIME ZONE 'UTC', 'YYYY-MM-DD HH24:MI:SS"Z"'),
                    'not captured yet')
                WHEN t.settled_until IS NULL OR t.settled_until <= p.due_at
                THEN coalesce('settled until ' || to_char(
                    t.settled_until AT TIME ZONE 'UTC', 'YYYY-MM-DD HH24:MI:SS"Z"'),
                    'not settled yet')
                ELSE 'has sessions to end'
            END)
            FROM accounting.sources s LEFT JOIN accounting.settle_watermarks t USING (source_id)
            WHERE s.retired_at IS NULL AND s.source <> ALL (excluded_sources) AND (
                s.captured_until IS NULL OR s.captured_until <= p.due_at
                OR t.settled_until IS NULL OR t.settled_until <= p.due_at
                OR EXISTS (
                    SELECT FROM accounting.sessions e
                    WHERE e.source_id = s.source_id AND e.recheck_at < t.settled_until
                        AND e.ended_at IS NULL AND e.phase = 1))
            UNION ALL
            SELECT 3, 'period ' || to_char(max(b.period), 'YYYY-MM-DD') FROM accounting.periods b
            WHERE b.realm_id = p.realm_id AND b.starts_at < p.starts_at AND b.closed_at IS NULL
            HAVING count(*) > 0
            UNION ALL
            SELECT 4, 'the roll-up' WHERE EXISTS (
                SELECT FROM accounting.usage_deltas h
                WHERE h.realm_id = p.realm_id
                    AND h.starts_at >= p.starts_at AND h.starts_at < p.ends_at)
        ) w (rank, wait))
    END
    FROM accounting.periods p
    CROSS JOIN (SELECT accounting.database_now() AS database_now) c
    WHERE p.realm_id = of_realm AND p.period = of_period AND p.closed_at IS NULL
$$;
