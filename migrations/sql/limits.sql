-- Limits of usage, and which of their thresholds were reached.

-- whom realm: all users together; user: the one with user_key; every_user: each one apart.
-- thresholds: percent of the amount, in order. amount: bytes, sessions or seconds. A limit holds for
-- the buckets that end after set_at.
CREATE TABLE accounting.limits (
    limit_id integer GENERATED ALWAYS AS IDENTITY,
    realm_id integer NOT NULL,
    whom text NOT NULL
        CONSTRAINT whom_is_known CHECK (whom IN ('realm', 'user', 'every_user')),
    user_key uuid,
    measure text NOT NULL
        CONSTRAINT measure_is_known CHECK (measure IN ('bytes', 'sessions', 'session_seconds')),
    direction text NOT NULL
        CONSTRAINT direction_is_known CHECK (direction IN ('both', 'received', 'sent')),
    per text NOT NULL
        CONSTRAINT limit_length_is_known CHECK (per IN ('hour', 'day', 'month', 'period')),
    amount bigint NOT NULL CONSTRAINT amount_is_positive CHECK (amount > 0),
    thresholds integer[] NOT NULL CONSTRAINT thresholds_have_the_limit
        CHECK (100 = ANY (thresholds) AND cardinality(thresholds) <= 11),
    set_at timestamptz NOT NULL CONSTRAINT limit_is_set_at_a_time CHECK (isfinite(set_at)),
    CONSTRAINT limits_pkey PRIMARY KEY (limit_id),
    CONSTRAINT limit_is_set_once
        UNIQUE NULLS NOT DISTINCT (realm_id, whom, user_key, measure, direction, per),
    CONSTRAINT limit_of_one_user_has_its_key CHECK ((whom = 'user') = (user_key IS NOT NULL)),
    CONSTRAINT only_bytes_have_a_direction CHECK (measure = 'bytes' OR direction = 'both')
);
-- What a roll-up asks of the limits of a realm, however many of its users have their own.
CREATE INDEX limits_by_per ON accounting.limits (realm_id, per, set_at);
CREATE INDEX limits_of_users_by_measure ON accounting.limits (realm_id, measure)
    WHERE whom <> 'realm';
GRANT SELECT, INSERT, UPDATE, DELETE ON accounting.limits TO turn_accounting_writer;

-- The thresholds that were reached, by bucket. user_key: zeros for a limit of the realm. usage and
-- amount: when it was reached last, or when the limit was changed since and it stayed reached.
-- cleared_at: when usage fell below it by a correction, or the limit was changed; null while the threshold is reached.
CREATE TABLE accounting.limit_states (
    limit_id integer NOT NULL,
    realm_id integer NOT NULL,
    user_key uuid NOT NULL,
    starts_at timestamptz NOT NULL,
    threshold integer NOT NULL,
    ends_at timestamptz NOT NULL,
    time_zone text NOT NULL,
    amount bigint NOT NULL,
    usage numeric NOT NULL,
    reached_at timestamptz NOT NULL,
    cleared_at timestamptz,
    times_reached integer NOT NULL,
    CONSTRAINT limit_states_pkey PRIMARY KEY (limit_id, user_key, starts_at, threshold)
) WITH (fillfactor = 80);
-- As reporting.limit_states shows the key, and lists begin with the newest bucket.
CREATE INDEX limit_states_by_realm ON accounting.limit_states
    (realm_id, starts_at, limit_id, threshold,
        (nullif(user_key, '00000000-0000-0000-0000-000000000000'::uuid)));
CREATE INDEX limit_states_by_user ON accounting.limit_states
    ((nullif(user_key, '00000000-0000-0000-0000-000000000000'::uuid)), starts_at, limit_id,
        threshold);
-- What is reached now: of one limit, for the pages of realms, and in a realm, for metrics.
CREATE INDEX limits_reached ON accounting.limit_states (limit_id, threshold, ends_at)
    WHERE cleared_at IS NULL;
CREATE INDEX limits_reached_in_realm ON accounting.limit_states (realm_id, threshold, ends_at)
    WHERE cleared_at IS NULL;
GRANT SELECT, INSERT, UPDATE, DELETE ON accounting.limit_states TO turn_accounting_writer;

