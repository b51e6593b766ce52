-- name: identify
-- The valid token with a digest.
SELECT number, label, realm, user_key FROM access.identify(:digest);

-- name: identify_session
-- The valid token of the browser session with a digest.
SELECT number, label, realm, user_key FROM access.identify_session(:digest);

-- name: open_session
-- Opens a browser session; for how many seconds. Null: the token is not valid.
SELECT access.open_session(:token, :session) AS seconds;

-- name: close_session
-- Ends a browser session.
SELECT access.close_session(:digest);

-- name: create_token
-- Creates a token that expires in so many days, or never.
INSERT INTO access.tokens (label, digest, realm, user_key, created_at, expires_at)
SELECT :label, :digest, :realm, :user_key, moment, moment + make_interval(days => :days)
FROM accounting.database_now() AS moment
RETURNING number, label, realm, user_key, created_at, expires_at;

-- name: list_tokens
-- All tokens, oldest first, and whether each is valid now.
SELECT
    t.number, t.label, t.realm, u.user_id, t.user_key, t.created_at, t.expires_at, t.revoked_at,
    t.last_used_at,
    CASE
        WHEN t.revoked_at IS NOT NULL THEN 'revoked'
        WHEN t.expires_at <= accounting.database_now() THEN 'expired'
        ELSE 'valid'
    END AS state
FROM access.tokens t
LEFT JOIN accounting.users u USING (user_key)
ORDER BY t.number;

-- name: revoke_token
-- Revokes a token; null where there is none, false where it was revoked already.
WITH revoked AS (
    UPDATE access.tokens SET revoked_at = accounting.database_now()
    WHERE number = :number AND revoked_at IS NULL
    RETURNING number
)
SELECT EXISTS (SELECT FROM revoked) FROM access.tokens WHERE number = :number;

-- name: close_sessions
-- Ends the browser sessions of a token.
DELETE FROM access.sessions WHERE number = :number;
