-- name: roles
-- Creates the missing ones of the three roles, and makes this user a member of the owner.
DO $$
DECLARE
    role_name text;
BEGIN
    FOREACH role_name IN ARRAY
        ARRAY['turn_accounting_owner', 'turn_accounting_writer', 'turn_accounting_reader']
    LOOP
        BEGIN
            IF NOT EXISTS (SELECT FROM pg_roles WHERE rolname = role_name) THEN
                EXECUTE format('CREATE ROLE %I NOLOGIN', role_name);
            END IF;
        EXCEPTION WHEN duplicate_object OR unique_violation THEN
            NULL;  -- roles belong to the cluster: another database's upgrade created it meanwhile
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
