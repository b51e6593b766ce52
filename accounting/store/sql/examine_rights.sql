-- Rights that the roles and this user lack, and those that they should not have: reports are
-- evidence, and the tables are private.
WITH views AS (
    SELECT c.oid FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
    WHERE n.nspname = 'reporting' AND c.relkind = 'v'
), tables AS (
    SELECT c.oid, c.relname FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
    WHERE n.nspname = 'accounting' AND c.relkind IN ('r', 'p')
)
SELECT
    ARRAY(
        SELECT lacking FROM (VALUES
            (current_user || ': INSERT on reports',
                has_table_privilege('accounting.reports', 'INSERT')),
            ('turn_accounting_writer: INSERT on reports',
                has_table_privilege('turn_accounting_writer', 'accounting.reports', 'INSERT')),
            ('turn_accounting_writer: UPDATE on sessions',
                has_table_privilege('turn_accounting_writer', 'accounting.sessions', 'UPDATE')),
            ('turn_accounting_reader: SELECT on all views of reporting',
                NOT EXISTS (SELECT FROM views
                    WHERE NOT has_table_privilege('turn_accounting_reader', oid, 'SELECT')))
        ) AS rights (lacking, given) WHERE NOT given
    ) AS lacking,
    ARRAY(
        SELECT excess FROM (VALUES
            ('turn_accounting_writer: UPDATE or DELETE on reports',
                has_table_privilege('turn_accounting_writer', 'accounting.reports', 'UPDATE, DELETE')),
            ('turn_accounting_reader: SELECT on tables of accounting',
                EXISTS (SELECT FROM tables
                    WHERE has_table_privilege('turn_accounting_reader', oid, 'SELECT')))
        ) AS rights (excess, given) WHERE given
    ) AS excess
