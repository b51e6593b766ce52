-- Who may use the schemas. `turn-accounting db upgrade` creates the roles and both schemas before
-- any migration runs, because Alembic keeps its version in schema accounting.
--
-- Schema accounting is private to the service: each file grants the writer what it needs of a
-- table, right after that table. Schema reporting has the public views: both roles may read them.

GRANT USAGE ON SCHEMA accounting TO turn_accounting_writer;
GRANT SELECT ON accounting.alembic_version TO turn_accounting_writer;

-- One row for each lock of the jobs; `turn-accounting db upgrade` has created the table. A
-- source's lock is inserted with the source. Nothing is ever written to a row: FOR UPDATE needs the
-- right to do so.
GRANT SELECT, INSERT, UPDATE ON accounting.locks TO turn_accounting_writer;
INSERT INTO accounting.locks (name)
VALUES ('cells'), ('feed'), ('forward'), ('gaps'), ('partitions'), ('peaks'),
    ('report_partition'), ('retain'), ('rollup');

GRANT USAGE ON SCHEMA reporting TO turn_accounting_reader, turn_accounting_writer;
ALTER DEFAULT PRIVILEGES IN SCHEMA reporting
    GRANT SELECT ON TABLES TO turn_accounting_reader, turn_accounting_writer;

-- The database's clock, which judges all other clocks: business rules take now from here, in SQL and
-- through accounting.db.clock. A test replaces this function to set the clock of its database.
CREATE FUNCTION accounting.database_now() RETURNS timestamptz
LANGUAGE sql STABLE SET search_path = pg_catalog, pg_temp AS 'SELECT clock_timestamp()';

-- sum() of bigint is numeric, which costs more than the rest of an aggregation. This one stays
-- bigint, and fails where the sum is beyond it.
CREATE AGGREGATE accounting.bigint_sum(bigint) (
    SFUNC = int8pl, STYPE = bigint, COMBINEFUNC = int8pl, PARALLEL = SAFE
);
