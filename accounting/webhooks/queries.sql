-- name: take_due
-- Takes a lease on the endpoints that have something to do, those first that had none for longest:
-- events after their position, or a feed that is not the one of which they have that position. A time
-- later than any that is set now is of a clock that was set back since, and holds back nothing.
WITH due AS (
    SELECT w.number FROM accounting.webhooks w
    WHERE w.disabled_at IS NULL
        AND (
            w.next_attempt_at > accounting.database_now()
            AND w.next_attempt_at < accounting.database_now() + make_interval(secs => :latest_attempt)
        ) IS NOT TRUE
        AND (
            w.leased_until > accounting.database_now()
            AND w.leased_until < accounting.database_now() + make_interval(secs => :latest_lease)
        ) IS NOT TRUE
        AND (
            w.seq < (SELECT coalesce(max(f.seq), 0) FROM accounting.feed f)
            OR w.history IS DISTINCT FROM reporting.feed_history(w.seq)
        )
    ORDER BY w.leased_until NULLS FIRST LIMIT :limit FOR UPDATE SKIP LOCKED
)
UPDATE accounting.webhooks w
SET lease = :lease, leased_until = accounting.database_now() + make_interval(secs => :lease_seconds)
FROM due WHERE w.number = due.number
RETURNING w.number, w.url, w.format, w.types,
    (SELECT r.realm FROM accounting.realms r WHERE r.realm_id = w.realm_id) AS realm, w.options, w.allows_private, w.batch_size, w.parallel, w.secret, w.previous_secret,
    w.previous_until, w.api_key, w.version, w.seq, w.seqs_ahead, w.failures, w.failing_since,
    w.in_doubt_since, w.history IS DISTINCT FROM reporting.feed_history(w.seq) AS is_restored,
    accounting.database_now() AS now;

-- name: read_events
-- The events after a number that an endpoint asks for, of the next so many of the feed; and up to
-- which number that was.
WITH page AS (
    SELECT least(
        CAST(:after AS bigint) + :scanned, (SELECT coalesce(max(f.seq), 0) FROM accounting.feed f)
    ) AS last_seq
)
SELECT e.seq, e.event_id, e.type, e.realm, e.payload, e.created_at, page.last_seq
FROM page LEFT JOIN LATERAL (
    SELECT r.seq, r.event_id, r.type, r.realm, r.payload, r.created_at
    FROM (
        SELECT f.seq FROM accounting.webhooks w, accounting.feed f
        WHERE w.number = :number AND f.seq > :after AND f.seq <= page.last_seq
            AND accounting.is_wanted(f, w) AND f.seq <> ALL(CAST(:seqs_ahead AS bigint[]))
        ORDER BY f.seq LIMIT :limit
    ) wanted
    JOIN reporting.feed r USING (seq)
) e ON true
ORDER BY e.seq;

-- name: write_step
-- Writes an endpoint's position and what a request changed, and prolongs the lease; no row when the
-- lease is not this process' any more, and then nothing else may be written.
UPDATE accounting.webhooks w
SET seq = :seq, seqs_ahead = CAST(:seqs_ahead AS bigint[]), history = reporting.feed_history(:seq),
    leased_until = accounting.database_now() + make_interval(secs => :lease_seconds),
    failures = CASE
        WHEN :seq > w.seq THEN 0 ELSE w.failures
    END + CASE WHEN CAST(:counts_failure AS boolean) THEN 1 ELSE 0 END,
    failing_since = CASE
        WHEN CAST(:failure AS text) IS NOT NULL THEN
            CASE WHEN :seq > w.seq THEN accounting.database_now()
            ELSE coalesce(w.failing_since, accounting.database_now()) END
        WHEN :seq = w.seq THEN w.failing_since
    END,
    next_attempt_at = CASE
        WHEN CAST(:failure AS text) IS NOT NULL
            THEN accounting.database_now() + make_interval(secs => :retry_seconds)
        WHEN :seq = w.seq THEN w.next_attempt_at
    END,
    in_doubt_since = CASE
        WHEN :seq = w.seq AND NOT CAST(:ends_doubt AS boolean) THEN w.in_doubt_since
    END,
    last_failure = CASE
        WHEN CAST(:failure AS text) IS NOT NULL THEN CAST(:failure AS text)
        WHEN :seq = w.seq THEN w.last_failure
    END,
    delivered_events = w.delivered_events + :delivered,
    delivered_at = CASE WHEN :delivered > 0 THEN accounting.database_now() ELSE w.delivered_at END
WHERE w.number = :number AND w.lease = :lease
RETURNING w.version, w.failures, w.failing_since, w.history, accounting.database_now() AS now;

