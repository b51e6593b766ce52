"""examples/invoicer, killed before each of its lines and restarted, bills everything once."""

import sqlite3
import subprocess
import sys
from collections import Counter
from contextlib import closing
from datetime import date
from decimal import ROUND_HALF_UP, Decimal
from pathlib import Path
from typing import Any, Final

import pytest
from hypothesis import given
from hypothesis import strategies as st

from accounting.billing.adjust import adjust, post_manual_adjustment
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
GB: Final = 10**9
NOVEMBER: Final = date(2026, 11, 1)


def receive_session(
    books: Books, at: float, user: str, allocation: int, received: int, source: str = "default"
) -> None:
    allocation_messages = FakeAllocation(books, user=user, allocation=allocation, source=source)
    allocation_messages.new(at)
    allocation_messages.close(at + 100, (1, received, 0, 0), (0, 0, 0, 0))


def bill_two_months(books: Books) -> None:
    """November has two users and is closed without a source; its late usage comes in December."""
    receive_session(books, 0, "alice", 1, 110 * GB)
    receive_session(books, 10, "bob", 2, 3 * GB)
    books.advance_clock(0, source="late")
    books.advance_clock(30 * DAY)
    books.run_jobs()
    close_period(books.engine, "example.org", NOVEMBER, excluded_sources=["late"])
    receive_session(books, 31 * DAY, "alice", 3, 2 * GB)
    receive_session(books, 20, "bob", 4, 4 * GB, source="late")
    for source in ("default", "late"):
        books.advance_clock(62 * DAY, source=source)
    books.run_jobs()
    assert adjust(books.engine) == 1
    assert close_periods(books.engine) == 1
    number_feed(books.engine)


def read_invoices(directory: Path) -> tuple[list[Any], dict[str, str]]:
    with closing(sqlite3.connect(directory / "books.sqlite3")) as database:
        rows = database.execute(
            "SELECT number, realm, period, user_id, description, bytes, cents, entry"
            " FROM invoices JOIN lines USING (number) ORDER BY number, entry, tier"
        ).fetchall()
    return rows, {path.name: path.read_text() for path in sorted(directory.glob("0*"))}


