-- Realms, their rules, and the names of users. All other tables hold keys instead of names, so that
-- a name can be erased.

-- The key of the hash that maps names to user_key and username_key: one row, which never changes.
-- database_id: which database of the installation this is; that of one restored from a backup stays.
CREATE TABLE accounting.installation (
    id boolean NOT NULL DEFAULT true CONSTRAINT installation_has_one_row CHECK (id),
    identity_key bytea NOT NULL CONSTRAINT identity_key_is_long CHECK (length(identity_key) = 32),
    database_id uuid NOT NULL DEFAULT gen_random_uuid(),
    CONSTRAINT installation_pkey PRIMARY KEY (id)
);
GRANT SELECT ON accounting.installation TO turn_accounting_writer;

-- gen_random_uuid() is the only function in core Postgres that reads the server's strong random
-- source. Three UUIDs have 366 random bits, which the hash condenses into 32 bytes.
INSERT INTO accounting.installation (identity_key) VALUES (sha256(
    uuid_send(gen_random_uuid()) || uuid_send(gen_random_uuid()) || uuid_send(gen_random_uuid())
));

-- client_addresses: what is stored of the addresses of its clients, from now on.
CREATE TABLE accounting.realms (
    realm_id integer GENERATED ALWAYS AS IDENTITY,
    realm text NOT NULL,
    realm_bytes bytea NOT NULL,
    client_addresses text NOT NULL DEFAULT 'keep' CONSTRAINT client_addresses_are_known
        CHECK (client_addresses IN ('keep', 'network', 'drop')),
    named_in_radacct boolean NOT NULL DEFAULT true,
    CONSTRAINT realms_pkey PRIMARY KEY (realm_id),
    CONSTRAINT realm_is_unique UNIQUE (realm_bytes)
);
-- Only one realm may show its users in radacct by user_id alone: a name is never of two users.
CREATE UNIQUE INDEX one_realm_is_not_named_in_radacct ON accounting.realms (named_in_radacct)
    WHERE NOT named_in_radacct;
GRANT SELECT, INSERT, UPDATE, DELETE ON accounting.realms TO turn_accounting_writer;

-- What follows a user's id in radacct's username. What is before the last @ is the id, and what is
-- after it the realm, since an @ of the realm is written as %40: two users never have equal names. A
-- name without an @ is of the realm that is not named.
CREATE FUNCTION accounting.radacct_suffix(user_id text, realm text, is_named boolean) RETURNS text
LANGUAGE sql IMMUTABLE PARALLEL SAFE RETURN CASE
    WHEN is_named OR strpos(user_id, '@') > 0
    THEN '@' || replace(replace(realm, '%', '%25'), '@', '%40') ELSE '' END;

-- anchor_day: the day of the month on which a period starts; in shorter months, the last day.
CREATE TABLE accounting.realm_rules (
    realm_id integer NOT NULL,
    holds_from timestamptz NOT NULL,
    time_zone text NOT NULL,
    anchor_day smallint NOT NULL
        CONSTRAINT anchor_day_is_a_day_of_a_month CHECK (anchor_day BETWEEN 1 AND 31),
    grace_seconds integer NOT NULL CONSTRAINT grace_is_not_negative CHECK (grace_seconds >= 0),
    username_rule text NOT NULL
        CONSTRAINT username_rule_is_known CHECK (username_rule IN ('auto', 'rest', 'plain')),
    separator text NOT NULL CONSTRAINT separator_is_not_empty CHECK (separator <> ''),
    CONSTRAINT realm_rules_pkey PRIMARY KEY (realm_id, holds_from)
);
GRANT SELECT, INSERT, UPDATE, DELETE ON accounting.realm_rules TO turn_accounting_writer;

-- radacct_suffix: accounting.radacct_suffix() of the user's id.
CREATE TABLE accounting.users (
    user_key uuid NOT NULL,
    realm_id integer NOT NULL,
    user_id text NOT NULL,
    radacct_suffix text NOT NULL DEFAULT '',
    CONSTRAINT users_pkey PRIMARY KEY (user_key)
);
CREATE INDEX users_by_name ON accounting.users (realm_id, user_id);
-- A hash has no limit of length, and radacct is asked for one name.
CREATE INDEX users_by_radacct_name ON accounting.users USING hash ((user_id || radacct_suffix));
GRANT SELECT, INSERT, UPDATE, DELETE ON accounting.users TO turn_accounting_writer;

CREATE TABLE accounting.usernames (
    user_key uuid NOT NULL,
    username_key uuid NOT NULL,
    username text NOT NULL,
    CONSTRAINT usernames_pkey PRIMARY KEY (username_key, user_key)
);
GRANT SELECT, INSERT, UPDATE, DELETE ON accounting.usernames TO turn_accounting_writer;

-- When each user's names were erased: reports received before do not restore them. of_front: in a cell,
-- when its front recorded the erasure that was carried out here.
CREATE TABLE accounting.erasures (
    user_key uuid NOT NULL,
    erased_at timestamptz NOT NULL DEFAULT now(),
    of_front timestamptz,
    CONSTRAINT erasures_pkey PRIMARY KEY (user_key, erased_at)
);
GRANT SELECT, INSERT ON accounting.erasures TO turn_accounting_writer;
