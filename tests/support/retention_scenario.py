"""Two days of November 2026 with sessions across midnight, for the tests of dropped reports."""

from collections.abc import Sequence
from typing import Any, Final

from accounting.billing.close_period import close_periods
from tests.support.books import Books, channel
from tests.support.coturn_messages import FakeAllocation
from tests.support.scenario_player import SOURCES, Step, all_rows

DAY: Final = 86_400
MIDNIGHT_SECONDS: Final = DAY / 2
"""The first midnight; the books start at noon of 2 November."""
DECEMBER_SECONDS: Final = 28.5 * DAY
CLOSING_SECONDS: Final = DECEMBER_SECONDS + 10 * DAY
DAYS_TO_DROP_ONE: Final = 38
"""Retention in days that drops the reports of 2 November and keeps those of 3 November."""
DAYS_TO_DROP_ALL: Final = 30


def receive_two_days(books: Books) -> None:
    """Receive sessions of 2 and 3 November.

    Alice has a session within the first day, one across midnight, and one that expires around
    midnight and reopens; bob has one on the second day. One user never authenticates.
    """
    alice = FakeAllocation(books)
    alice.new(0)
    alice.interim(10, 1, 100, 2, 200)
    FakeAllocation(books, user="stranger", allocation=3).interim(40, 9, 9, 9, 9)
    alice.close(4000, (3, 300, 2, 150), (0, 0, 0, 0))
    across_midnight = FakeAllocation(books, allocation=2)
    across_midnight.new(MIDNIGHT_SECONDS - 300)
    across_midnight.interim(MIDNIGHT_SECONDS - 100, 5, 500, 5, 500)
    reopened = FakeAllocation(books, allocation=4)
    reopened.new(MIDNIGHT_SECONDS - 50)
    reopened.interim(MIDNIGHT_SECONDS - 40, 1, 1, 1, 1)
    across_midnight.interim(MIDNIGHT_SECONDS + 100, 7, 700, 7, 700)
    across_midnight.close(MIDNIGHT_SECONDS + 200, (13, 1300, 12, 1200), (0, 0, 0, 0))
    reopened.interim(MIDNIGHT_SECONDS + 1000, 2, 2, 2, 2)
    bob = FakeAllocation(books, user="bob", allocation=5)
    bob.new(DAY)
    bob.interim(DAY + 10, 1, 10, 1, 10)
    bob.close(DAY + 20, (1, 10, 1, 10), (0, 0, 0, 0))
    reopened.close(2 * DAY, (4, 4, 3, 3), (0, 0, 0, 0))


def run_jobs_and_close(books: Books, until: float = CLOSING_SECONDS) -> None:
    books.advance_clock(until)
    books.run_jobs()
    close_periods(books.engine)


def close_two_days(books: Books) -> None:
    """Receive the two days, load them, and close their period."""
    receive_two_days(books)
    run_jobs_and_close(books)


def without_reports(books: Books) -> dict[str, Any]:
    """All rows of the views that do not show single reports."""
    return {
        name: rows
        for name, rows in all_rows(books).items()
        if name not in {"allocation_events", "traffic_reports"}
    }


def kept_days(books: Books) -> list[int]:
    """The days of the month that have reports."""
    rows = books.query(
        "SELECT DISTINCT extract(day FROM received_at AT TIME ZONE 'UTC') AS day"
        " FROM accounting.reports ORDER BY 1"
    )
    return [int(row["day"]) for row in rows]


def receive_steps(books: Books, steps: Sequence[Step], begin: float) -> None:
    """Receive random steps, of several sources."""
    now = begin
    for source in SOURCES:
        books.advance_clock(now, source=source)
    for step in steps:
        now += step.wait
        allocation = step.allocation
        if step.gap_seconds:
            books.advance_clock(now, source=allocation.source)
            gap = books.spool(allocation.source).open_gap(books.micros_at(now), "connection_lost")
            now += step.gap_seconds
            books.spool(allocation.source).close_gap(gap, books.micros_at(now))
            now += 0.001
        name = channel(
            step.suffix,
            user=allocation.user,
            realm=allocation.realm,
            allocation=allocation.allocation,
        )
        books.receive(
            now, name, step.payload, source=allocation.source, database=allocation.database
        )


def run_jobs_and_close_all(books: Books, until: float) -> None:
    """As :func:`run_jobs_and_close`, for all sources of random steps."""
    for source in SOURCES:
        books.advance_clock(until, source=source)
    books.run_jobs()
    close_periods(books.engine)
