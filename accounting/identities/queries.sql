-- name: add_usernames
-- Usernames met by the loader; the order keeps two loaders from waiting for each other.
INSERT INTO accounting.usernames (user_key, username_key, username)
SELECT user_key, username_key, username
FROM unnest(
    CAST(:user_keys AS uuid[]), CAST(:username_keys AS uuid[]), CAST(:usernames AS text[])
) AS met (user_key, username_key, username)
ORDER BY username_key, user_key
ON CONFLICT DO NOTHING;

-- name: add_users
-- Users met by the loader; the order keeps two loaders from waiting for each other.
INSERT INTO accounting.users (user_key, realm_id, user_id)
SELECT DISTINCT ON (user_key) user_key, realm_id, user_id
FROM unnest(
    CAST(:user_keys AS uuid[]), CAST(:realm_ids AS integer[]), CAST(:user_ids AS text[])
) AS met (user_key, realm_id, user_id)
ORDER BY user_key
ON CONFLICT DO NOTHING;

-- name: name_again
-- Gives users whose names were erased the names that they came back with.
WITH met AS (
    SELECT * FROM unnest(
        CAST(:user_keys AS uuid[]), CAST(:user_ids AS text[]),
        CAST(:username_keys AS uuid[]), CAST(:usernames AS text[])
    ) AS m (user_key, user_id, username_key, username)
),
named AS (
    UPDATE accounting.users u SET user_id = met.user_id
    FROM met WHERE u.user_key = met.user_key AND u.user_id = ''
)
UPDATE accounting.usernames n SET username = met.username
FROM met
WHERE n.user_key = met.user_key AND n.username_key = met.username_key AND n.username = '';
