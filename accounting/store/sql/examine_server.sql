-- What the server is. A directory is told only over a local socket, to whom may know it.
SELECT
    current_setting('server_version_num')::integer AS version,
    pg_encoding_to_char(d.encoding) AS encoding,
    pg_is_in_recovery() AS in_recovery,
    (SELECT rolsuper FROM pg_roles WHERE rolname = current_user) AS is_superuser,
    pg_database_size(d.oid) AS size_bytes,
    (clock_timestamp() AT TIME ZONE 'UTC')::date AS today,
    CASE WHEN inet_server_addr() IS NULL
        THEN (SELECT setting FROM pg_settings WHERE name = 'data_directory') END AS data_directory,
    ARRAY(
        SELECT wanted
        FROM unnest(ARRAY['turn_accounting_owner', 'turn_accounting_writer',
            'turn_accounting_reader']) AS wanted
        WHERE NOT EXISTS (SELECT FROM pg_roles WHERE rolname = wanted)
    ) AS missing_roles
FROM pg_database d WHERE d.datname = current_database()
