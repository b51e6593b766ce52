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
INSERT INTO accounting.users (user_key, realm_id, user_id)
SELECT DISTINCT ON (user_key) user_key, realm_id, user_id
FROM unnest(
    CAST(:user_keys AS uuid[]), CAST(:realm_ids AS integer[]), CAST(:user_ids AS text[])
) AS new (user_key, realm_id, user_id)
ORDER BY user_key
ON CONFLICT DO NOTHING;

-- name: restore_names
-- Restores erased names of users who were reported again after the erasure.
WITH restored AS (
    SELECT * FROM unnest(
        CAST(:user_keys AS uuid[]), CAST(:user_ids AS text[]),
        CAST(:username_keys AS uuid[]), CAST(:usernames AS text[])
    ) AS r (user_key, user_id, username_key, username)
),
restored_users AS (
    UPDATE accounting.users u SET user_id = r.user_id
    FROM restored r WHERE u.user_key = r.user_key AND u.user_id = ''
)
UPDATE accounting.usernames n SET username = r.username
FROM restored r
WHERE n.user_key = r.user_key AND n.username_key = r.username_key AND n.username = '';
