-- name: roles
-- Makes the three roles where they are missing, and lets this user act as the owner.
DO $$
DECLARE
    wanted text;
BEGIN
    FOREACH wanted IN ARRAY
        ARRAY['turn_accounting_owner', 'turn_accounting_writer', 'turn_accounting_reader']
    LOOP
        BEGIN
            IF NOT EXISTS (SELECT FROM pg_roles WHERE rolname = wanted) THEN
                EXECUTE format('CREATE ROLE %I NOLOGIN', wanted);
            END IF;
        EXCEPTION WHEN duplicate_object OR unique_violation THEN
            NULL;  -- roles are the cluster's: another database made it just now
        END;
    END LOOP;
    IF NOT pg_has_role(current_user, 'turn_accounting_owner', 'MEMBER') THEN
        EXECUTE format('GRANT turn_accounting_owner TO %I', current_user);
    END IF;
    EXECUTE format('GRANT CONNECT, CREATE, TEMPORARY ON DATABASE %I TO turn_accounting_owner',
        current_database());
    EXECUTE format('GRANT CONNECT, TEMPORARY ON DATABASE %I TO turn_accounting_writer',
        current_database());
    EXECUTE format('GRANT CONNECT ON DATABASE %I TO turn_accounting_reader', current_database());
END
$$;
