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
WHERE n.user_key = met.user_key AND n.username_key = met.username_key AND n.username = ''