-- name: begin_doubt
-- Records that a request is sent, of which it may not be known whether it is taken.
UPDATE accounting.webhooks
SET in_doubt_since = coalesce(in_doubt_since, accounting.database_now()),
    leased_until = accounting.database_now() + make_interval(secs => :lease_seconds)
WHERE number = :number AND lease = :lease;

-- name: insert_attempt
-- Records a request and its answer.
INSERT INTO accounting.webhook_attempts (
    number, attempted_at, first_seq, last_seq, events, taken, status, failure, seconds, seq, history
)
VALUES (
    :number, :attempted_at, :first_seq, :last_seq, :events, :taken, :status, :failure, :seconds,
    :seq, CAST(:history AS uuid)
);

-- name: insert_refusal
-- Records an event that an endpoint will never take.
INSERT INTO accounting.webhook_refusals (number, event_id, seq, type, reason, refused_at)
VALUES (:number, :event_id, :seq, :type, :reason, :refused_at)
ON CONFLICT ON CONSTRAINT webhook_refusals_pkey DO NOTHING;

-- name: release
-- Ends a lease; when it ended is kept, for the order of endpoints.
UPDATE accounting.webhooks SET lease = NULL, leased_until = accounting.database_now()
WHERE number = :number AND lease = :lease;

-- name: end_wait
-- Lets the next delivery begin, when that of a lease which was taken away has ended.
UPDATE accounting.webhooks SET leased_until = accounting.database_now()
WHERE number = :number AND lease IS NULL AND leased_until > accounting.database_now();

-- name: disable
-- Disables an endpoint, while the lease is this process'.
UPDATE accounting.webhooks
SET disabled_at = accounting.database_now(), disabled_cause = :cause, disabled_reason = :reason,
    lease = NULL, leased_until = NULL, next_attempt_at = NULL, version = version + 1
WHERE number = :number AND lease = :lease AND disabled_at IS NULL
RETURNING disabled_at, failing_since, seq, format;

-- name: last_common_position
-- After a restore of the feed: the last position of an endpoint whose events the feed still has; its
-- own number where none is known.
SELECT coalesce(
    (
        SELECT a.seq FROM accounting.webhook_attempts a
        WHERE a.number = :number AND a.history = reporting.feed_history(a.seq)
        ORDER BY a.attempt_id DESC LIMIT 1
    ),
    (
        SELECT least(w.seq, (SELECT coalesce(max(f.seq), 0) FROM accounting.feed f))
        FROM accounting.webhooks w WHERE w.number = :number
    )
);

-- name: feed_source
-- The URI of the installation, which is the source of its events.
SELECT reporting.feed_source();

-- name: last_seq
-- The number of the feed's last event.
SELECT coalesce(max(seq), 0) FROM accounting.feed;

-- name: seq_before
-- The number before the first event that was recorded at a time or later. Events are nearly in the
-- order of their times, so that only those of the ten minutes before have to be looked at.
SELECT coalesce(
    (
        SELECT min(f.seq) - 1 FROM accounting.feed f
        WHERE f.created_at >= :at AND f.seq > coalesce((
            SELECT max(o.seq) FROM accounting.feed o
            WHERE o.created_at < CAST(:at AS timestamptz) - interval '10 minutes'
        ), 0)
    ),
    (SELECT max(f.seq) FROM accounting.feed f),
    0
);

-- name: insert_webhook
-- Adds an endpoint.
INSERT INTO accounting.webhooks (
    url, format, types, realm_id, options, allows_private, batch_size, parallel, secret, api_key,
    created_at, seq, history, counted_from
)
VALUES (
    :url, :format, CAST(:types AS text[]), CAST(:realm_id AS integer), CAST(:options AS jsonb),
    :allows_private, :batch_size, :parallel, :secret, CAST(:api_key AS text),
    accounting.database_now(), :seq, reporting.feed_history(:seq),
    CAST(:counted_from AS timestamptz)
)
RETURNING number;

-- name: list_webhooks
-- The endpoints without their secrets, and how many events each has before it.
SELECT w.number, accounting.webhook_state(w) AS state, w.url, w.format, w.types, r.realm, w.batch_size, w.parallel, w.allows_private, w.seq,
    w.counted_from, accounting.events_behind(w) AS events_behind, w.delivered_events, w.delivered_at, w.failures, w.failing_since, w.next_attempt_at,
    w.last_failure, w.disabled_at, w.disabled_cause, w.disabled_reason,
    CASE WHEN w.previous_until > accounting.database_now() THEN w.previous_until END
        AS previous_secret_until,
    w.created_at
