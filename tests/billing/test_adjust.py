"""Adjustments of closed periods: late usage, posted once, and manual ones."""

from collections.abc import Callable
from contextlib import suppress
from datetime import date
from decimal import Decimal
from pathlib import Path
from typing import Any, Final

import psycopg
import pytest
from psycopg.errors import CheckViolation
from sqlalchemy import Engine

from accounting.billing.adjust import PostedAdjustment, adjust, post_manual_adjustment
from accounting.billing.close_period import close_periods
from accounting.errors import ConnectionLost, NotYet, UsageError
from tests.support.billing_scenarios import (
    DAY,
    DECEMBER,
    NOVEMBER,
    NOVEMBER_END_SECONDS,
    close_november_without_late_source,
    receive_late_source,
    receive_november,
)
from tests.support.books import WRITER, Books, cloned_database
from tests.support.coturn_messages import FakeAllocation, counters_by_name
from tests.support.crash_injection import (
    CrashInjector,
    SimulatedCrash,
    crashing_engine,
    run_through_crashes,
)
from tests.support.invariants import assert_closed_periods_add_up
from tests.support.servers import PostgresServer

BILLING_TABLES: Final = ("periods", "statements", "adjustments", "periods_to_adjust", "feed_outbox")


def test_late_usage_is_posted_once_in_the_open_period(books: Books) -> None:
    close_november_without_late_source(books)
    before = books.rows("statements", order="user_id")
    receive_late_source(books)
    books.run_jobs()
    assert adjust(books.engine) == 2
    assert adjust(books.engine) == 0
    assert books.rows("statements", order="user_id") == before
    keys = {row["user_id"]: row["user_key"] for row in books.rows("sessions")}
    rows = books.rows("adjustments", order="user_id")
    assert [
        {name: value for name, value in row.items() if name not in ("adjustment_id", "posted_at")}
        for row in rows
    ] == [
        {
            "realm": "example.org",
            "period": NOVEMBER,
            "posted_in": DECEMBER,
            "user_id": user,
            "user_key": keys[user],
            **counters_by_name((*counts, 0, 0, 0, 0)),
            "session_seconds": seconds,
            "reason": "late usage",
            "author": "turn-accounting",
        }
        for user, counts, seconds in (
            ("bob", (7, 700, 8, 800), Decimal(40)),
            ("carol", (1, 10, 0, 0), Decimal(10)),
        )
    ]
    assert_closed_periods_add_up(books)
    books.assert_conserved()


def test_more_late_usage_is_posted_as_the_difference(books: Books) -> None:
    close_november_without_late_source(books)
    receive_late_source(books)
    books.run_jobs()
    adjust(books.engine)
    later_source = FakeAllocation(books, user="dave", allocation=9, source="later")
    later_source.new(7 * DAY)
    later_source.interim(7 * DAY + 5, 2, 20, 3, 30)
    bob = FakeAllocation(books, user="bob", allocation=10, source="later")
    bob.new(8 * DAY)
    bob.interim(8 * DAY + 5, 1, 11, 0, 0)
    books.advance_clock(NOVEMBER_END_SECONDS + 61, source="later")
    books.run_jobs()
    assert adjust(books.engine) == 2
    adjustments = [
        (row["user_id"], row["received_bytes"], row["session_seconds"])
        for row in books.rows("adjustments", order="posted_at, user_id")
    ]
    assert adjustments == [("bob", 700, 40), ("carol", 10, 10), ("bob", 11, 5), ("dave", 20, 5)]
    assert_closed_periods_add_up(books)


def test_recomputed_hours_without_a_difference_post_nothing(november_books: Books) -> None:
    november_books.query(
        "INSERT INTO accounting.usage_deltas"
        " SELECT realm_id, user_key, starts_at FROM accounting.user_usage_hourly RETURNING 1"
    )
    november_books.rollup()
    assert november_books.query("SELECT count(*) FROM accounting.periods_to_adjust") == [
        {"count": 2}
    ]
    assert adjust(november_books.engine) == 0
    assert november_books.query("SELECT FROM accounting.periods_to_adjust") == []
    assert november_books.rows("adjustments") == []


