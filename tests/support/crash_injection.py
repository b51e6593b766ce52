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
    """The process died here. A BaseException, so that the job cannot catch it."""


class CrashInjector:
    """Crashes at the n-th moment: a statement, the end of a COPY, before or after a COMMIT.

    From then on every other thread crashes at its next moment. ``commits`` counts the commits since
    :meth:`arm`; ``backend_pids`` are the server processes of the connections closed since then.
    ``survives``: only connections end, and the process goes on with what it remembers.
    """

    def __init__(self, *, survives: bool = False) -> None:
        self._survives = survives
        self.moments_left = 0
        self.commits = 0
        self.backend_pids: list[int] = []

    def arm(self, moment: int) -> None:
        self.moments_left, self.commits, self.backend_pids = moment, 0, []

    def count_down(self, connection: psycopg.Connection[Any]) -> None:
        self.moments_left -= 1
        if self.moments_left == 0 or self.backend_pids:
            self.backend_pids.append(connection.pgconn.backend_pid)
            connection.pgconn.finish()
            if self._survives:
                raise psycopg.OperationalError("the connection was cut")
            raise SimulatedCrash

    def cursor_class(self) -> type[psycopg.Cursor[Any]]:
        injector = self

        class CrashingCursor(psycopg.Cursor[Any]):
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

        return CrashingCursor

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
"""The watermarks of the jobs, and the tables that the job ``settle`` writes."""
BACKEND_IS_ALIVE: Final = "SELECT FROM pg_stat_activity WHERE pid = ANY(%s)"


def table_rows(books: Books, tables: Sequence[str]) -> list[object]:
    """All rows of the tables as text."""
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
    """Run a job until it ends, with a crash at every moment; returns the number of crashes.

    ``step``: crash only at every n-th moment, for a job whose run takes long.

    A crash before a COMMIT changes nothing, so that the next run crashes one moment later. After a
    COMMIT the next run has other work, and crashes start at its first moment again.
    """
    crash_count, moment, before = 0, 1, table_rows(books, tables)
    while True:
        injector.arm(moment)
        try:
            job()
        except (SimulatedCrash, ConnectionLost):
            assert injector.moments_left <= 0
            crash_count += 1
            # The backend holds its locks until it notices the closed connection, and a job that
            # cannot get them does nothing.
            wait_until(lambda: not books.query(BACKEND_IS_ALIVE, [injector.backend_pids]))
        else:
            return crash_count
        after = table_rows(books, tables) if injector.commits else before
        moment, before = (moment + step if after == before else 1), after
