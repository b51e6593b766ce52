-- name: add_usernames
-- Inserts new usernames, in order of key so that two loaders can't deadlock.
INSERT INTO accounting.usernames (user_key, username_key, username)
SELECT user_key, username_key, username
FROM unnest(
    CAST(:user_keys AS uuid[]), CAST(:username_keys AS uuid[]), CAST(:usernames AS text[])
) AS new (user_key, username_key, username)
ORDER BY username_key, user_key
ON CONFLICT DO NOTHING;

-- name: add_users
-- Inserts new users, in order of key so that two loaders can't deadlock.
INSERT INTO accounting.users (user_key, realm_id, user_id, radacct_suffix)
SELECT DISTINCT ON (user_key) user_key, realm_id, user_id,
    accounting.radacct_suffix(user_id, realm, named_in_radacct)
FROM unnest(
    CAST(:user_keys AS uuid[]), CAST(:realm_ids AS integer[]), CAST(:user_ids AS text[])
) AS new (user_key, realm_id, user_id)
JOIN accounting.realms USING (realm_id)
ORDER BY user_key
ON CONFLICT DO NOTHING;

-- name: earlier_buckets
-- The buckets that other data about time zones drew than that of :version, each once for all realms
-- that share it.
SELECT level, starts_at, ends_at, time_zone, tzdata_version, array_agg(realm_id) AS realm_ids
FROM accounting.buckets
WHERE tzdata_version <> :version
GROUP BY level, starts_at, ends_at, time_zone, tzdata_version;

-- name: knows_time_zone
-- Whether the server has a time zone of this name, in this spelling.
SELECT EXISTS (SELECT FROM pg_timezone_names WHERE name = :name);

-- name: restore_names
-- Restores erased names of users who were reported again after the erasure.
WITH restored AS (
    SELECT * FROM unnest(
        CAST(:user_keys AS uuid[]), CAST(:user_ids AS text[]),
        CAST(:username_keys AS uuid[]), CAST(:usernames AS text[])
    ) AS r (user_key, user_id, username_key, username)
),
restored_users AS (
    UPDATE accounting.users u SET user_id = r.user_id,
        radacct_suffix = accounting.radacct_suffix(r.user_id, realm, named_in_radacct)
    FROM restored r, accounting.realms
    WHERE u.user_key = r.user_key AND u.user_id = '' AND realms.realm_id = u.realm_id
)
UPDATE accounting.usernames n SET username = r.username
FROM restored r
WHERE n.user_key = r.user_key AND n.username_key = r.username_key AND n.username = '';

-- name: name_realm_in_radacct
-- Names a realm in radacct's usernames, or not; returns the realm.
UPDATE accounting.realms SET named_in_radacct = :is_named
WHERE realm = :realm RETURNING realm_id;

-- name: rename_users_in_radacct
-- Gives the users of a realm the names in radacct that they have now.
UPDATE accounting.users u
SET radacct_suffix = accounting.radacct_suffix(u.user_id, realm, named_in_radacct)
FROM accounting.realms r
WHERE r.realm_id = :realm_id AND u.realm_id = r.realm_id;

-- name: not_named_in_radacct
-- The realm that is not named in radacct's usernames, where there is one.
SELECT realm FROM accounting.realms WHERE NOT named_in_radacct;

-- name: first_other_offset
-- The first of the times (Unix seconds, in their order) at which a time zone's offset from UTC is
-- another one than that given, in seconds.
-- AT TIME ZONE, as readers use it, takes an abbreviation such as CET before a zone of that name.
SELECT second, postgres_offset
FROM unnest(CAST(:seconds AS bigint[]), CAST(:offsets AS integer[])) WITH ORDINALITY
    AS t (second, expected_offset, place),
LATERAL (SELECT CAST(extract(epoch FROM
    (to_timestamp(t.second) AT TIME ZONE :name) - (to_timestamp(t.second) AT TIME ZONE 'UTC')
) AS integer)) AS o (postgres_offset)
WHERE postgres_offset <> expected_offset
ORDER BY t.place
LIMIT 1;

-- name: lock_out_loaders
-- Waits for the transactions of all loaders, which lock the row of their source, and keeps loaders out,
-- also those of new sources. Does not block readers.
LOCK TABLE accounting.sources IN EXCLUSIVE MODE;

-- name: live_tokens_of_realm
-- The numbers of the tokens that read a realm or a user of it.
SELECT number FROM access.tokens
WHERE realm = :realm AND revoked_at IS NULL
    AND (expires_at IS NULL OR expires_at > accounting.database_now())
ORDER BY number;

-- name: accounted_until
-- Up to when usage of a realm may be accounted: the latest time that was received, settled or billed, or
-- the database's now. Null for a realm without usage.
SELECT CASE
    WHEN EXISTS (SELECT FROM accounting.users WHERE realm_id = :realm_id)
        OR EXISTS (SELECT FROM accounting.buckets WHERE realm_id = :realm_id)
        OR EXISTS (SELECT FROM accounting.periods WHERE realm_id = :realm_id)
    THEN greatest(
        accounting.database_now(),
        (SELECT max(greatest(captured_until, loaded_until, last_received_at))
            FROM accounting.sources),
        (SELECT max(greatest(settled_until, received_at)) FROM accounting.settle_watermarks),
        (SELECT max(starts_at) FROM accounting.buckets
            WHERE realm_id = :realm_id AND level = 'hour'),
        (SELECT folded_until FROM accounting.fold_watermarks WHERE realm_id = :realm_id),
        (SELECT max(ends_at) FROM accounting.periods
            WHERE realm_id = :realm_id AND closed_at IS NOT NULL)
    )
END;

-- name: realms_with_usage
-- The realms of which accounted_until is not null.
SELECT realm_id FROM accounting.realms r
WHERE EXISTS (SELECT FROM accounting.users u WHERE u.realm_id = r.realm_id)
    OR EXISTS (SELECT FROM accounting.buckets b WHERE b.realm_id = r.realm_id)
    OR EXISTS (SELECT FROM accounting.periods p WHERE p.realm_id = r.realm_id);

-- name: erase_refusal_answers
-- Deletes what engines answered about a user's events, or about events that a restored feed no longer
-- has. Reasons of this service name nobody.
UPDATE accounting.webhook_refusals r SET reason = split_part(r.reason, ': ', 1) || ': (erased)'
WHERE r.reason ~ '^(Stripe|Lago|OpenMeter): ' AND NOT EXISTS (
    SELECT FROM accounting.feed f
    WHERE f.event_id = r.event_id
        AND coalesce(f.user_key, (f.payload ->> 'user_key')::uuid) <> :user_key
);

-- name: erase_failure_answers
-- Deletes what engines of usage answered to requests; the status stays.
UPDATE accounting.webhook_attempts a SET failure = split_part(a.failure, ': ', 1)
FROM accounting.webhooks w
WHERE w.number = a.number AND w.format IN ('openmeter', 'lago', 'stripe')
    AND a.failure LIKE 'HTTP %: %';

-- name: erase_last_answers
-- The same of the last failure of each engine, and of why it was disabled.
UPDATE accounting.webhooks SET
    last_failure = regexp_replace(last_failure, '(HTTP \d+): .*', '\1'),
    disabled_reason = regexp_replace(disabled_reason, '(HTTP \d+): .*', '\1')
WHERE format IN ('openmeter', 'lago', 'stripe');