def test_a_session_across_the_end_has_its_seconds_in_both_periods(books: Books) -> None:
    """Its next report comes after the grace, and the seconds before the end are late usage."""
    close_november_with_long_session(books)
    long = FakeAllocation(books, user="long", allocation=5)
    long.refreshed(NOVEMBER_END_SECONDS + 200)
    books.advance_clock(NOVEMBER_END_SECONDS + 300)
    books.run_jobs()
    assert adjust(books.engine) == 1
    assert books.rows("adjustments", "user_id", "session_seconds", "received_bytes") == [
        {"user_id": "long", "session_seconds": Decimal(100), "received_bytes": 0}
    ]
    assert_closed_periods_add_up(books)


def close_november_with_long_session(books: Books) -> None:
    receive_november(books)
    FakeAllocation(books, user="long", allocation=5).new(NOVEMBER_END_SECONDS - 100, 3600)
    books.advance_clock(NOVEMBER_END_SECONDS + 61)
    books.run_jobs()
    assert close_periods(books.engine) == 1


def test_a_manual_adjustment_does_not_count_as_late_usage(
    books: Books,
) -> None:
    close_november_without_late_source(books)
    adjustment_id, _ = post_manual_adjustment(
        books.engine,
        "example.org",
        NOVEMBER,
        "bob",
        {"received_bytes": -500, "session_microseconds": -1_500_000},
        reason="agreed on the telephone",
        author="carol",
    )
    [row] = books.rows("adjustments")
    assert (row["adjustment_id"], row["author"]) == (adjustment_id, "carol")
    assert (row["received_bytes"], row["session_seconds"]) == (-500, Decimal("-1.5"))
    assert (row["reason"], row["posted_in"]) == ("agreed on the telephone", DECEMBER)
    receive_late_source(books)
    books.run_jobs()
    adjust(books.engine)
    assert_closed_periods_add_up(books)
    events = books.query(
        "SELECT payload->>'reason' AS reason, payload->>'session_seconds' AS seconds"
        " FROM accounting.feed_outbox WHERE type = 'adjustment.posted' ORDER BY 2"
    )
    assert [tuple(row.values()) for row in events] == [
        ("agreed on the telephone", "-1.500000"),
        ("late usage", "10.000000"),
        ("late usage", "40.000000"),
    ]


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"realm": "other"}, UsageError, "no realm 'other' is known"),
        ({"period": date(2026, 1, 1)}, UsageError, "no period that begins on 2026-01-01"),
        ({"period": DECEMBER}, NotYet, "not closed yet"),
        ({"user": "zoe"}, UsageError, "no user 'zoe' is known in realm 'example.org'"),
        ({"reason": " "}, UsageError, "a reason and an author"),
        ({"author": ""}, UsageError, "a reason and an author"),
        ({"author": "turn-accounting "}, UsageError, "posts late usage"),
        ({"numbers": {"sent_bytes": 0}}, UsageError, "nothing to adjust"),
    ],
)
def test_a_wrong_manual_adjustment_is_refused(
    adjusted: Books, changes: dict[str, Any], error: type[Exception], message: str
) -> None:
    arguments: dict[str, Any] = {
        "realm": "example.org",
        "period": NOVEMBER,
        "user": "alice",
        "numbers": {"sent_bytes": 1},
        "reason": "because",
        "author": "carol",
        **changes,
    }
    with pytest.raises(error, match=message):
        post_manual_adjustment(adjusted.engine, **arguments)


def posted_events(books: Books) -> list[dict[str, Any]]:
    return books.query("SELECT FROM accounting.feed_outbox WHERE type = 'adjustment.posted'")


def credit(engine: Engine, reason: str = "a test call", **changes: int) -> PostedAdjustment:
    return post_manual_adjustment(
        engine,
        "example.org",
        NOVEMBER,
        "bob",
        {"sent_bytes": -600, **changes},
        reason=reason,
        author="carol",
    )


def test_an_equal_manual_adjustment_is_posted_once(november_books: Books) -> None:
    first = credit(november_books.engine)
    assert credit(november_books.engine) == first._replace(is_new=False)
    posted = [
        first,
        credit(november_books.engine, reason="another"),
        credit(november_books.engine, sent_packets=1),
    ]
    assert [adjustment.is_new for adjustment in posted] == [True] * 3
    assert len({adjustment.adjustment_id for adjustment in posted}) == 3
    assert len(november_books.rows("adjustments")) == len(posted_events(november_books)) == 3


