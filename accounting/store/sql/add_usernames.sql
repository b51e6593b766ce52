-- Usernames met by the loader; the order keeps two loaders from waiting for each other.
INSERT INTO accounting.usernames (user_key, username_key, username)
SELECT user_key, username_key, username
FROM unnest(
    CAST(:user_keys AS uuid[]), CAST(:username_keys AS uuid[]), CAST(:usernames AS text[])
) AS met (user_key, username_key, username)
ORDER BY username_key, user_key
ON CONFLICT DO NOTHING
