"""Simulated crashes: a database connection cut at any statement, COPY or COMMIT of a job.

The injector counts down moments; at zero it closes the connection, as the death of the process
would, and raises :class:`SimulatedCrash`.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Final

import psycopg
from psycopg.abc import Query
from psycopg.sql import SQL, Identifier
from sqlalchemy import Connection, Engine, event

from accounting.db.engine import open_engine
from accounting.errors import ConnectionLost
from tests.support.books import WRITER, Books
from tests.support.servers import wait_until


class SimulatedCrash(BaseException):
    """The process died here. No Exception: nothing may catch it."""


class CrashInjector:
    """Strikes at the n-th moment: a statement, the end of a COPY, either side of a COMMIT."""

    def __init__(self) -> None:
        self.moments_left = 0
        self.commits = 0
        self.backend_pid = 0

    def arm(self, at: int) -> None:
        self.moments_left, self.commits = at, 0

    def count_down(self, connection: psycopg.Connection[Any]) -> None:
        self.moments_left -= 1
        if self.moments_left == 0:
            self.backend_pid = connection.pgconn.backend_pid
            connection.pgconn.finish()
            raise SimulatedCrash

    def cursor_class(self) -> type[psycopg.Cursor[Any]]:
        injector = self

        class Mortal(psycopg.Cursor[Any]):
            def execute(self, query: Query, *args: Any, **options: Any) -> Any:
                injector.count_down(self.connection)
                return super().execute(query, *args, **options)

            def executemany(self, query: Query, *args: Any, **options: Any) -> None:
                injector.count_down(self.connection)
                super().executemany(query, *args, **options)

            @contextmanager
            def copy(self, statement: Query, *args: Any, **options: Any) -> Iterator[psycopg.Copy]:
                injector.count_down(self.connection)
                with super().copy(statement, *args, **options) as copying:
                    yield copying
                    injector.count_down(self.connection)

        return Mortal

    def commit(self, connection: Connection) -> None:
        driver = connection.connection.driver_connection
        assert isinstance(driver, psycopg.Connection)
        self.count_down(driver)
        driver.commit()
        self.commits += 1
        self.count_down(driver)


@contextmanager
def crashing_engine(books: Books, injector: CrashInjector) -> Iterator[Engine]:
    engine = open_engine(books.url(WRITER))
    event.listen(engine, "commit", injector.commit)

    @event.listens_for(engine, "connect")
    def _(connection: psycopg.Connection[Any], _record: object) -> None:
        connection.cursor_factory = injector.cursor_class()

    try:
        yield engine
    finally:
        engine.dispose()


SETTLE_TABLES: Final = ("sources", "settle_watermarks", "sessions", "session_usage", "usage_deltas")
"""The tables that tell how far the jobs came, and what settling made."""


BACKEND_IS_ALIVE: Final = "SELECT FROM pg_stat_activity WHERE pid = %s"


def table_rows(books: Books, tables: Sequence[str]) -> list[object]:
    """Every row of those tables."""
    with psycopg.connect(books.url()) as connection:
        return [
            connection.execute(
                SQL("SELECT t::text FROM accounting.{} t ORDER BY 1").format(Identifier(name))
            ).fetchall()
            for name in tables
        ]


def run_through_crashes(
    books: Books,
    injector: CrashInjector,
    job: Callable[[], object],
    tables: Sequence[str] = SETTLE_TABLES,
    *,
    step: int = 1,
) -> int:
    """Run a job until it ends, killed at every moment on the way; returns how often it was.

    ``step``: only at every so-manieth, where one run of the job takes long.

    A death that came before a COMMIT has changed nothing. Whenever one came after, the next run
    has other work to do, and dies at each of its moments again.
    """
    crash_count, at, before = 0, 1, table_rows(books, tables)
    while True:
        injector.arm(at)
        try:
            job()
        except (SimulatedCrash, ConnectionLost):
            assert injector.moments_left <= 0
            crash_count += 1
            # Until the server has seen it the dead one holds its locks, and a job leaves its work
            # to whoever holds them.
            wait_until(lambda: not books.query(BACKEND_IS_ALIVE, [injector.backend_pid]))
        else:
            return crash_count
        after = table_rows(books, tables) if injector.commits else before
        at, before = (at + step if after == before else 1), after
