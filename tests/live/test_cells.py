"""Three complete cells and a front: a simulated fleet whose users roam, and faults of one cell.

Each cell has its own Postgres, Valkey, collector and scheduler; the front has a Postgres and a
scheduler.
"""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any, Final

import psycopg
import pytest

from accounting.billing.adjust import adjust
from accounting.billing.close_period import close_period, refresh_periods
from accounting.db.engine import open_engine
from accounting.domain.text_escaping import escape
from accounting.errors import ConnectionLost, LockHeld, NotYet
from accounting.front import join
from accounting.front.billing import copy_billing
from accounting.simulator import Scenario
from accounting.simulator.publisher import run
from tests.support.books import READER, Books, cloned_database, make_template, sum_counters
from tests.support.fronts import CELLS, change_identity_key
from tests.support.restored_database import back_up, restore_database
from tests.support.servers import PostgresServer, ValkeyServer, wait_until
from tests.support.service import Service, all_paused

REALMS: Final = ("fleet.example", "one.example")
Usage = dict[tuple[str, str], tuple[int, ...]]


@dataclass(frozen=True, slots=True)
class RunningCell:
    """A complete installation."""

    postgres: PostgresServer
    valkey: ValkeyServer
    up: Service
    books: Books


@dataclass(frozen=True, slots=True)
class RunningFront:
    """A front with its cells, and its scheduler."""

    cells: dict[str, RunningCell]
    schedule: Service
    books: Books

    def usage(self) -> Usage:
        """The usage of each user in all, by realm and user_id."""
        grouped: dict[tuple[str, str], list[dict[str, Any]]] = {}
        for row in self.books.rows("user_usage_monthly"):
            grouped.setdefault((row["realm"], row["user_id"]), []).append(row)
        return {who: tuple(sum_counters(rows).values()) for who, rows in grouped.items()}


@pytest.fixture(scope="module")
def front(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningFront]:
    directory = tmp_path_factory.mktemp("cells")
    with ExitStack() as stack:

        def new_books(name: str) -> Books:
            server = stack.enter_context(PostgresServer())
            make_template(server)
            books = Books(server, stack.enter_context(cloned_database(server)), directory / name)
            stack.callback(books.close)
            return books

        front_books = new_books("front")
        engine = open_engine(front_books.url())
        stack.callback(engine.dispose)
        join.make_front(engine)
        cells = {}
        for name in CELLS:
            books = new_books(name)
            change_identity_key(books)
            join.join_cell(engine, name, books.url(), None)
            valkey = stack.enter_context(ValkeyServer())
            settings = {
                "ACCOUNTING_DATABASE_URL": books.url(),
                "ACCOUNTING_REDIS_URL": valkey.url,
                "ACCOUNTING_SOURCE": name,
            }
            up = stack.enter_context(Service("up", directory / name / "data", settings))
            cells[name] = RunningCell(books.server, valkey, up, books)
        schedule = stack.enter_context(
            Service(
                "schedule",
                directory / "front-data",
                {"ACCOUNTING_DATABASE_URL": front_books.url()},
            )
        )
        for cell in cells.values():
            cell.up.wait_until_capturing()
        yield RunningFront(cells, schedule, front_books)
        for cell in cells.values():
            assert cell.up.stop() == 0
        assert schedule.stop() == 0


def publish(front: RunningFront, seed: int) -> Usage:
    """Publish another fleet in each cell, with the same users, and return what they used."""
    used: Usage = {}
    for number, cell in enumerate(front.cells.values()):
        scenario = Scenario(
            version="4.17",
            servers=2,
            users=12,
            realms=REALMS[: 2 if number == 0 else 1],
            sessions=200,
            duration_seconds=60.0,
            rate=0,
            lifetime_seconds=3600,
            restart=True,
            stolen=True,
            lost_interims=True,
            rest_usernames=True,
            seed=seed * 10 + number,
        )
        for (realm, user_id), user in run(scenario, cell.valkey.url).by_user_id().items():
            if user.sessions:
                add(used, (escape(realm), escape(user_id)), user.usage)
    return used


def add(used: Usage, who: tuple[str, str], usage: tuple[int, ...]) -> None:
    before = used.get(who, (0,) * len(usage))
    used[who] = tuple(a + b for a, b in zip(before, usage, strict=True))


@pytest.mark.long
def test_the_front_equals_the_oracle_to_the_byte_whatever_happens_to_a_cell(
    front: RunningFront,
) -> None:
    expected = publish(front, 1)
    wait_until(lambda: front.usage() == expected, 60)

    # A cell's Postgres is killed while its fleet goes on: an error names it, never a lower sum.
    south = front.cells["south"]
    south.postgres.kill()
    with (
        psycopg.connect(front.books.url(READER)) as connection,
        pytest.raises(psycopg.OperationalError, match="cell_south"),
    ):
        connection.execute("SELECT sum(received_bytes) FROM reporting.realm_usage_monthly")
    for who, usage in publish(front, 2).items():
        add(expected, who, usage)
    south.postgres.start()
    wait_until(lambda: front.usage() == expected, 90)

    # The feed has the end of each session once.
    def ended() -> int:
        [row] = front.books.query(
            "SELECT count(DISTINCT event_id) AS events FROM reporting.feed"
            " WHERE type = 'session.ended'"
        )
        return int(row["events"])

    sessions = sum(
        int(cell.books.query(
            "SELECT count(*) AS n FROM reporting.sessions WHERE ended_at IS NOT NULL"
        )[0]["n"])
        for cell in front.cells.values()
    )  # fmt: skip
    wait_until(lambda: ended() == sessions, 60)


