-- What is billed: periods, their statements, and what changed in them since.

-- Few rows: one for each month of a realm. An open one is redrawn when rules change; a closed one
-- stays as it is. due_at: its end + grace.
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

-- manual: by a person, and outside of "statement + adjustments = hours".
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
    CONSTRAINT adjustments_pkey PRIMARY KEY (adjustment_id, user_key),
    CONSTRAINT posted_after_what_it_corrects CHECK (posted_in > period)
);
CREATE INDEX adjustments_by_period ON accounting.adjustments (realm_id, period, user_key);
CREATE INDEX adjustments_by_posting ON accounting.adjustments (realm_id, posted_in);

-- Users whose hours in a closed period were replaced. Appended to, never updated: as touched_hours.
CREATE TABLE accounting.touched_periods (
    realm_id integer NOT NULL,
    period date NOT NULL,
    user_key uuid NOT NULL
);

CREATE FUNCTION accounting.refuse_change() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    RAISE EXCEPTION '% of accounting.% refused: what was billed is kept as it is',
        TG_OP, TG_TABLE_NAME
        USING ERRCODE = 'integrity_constraint_violation', HINT = 'Post an adjustment instead.';
END
$$;

CREATE TRIGGER statements_are_immutable BEFORE UPDATE OR DELETE ON accounting.statements
    FOR EACH ROW EXECUTE FUNCTION accounting.refuse_change();
CREATE TRIGGER statements_are_kept BEFORE TRUNCATE ON accounting.statements
    FOR EACH STATEMENT EXECUTE FUNCTION accounting.refuse_change();
CREATE TRIGGER adjustments_are_immutable BEFORE UPDATE OR DELETE ON accounting.adjustments
    FOR EACH ROW EXECUTE FUNCTION accounting.refuse_change();
CREATE TRIGGER adjustments_are_kept BEFORE TRUNCATE ON accounting.adjustments
    FOR EACH STATEMENT EXECUTE FUNCTION accounting.refuse_change();
CREATE TRIGGER closed_periods_are_not_deleted BEFORE DELETE ON accounting.periods
    FOR EACH ROW WHEN (OLD.closed_at IS NOT NULL) EXECUTE FUNCTION accounting.refuse_change();
-- Column by column: what proves a closed period may be written beside it later.
CREATE TRIGGER closed_periods_are_immutable BEFORE UPDATE ON accounting.periods
    FOR EACH ROW WHEN (OLD.closed_at IS NOT NULL AND (
        (OLD.realm_id, OLD.period, OLD.starts_at, OLD.ends_at, OLD.due_at, OLD.time_zone,
            OLD.closed_at, OLD.cutoff)
        IS DISTINCT FROM
        (NEW.realm_id, NEW.period, NEW.starts_at, NEW.ends_at, NEW.due_at, NEW.time_zone,
            NEW.closed_at, NEW.cutoff)
    )) EXECUTE FUNCTION accounting.refuse_change();
CREATE TRIGGER periods_are_kept BEFORE TRUNCATE ON accounting.periods
    FOR EACH STATEMENT EXECUTE FUNCTION accounting.refuse_change();

-- Lines come before their period is closed, in one transaction; none comes afterwards.
CREATE FUNCTION accounting.check_statements() RETURNS trigger LANGUAGE plpgsql AS $$
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

-- An adjustment names a closed period, and is posted in one that is not closed yet.
CREATE FUNCTION accounting.check_adjustments() RETURNS trigger LANGUAGE plpgsql AS $$
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

-- The clock of periods: how far any source is captured; the server's own where none is in service.
CREATE FUNCTION accounting.period_clock(without text[] DEFAULT '{}') RETURNS timestamptz
LANGUAGE sql STABLE SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
    SELECT CASE
        WHEN EXISTS (
            SELECT FROM accounting.sources WHERE retired_at IS NULL AND source <> ALL (without)
        ) THEN (SELECT max(captured_until) FROM accounting.sources)
        ELSE now()
    END
$$;