-- The billing period in which the limits of a realm were evaluated last: accounting.periods has it only
-- once the job that closes periods has run.
CREATE TABLE accounting.limit_periods (
    realm_id integer NOT NULL,
    starts_at timestamptz NOT NULL,
    ends_at timestamptz NOT NULL,
    time_zone text NOT NULL,
    CONSTRAINT limit_periods_pkey PRIMARY KEY (realm_id)
);
GRANT SELECT, INSERT, UPDATE, DELETE ON accounting.limit_periods TO turn_accounting_writer;

-- In a front: the cells whose usage its limits were compared with, and up to which of their changes (see
-- accounting.changed_hours). Where the cells of the front are others, all is compared again.
CREATE TABLE accounting.limit_cells (
    cell_id smallint NOT NULL,
    joined_at timestamptz NOT NULL,
    changed_until timestamptz NOT NULL,
    CONSTRAINT limit_cells_pkey PRIMARY KEY (cell_id)
);
GRANT SELECT, INSERT, UPDATE, DELETE ON accounting.limit_cells TO turn_accounting_writer;

-- In a front: the realms whose limits wait, since a cell has other rules. Then all their usage is
-- compared.
CREATE TABLE accounting.waiting_limits (
    realm_id integer NOT NULL,
    CONSTRAINT waiting_limits_pkey PRIMARY KEY (realm_id)
);
GRANT SELECT, INSERT, UPDATE, DELETE ON accounting.waiting_limits TO turn_accounting_writer;

-- Most changes of an hour reach nothing. So a roll-up that changes the last hour of a realm looks at the
-- limits of its users only where the score of that hour comes to next_check_score; 0: at its next
-- change. That holds while no other hour of the user changes, and nothing decreases.
ALTER TABLE accounting.user_usage_hourly ADD COLUMN next_check_score bigint NOT NULL DEFAULT 0;

-- The score of an hour: a weighted sum of what is limited, so that one number bounds the growth of all
-- of it. A weight of 0 is of what no limit of the realm's users counts.
CREATE FUNCTION accounting.limit_score(
    bytes_weight bigint, sessions_weight bigint, microseconds_weight bigint,
    received_bytes bigint, sent_bytes bigint, sessions_started bigint, session_microseconds numeric
) RETURNS bigint
LANGUAGE sql IMMUTABLE PARALLEL SAFE
RETURN bytes_weight * (received_bytes + sent_bytes) + sessions_weight * sessions_started
    + CASE WHEN microseconds_weight = 0 THEN 0
        ELSE microseconds_weight * session_microseconds::bigint END;

-- What a limit counts, in its unit, of usage with these sums.
CREATE FUNCTION accounting.limited_usage(
    measure text, direction text, received_bytes numeric, sent_bytes numeric,
    sessions_started numeric, session_microseconds numeric
) RETURNS numeric
LANGUAGE sql IMMUTABLE PARALLEL SAFE
RETURN CASE measure
    WHEN 'bytes' THEN CASE direction WHEN 'received' THEN received_bytes
        WHEN 'sent' THEN sent_bytes ELSE received_bytes + sent_bytes END
    WHEN 'sessions' THEN sessions_started
    ELSE session_microseconds * 0.000001
END;

-- The bucket of a length that runs now in a realm; no row where it has no usage yet.
CREATE FUNCTION accounting.limit_bucket_now(of_realm_id integer, of_per text)
RETURNS TABLE (starts_at timestamptz, ends_at timestamptz, time_zone text)
LANGUAGE sql STABLE SECURITY DEFINER ROWS 1 SET search_path = pg_catalog, pg_temp
BEGIN ATOMIC
    SELECT k.starts_at, k.ends_at, k.time_zone FROM accounting.buckets k
    WHERE k.realm_id = of_realm_id AND k.level = of_per
        AND k.starts_at <= accounting.database_now() AND k.ends_at > accounting.database_now()
    UNION ALL
    SELECT p.starts_at, p.ends_at, p.time_zone FROM accounting.limit_periods p
    WHERE of_per = 'period' AND p.realm_id = of_realm_id
        AND p.starts_at <= accounting.database_now() AND p.ends_at > accounting.database_now();
END;