@pytest.mark.parametrize("step", [20, pytest.param(3, marks=pytest.mark.long)])
def test_an_invoicer_killed_before_any_line_bills_everything_once(
    books: Books, tmp_path: Path, step: int
) -> None:
    """Before any, or before each twentieth."""
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
    assert [row[2:4] + row[5:7] for row in rows if row[3] == "alice"] == [
        ("2026-11-01", "alice", GB // 10, 0),
        ("2026-11-01", "alice", 99 * GB + 9 * GB // 10, 3996),
        ("2026-11-01", "alice", 10 * GB, 300),
        ("2026-12-01", "alice", GB // 10, 0),
        ("2026-12-01", "alice", 19 * GB // 10, 76),
    ]
    # Late usage goes on in the tiers of the period that it is of.
    assert [row[2:7] for row in rows if row[3] == "bob"] == [
        ("2026-11-01", "bob", "usage of 2026-11-01", GB // 10, 0),
        ("2026-11-01", "bob", "usage of 2026-11-01", 29 * GB // 10, 116),
        ("2026-12-01", "bob", "late usage of 2026-11-01", 4 * GB, 160),
    ]
    assert sorted({row[0] for row in rows}) == [1, 2, 3, 4]
    assert list(files) == [f"00000{n}.{form}" for n in (1, 2, 3, 4) for form in ("html", "txt")]
    for run in runs:
        assert read_invoices(run) == (rows, files), run.name


def test_an_invoicer_bills_the_difference_when_a_restored_period_closes_otherwise(
    books: Books, tmp_path: Path
) -> None:
    """November was billed without bob's late usage; from the spool it closes with it."""

    def bill() -> list[Any]:
        number_feed(books.engine)
        load_module(str(INVOICER)).run(books.url(READER), tmp_path, follow=False)
        bytes_billed = Counter[tuple[Any, ...]]()
        for row in read_invoices(tmp_path)[0]:
            bytes_billed[row[0], *row[2:5]] += row[5]
        return [(*key[1:], count) for key, count in bytes_billed.items()]

    receive_session(books, 0, "alice", 1, 10 * GB)
    receive_session(books, 10, "bob", 2, 3 * GB)
    books.advance_clock(0, source="late")
    books.advance_clock(30 * DAY)
    books.run_jobs()
    back_up(books)
    close_period(books.engine, "example.org", NOVEMBER, excluded_sources=["late"])
    first = [
        ("2026-11-01", "alice", "usage of 2026-11-01", 10 * GB),
        ("2026-11-01", "bob", "usage of 2026-11-01", 3 * GB),
    ]
    assert sorted(bill()) == first
    restore_database(books)
    receive_session(books, 20, "bob", 4, 4 * GB, source="late")
    books.advance_clock(30 * DAY, source="late")
    books.run_jobs()
    assert close_periods(books.engine) == 1
    billed = [*first, ("2026-11-01", "bob", "usage of 2026-11-01", 4 * GB)]
    assert sorted(bill()) == sorted(billed)
    receive_session(books, 31 * DAY, "alice", 3, 2 * GB)
    for source in ("default", "late"):
        books.advance_clock(62 * DAY, source=source)
    books.run_jobs()
    assert close_periods(books.engine) == 1
    assert sorted(bill()) == sorted(
        [*billed, ("2026-12-01", "alice", "usage of 2026-12-01", 2 * GB)]
    )


AMOUNTS: Final = st.integers(-3 * GB, 1500 * GB)


@given(st.lists(AMOUNTS, min_size=1, max_size=6))
def test_any_portions_of_a_periods_bytes_cost_as_much_as_their_sum(portions: list[int]) -> None:
    """Rounded once, whatever the tiers, the order, and whether they go up or down."""
    invoicer = load_module(str(INVOICER))
    position, cents, count = 0, 0, 0
    for portion in portions:
        for _, part, price in invoicer.rate(position, position + portion):
            cents += price
            count += part
        position += portion
    assert count == sum(portions)
    used = Decimal(max(sum(portions), 0)) / GB
    tiers = (("0.1", "100", "0.4"), ("100", "1000", "0.3"), ("1000", "Infinity", "0.2"))
    price = Decimal(0)
    for start, end, price_per_gb in tiers:
        price += max(min(used, Decimal(end)) - Decimal(start), Decimal(0)) * Decimal(price_per_gb)
    assert cents == int((price * 100).quantize(Decimal(1), ROUND_HALF_UP))


def test_an_invoice_is_a_text_and_a_page_to_print(books: Books, tmp_path: Path) -> None:
    """A credit of November is priced in November's tiers; names are text on the page."""
    name = "<b>&amy"
    receive_session(books, 0, name, 1, 101 * GB)
    books.advance_clock(30 * DAY)
    books.run_jobs()
    assert close_periods(books.engine) == 1
    post_manual_adjustment(
        books.engine, "example.org", NOVEMBER, name, {"received_bytes": -2 * GB},
        reason="<i>sorry", author="carol",
    )  # fmt: skip
    books.advance_clock(62 * DAY)
    books.run_jobs()
    assert close_periods(books.engine) == 1
    number_feed(books.engine)
    load_module(str(INVOICER)).run(books.url(READER), tmp_path, follow=False)
    _, files = read_invoices(tmp_path)
    assert list(files) == ["000001.html", "000001.txt", "000002.html", "000002.txt"]
    assert [line.split() for line in files["000001.txt"].splitlines()[3:]] == [
        ["usage", "of", "2026-11-01", "0.100000000", "GB", "0", "EUR/GB", "0.00"],
        ["usage", "of", "2026-11-01", "99.900000000", "GB", "0.40", "EUR/GB", "39.96"],
        ["usage", "of", "2026-11-01", "1.000000000", "GB", "0.30", "EUR/GB", "0.30"],
        ["total", "EUR", "40.26"],
    ]
    credit = files["000002.txt"].splitlines()[3:]
    assert [line.split()[-5:] for line in credit[:2]] == [
        ["-1.000000000", "GB", "0.40", "EUR/GB", "-0.40"],
        ["-1.000000000", "GB", "0.30", "EUR/GB", "-0.30"],
    ]
    assert credit[2].split() == ["total", "EUR", "-0.70"]
    page = files["000002.html"]
    assert "&lt;b&gt;&amp;amy in example.org, period 2026-12-01" in page
    assert "correction of 2026-11-01: &lt;i&gt;sorry" in page
    assert "<b>" not in page
    assert "<i>" not in page
    assert "@media print" in page
    assert '<td class="number">-0.70</td></tr></tfoot>' in page