def test_a_manual_adjustment_retried_after_a_crash_is_posted_once(
    november_books: Books,
) -> None:
    injector = CrashInjector()
    moment, finished = 0, False
    with crashing_engine(november_books, injector) as engine:
        while not finished:
            moment += 1
            reason = f"attempt {moment}"
            injector.arm(moment)
            with suppress(SimulatedCrash, ConnectionLost):
                credit(engine, reason)
                finished = injector.moments_left > 0
            injector.moments_left = 0
            retried = credit(november_books.engine, reason)
            rows = [row for row in november_books.rows("adjustments") if row["reason"] == reason]
            assert [row["adjustment_id"] for row in rows] == [retried.adjustment_id]
    assert moment > 10
    assert len(posted_events(november_books)) == moment


@pytest.mark.parametrize(("author", "manual"), [("turn-accounting", True), ("carol", False)])
def test_the_author_of_late_usage_is_reserved(adjusted: Books, author: str, manual: bool) -> None:
    """Readers of the view distinguish late usage from manual adjustments by it."""
    with (
        psycopg.connect(adjusted.url(WRITER)) as connection,
        pytest.raises(CheckViolation),
    ):
        connection.execute(
            "INSERT INTO accounting.adjustments SELECT gen_random_uuid(), user_key, realm_id,"
            " period, posted_in, 0,0,0,0,0,0,0,0, 0, 'r', %s, %s FROM accounting.adjustments",
            (author, manual),
        )


def billed_rows(books: Books) -> list[list[dict[str, Any]]]:
    """All billing rows and events, without random ids and server times."""
    excluded = {"adjustment_id", "posted_at", "closed_at"}
    tables = [
        [{name: value for name, value in row.items() if name not in excluded} for row in rows]
        for rows in (
            books.rows("periods", order="starts_at"),
            books.rows("statements", order="period, user_id"),
            books.rows("adjustments", order="user_id, received_bytes"),
        )
    ]
    events = books.query(
        "SELECT type, payload - 'adjustment_id' AS payload FROM accounting.feed_outbox"
        " WHERE type NOT IN ('session.ended', 'usage.counted') ORDER BY 1, 2"
    )
    return [*tables, events]


def receive_two_months(books: Books) -> None:
    close_november_with_long_session(books)
    FakeAllocation(books, user="long", allocation=5).refreshed(NOVEMBER_END_SECONDS + 200)
    receive_late_source(books)
    dave = FakeAllocation(books, user="dave", allocation=11)
    dave.new(NOVEMBER_END_SECONDS + 5 * DAY)
    dave.close(NOVEMBER_END_SECONDS + 5 * DAY + 10, (1, 1, 1, 1), (0, 0, 0, 0))
    books.advance_clock(NOVEMBER_END_SECONDS + 70 * DAY)
    books.advance_clock(NOVEMBER_END_SECONDS + 70 * DAY, source="late")
    books.run_jobs()


@pytest.mark.parametrize("step", [6, pytest.param(1, marks=pytest.mark.long)])
def test_jobs_that_crash_at_any_moment_bill_everything_once(
    books: Books, postgres_server: PostgresServer, tmp_path: Path, step: int
) -> None:
    receive_two_months(books)
    adjust(books.engine)
    close_periods(books.engine)
    expected = billed_rows(books)
    assert [len(rows) for rows in expected] == [4, 5, 3, 6]
    with cloned_database(postgres_server) as name:
        crashed = Books(postgres_server, name, tmp_path / "crashed")
        crashed.directory.mkdir()
        receive_two_months(crashed)
        injector = CrashInjector()
        with crashing_engine(crashed, injector) as engine:
            jobs: list[Callable[[], object]] = [
                lambda: adjust(engine, limit=2),
                lambda: close_periods(engine),
            ]
            crash_counts = [
                run_through_crashes(crashed, injector, job, BILLING_TABLES, step=step)
                for job in jobs
            ]
        assert min(crash_counts) > 10 // step
        assert billed_rows(crashed) == expected
        assert_closed_periods_add_up(crashed)
        crashed.close()
