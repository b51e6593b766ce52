"""examples/invoicer, killed before each of its lines and restarted, bills everything once."""

import sqlite3
import subprocess
import sys
from contextlib import closing
from datetime import date
from pathlib import Path
from typing import Any, Final

import pytest

from accounting.billing.adjust import adjust
from accounting.billing.close_period import close_period, close_periods
from accounting.feed.number_feed import number_feed
from tests.support.books import READER, Books
from tests.support.coturn_messages import FakeAllocation
from tests.support.killed_invoicer import load_module
from tests.support.restored_database import back_up, restore_database

ROOT: Final = Path(__file__).resolve().parents[2]
INVOICER: Final = ROOT / "examples/invoicer/invoicer.py"
KILLER_MODULE: Final = "tests.support.killed_invoicer"
DAY: Final = 86_400.0
GIB: Final = 2**30
NOVEMBER: Final = date(2026, 11, 1)


def receive_session(
    books: Books, at: float, user: str, allocation: int, received: int, source: str = "default"
) -> None:
    allocation_messages = FakeAllocation(books, user=user, allocation=allocation, source=source)
    allocation_messages.new(at)
    allocation_messages.close(at + 100, (1, received, 0, 0), (0, 0, 0, 0))


def bill_two_months(books: Books) -> None:
    """November has two users and is closed without a source; its late usage comes in December."""
    receive_session(books, 0, "alice", 1, 10 * GIB)
    receive_session(books, 10, "bob", 2, 3 * GIB)
    books.advance_clock(0, source="late")
    books.advance_clock(30 * DAY)
    books.run_jobs()
    close_period(books.engine, "example.org", NOVEMBER, excluded_sources=["late"])
    receive_session(books, 31 * DAY, "alice", 3, 2 * GIB)
    receive_session(books, 20, "bob", 4, 4 * GIB, source="late")
    for source in ("default", "late"):
        books.advance_clock(62 * DAY, source=source)
    books.run_jobs()
    assert adjust(books.engine) == 1
    assert close_periods(books.engine) == 1
    number_feed(books.engine)


def read_invoices(directory: Path) -> tuple[list[Any], dict[str, str]]:
    with closing(sqlite3.connect(directory / "books.sqlite3")) as database:
        rows = database.execute(
            "SELECT number, realm, period, user_id, description, bytes, cents, line"
            " FROM invoices JOIN lines USING (number) ORDER BY number, description"
        ).fetchall()
    return rows, {path.name: path.read_text() for path in sorted(directory.glob("*.txt"))}


@pytest.mark.parametrize("step", [5, pytest.param(1, marks=pytest.mark.long)])
def test_an_invoicer_killed_before_any_line_bills_everything_once(
    books: Books, tmp_path: Path, step: int
) -> None:
    """Before any, or before each fifth."""
    bill_two_months(books)
    killer = subprocess.run(
        [
            sys.executable,
            "-m",
            KILLER_MODULE,
            str(INVOICER),
            books.url(READER),
            str(tmp_path / "runs"),
            books.url(),
            str(step),
        ],
        capture_output=True,
        text=True,
        timeout=110,
        check=False,
        cwd=ROOT,
    )
    assert killer.returncode == 0, killer.stderr
    count, _, cursors = killer.stdout.partition(" ")
    kill_count = int(count)
    assert kill_count > 100 // step
    assert cursors == f"{{{len(books.rows('feed'))}}}\n"
    runs = sorted((tmp_path / "runs").iterdir())
    assert len(runs) == kill_count + 1
    rows, files = read_invoices(runs[-1])  # the run that was not killed
    assert {row[2:4] + row[5:7] for row in rows} == {
        ("2026-11-01", "alice", 10 * GIB, 45),
        ("2026-11-01", "bob", 3 * GIB, 14),
        ("2026-12-01", "alice", 2 * GIB, 9),
        ("2026-12-01", "bob", 4 * GIB, 18),
    }
    assert [row[0] for row in rows] == [1, 2, 3, 4]
    assert list(files) == ["000001.txt", "000002.txt", "000003.txt", "000004.txt"]
    for run in runs:
        assert read_invoices(run) == (rows, files), run.name


def test_an_invoicer_bills_the_difference_when_a_restored_period_closes_otherwise(
    books: Books, tmp_path: Path
) -> None:
    """November was billed without bob's late usage; from the spool it closes with it."""

    def bill() -> list[Any]:
        number_feed(books.engine)
        load_module(str(INVOICER)).run(books.url(READER), tmp_path, follow=False)
        return [row[2:6] for row in read_invoices(tmp_path)[0]]

    receive_session(books, 0, "alice", 1, 10 * GIB)
    receive_session(books, 10, "bob", 2, 3 * GIB)
    books.advance_clock(0, source="late")
    books.advance_clock(30 * DAY)
    books.run_jobs()
    back_up(books)
    close_period(books.engine, "example.org", NOVEMBER, excluded_sources=["late"])
    first = [
        ("2026-11-01", "alice", "usage of 2026-11-01", 10 * GIB),
        ("2026-11-01", "bob", "usage of 2026-11-01", 3 * GIB),
    ]
    assert sorted(bill()) == first
    restore_database(books)
    receive_session(books, 20, "bob", 4, 4 * GIB, source="late")
    books.advance_clock(30 * DAY, source="late")
    books.run_jobs()
    assert close_periods(books.engine) == 1
    billed = [*first, ("2026-11-01", "bob", "usage of 2026-11-01", 4 * GIB)]
    assert sorted(bill()) == sorted(billed)
    receive_session(books, 31 * DAY, "alice", 3, 2 * GIB)
    for source in ("default", "late"):
        books.advance_clock(62 * DAY, source=source)
    books.run_jobs()
    assert close_periods(books.engine) == 1
    assert sorted(bill()) == sorted(
        [*billed, ("2026-12-01", "alice", "usage of 2026-12-01", 2 * GIB)]
    )