-- What a period that is not closed waits for, in words; null when it may close now.
CREATE FUNCTION accounting.period_waits(
    of_realm integer, of_period date, without text[] DEFAULT '{}'
) RETURNS text
LANGUAGE sql STABLE SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
    SELECT CASE
        WHEN c.clock IS NULL OR c.clock < p.ends_at THEN 'its end'
        ELSE (SELECT string_agg(w.wait, '; ' ORDER BY w.rank, w.wait) FROM (
            SELECT 1, 'its grace' WHERE c.clock <= p.due_at
            UNION ALL
            SELECT 2, format('source ''%s'' %s', s.source, CASE
                WHEN s.captured_until IS NULL OR s.captured_until <= p.due_at
                THEN coalesce('captured until ' || to_char(
                    s.captured_until AT TIME ZONE 'UTC', 'YYYY-MM-DD HH24:MI:SS"Z"'),
                    'not captured yet')
                WHEN t.until IS NULL OR t.until <= p.due_at
                THEN coalesce('settled until ' || to_char(
                    t.until AT TIME ZONE 'UTC', 'YYYY-MM-DD HH24:MI:SS"Z"'), 'not settled yet')
                ELSE 'has sessions to end'
            END)
            FROM accounting.sources s LEFT JOIN accounting.settling t USING (source_id)
            WHERE s.retired_at IS NULL AND s.source <> ALL (without) AND (
                s.captured_until IS NULL OR s.captured_until <= p.due_at
                OR t.until IS NULL OR t.until <= p.due_at
                OR EXISTS (
                    SELECT FROM accounting.sessions e
                    WHERE e.source_id = s.source_id AND e.due_at < t.until
                        AND e.ended_at IS NULL AND e.standing = 1))
            UNION ALL
            SELECT 3, format('period %s', max(b.period)) FROM accounting.periods b
            WHERE b.realm_id = p.realm_id AND b.starts_at < p.starts_at AND b.closed_at IS NULL
            HAVING count(*) > 0
            UNION ALL
            SELECT 4, 'the roll-up' WHERE EXISTS (
                SELECT FROM accounting.touched_hours h
                WHERE h.realm_id = p.realm_id
                    AND h.starts_at >= p.starts_at AND h.starts_at < p.ends_at)
        ) w (rank, wait))
    END
    FROM accounting.periods p
    CROSS JOIN (SELECT accounting.period_clock(without) AS clock) c
    WHERE p.realm_id = of_realm AND p.period = of_period AND p.closed_at IS NULL
$$;

CREATE VIEW reporting.periods AS
SELECT r.realm, p.period, p.starts_at, p.ends_at, p.time_zone,
    CASE WHEN p.closed_at IS NOT NULL THEN 'closed' WHEN w.waits_for = 'its end' THEN 'open'
        ELSE 'closing' END AS state,
    p.closed_at, w.waits_for
FROM accounting.periods p
JOIN accounting.realms r USING (realm_id)
CROSS JOIN LATERAL (
    SELECT CASE WHEN p.closed_at IS NULL
        THEN accounting.period_waits(p.realm_id, p.period) END AS waits_for
) w;

CREATE VIEW reporting.statements AS
SELECT r.realm, l.period, coalesce(u.user_id, '') AS user_id, l.user_key,
    l.received_packets, l.received_bytes, l.sent_packets, l.sent_bytes,
    l.peer_received_packets, l.peer_received_bytes, l.peer_sent_packets, l.peer_sent_bytes,
    l.sessions_started, l.sessions_ended,
    l.session_microseconds * 0.000001 AS session_seconds, l.estimated_bytes,
    p.cutoff, p.closed_at, l.digest
FROM accounting.statements l
JOIN accounting.periods p USING (realm_id, period)
JOIN accounting.realms r USING (realm_id)
LEFT JOIN accounting.users u USING (user_key);

CREATE VIEW reporting.adjustments AS
SELECT a.adjustment_id, r.realm, a.period, a.posted_in, coalesce(u.user_id, '') AS user_id,
    a.user_key,
    a.received_packets, a.received_bytes, a.sent_packets, a.sent_bytes,
    a.peer_received_packets, a.peer_received_bytes, a.peer_sent_packets, a.peer_sent_bytes,
    a.session_microseconds * 0.000001 AS session_seconds, a.reason, a.author, a.posted_at
FROM accounting.adjustments a
JOIN accounting.realms r USING (realm_id)
LEFT JOIN accounting.users u USING (user_key);

COMMENT ON VIEW reporting.periods IS 'What is billed at once: each realm''s billing periods, without holes or overlaps';
COMMENT ON COLUMN reporting.periods.realm IS 'TURN realm, empty when absent; bytes that are not UTF-8 as \xNN';
COMMENT ON COLUMN reporting.periods.period IS 'Name of the period: its first day in its time zone';
COMMENT ON COLUMN reporting.periods.starts_at IS 'Start of the period, inclusive';
COMMENT ON COLUMN reporting.periods.ends_at IS 'End of the period, exclusive';
COMMENT ON COLUMN reporting.periods.time_zone IS 'Time zone that the period begins in';
COMMENT ON COLUMN reporting.periods.state IS 'open (under way), closing (its end has passed, something is awaited), closed (its statement is final)';
COMMENT ON COLUMN reporting.periods.closed_at IS 'When it was closed; null until then';
COMMENT ON COLUMN reporting.periods.waits_for IS 'What it waits for, in words; null when nothing';