@contextmanager
def alone(books: Books) -> Iterator[None]:
    """No one else connects to this database; its processes wait."""
    books.disconnect()
    with psycopg.connect(books.server.url(), autocommit=True) as connection:
        connection.execute(f"ALTER DATABASE {books.name} ALLOW_CONNECTIONS false")
        connection.execute(
            "SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity WHERE datname = %s",
            [books.name],
        )
        yield
        with suppress(psycopg.errors.ObjectNotInPrerequisiteState):
            connection.execute(f"ALTER DATABASE {books.name} ALLOW_CONNECTIONS true")


def close_over_periods(cell: RunningCell, source: str) -> None:
    """Close all periods that are over by the database's clock, although the source goes on."""
    waits = []

    def closed() -> bool:
        try:
            refresh_periods(cell.books.engine)
        except LockHeld as error:
            waits.append(str(error))
            return False
        rows = cell.books.rows(
            "periods WHERE state = 'closing'", "realm", "period", order="realm, period"
        )
        try:
            for row in rows:
                close_period(
                    cell.books.engine, row["realm"], row["period"], excluded_sources=[source]
                )
        except (NotYet, LockHeld) as error:
            waits.append(str(error))
            return False
        return bool(cell.books.rows("statements"))

    try:
        wait_until(closed, 30)
    except AssertionError as error:
        raise AssertionError(f"{error} {waits[-1:]}") from error


def run_billing(front: RunningFront) -> None:
    """Run the jobs that a scheduler runs once a minute, beside those that run."""
    for cell in front.cells.values():
        with suppress(LockHeld):
            adjust(cell.books.engine)
    with suppress(LockHeld, ConnectionLost):
        copy_billing(front.books.engine)


def billed(books: Books) -> Usage:
    """Statements and late usage of each user, by realm and user_id."""
    rows: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for view in ("statements", "adjustments"):
        for row in books.rows(view):
            rows.setdefault((row["realm"], row["user_id"]), []).append(row)
    return {who: tuple(sum_counters(of_user).values()) for who, of_user in rows.items()}


@pytest.mark.long
def test_a_statement_stays_whatever_happens_while_periods_close(
    front: RunningFront, tmp_path: Path
) -> None:
    """A cell hangs, one is killed, one is restored, and one of the front's two schedulers dies."""
    expected = front.usage()
    for who, usage in publish(front, 3).items():
        add(expected, who, usage)
    wait_until(lambda: front.usage() == expected, 90)
    north, south, west = front.cells.values()
    settings = {"ACCOUNTING_DATABASE_URL": front.books.url()}
    with Service("schedule", tmp_path / "second", settings) as second:
        with alone(west.books):
            back_up(west.books)
        for books in (front.books, *(cell.books for cell in front.cells.values())):
            books.set_database_clock(ahead=timedelta(days=40))

        # A cell that hangs: the read ends with an error, and another cell closes meanwhile.
        with all_paused(north.postgres.pid):
            with (
                psycopg.connect(
                    front.books.url(READER), options="-c statement_timeout=2s"
                ) as connection,
                pytest.raises(psycopg.OperationalError),
            ):
                connection.execute("SELECT sum(received_bytes) FROM reporting.realm_usage_monthly")
            close_over_periods(south, "south")
        close_over_periods(north, "north")

        # One that is restored has not closed what it had, and closes with what it has then.
        close_over_periods(west, "west")
        wait_until(lambda: run_billing(front) or front.books.rows("statements"), 60)
        statement = front.books.rows("statements", order="realm, period, user_key")
        second.process.kill()
        for who, usage in publish(front, 4).items():
            add(expected, who, usage)
        with alone(west.books):
            restore_database(west.books)
        west.books.set_database_clock(ahead=timedelta(days=40))
        south.postgres.kill()
        with (
            psycopg.connect(front.books.url(READER)) as connection,
            pytest.raises(psycopg.OperationalError, match="cell_south"),
        ):
            connection.execute("SELECT sum(received_bytes) FROM reporting.realm_usage_monthly")
        south.postgres.start()
        close_over_periods(west, "west")
        wait_until(lambda: front.usage() == expected, 90)
        wait_until(lambda: run_billing(front) or billed(front.books) == expected, 60)
    assert front.books.rows("statements", order="realm, period, user_key") == statement

    # The feed has each event once, and the end of each session.
    def ended(books: Books) -> int:
        [row] = books.query(
            "SELECT count(*) AS n FROM reporting.sessions WHERE ended_at IS NOT NULL"
        )
        return int(row["n"])

    def in_feed() -> tuple[int, int]:
        [row] = front.books.query("""
            SELECT count(*) AS events, count(DISTINCT event_id) AS ids,
                count(DISTINCT payload ->> 'session_id') FILTER (WHERE type = 'session.ended')
                    AS sessions
            FROM reporting.feed
        """)
        return row["events"] - row["ids"], row["sessions"]

    sessions = sum(ended(cell.books) for cell in front.cells.values())
    wait_until(lambda: in_feed() == (0, sessions), 60)
