"""Scenarios with a closed November 2026, for the tests of statements and adjustments."""

from datetime import date
from typing import Final

from accounting.billing.adjust import adjust, post_manual_adjustment
from accounting.billing.close_period import close_period, close_periods
from tests.support.books import Books
from tests.support.coturn_messages import FakeAllocation

DAY: Final = 86_400.0
NOVEMBER: Final = date(2026, 11, 1)
NOVEMBER_END_SECONDS: Final = 29 * DAY - 12 * 3600
"""The books start at noon of 2 November."""
DECEMBER: Final = date(2026, 12, 1)


def receive_november(books: Books, source: str = "default") -> None:
    """Receive an exact session of alice and, a day later, an estimated one of bob."""
    alice = FakeAllocation(books, source=source)
    alice.new(0)
    alice.interim(10, 1, 100, 2, 200)
    alice.close(100, (1, 100, 2, 200), (0, 0, 0, 0))
    bob = FakeAllocation(books, source=source, user="bob", allocation=2)
    bob.new(DAY)
    bob.interim(DAY + 60, 3, 300, 4, 400)
    bob.close(DAY + 90, (5, 500, 6, 600), (0, 0, 0, 0))


def close_november(books: Books) -> None:
    """Receive November, run all jobs and close the period."""
    receive_november(books)
    books.advance_clock(NOVEMBER_END_SECONDS + 61)
    books.run_jobs()
    assert close_periods(books.engine) == 1


def receive_late_source(books: Books) -> None:
    """Receive sessions of November from a source that the closed period excludes."""
    bob = FakeAllocation(books, user="bob", allocation=7, source="late")
    bob.new(5 * DAY)
    bob.interim(5 * DAY + 10, 7, 700, 8, 800)
    bob.close(5 * DAY + 40, (7, 700, 8, 800), (0, 0, 0, 0))
    carol = FakeAllocation(books, user="carol", allocation=8, source="late")
    carol.new(6 * DAY)
    carol.interim(6 * DAY + 10, 1, 10, 0, 0)
    books.advance_clock(NOVEMBER_END_SECONDS + 61, source="late")


def close_november_without_late_source(books: Books) -> None:
    """Close November while the source ``late`` has captured nothing of it."""
    receive_november(books)
    books.advance_clock(0, source="late")
    books.advance_clock(NOVEMBER_END_SECONDS + 61)
    books.run_jobs()
    close_period(books.engine, "example.org", NOVEMBER, excluded_sources=["late"])


def credit_test_call(books: Books) -> None:
    """Credit bob for a test call of November."""
    post_manual_adjustment(
        books.engine,
        "example.org",
        NOVEMBER,
        "bob",
        {"sent_bytes": -600},
        reason="a test call",
        author="carol",
    )


def close_and_adjust_november(books: Books) -> None:
    """Close November, then load a source that was behind, and adjust for it.

    Alice has a session with lost interims, one that expired and reopened, one across the end of
    the month and one from the source that was behind; bob has one session without traffic.
    """
    estimated = FakeAllocation(books)
    estimated.new(0)
    estimated.interim(10, 1, 100, 2, 200)
    estimated.close(4000, (3, 300, 2, 150), (0, 0, 0, 0))
    reopened = FakeAllocation(books, allocation=2)
    reopened.new(5000)
    reopened.interim(5010, 1, 1, 1, 1)
    reopened.interim(9000, 5, 500, 5, 500)
    reopened.close(9100, (7, 600, 6, 501), (0, 0, 0, 0))
    FakeAllocation(books, user="bob", allocation=3).new(9200)
    across_border = FakeAllocation(books, allocation=4)
    across_border.new(29 * DAY - 100_000, 200_000)
    across_border.interim(29 * DAY - 99_000, 9, 9, 9, 9)
    across_border.interim(29 * DAY - 1, 7, 7, 7, 7)
    late = FakeAllocation(books, allocation=5, source="behind")
    late.new(20)
    late.interim(30, 4, 40, 4, 40)
    books.advance_clock(40 * DAY)
    books.load()
    books.settle()
    books.rollup()
    close_period(books.engine, "example.org", NOVEMBER)
    books.advance_clock(40 * DAY, source="behind")
    books.run_jobs()
    adjust(books.engine)
