"""A front with cells for tests, beside one database that holds all of it.

with open_front(server, directory) as front:
    front.receive("north", 12.5, b"turn/realm/r/user/u/allocation/.../status", b"new lifetime=600")
    front.run_jobs()
    assert front.rows("user_usage_hourly") == front.whole.rows("user_usage_hourly")

What a cell receives, the whole receives too, from a source of the cell's name.
"""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, Final

import psycopg

from accounting.billing.close_period import close_periods
from accounting.db.engine import Engine, open_engine
from accounting.feed.number_feed import number_feed
from accounting.front import join
from accounting.front.billing.copy_billing import copy_billing
from accounting.front.feed.forward_feed import forward_feed
from accounting.front.shared.share import share
from tests.support.books import (
    Books,
    channel,
    cloned_database,
    status_payload,
    traffic_payload,
)
from tests.support.servers import PostgresServer
from tests.support.truncate import empty_database

HOUR: Final = 3600.0
CELLS: Final = ("north", "south", "west")


@dataclass(frozen=True, slots=True)
class Front:
    """The books of a front, of its cells by name, and of one database with all of them.

    ``engine``: of the front, as the superuser, who lets cells join.
    """

    books: Books
    cells: dict[str, Books]
    whole: Books
    engine: Engine

    def receive(self, cell: str, seconds: float, channel: bytes, payload: bytes) -> None:
        """Receive one message in a cell, and in the whole."""
        for books in (self.cells[cell], self.whole):
            books.receive(seconds, channel, payload, source=cell)

    def advance_clocks(self, seconds: float) -> None:
        """All sources have captured up to so many seconds after the start."""
        for cell, books in self.cells.items():
            for each in (books, self.whole):
                each.advance_clock(seconds, source=cell)

    def run_jobs(self) -> None:
        """Load, settle and roll up in all cells and in the whole; share what the cells share."""
        for books in (*self.cells.values(), self.whole):
            books.run_jobs()
        self.follow_clock()
        share(self.books.engine)

    def follow_clock(self) -> None:
        """Set the clock of the front's database to that of the whole."""
        [clock] = self.whole.query("SELECT * FROM test_clock.clock")
        assignments = ", ".join(f"{name} = %({name})s" for name in clock)
        with psycopg.connect(self.books.url()) as connection:
            connection.execute(f"UPDATE test_clock.clock SET {assignments}", clock)  # noqa: S608

    def close_periods(self) -> None:
        """Close what can be closed in all cells, in the whole, and then in the front."""
        for books in (*self.cells.values(), self.whole):
            close_periods(books.engine)
        share(self.books.engine)
        self.bill()

    def bill(self) -> int:
        """Forward the feeds of the cells, then copy what they have closed; returns how much."""
        for books in self.cells.values():
            number_feed(books.engine)
        forward_feed(self.books.engine)
        return copy_billing(self.books.engine)

    def rows(self, view: str, *columns: str, order: str = "1") -> list[dict[str, Any]]:
        """Rows of a view of the front, as its reader sees them."""
        return self.books.rows(view, *columns, order=order)


@contextmanager
def open_front(
    server: PostgresServer, directory: Path, cells: Sequence[str] = CELLS
) -> Iterator[Front]:
    """A front that these cells have joined, each its own database of one server."""
    with ExitStack() as stack:

        def open_books(name: str) -> Books:
            database = stack.enter_context(cloned_database(server))
            books = Books(server, database, directory / name)
            books.directory.mkdir(parents=True)
            stack.callback(books.close)
            return books

        books = open_books("front")
        engine = open_engine(books.url())
        stack.callback(engine.dispose)
        join.make_front(engine)
        by_name = {name: open_books(name) for name in cells}
        for name, cell in by_name.items():
            change_identity_key(cell)
            join.join_cell(engine, name, cell.url(), None)
        yield Front(books, by_name, open_books("whole"), engine)


@contextmanager
def emptied(front: Front, directory: Path) -> Iterator[Front]:
    """The same databases without their rows: many tests share a front that takes long to make."""
    with ExitStack() as stack:

        def empty_books(books: Books) -> Books:
            empty_database(books.server, books.name)
            path = directory / books.name
            path.mkdir()
            empty = Books(books.server, books.name, path, shared_engine=books.engine)
            stack.callback(empty.close)
            return empty

        yield Front(
            empty_books(front.books),
            {name: empty_books(cell) for name, cell in front.cells.items()},
            empty_books(front.whole),
            front.engine,
        )


def change_identity_key(books: Books) -> None:
    """Make books those of another installation: all were cloned from one template."""
    with psycopg.connect(books.url()) as connection:
        connection.execute("UPDATE accounting.installation SET identity_key = sha256(identity_key)")


def call(
    front: Front,
    cell: str,
    user: str,
    at: float,
    number: int,
    *,
    realm: str = "example.org",
    ends: bool = True,
) -> None:
    """A session of an hour and a half with three interims, and a total if it ends."""

    def receive(seconds: float, suffix: str, payload: bytes) -> None:
        name = channel(suffix, user=user, realm=realm, allocation=number)
        front.receive(cell, at + seconds, name, payload)

    local = f"192.0.2.{1 + list(front.cells).index(cell)}:3478"
    receive(0, "status", status_payload("new", 3600, local=local))
    for interim in range(3 if ends else 1):
        seconds = interim * HOUR / 2
        receive(seconds + 10, "traffic", traffic_payload(4096, 400_000 * number, 10, 1_000))
        receive(seconds + 11, "traffic/peer", traffic_payload(10, 1_000, 4096, 400_000 * number))
        receive(seconds + 20, "status", status_payload("refreshed", 3600, local=local))
    if ends:
        receive(1.5 * HOUR, "status", status_payload("deleted"))
        total = traffic_payload(12_300, 1_200_500 * number, 31, 3_100)
        receive(1.5 * HOUR + 0.1, "total_traffic", total)


def database_time(books: Books) -> datetime:
    """The time of the clock of a database."""
    [row] = books.query("SELECT accounting.database_now() AS now")
    now: datetime = row["now"]
    return now