FROM accounting.webhooks w LEFT JOIN accounting.realms r USING (realm_id)
ORDER BY w.number;

-- name: webhook_format
-- The format of an endpoint.
SELECT format FROM accounting.webhooks WHERE number = :number;

-- name: nearest_webhooks
-- The endpoints whose numbers are nearest to one.
SELECT number FROM accounting.webhooks ORDER BY abs(number - :number), number LIMIT 3;

-- name: counted_from
-- From when on an engine counts.
SELECT counted_from FROM accounting.webhooks WHERE number = :number;

-- name: cut_periods
-- The periods of an engine's realms in which the time lies from which on it counts.
SELECT r.realm, p.period FROM accounting.webhooks w
JOIN accounting.periods p ON p.starts_at < w.counted_from AND p.ends_at > w.counted_from
    AND (w.realm_id IS NULL OR p.realm_id = w.realm_id)
JOIN accounting.realms r ON r.realm_id = p.realm_id
WHERE w.number = :number ORDER BY r.realm, p.period;

-- name: find_webhook
-- One endpoint with its secrets, and now.
SELECT w.number, w.url, w.format, w.types, r.realm, w.options, w.allows_private, w.batch_size,
    w.parallel, w.secret, w.previous_secret, w.previous_until, w.api_key,
    accounting.database_now() AS now
FROM accounting.webhooks w LEFT JOIN accounting.realms r USING (realm_id)
WHERE w.number = :number;

-- name: delete_webhook
-- Removes an endpoint with all that is known of it.
WITH attempts AS (
    DELETE FROM accounting.webhook_attempts WHERE number = :number
),
refusals AS (
    DELETE FROM accounting.webhook_refusals WHERE number = :number
),
customers AS (
    DELETE FROM accounting.webhook_customers WHERE number = :number
)
DELETE FROM accounting.webhooks WHERE number = :number RETURNING number;

-- name: set_api_key
-- Gives an endpoint another API key; a delivery that is under way ends.
UPDATE accounting.webhooks SET api_key = :api_key, version = version + 1
WHERE number = :number RETURNING number;

-- name: overlap_until
-- Until when an earlier secret of an endpoint signs as well; null or no row if none does.
SELECT previous_until AT TIME ZONE 'UTC' FROM accounting.webhooks
WHERE number = :number AND previous_until > accounting.database_now();

-- name: rotate_secret
-- Gives an endpoint another secret; the one before signs as well for a while.
UPDATE accounting.webhooks
SET secret = :secret,
    previous_secret = CASE WHEN :overlap_seconds > 0 THEN secret END,
    previous_until = CASE WHEN :overlap_seconds > 0
        THEN accounting.database_now() + make_interval(secs => :overlap_seconds) END,
    version = version + 1
WHERE number = :number RETURNING previous_until;

-- name: enable
-- Enables an endpoint and tries it at once, unless it would count an event twice. Returns its state of
-- before, and why it was disabled. A doubt whether it took an event stays: it is as old as it was.
WITH before AS (
    SELECT w.number, accounting.webhook_state(w) AS state, w.disabled_cause
    FROM accounting.webhooks w WHERE w.number = :number FOR UPDATE
),
enabled AS (
    UPDATE accounting.webhooks w
    SET disabled_at = NULL, disabled_cause = NULL, disabled_reason = NULL, failures = 0,
        failing_since = NULL, next_attempt_at = NULL, last_failure = NULL, version = w.version + 1
    FROM before b
    WHERE w.number = b.number AND coalesce(b.disabled_cause NOT IN ('in_doubt', 'restored'), true)
)
SELECT state, disabled_cause FROM before;

-- name: replay
-- Sets an endpoint to a number. A delivery that is under way can write nothing any more, and the next
-- one begins when its lease is over, so that no two requests are under way. Forgets the refusals after
-- the number: those events are sent again.
WITH refusals AS (
    DELETE FROM accounting.webhook_refusals WHERE number = :number AND seq > :seq
)
UPDATE accounting.webhooks
SET seq = :seq, seqs_ahead = '{}', history = reporting.feed_history(:seq), lease = NULL,
    disabled_at = NULL, disabled_cause = NULL, disabled_reason = NULL,
    failures = 0, failing_since = NULL, last_failure = NULL, next_attempt_at = NULL, in_doubt_since = NULL, version = version + 1
WHERE number = :number RETURNING number;

