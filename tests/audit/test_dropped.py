"""Whatever was heard, in whatever order: with reports dropped the books go on, and prove true.

And a kill at any moment of dropping, rebuilding or erasing leaves nothing half done.
"""

from collections.abc import Sequence
from typing import Any, Final

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from accounting.audit.rebuild import rebuild
from accounting.audit.retention import retain
from accounting.audit.verify import verify
from accounting.billing.close_period import close_periods
from accounting.identities.erase import erase
from tests.support.books import Books, channel, cloned_database
from tests.support.corruptions import CORRUPTIONS, corrupt
from tests.support.crash_injection import CrashInjector, crashing_engine, run_through_crashes
from tests.support.retention_scenario import (
    DAYS_TO_DROP_ALL,
    kept_days,
    receive_two_days,
    run_jobs_and_close,
    without_reports,
)
from tests.support.scenario_player import SOURCES, STEPS, Step
from tests.support.servers import PostgresServer

DAY: Final = 86_400
LATER: Final = 40 * DAY


def hear(books: Books, steps: Sequence[Step], begin: float) -> None:
    now = begin
    for source in SOURCES:
        books.advance_clock(now, source=source)
    for step in steps:
        now += step.wait
        of = step.allocation
        if step.gap_seconds:
            books.advance_clock(now, source=of.source)
            gap = books.spool(of.source).open_gap(books.micros_at(now), "connection_lost")
            now += step.gap_seconds
            books.spool(of.source).close_gap(gap, books.micros_at(now))
            now += 0.001
        name = channel(step.suffix, user=of.user, realm=of.realm, allocation=of.allocation)
        books.receive(now, name, step.payload, source=of.source, database=of.database)


@settings(max_examples=3, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(STEPS, STEPS, st.integers(1, 45))
def test_books_with_dropped_reports_go_on_as_if_they_were_there(
    postgres_server: PostgresServer,
    tmp_path_factory: pytest.TempPathFactory,
    early: list[Step],
    later: list[Step],
    days: int,
) -> None:
    """What comes later reopens sessions, adds totals, and takes up ids that are known."""
    shown = []
    for drops in (False, True):
        with cloned_database(postgres_server) as name:
            books = Books(postgres_server, name, tmp_path_factory.mktemp("books"))
            hear(books, early, 0)
            finish(books, LATER)
            if drops:
                retain(books.engine, days)
            hear(books, later, LATER)
            finish(books, LATER + 100 * DAY)
            if drops:
                assert list(verify(books.engine)) == []
                retain(books.engine, days)
                assert list(rebuild(books.engine, "to be sure")) == []
            shown.append(without_reports(books))
            books.close()
    assert shown[0] == shown[1]


def finish(books: Books, until: float) -> None:
    for source in SOURCES:
        books.advance_clock(until, source=source)
    books.run_jobs()
    close_periods(books.engine)


RETAINED: Final = (
    "carried_sessions",
    "dropped_positions",
    "finalized_sessions",
    "proofs",
    "usage_deltas",
)


def test_killed_at_any_moment_of_dropping_and_run_again_nothing_is_lost(books: Books) -> None:
    receive_two_days(books)
    run_jobs_and_close(books)
    before = without_reports(books)
    assert list(verify(books.engine)) == []
    death = CrashInjector()
    with crashing_engine(books, death) as engine:
        deaths = run_through_crashes(
            books, death, lambda: retain(engine, DAYS_TO_DROP_ALL), RETAINED, step=7
        )
    assert deaths > 10
    assert kept_days(books) == []
    assert without_reports(books) == before
    assert list(verify(books.engine)) == []
    dropped = books.query(
        "SELECT day, sum(reports) AS reports FROM accounting.dropped_reports GROUP BY 1 ORDER BY 1"
    )
    assert [int(row["reports"]) for row in dropped] == [10, 10, 3]


def test_killed_at_any_moment_of_a_rebuild_and_run_again_the_books_are_right(
    right_books: Books,
) -> None:
    before = without_reports(right_books)
    for name in ("a lost session", "a month that counted twice", "a lost bucket"):
        corrupt(right_books, CORRUPTIONS[name][0])
    death = CrashInjector()
    with crashing_engine(right_books, death) as engine:
        deaths = run_through_crashes(
            right_books,
            death,
            lambda: list(rebuild(engine, "a test", "example.org")),
            ("sessions", "session_usage", "user_usage_monthly", "buckets", "rebuilds"),
            step=11,
        )
    assert deaths > 10
    assert {one.realm for one in rebuild(right_books.engine, "the other realm")} == {"kolkata"}
    assert without_reports(right_books) == before
    assert list(verify(right_books.engine)) == []


def test_killed_at_any_moment_of_an_erasure_a_name_is_there_or_gone(right_books: Books) -> None:
    death = CrashInjector()

    def erase_once(engine: Any) -> None:
        (row,) = right_books.query(
            "SELECT count(*) AS names FROM accounting.users WHERE user_id = 'alice'"
            " AND realm_id = (SELECT realm_id FROM accounting.realms WHERE realm = 'example.org')"
        )
        if row["names"]:
            erase(engine, "example.org", "alice")

    with crashing_engine(right_books, death) as engine:
        deaths = run_through_crashes(
            right_books,
            death,
            lambda: erase_once(engine),
            ("users", "usernames", "rejected_messages"),
        )
    assert deaths > 5
    assert {
        row["user_id"] for row in right_books.rows("sessions") if row["realm"] == "example.org"
    } == {""}
