"""Killed before any statement, within any COPY, before and after any COMMIT: the same books.

The connection is cut as if the process had died, and the job runs again.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import psycopg
from psycopg.abc import Query
from psycopg.sql import SQL, Identifier
from sqlalchemy import Connection, Engine, event

from accounting.db.engine import open_engine
from accounting.errors import ConnectionLost
from accounting.sessions.settle import settle
from accounting.usage.rollup import rollup
from tests.support.books import WRITER, Books
from tests.support.coturn_messages import OTHER_SERVER_ADDRESS, FakeAllocation
from tests.support.scenario_player import all_rows, restarted_loader
from tests.support.servers import wait_until
from tests.support.truncate import empty_database

NOTHING: Final = (0, 0, 0, 0)
HALF, WHOLE = (5, 500, 4, 400), (10, 1000, 8, 800)


class SimulatedCrash(BaseException):
    """The process died here. No Exception: nothing may catch it."""


class CrashInjector:
    """Strikes at the n-th moment: a statement, the end of a COPY, either side of a COMMIT."""

    def __init__(self) -> None:
        self.statements_left = 0
        self.commits = 0
        self.backend_pid = 0

    def arm(self, at: int) -> None:
        self.statements_left, self.commits = at, 0

    def count_down(self, connection: psycopg.Connection[Any]) -> None:
        self.statements_left -= 1
        if self.statements_left == 0:
            self.backend_pid = connection.pgconn.backend_pid
            connection.pgconn.finish()
            raise SimulatedCrash

    def cursors(self) -> type[psycopg.Cursor[Any]]:
        death = self

        class Mortal(psycopg.Cursor[Any]):
            def execute(self, query: Query, *args: Any, **options: Any) -> Any:
                death.count_down(self.connection)
                return super().execute(query, *args, **options)

            def executemany(self, query: Query, *args: Any, **options: Any) -> None:
                death.count_down(self.connection)
                super().executemany(query, *args, **options)

            @contextmanager
            def copy(self, statement: Query, *args: Any, **options: Any) -> Iterator[psycopg.Copy]:
                death.count_down(self.connection)
                with super().copy(statement, *args, **options) as copying:
                    yield copying
                    death.count_down(self.connection)

        return Mortal

    def commit(self, connection: Connection) -> None:
        driver = connection.connection.driver_connection
        assert isinstance(driver, psycopg.Connection)
        self.count_down(driver)
        driver.commit()
        self.commits += 1
        self.count_down(driver)


@contextmanager
def crashing_engine(books: Books, death: CrashInjector) -> Iterator[Engine]:
    engine = open_engine(books.url(WRITER))
    event.listen(engine, "commit", death.commit)

    @event.listens_for(engine, "connect")
    def _(connection: psycopg.Connection[Any], _record: object) -> None:
        connection.cursor_factory = death.cursors()

    try:
        yield engine
    finally:
        engine.dispose()


SETTLED: Final = ("sources", "settle_watermarks", "sessions", "session_usage", "usage_deltas")
"""The tables that tell how far the jobs came, and what settling made."""


ALIVE: Final = "SELECT FROM pg_stat_activity WHERE pid = %s"


def progress(books: Books, tables: Sequence[str]) -> list[object]:
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
    death: CrashInjector,
    job: Callable[[], object],
    tables: Sequence[str] = SETTLED,
    *,
    step: int = 1,
) -> int:
    """Run a job until it ends, killed at every moment on the way; returns how often it was.

    ``step``: only at every so-manieth, where one run of the job takes long.

    A death that came before a COMMIT has changed nothing. Whenever one came after, the next run
    has other work to do, and dies at each of its moments again.
    """
    deaths, at, before = 0, 1, progress(books, tables)
    while True:
        death.arm(at)
        try:
            job()
        except (SimulatedCrash, ConnectionLost):
            assert death.statements_left <= 0
            deaths += 1
            # Until the server has seen it the dead one holds its locks, and a job leaves its work
            # to whoever holds them.
            wait_until(lambda: not books.query(ALIVE, [death.backend_pid]))
        else:
            return deaths
        after = progress(books, tables) if death.commits else before
        at, before = (at + step if after == before else 1), after


def tell_of_yesterday(books: Books) -> None:
    """What is in the books already: sessions to go on with, one that expired, a stranger."""
    FakeAllocation(books, user="expired").new(0)
    FakeAllocation(books, user="expired").interim(10, *HALF)
    for user in ("closing", "shared"):
        FakeAllocation(books, user=user).new(20, 7200)
        FakeAllocation(books, user=user).interim(30, *HALF)
    FakeAllocation(books, user="stranger").interim(40, *HALF)
    books.advance_clock(700)
    books.run_jobs()
    FakeAllocation(books, user="expired").interim(710, *HALF)
    books.advance_clock(720)
    books.run_jobs()


def tell_of_today(books: Books) -> None:
    """What comes next: ends, an expired session that lives, another server, an id used again."""
    FakeAllocation(books, user="shared", server_address=OTHER_SERVER_ADDRESS).new(730, 600)
    FakeAllocation(books, user="expired").close(740, WHOLE, NOTHING)
    FakeAllocation(books, user="closing").close(4000, WHOLE, HALF)
    FakeAllocation(books, user="closing").new(4010)
    FakeAllocation(books, user="stranger").new(4020)
    FakeAllocation(books, user="brandnew", realm="").new(100_000)
    FakeAllocation(books, user="brandnew").publish(100_001, "status", b"nonsense")
    gap = books.spool().open_gap(books.micros_at(100_002), "connection_lost")
    books.spool().close_gap(gap, books.micros_at(100_003))
    books.advance_clock(200_000)


def test_killed_between_any_two_statements_and_run_again_the_books_are_the_same(
    books: Books, tmp_path: Path
) -> None:
    tell_of_yesterday(books)
    tell_of_today(books)
    books.run_jobs()
    undisturbed = all_rows(books)
    empty_database(books.server, books.name)
    again = Books(books.server, books.name, tmp_path / "again")
    tell_of_yesterday(again)
    tell_of_today(again)
    death = CrashInjector()
    with crashing_engine(again, death) as engine:
        jobs: list[Callable[[], object]] = [
            lambda: restarted_loader(again, engine=engine).load(1000),
            lambda: settle(engine, limit=8),
            lambda: rollup(engine, limit=1000),
        ]
        deaths = [run_through_crashes(again, death, job) for job in jobs]
    assert min(deaths) > 10
    again.run_jobs()
    assert all_rows(again) == undisturbed
    again.close()
