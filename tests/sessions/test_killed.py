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
from tests.support.coturn_messages import OTHER, Teller
from tests.support.scenario_player import everything, restarted_loader
from tests.support.servers import wait_until
from tests.support.truncate import empty

NOTHING: Final = (0, 0, 0, 0)
HALF, WHOLE = (5, 500, 4, 400), (10, 1000, 8, 800)


class KilledError(BaseException):
    """The process died here. No Exception: nothing may catch it."""


class Death:
    """Strikes at the n-th moment: a statement, the end of a COPY, either side of a COMMIT."""

    def __init__(self) -> None:
        self.left = 0
        self.commits = 0
        self.victim = 0

    def comes(self, at: int) -> None:
        self.left, self.commits = at, 0

    def may_strike(self, connection: psycopg.Connection[Any]) -> None:
        self.left -= 1
        if self.left == 0:
            self.victim = connection.pgconn.backend_pid
            connection.pgconn.finish()
            raise KilledError

    def cursors(self) -> type[psycopg.Cursor[Any]]:
        death = self

        class Mortal(psycopg.Cursor[Any]):
            def execute(self, query: Query, *args: Any, **options: Any) -> Any:
                death.may_strike(self.connection)
                return super().execute(query, *args, **options)

            def executemany(self, query: Query, *args: Any, **options: Any) -> None:
                death.may_strike(self.connection)
                super().executemany(query, *args, **options)

            @contextmanager
            def copy(self, statement: Query, *args: Any, **options: Any) -> Iterator[psycopg.Copy]:
                death.may_strike(self.connection)
                with super().copy(statement, *args, **options) as copying:
                    yield copying
                    death.may_strike(self.connection)

        return Mortal

    def commit(self, connection: Connection) -> None:
        driver = connection.connection.driver_connection
        assert isinstance(driver, psycopg.Connection)
        self.may_strike(driver)
        driver.commit()
        self.commits += 1
        self.may_strike(driver)


@contextmanager
def mortal_engine(books: Books, death: Death) -> Iterator[Engine]:
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


def run_through_deaths(
    books: Books,
    death: Death,
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
        death.comes(at)
        try:
            job()
        except (KilledError, ConnectionLost):
            assert death.left <= 0
            deaths += 1
            # Until the server has seen it the dead one holds its locks, and a job leaves its work
            # to whoever holds them.
            wait_until(lambda: not books.query(ALIVE, [death.victim]))
        else:
            return deaths
        after = progress(books, tables) if death.commits else before
        at, before = (at + step if after == before else 1), after


def tell_of_yesterday(books: Books) -> None:
    """What is in the books already: sessions to go on with, one that expired, a stranger."""
    Teller(books, user="expired").new(0)
    Teller(books, user="expired").interim(10, *HALF)
    for user in ("closing", "shared"):
        Teller(books, user=user).new(20, 7200)
        Teller(books, user=user).interim(30, *HALF)
    Teller(books, user="stranger").interim(40, *HALF)
    books.until(700)
    books.account()
    Teller(books, user="expired").interim(710, *HALF)
    books.until(720)
    books.account()


def tell_of_today(books: Books) -> None:
    """What comes next: ends, an expired session that lives, another server, an id used again."""
    Teller(books, user="shared", local=OTHER).new(730, 600)
    Teller(books, user="expired").close(740, WHOLE, NOTHING)
    Teller(books, user="closing").close(4000, WHOLE, HALF)
    Teller(books, user="closing").new(4010)
    Teller(books, user="stranger").new(4020)
    Teller(books, user="brandnew", realm="").new(100_000)
    Teller(books, user="brandnew").say(100_001, "status", b"nonsense")
    gap = books.spool().open_gap(books.at(100_002), "connection_lost")
    books.spool().close_gap(gap, books.at(100_003))
    books.until(200_000)


def test_killed_between_any_two_statements_and_run_again_the_books_are_the_same(
    books: Books, tmp_path: Path
) -> None:
    tell_of_yesterday(books)
    tell_of_today(books)
    books.account()
    undisturbed = everything(books)
    empty(books.server, books.name)
    again = Books(books.server, books.name, tmp_path / "again")
    tell_of_yesterday(again)
    tell_of_today(again)
    death = Death()
    with mortal_engine(again, death) as engine:
        jobs: list[Callable[[], object]] = [
            lambda: restarted_loader(again, engine=engine).load(1000),
            lambda: settle(engine, limit=8),
            lambda: rollup(engine, limit=1000),
        ]
        deaths = [run_through_deaths(again, death, job) for job in jobs]
    assert min(deaths) > 10
    again.account()
    assert everything(again) == undisturbed
    again.close()
