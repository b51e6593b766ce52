"""Dropped reports change no later result; dropping, rebuilding and erasing survive any crash."""

from collections.abc import Sequence
from typing import Any, Final

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from accounting.audit.rebuild import rebuild
from accounting.audit.retention import expired_days, retain
from accounting.audit.verify import verify
from accounting.identities.erase import erase
from tests.support.books import (
    Books,
    cloned_database,
    status_payload,
    traffic_payload,
)
from tests.support.corruptions import CORRUPTIONS, corrupt
from tests.support.crash_injection import CrashInjector, crashing_engine, run_through_crashes
from tests.support.retention_scenario import (
    DAYS_TO_DROP_ALL,
    kept_days,
    receive_steps,
    receive_two_days,
    run_jobs_and_close,
    run_jobs_and_close_all,
    without_reports,
)
from tests.support.scenario_player import ALLOCATIONS, STEPS, Step
from tests.support.servers import PostgresServer

DAY: Final = 86_400
LATER: Final = 40 * DAY


ALICE: Final = ALLOCATIONS[0]
ONLY_UNCONFIRMED_USAGE: Final = (
    Step(wait=0, allocation=ALICE, suffix="traffic", payload=traffic_payload(0, 0, 1000, 0)),
    Step(wait=90_000, allocation=ALICE, suffix="status", payload=status_payload("new", 600)),
    Step(wait=1, allocation=ALICE, suffix="traffic", payload=traffic_payload(1, 1, 1, 1)),
)
"""A day that has only usage that is not billed, in a month with usage that is."""


@pytest.mark.parametrize("examples", [1, pytest.param(3, marks=pytest.mark.long)])
def test_later_evidence_gives_the_same_books_with_and_without_dropped_reports(
    postgres_server: PostgresServer, tmp_path_factory: pytest.TempPathFactory, examples: int
) -> None:
    """The later evidence reopens sessions, adds totals, and uses allocation ids again."""

    @settings(max_examples=examples, suppress_health_check=[HealthCheck.too_slow])
    @given(STEPS, STEPS, st.integers(1, 45))
    @example(ONLY_UNCONFIRMED_USAGE, (), 15)
    def check(early: Sequence[Step], later: Sequence[Step], days: int) -> None:
        results = []
        for drop in (False, True):
            with cloned_database(postgres_server) as name:
                books = Books(postgres_server, name, tmp_path_factory.mktemp("books"))
                receive_steps(books, early, 0)
                run_jobs_and_close_all(books, LATER)
                if drop:
                    drop_what_the_dry_run_says(books, days)
                receive_steps(books, later, LATER)
                run_jobs_and_close_all(books, LATER + 100 * DAY)
                if drop:
                    assert list(verify(books.engine)) == []
                    drop_what_the_dry_run_says(books, days)
                    assert list(rebuild(books.engine, "to be sure")) == []
                results.append(without_reports(books))
                books.close()
        assert results[0] == results[1]

    check()


def drop_what_the_dry_run_says(books: Books, days: int) -> None:
    """The database must not refuse a day that the job considers droppable."""
    expired = list(expired_days(books.engine, days, dry_run=True))
    assert retain(books.engine, days) == sum(not day.blockers for day in expired)


RETENTION_TABLES: Final = (
    "carried_sessions",
    "dropped_positions",
    "finalized_sessions",
    "proofs",
    "usage_deltas",
)


def test_retain_loses_nothing_when_it_crashes_anywhere_and_runs_again(books: Books) -> None:
    receive_two_days(books)
    run_jobs_and_close(books)
    before = without_reports(books)
    assert list(verify(books.engine)) == []
    injector = CrashInjector()
    with crashing_engine(books, injector) as engine:
        crashes = run_through_crashes(
            books, injector, lambda: retain(engine, DAYS_TO_DROP_ALL), RETENTION_TABLES, step=7
        )
    assert crashes > 10
    assert kept_days(books) == []
    assert without_reports(books) == before
    assert list(verify(books.engine)) == []
    dropped = books.query(
        "SELECT day, sum(reports) AS reports FROM accounting.dropped_reports GROUP BY 1 ORDER BY 1"
    )
    assert [int(row["reports"]) for row in dropped] == [10, 10, 3]


@pytest.mark.parametrize("step", [29, pytest.param(11, marks=pytest.mark.long)])
def test_rebuild_gives_right_books_when_it_crashes_anywhere_and_runs_again(
    right_books: Books, step: int
) -> None:
    before = without_reports(right_books)
    for name in ("a lost session", "a month that counted twice", "a lost bucket"):
        corrupt(right_books, CORRUPTIONS[name][0])
    injector = CrashInjector()
    with crashing_engine(right_books, injector) as engine:
        crashes = run_through_crashes(
            right_books,
            injector,
            lambda: list(rebuild(engine, "a test", "example.org")),
            ("sessions", "session_usage", "user_usage_monthly", "buckets", "rebuilds"),
            step=step,
        )
    assert crashes > 110 // step
    assert {difference.realm for difference in rebuild(right_books.engine, "the other realm")} == {
        "kolkata"
    }
    assert without_reports(right_books) == before
    assert list(verify(right_books.engine)) == []


def test_erase_removes_all_of_a_name_or_nothing_when_it_crashes(right_books: Books) -> None:
    injector = CrashInjector()

    def erase_once(engine: Any) -> None:
        (row,) = right_books.query(
            "SELECT count(*) AS users FROM accounting.users WHERE user_id = 'alice'"
            " AND realm_id = (SELECT realm_id FROM accounting.realms WHERE realm = 'example.org')"
        )
        if row["users"]:
            erase(engine, "example.org", "alice")

    with crashing_engine(right_books, injector) as engine:
        crashes = run_through_crashes(
            right_books,
            injector,
            lambda: erase_once(engine),
            ("users", "usernames", "rejected_messages"),
        )
    assert crashes > 5
    assert {
        row["user_id"] for row in right_books.rows("sessions") if row["realm"] == "example.org"
    } == {""}
