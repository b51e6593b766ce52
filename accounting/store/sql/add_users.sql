-- Users met by the loader; the order keeps two loaders from waiting for each other.
INSERT INTO accounting.users (user_key, realm_id, user_id)
SELECT DISTINCT ON (user_key) user_key, realm_id, user_id
FROM unnest(
    CAST(:user_keys AS uuid[]), CAST(:realm_ids AS integer[]), CAST(:user_ids AS text[])
) AS met (user_key, realm_id, user_id)
ORDER BY user_key
ON CONFLICT DO NOTHING
