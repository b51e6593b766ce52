"""Three complete cells and a front: a simulated fleet whose users roam, and faults of one cell.

Each cell has its own Postgres, Valkey, collector and scheduler; the front has a Postgres and a
scheduler.
"""

from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any, Final

import psycopg
import pytest

from accounting.db.engine import open_engine
from accounting.domain.text_escaping import escape
from accounting.front import join
from accounting.simulator import Scenario
from accounting.simulator.publisher import run
from tests.support.books import READER, Books, cloned_database, make_template, sum_counters
from tests.support.fronts import CELLS, change_identity_key
from tests.support.servers import PostgresServer, ValkeyServer, wait_until
from tests.support.service import Service

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