COMMENT ON VIEW reporting.statements IS 'One line for each user with usage in a closed period; never changed, never removed';
COMMENT ON COLUMN reporting.statements.realm IS 'TURN realm, empty when absent; bytes that are not UTF-8 as \xNN';
COMMENT ON COLUMN reporting.statements.period IS 'The closed period: its first day in its time zone';
COMMENT ON COLUMN reporting.statements.user_id IS 'Whom to bill; empty when absent or erased';
COMMENT ON COLUMN reporting.statements.user_key IS 'Opaque key of realm and user_id; stays when the name is erased';
COMMENT ON COLUMN reporting.statements.sessions_started IS 'Sessions whose first sign of life is in the period, as known at the cutoff';
COMMENT ON COLUMN reporting.statements.sessions_ended IS 'Sessions that ended in the period, as known at the cutoff';
COMMENT ON COLUMN reporting.statements.session_seconds IS 'Seconds that sessions lived in the period, never rounded';
COMMENT ON COLUMN reporting.statements.estimated_bytes IS 'received_bytes + sent_bytes of the sessions marked estimated';
COMMENT ON COLUMN reporting.statements.cutoff IS 'What it was computed from: JSON, how far each source was settled';
COMMENT ON COLUMN reporting.statements.closed_at IS 'When the period was closed';
COMMENT ON COLUMN reporting.statements.digest IS 'SHA-256 over realm, period, user_key, all numbers and the cutoff, hexadecimal';

COMMENT ON VIEW reporting.adjustments IS 'What changed in closed periods since: late usage once, and corrections by hand; never changed, never removed';
COMMENT ON COLUMN reporting.adjustments.adjustment_id IS 'The adjustment';
COMMENT ON COLUMN reporting.adjustments.realm IS 'TURN realm, empty when absent; bytes that are not UTF-8 as \xNN';
COMMENT ON COLUMN reporting.adjustments.period IS 'The closed period that it corrects';
COMMENT ON COLUMN reporting.adjustments.posted_in IS 'The period that was open when it was posted: bill it with that one';
COMMENT ON COLUMN reporting.adjustments.user_id IS 'Whom to bill; empty when absent or erased';
COMMENT ON COLUMN reporting.adjustments.user_key IS 'Opaque key of realm and user_id; stays when the name is erased';
COMMENT ON COLUMN reporting.adjustments.session_seconds IS 'Seconds that sessions lived, signed, never rounded';
COMMENT ON COLUMN reporting.adjustments.reason IS 'Why: late usage, or what a person wrote';
COMMENT ON COLUMN reporting.adjustments.author IS 'Who posted it: turn-accounting for late usage, or a person';
COMMENT ON COLUMN reporting.adjustments.posted_at IS 'When it was posted';

DO $$
DECLARE
    entry record;
BEGIN
    -- The eight counters say in every view what they say in the sessions.
    FOR entry IN
        SELECT v.relname AS view_name, a.attname AS column_name, col_description(s.oid, b.attnum) AS comment
        FROM pg_class v
        JOIN pg_attribute a ON a.attrelid = v.oid AND a.attname ~ '_(packets|bytes)$'
        JOIN pg_class s ON s.oid = 'reporting.sessions'::regclass
        JOIN pg_attribute b ON b.attrelid = s.oid AND b.attname = a.attname
        WHERE v.relnamespace = 'reporting'::regnamespace AND v.relname IN ('statements', 'adjustments')
    LOOP
        EXECUTE format('COMMENT ON COLUMN reporting.%I.%I IS %L', entry.view_name, entry.column_name,
            entry.comment || CASE entry.view_name WHEN 'adjustments' THEN ', signed' ELSE '' END);
    END LOOP;
END
$$;

GRANT SELECT, INSERT, UPDATE, DELETE ON accounting.periods TO turn_accounting_writer;
-- What was billed is kept: append only, for the service too.
GRANT SELECT, INSERT ON accounting.statements, accounting.adjustments TO turn_accounting_writer;
GRANT SELECT, INSERT, DELETE ON accounting.touched_periods TO turn_accounting_writer;
