-- Webhooks: the endpoints to which the feed is delivered, and what became of the deliveries. Only
-- the writer reaches these tables: they have secrets.

-- An endpoint. types null: all; realm_id null: all realms, and events of no realm. secret signs,
-- and so does previous_secret until previous_until, so that a receiver can change it in between.
-- version: of what an operator can change; a delivery that began under an older one ends.
-- seq: the number up to which the feed is delivered; seqs_ahead: of events after it that are; history:
-- what identifies the feed up to seq.
-- lease: of the process that delivers to this endpoint until leased_until; it writes only while the
-- lease is its own. failing_since: since when the event after seq can't be delivered. in_doubt_since:
-- since when it is not known whether the receiver took that event; only where that matters.
-- counted_from: of an engine that meters usage, the time from which on it counts; null: all of it.
-- disabled_cause: failing, gone, in_doubt or restored; the last two end by a replay only.
CREATE TABLE accounting.webhooks (
    number integer GENERATED ALWAYS AS IDENTITY,
    url text NOT NULL,
    format text NOT NULL,
    types text[],
    realm_id integer,
    options jsonb NOT NULL DEFAULT '{}',
    allows_private boolean NOT NULL,
    batch_size integer NOT NULL,
    parallel integer NOT NULL,
    secret text NOT NULL,
    previous_secret text,
    previous_until timestamptz,
    api_key text,
    version integer NOT NULL DEFAULT 1,
    created_at timestamptz NOT NULL,
    seq bigint NOT NULL,
    seqs_ahead bigint[] NOT NULL DEFAULT '{}',
    history uuid,
    counted_from timestamptz,
    lease uuid,
    leased_until timestamptz,
    failures integer NOT NULL DEFAULT 0,
    failing_since timestamptz,
    next_attempt_at timestamptz,
    in_doubt_since timestamptz,
    last_failure text,
    disabled_at timestamptz,
    disabled_cause text,
    disabled_reason text,
    delivered_events bigint NOT NULL DEFAULT 0,
    delivered_at timestamptz,
    CONSTRAINT webhooks_pkey PRIMARY KEY (number),
    CONSTRAINT disabled_with_a_reason CHECK (
        (disabled_at IS NULL) = (disabled_reason IS NULL)
        AND (disabled_at IS NULL) = (disabled_cause IS NULL)
    ),
    CONSTRAINT previous_secret_has_an_end CHECK (
        (previous_secret IS NULL) = (previous_until IS NULL)
    )
) WITH (fillfactor = 50);
GRANT SELECT, INSERT, UPDATE, DELETE ON accounting.webhooks TO turn_accounting_writer;

-- Whether an event is one of those that an endpoint asks for. An engine that counts from a time on
-- gets the hours that begin then or later, with their corrections, and the adjustments posted since.
CREATE FUNCTION accounting.is_wanted(event accounting.feed, webhook accounting.webhooks)
RETURNS boolean
LANGUAGE sql STABLE PARALLEL SAFE
RETURN ((webhook).types IS NULL OR (event).type = ANY ((webhook).types))
    AND ((webhook).realm_id IS NULL OR (event).realm_id = (webhook).realm_id)
    AND coalesce(CASE (event).type
        WHEN 'usage.counted' THEN
            coalesce((event).started_at, ((event).payload ->> 'starts_at')::timestamptz)
        WHEN 'adjustment.posted' THEN (event).created_at
    END >= (webhook).counted_from, true);

-- How an endpoint is, in a word.
CREATE FUNCTION accounting.webhook_state(webhook accounting.webhooks) RETURNS text
LANGUAGE sql IMMUTABLE PARALLEL SAFE
RETURN CASE
    WHEN (webhook).disabled_at IS NOT NULL THEN 'disabled'
    WHEN (webhook).failing_since IS NOT NULL THEN 'failing'
    ELSE 'enabled'
END;

-- How many events of the next 100,000 of the feed an endpoint is still to get.
CREATE FUNCTION accounting.events_behind(webhook accounting.webhooks) RETURNS bigint
LANGUAGE sql STABLE PARALLEL SAFE
RETURN (
    SELECT count(*) FROM accounting.feed f
    WHERE f.seq > (webhook).seq AND f.seq <= (webhook).seq + 100000
        AND f.seq <> ALL ((webhook).seqs_ahead) AND accounting.is_wanted(f, webhook)
);

-- One row for each request. status null: there was no answer. failure null: it was delivered.
-- seq, history: the endpoint's position after it. Pruned after some days.
CREATE TABLE accounting.webhook_attempts (
    number integer NOT NULL,
    attempt_id bigint GENERATED ALWAYS AS IDENTITY,
    attempted_at timestamptz NOT NULL,
    first_seq bigint NOT NULL,
    last_seq bigint NOT NULL,
    events integer NOT NULL,
    taken integer NOT NULL,
    status integer,
    failure text,
    seconds double precision NOT NULL,
    seq bigint NOT NULL,
    history uuid,
    CONSTRAINT webhook_attempts_pkey PRIMARY KEY (number, attempt_id)
);
CREATE INDEX webhook_attempts_by_time ON accounting.webhook_attempts (attempted_at);
GRANT SELECT, INSERT, UPDATE, DELETE ON accounting.webhook_attempts TO turn_accounting_writer;

-- Events that an endpoint will never take, such as usage of a time that its engine has closed.
CREATE TABLE accounting.webhook_refusals (
    number integer NOT NULL,
    event_id uuid NOT NULL,
    seq bigint NOT NULL,
    type text NOT NULL,
    reason text NOT NULL,
    refused_at timestamptz NOT NULL,
    CONSTRAINT webhook_refusals_pkey PRIMARY KEY (number, event_id)
);
GRANT SELECT, INSERT, UPDATE, DELETE ON accounting.webhook_refusals TO turn_accounting_writer;

-- Whom an endpoint that meters usage bills for a user: the id of a customer in its engine. By key, so
-- that users who come later may have a row; erasing a user deletes them.
CREATE TABLE accounting.webhook_customers (
    number integer NOT NULL,
    user_key uuid NOT NULL,
    customer text NOT NULL CONSTRAINT customer_is_not_empty CHECK (customer <> ''),
    CONSTRAINT webhook_customers_pkey PRIMARY KEY (number, user_key)
);
GRANT SELECT, INSERT, UPDATE, DELETE ON accounting.webhook_customers TO turn_accounting_writer;
