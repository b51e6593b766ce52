"""A front with cells for tests, beside one database that holds all of it.

with open_front(server, directory) as front:
    front.receive("north", 12.5, b"turn/realm/r/user/u/allocation/.../status", b"new lifetime=600")
    front.run_jobs()
    assert front.rows("user_usage_hourly") == front.whole.rows("user_usage_hourly")

What a cell receives, the whole receives too, from a source of the cell's name.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, Final

import psycopg
from psycopg.sql import SQL, Identifier, Literal

from accounting.billing.close_period import close_periods
from accounting.db.engine import Engine, open_engine
from accounting.feed.number_feed import number_feed
from accounting.front import join
from accounting.front.billing.copy_billing import copy_billing
from accounting.front.feed.forward_feed import forward_feed
from accounting.front.shared.share import share
from tests.support.books import (
    TEMPLATE,
    Books,
    BooksTemplate,
    channel,
    clone_database,
    copied_books,
    engine_with_shared_cache,
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

    def follow_clock(self, url: str | None = None) -> None:
        """Set the clock of the front's database, or another one, to that of the whole."""
        [clock] = self.whole.query("SELECT * FROM test_clock.clock")
        assignments = ", ".join(f"{name} = %({name})s" for name in clock)
        with psycopg.connect(url or self.books.url()) as connection:
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


@dataclass(frozen=True, slots=True)
class FrontTemplate:
    """The databases and spools of a front, of its cells and of the whole, to copy."""

    front: BooksTemplate
    cells: dict[str, BooksTemplate]
    whole: BooksTemplate


@contextmanager
def open_front(
    server: PostgresServer, directory: Path, cells: Sequence[str] = CELLS
) -> Iterator[Front]:
    """A front that these cells have joined, each its own database of one server."""
    directory.mkdir(parents=True, exist_ok=True)
    with copied_front(server, _empty_template(server, directory, cells), directory) as front:
        yield front


@contextmanager
def front_template(
    server: PostgresServer,
    directory: Path,
    fill: Callable[[Front], object],
    cells: Sequence[str] = CELLS,
) -> Iterator[FrontTemplate]:
    """A template of what ``fill`` makes of an empty front."""
    with open_front(server, directory, cells) as front:
        fill(front)
        front.engine.dispose()
        for books in (front.books, *front.cells.values(), front.whole):
            books.close()
        yield FrontTemplate(
            _template_of(front.books),
            {name: _template_of(cell) for name, cell in front.cells.items()},
            _template_of(front.whole),
        )


@contextmanager
def copied_front(
    server: PostgresServer, template: FrontTemplate, directory: Path
) -> Iterator[Front]:
    """A copy of a front, which reads the copies of its cells."""
    with ExitStack() as stack:

        def copy(name: str, of: BooksTemplate) -> Books:
            return stack.enter_context(copied_books(server, of, directory / name))

        books = copy("front", template.front)
        cells = {name: copy(name, cell) for name, cell in template.cells.items()}
        with psycopg.connect(books.url()) as connection:
            grant = SQL("GRANT CREATE ON DATABASE {} TO turn_accounting_owner")
            connection.execute(grant.format(Identifier(books.name)))  # no copy has the rights
            for name, cell in cells.items():
                connection.execute(
                    SQL("ALTER SERVER {} OPTIONS (SET dbname {})").format(
                        Identifier(f"cell_{name}"), Literal(cell.name)
                    )
                )
                connection.execute(
                    "UPDATE accounting.cells SET url = %s WHERE cell = %s", [cell.url(), name]
                )
        engine = engine_with_shared_cache(books.url())
        stack.callback(engine.dispose)
        yield Front(books, cells, copy("whole", template.whole), engine)


def _template_of(books: Books) -> BooksTemplate:
    return BooksTemplate(books.name, books.directory)


def _empty_template(server: PostgresServer, directory: Path, cells: Sequence[str]) -> FrontTemplate:
    """A front that these cells have joined, which is made once for each server."""
    name = "_".join(("front", *cells))
    nothing = directory / "nothing"
    nothing.mkdir(exist_ok=True)
    template = FrontTemplate(
        BooksTemplate(name, nothing),
        {cell: BooksTemplate(f"{name}_{cell}", nothing) for cell in cells},
        BooksTemplate(TEMPLATE, nothing),
    )
    with psycopg.connect(server.url(), autocommit=True) as connection:
        if connection.execute("SELECT FROM pg_database WHERE datname = %s", [name]).rowcount:
            return template
    unfinished = f"{name}_unfinished"
    for database in (unfinished, *(cell.name for cell in template.cells.values())):
        clone_database(server, database)
    engine = open_engine(server.url(database=unfinished))
    join.make_front(engine)
    for cell, empty in template.cells.items():
        with closing(Books(server, empty.name, nothing)) as books:
            change_identity_key(books)
            join.join_cell(engine, cell, books.url(), None)
    engine.dispose()
    with psycopg.connect(server.url(), autocommit=True) as connection:
        rename = SQL("ALTER DATABASE {} RENAME TO {}")
        connection.execute(rename.format(Identifier(unfinished), Identifier(name)))
    return template


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
