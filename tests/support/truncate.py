"""Empties a database between tests, which is much faster than a clone for each."""

from typing import Final

import psycopg

from tests.support.servers import PostgresServer

_EMPTY: Final = """
DO $$
DECLARE
    table_name regclass;
    sequence_name text;
BEGIN
    FOR table_name IN
        SELECT format('%I.%I', schemaname, tablename)::regclass FROM pg_tables
        WHERE schemaname = 'accounting'
            AND tablename NOT IN (
                'installation', 'alembic_version', 'locks', 'front', 'cells', 'membership'
            )
    LOOP
        EXECUTE format('DELETE FROM %s', table_name);
    END LOOP;
    UPDATE test_clock.clock
        SET captured_until = NULL, loaded_at = NULL, fixed_at = NULL, ahead = NULL;
    FOR sequence_name IN SELECT format('%I.%I', schemaname, sequencename) FROM pg_sequences
        WHERE schemaname = 'accounting'
    LOOP
        PERFORM setval(sequence_name, 1, false);
    END LOOP;
END
$$
"""


def empty_database(server: PostgresServer, database: str) -> None:
    """Delete all rows except those of the installation, and reset the sequences.

    A front keeps its cells.
    """
    with psycopg.connect(server.url(database=database)) as connection:
        connection.execute(_EMPTY)
