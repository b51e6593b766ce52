"""A database that is emptied between tests: much faster than a clone for each."""

from typing import Final

import psycopg

from tests.support.servers import PostgresServer

_EMPTY: Final = """
DO $$
DECLARE
    emptied regclass;
    counted text;
BEGIN
    FOR emptied IN
        SELECT format('%I.%I', schemaname, tablename)::regclass FROM pg_tables
        WHERE schemaname = 'accounting' AND tablename NOT IN ('installation', 'alembic_version')
    LOOP
        EXECUTE format('DELETE FROM %s', emptied);
    END LOOP;
    FOR counted IN SELECT format('%I.%I', schemaname, sequencename) FROM pg_sequences
        WHERE schemaname = 'accounting'
    LOOP
        PERFORM setval(counted, 1, false);
    END LOOP;
END
$$
"""


def empty_database(server: PostgresServer, database: str) -> None:
    """Delete every row but those that make an installation. Its numbers begin anew."""
    with psycopg.connect(server.url(database=database)) as connection:
        connection.execute(_EMPTY)
