-- Who may read the books over HTTP: tokens, and the browser sessions that were opened with one.
--
-- The secrets are not here, only their SHA-256 digests: 256 random bits can't be guessed, so that no
-- slow hash is needed, and the time of a look-up says nothing of the secret. The web server logs in
-- as the reader, who can read no row of these tables; it calls the functions.

CREATE SCHEMA access;
GRANT USAGE ON SCHEMA access TO turn_accounting_reader, turn_accounting_writer;

-- realm null: all realms; user_key null: all users of the realm. A key and not a name, so that an
-- erasure has nothing to do here.
CREATE TABLE access.tokens (
    number integer GENERATED ALWAYS AS IDENTITY,
    label text NOT NULL,
    digest bytea NOT NULL CONSTRAINT token_digest_is_sha256 CHECK (length(digest) = 32),
    realm text,
    user_key uuid,
    created_at timestamptz NOT NULL,
    expires_at timestamptz,
    revoked_at timestamptz,
    last_used_at timestamptz,
    CONSTRAINT tokens_pkey PRIMARY KEY (number),
    CONSTRAINT token_digest_is_unique UNIQUE (digest),
    CONSTRAINT label_is_short CHECK (length(label) <= 200),
    CONSTRAINT user_has_a_realm CHECK (user_key IS NULL OR realm IS NOT NULL)
);
GRANT SELECT, INSERT, UPDATE ON access.tokens TO turn_accounting_writer;

CREATE TABLE access.sessions (
    digest bytea NOT NULL CONSTRAINT session_digest_is_sha256 CHECK (length(digest) = 32),
    number integer NOT NULL,
    opened_at timestamptz NOT NULL,
    expires_at timestamptz NOT NULL,
    CONSTRAINT sessions_pkey PRIMARY KEY (digest)
);
CREATE INDEX sessions_by_token ON access.sessions (number);
GRANT SELECT, DELETE ON access.sessions TO turn_accounting_writer;

-- The token with a digest, while it is valid. Records its use, at most once a minute, and not where
-- another request does so already or the database is a standby.
CREATE FUNCTION access.identify(of_digest bytea)
RETURNS TABLE (number integer, label text, realm text, user_key uuid, expires_at timestamptz)
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    moment timestamptz := accounting.database_now();
BEGIN
    RETURN QUERY
    SELECT t.number, t.label, t.realm, t.user_key, t.expires_at FROM access.tokens t
    WHERE t.digest = of_digest AND t.revoked_at IS NULL
        AND (t.expires_at IS NULL OR t.expires_at > moment);
    IF FOUND AND NOT current_setting('transaction_read_only')::boolean THEN
        UPDATE access.tokens t SET last_used_at = moment
        WHERE t.number = (
            SELECT u.number FROM access.tokens u
            WHERE u.digest = of_digest
                AND (u.last_used_at IS NULL OR u.last_used_at < moment - interval '1 minute')
            FOR UPDATE SKIP LOCKED
        );
    END IF;
END
$$;
COMMENT ON FUNCTION access.identify(bytea) IS 'The valid token with this SHA-256 digest';
REVOKE ALL ON FUNCTION access.identify(bytea) FROM PUBLIC;
GRANT EXECUTE ON FUNCTION access.identify(bytea) TO turn_accounting_reader, turn_accounting_writer;

-- The token of a browser session, while both are valid.
CREATE FUNCTION access.identify_session(of_digest bytea)
RETURNS TABLE (number integer, label text, realm text, user_key uuid, expires_at timestamptz)
LANGUAGE sql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
    SELECT i.number, i.label, i.realm, i.user_key, s.expires_at
    FROM access.sessions s
    JOIN access.tokens t USING (number)
    CROSS JOIN LATERAL access.identify(t.digest) i
    WHERE s.digest = of_digest AND s.expires_at > accounting.database_now()
$$;
COMMENT ON FUNCTION access.identify_session(bytea) IS
    'The valid token of the browser session with this SHA-256 digest';
REVOKE ALL ON FUNCTION access.identify_session(bytea) FROM PUBLIC;
GRANT EXECUTE ON FUNCTION access.identify_session(bytea)
    TO turn_accounting_reader, turn_accounting_writer;

-- Opens a browser session of a valid token, for at most twelve hours; returns for how many seconds,
-- null for any other token. Each token has its newest twenty sessions: there is no log-out where a
-- browser is just closed.
CREATE FUNCTION access.open_session(token_digest bytea, session_digest bytea)
RETURNS double precision
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    moment timestamptz := accounting.database_now();
    token_number integer;
    ends_at timestamptz;
BEGIN
    SELECT i.number, least(i.expires_at, moment + interval '12 hours')
    INTO token_number, ends_at FROM access.identify(token_digest) i;
    IF NOT FOUND THEN
        RETURN NULL;
    END IF;
    PERFORM FROM access.tokens t WHERE t.number = token_number FOR UPDATE;
    DELETE FROM access.sessions s WHERE s.expires_at <= moment;
    DELETE FROM access.sessions s WHERE s.digest IN (
        SELECT o.digest FROM access.sessions o WHERE o.number = token_number
        ORDER BY o.opened_at DESC OFFSET 19
    );
    INSERT INTO access.sessions (digest, number, opened_at, expires_at)
    VALUES (session_digest, token_number, moment, ends_at);
    RETURN extract(epoch FROM ends_at - moment);
END
$$;
COMMENT ON FUNCTION access.open_session(bytea, bytea) IS
    'Opens a browser session of a valid token; returns for how many seconds';
REVOKE ALL ON FUNCTION access.open_session(bytea, bytea) FROM PUBLIC;
GRANT EXECUTE ON FUNCTION access.open_session(bytea, bytea)
    TO turn_accounting_reader, turn_accounting_writer;

CREATE FUNCTION access.close_session(of_digest bytea) RETURNS void
LANGUAGE sql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
    DELETE FROM access.sessions s WHERE s.digest = of_digest
$$;
COMMENT ON FUNCTION access.close_session(bytea) IS 'Ends a browser session';
REVOKE ALL ON FUNCTION access.close_session(bytea) FROM PUBLIC;
GRANT EXECUTE ON FUNCTION access.close_session(bytea)
    TO turn_accounting_reader, turn_accounting_writer;
