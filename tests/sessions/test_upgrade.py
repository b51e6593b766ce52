"""What a former version left is taken in: a full spool, unsettled reports, waiting deltas."""

import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import Final

import psycopg
import pytest

from accounting.audit.verify import verify
from accounting.capture.spool import upgrade
from accounting.ops.registry import JOBS
from accounting.ops.scheduler import run_job
from tests.support.books import Books
from tests.support.coturn_messages import OTHER_SERVER_ADDRESS, FakeAllocation
from tests.support.scenario_player import all_rows
from tests.support.truncate import empty_database

OLD_SPOOLS: Final = Path(__file__).parents[1] / "data" / "spools"
SETTLED_TABLES: Final = (
    "sessions",
    "session_usage",
    "usage_deltas",
    "server_deltas",
    "peak_deltas",
    "relay_threads",
    "feed_outbox",
    "settle_watermarks",
)
HALF, WHOLE = (5, 500, 4, 400), (10, 1000, 8, 800)
NOTHING: Final = (0, 0, 0, 0)


def receive_first(books: Books) -> None:
    """Sessions that stay alive, one that expires, and unauthenticated traffic."""
    for user in ("closing", "shared", "expired"):
        FakeAllocation(books, user=user).new(0, 600 if user == "expired" else 7200)
        FakeAllocation(books, user=user).interim(10, *HALF)
    FakeAllocation(books, user="unauthenticated").interim(40, *HALF)
    books.advance_clock(700)


def receive_second(books: Books) -> None:
    """An end, a reopened session, a second server on a key, and a session that begins."""
    FakeAllocation(books, user="expired").interim(710, *HALF)
    FakeAllocation(books, user="shared", server_address=OTHER_SERVER_ADDRESS).new(730, 600)
    FakeAllocation(books, user="expired").close(740, WHOLE, NOTHING)
    FakeAllocation(books, user="closing").close(4000, WHOLE, HALF)
    FakeAllocation(books, user="unauthenticated").new(4020)
    books.advance_clock(4100)


def receive_third(books: Books) -> None:
    FakeAllocation(books, user="shared").interim(4200, *HALF)
    FakeAllocation(books, user="later").new(4300)
    books.advance_clock(20_000)


def execute(books: Books, *statements: str) -> None:
    with psycopg.connect(books.url()) as connection:
        for statement in statements:
            connection.execute(statement.encode())


def unsettle_second(books: Books) -> None:
    """The books as if what :func:`receive_second` receives had been loaded and not settled."""
    books.load()
    books.rollup()
    execute(
        books,
        "CREATE SCHEMA before",
        *(f"CREATE TABLE before.{table} AS TABLE accounting.{table}" for table in SETTLED_TABLES),
    )
    receive_second(books)
    books.load()
    for table in SETTLED_TABLES:
        execute(
            books,
            f"DELETE FROM accounting.{table}",  # noqa: S608
            f"INSERT INTO accounting.{table} OVERRIDING SYSTEM VALUE SELECT * FROM before.{table}",  # noqa: S608
        )
    execute(books, "DROP SCHEMA before CASCADE")


def load_again(books: Books) -> None:
    books.load()


def settle_by_hand(books: Books) -> None:
    run_job(JOBS["settle"], books.engine)


@pytest.mark.parametrize("take_in", [load_again, settle_by_hand])
def test_reports_that_were_loaded_and_not_settled_are_taken_in(
    books: Books, tmp_path: Path, take_in: Callable[[Books], None]
) -> None:
    for receive in (receive_first, receive_second, receive_third):
        receive(books)
        books.run_jobs()
    right = all_rows(books)
    empty_database(books.server, books.name)
    books = Books(books.server, books.name, tmp_path / "again", shared_engine=books.engine)
    receive_first(books)
    unsettle_second(books)
    books._loaders.clear()  # another process
    receive_third(books)
    take_in(books)
    books.load()
    assert run_job(JOBS["settle"], books.engine) == 0
    books.rollup()
    assert all_rows(books) == right
    assert list(verify(books.engine)) == []
    books.close()


def write_old_spool(path: Path, version: int, books: Books) -> None:
    """The spool of these books, as a former version would have written it."""
    rows = [row[1:] for row in books.spool().read_messages(0, 0, 1000)]
    state = books.spool().state()
    path.parent.mkdir(parents=True)
    with sqlite3.connect(path) as connection:
        connection.executescript((OLD_SPOOLS / f"format_{version}.sql").read_text())
        connection.executescript(
            "DELETE FROM messages; DELETE FROM gaps; DELETE FROM sightings;"
            " DELETE FROM epochs WHERE epoch > 1"
        )
        connection.execute(
            "UPDATE spool SET source = 'default', captured_from = ?, captured_until = ?,"
            " captured_epoch = 1, captured_position = ?, last_received_at = ?, loaded_epoch = 1,"
            " loaded_position = 0, pruned_epoch = 1, pruned_position = 0, pruned_received_at = 0,"
            " mode = 'subscribe', replication_id = NULL, stream_database = NULL",
            [rows[0][1], state.captured_until, state.captured_position, state.last_received_at],
        )
        connection.executemany("INSERT INTO messages VALUES (1, ?, ?, 0, 0, ?, ?)", rows)
    connection.close()


@pytest.mark.parametrize("version", upgrade.CONVERTIBLE)
def test_a_full_spool_of_a_former_format_is_loaded(
    books: Books, tmp_path: Path, version: int
) -> None:
    for receive in (receive_first, receive_second, receive_third):
        receive(books)
    books.run_jobs()
    right = all_rows(books)
    write_old_spool(tmp_path / "again" / "default.sqlite3", version, books)
    empty_database(books.server, books.name)
    again = Books(books.server, books.name, tmp_path / "again", shared_engine=books.engine)
    again.spool()
    again.run_jobs()
    assert all_rows(again) == right
    again.close()
