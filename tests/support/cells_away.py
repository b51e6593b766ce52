"""Cells that a front loses: before a command, or when it commits in one."""

from collections.abc import Iterator
from contextlib import contextmanager

import psycopg
from psycopg import sql

from tests.support.books import Books


@contextmanager
def away(books: Books) -> Iterator[None]:
    """The database accepts no connections, and those that it has end."""
    with psycopg.connect(books.server.url(), autocommit=True) as connection:
        _allow_connections(connection, books, allowed=False)
        books.disconnect()
        connection.execute(
            "SELECT pg_terminate_backend(pid, 10_000) FROM pg_stat_activity WHERE datname = %s",
            [books.name],
        )
        try:
            yield
        finally:
            _allow_connections(connection, books, allowed=True)


def _allow_connections(connection: psycopg.Connection, books: Books, *, allowed: bool) -> None:
    connection.execute(
        sql.SQL("ALTER DATABASE {} ALLOW_CONNECTIONS {}").format(
            sql.Identifier(books.name), sql.Literal(allowed)
        )
    )


@contextmanager
def lost_at_commit(books: Books, table: str) -> Iterator[None]:
    """A session that has written to a table ends when it commits."""
    with psycopg.connect(books.url(), autocommit=True) as connection:
        connection.execute("""
            CREATE FUNCTION public.end_session() RETURNS trigger LANGUAGE plpgsql AS $$
            BEGIN PERFORM pg_terminate_backend(pg_backend_pid()); RETURN NULL; END $$
        """)
        connection.execute(
            sql.SQL(
                "CREATE CONSTRAINT TRIGGER ends_session AFTER INSERT ON accounting.{}"
                " DEFERRABLE INITIALLY DEFERRED FOR EACH ROW EXECUTE FUNCTION public.end_session()"
            ).format(sql.Identifier(table))
        )
        try:
            yield
        finally:
            connection.execute("DROP FUNCTION public.end_session CASCADE")