-- name: last_forgotten_event
-- The last event after a number that an engine got and that was recorded so long ago; null if there is
-- none. Not those that were refused: it has none of them.
SELECT e.seq FROM accounting.webhooks w
CROSS JOIN LATERAL (
    SELECT f.seq FROM accounting.feed f
    WHERE f.seq > :seq AND f.seq <= w.seq AND accounting.is_wanted(f, w)
        AND f.created_at < accounting.database_now() - make_interval(secs => :seconds)
        AND NOT EXISTS (
            SELECT FROM accounting.webhook_refusals r
            WHERE r.number = w.number AND r.event_id = f.event_id
        )
    ORDER BY f.seq DESC LIMIT 1
) e
WHERE w.number = :number;

-- name: list_attempts
-- The newest requests first: of one endpoint or all, all of them or those that failed.
SELECT number, attempted_at, first_seq, last_seq, events, taken, status, failure, seconds
FROM accounting.webhook_attempts
WHERE (CAST(:number AS integer) IS NULL OR number = :number)
    AND (NOT CAST(:failed AS boolean) OR failure IS NOT NULL)
ORDER BY attempted_at DESC, attempt_id DESC LIMIT CAST(:limit AS bigint);

-- name: list_refusals
-- The events that were refused, the newest first: by one endpoint or all.
SELECT w.number, w.refused_at, w.seq, w.event_id, w.type, f.realm, u.user_id AS user, w.reason
FROM (
    SELECT * FROM accounting.webhook_refusals
    WHERE CAST(:number AS integer) IS NULL OR number = :number
    ORDER BY refused_at DESC, seq DESC LIMIT CAST(:limit AS bigint)
) w
LEFT JOIN reporting.feed f ON f.seq = w.seq AND f.event_id = w.event_id
LEFT JOIN accounting.users u ON u.user_key = (f.payload ->> 'user_key')::uuid
ORDER BY w.refused_at DESC, w.seq DESC;

-- name: prune_attempts
-- Deletes the oldest requests before a time, at most so many.
DELETE FROM accounting.webhook_attempts WHERE ctid = ANY (ARRAY(
    SELECT ctid FROM accounting.webhook_attempts WHERE attempted_at < :before
    ORDER BY attempted_at LIMIT :most
));

-- name: prune_refusals
-- Deletes the refusals before a time.
DELETE FROM accounting.webhook_refusals WHERE refused_at < :before;

-- name: event_customers
-- Of events that count usage: the user's name, the customer that an endpoint's table has, and the end
-- of the realm's period in which a time lies, where that is known.
SELECT e.event_id, e.user_key, coalesce(u.user_id, '') AS user_id, c.customer,
    p.ends_at AS period_ends_at
FROM unnest(
    CAST(:event_ids AS uuid[]), CAST(:user_keys AS uuid[]), CAST(:times AS timestamptz[])
) AS e (event_id, user_key, at)
LEFT JOIN accounting.users u ON u.user_key = e.user_key
LEFT JOIN accounting.webhook_customers c ON c.number = :number AND c.user_key = e.user_key
LEFT JOIN accounting.periods p
    ON p.realm_id = u.realm_id AND p.starts_at <= e.at AND e.at < p.ends_at;

-- name: set_customers
-- Writes customers of users into an endpoint's table; an empty customer removes the user's row.
WITH new_rows AS (
    SELECT * FROM unnest(
        CAST(:user_keys AS uuid[]), CAST(:customers AS text[])
    ) AS n (user_key, customer)
),
written AS (
    INSERT INTO accounting.webhook_customers AS c (number, user_key, customer)
    SELECT :number, user_key, customer FROM new_rows WHERE customer <> ''
    ON CONFLICT ON CONSTRAINT webhook_customers_pkey DO UPDATE SET customer = excluded.customer
    RETURNING c.user_key
),
removed AS (
    DELETE FROM accounting.webhook_customers c USING new_rows n
    WHERE c.number = :number AND c.user_key = n.user_key AND n.customer = ''
    RETURNING c.user_key
)
SELECT (SELECT count(*) FROM written) AS set, (SELECT count(*) FROM removed) AS removed,
    (
        SELECT count(*) FROM written w
        WHERE NOT EXISTS (SELECT FROM accounting.users u WHERE u.user_key = w.user_key)
    ) AS unknown;

-- name: list_customers
-- The table of an endpoint, with the names of those of its users who have usage.
SELECT coalesce(r.realm, '') AS realm, coalesce(u.user_id, '') AS user, c.user_key, c.customer
FROM accounting.webhook_customers c
LEFT JOIN accounting.users u ON u.user_key = c.user_key
LEFT JOIN accounting.realms r ON r.realm_id = u.realm_id
WHERE c.number = :number
ORDER BY r.realm NULLS LAST, u.user_id, c.user_key;
