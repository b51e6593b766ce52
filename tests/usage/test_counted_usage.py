"""``usage.counted``: the feed has each hour of a user, and adds up to what is billed."""

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

import psycopg
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from accounting.audit.rebuild import rebuild
from accounting.audit.verify import verify
from accounting.billing.adjust import adjust
from accounting.billing.close_period import close_periods
from accounting.feed.number_feed import number_feed
from accounting.identities.erase import erase
from accounting.usage.rollup import rollup
from tests.support.billing_scenarios import (
    DAY,
    NOVEMBER_END_SECONDS,
    close_november_without_late_source,
    receive_late_source,
    receive_november,
)
from tests.support.books import Books, cloned_database
from tests.support.coturn_messages import FakeAllocation, counters_by_name, run_jobs_at
from tests.support.crash_injection import CrashInjector, crashing_engine, run_through_crashes
from tests.support.invariants import (
    assert_closed_periods_add_up,
    assert_counted_usage_adds_up,
    counted_usage,
)
from tests.support.realm_rules import set_realm_rule, set_time_zone
from tests.support.servers import PostgresServer

HOUR = 3600.0
USAGE_TABLES = (
    "usage_deltas",
    "user_usage_hourly",
    "user_usage_monthly",
    "fold_watermarks",
    "periods",
    "statements",
    "feed_outbox",
)


@pytest.fixture
def books(postgres_server: PostgresServer, tmp_path: Path) -> Iterator[Books]:
    """In a database of its own: the feed and closed periods can't be emptied."""
    with books_of_their_own(postgres_server, tmp_path) as books:
        yield books


@contextmanager
def books_of_their_own(server: PostgresServer, directory: Path) -> Iterator[Books]:
    with cloned_database(server) as name:
        books = Books(server, name, directory)
        yield books
        books.close()


def hours_counted(books: Books) -> list[tuple[float, int, bool]]:
    """(hour, in hours after the books' start, received bytes, whether it is a correction)."""
    return [
        (
            (event["starts_at"] - books.start) / timedelta(hours=1),
            event["received_bytes"],
            event["correction"],
        )
        for event in counted_usage(books)
    ]


def rows_of(books: Books, table: str) -> list[dict[str, Any]]:
    return books.query(f"SELECT * FROM accounting.{table}")  # noqa: S608


def test_an_hour_is_counted_a_minute_after_its_end_though_no_usage_comes(books: Books) -> None:
    alice = FakeAllocation(books)
    alice.new(10, 3 * 3600)
    alice.interim(40, 1, 100, 2, 200)
    run_jobs_at(books, HOUR + 59)
    assert counted_usage(books) == []
    run_jobs_at(books, HOUR + 61)
    [event] = counted_usage(books)
    [session] = books.rows("sessions")
    assert event == {
        "realm": "example.org",
        "user_key": session["user_key"],
        "starts_at": books.start,
        "ends_at": "2026-11-02T13:00:00.000000+00:00",
        **counters_by_name((1, 100, 2, 200, 0, 0, 0, 0)),
        "sessions_started": 1,
        "sessions_ended": 0,
        "session_seconds": "30.000000",
        "estimated_bytes": 0,
        "correction": False,
    }
    rollup(books.engine)
    number_feed(books.engine)
    run_jobs_at(books, HOUR + 120)
    assert counted_usage(books) == [event]
    [shown] = [row for row in books.rows("feed") if row["type"] == "usage.counted"]
    starts_at, user_key = "2026-11-02T12:00:00.000000+00:00", str(session["user_key"])
    assert {"realm": shown["realm"], **shown["payload"]} == {
        **event,
        "starts_at": starts_at,
        "user_key": user_key,
    }
    assert_counted_usage_adds_up(books)


def test_the_reports_of_the_roll_up_that_folds_are_no_corrections(books: Books) -> None:
    alice = FakeAllocation(books)
    alice.new(10, 9 * 3600)
    alice.interim(40, 1, 100, 0, 0)
    run_jobs_at(books, 50)
    alice.interim(HOUR - 1, 1, 10, 0, 0)
    alice.interim(HOUR + 20, 1, 1, 0, 0)
    run_jobs_at(books, HOUR + 70)
    assert hours_counted(books) == [(0, 110, False)]
    assert_counted_usage_adds_up(books)


def test_later_changes_of_either_sign_are_corrections_until_the_period_closes(
    books: Books,
) -> None:
    fast, slow = FakeAllocation(books), FakeAllocation(books, source="slow", allocation=2)
    fast.new(10)
    fast.interim(20, 5, 500, 0, 0)
    run_jobs_at(books, HOUR + 61)
    slow.new(30)
    slow.interim(40, 3, 300, 0, 0)
    run_jobs_at(books, 50, "slow")
    slow.close(60, (2, 250, 0, 0), (0, 0, 0, 0))
    run_jobs_at(books, 70, "slow")
    assert hours_counted(books) == [(0, 500, False), (0, 300, True), (0, -50, True)]
    assert_counted_usage_adds_up(books)
    books.advance_clock(NOVEMBER_END_SECONDS + 61, source="slow")
    books.advance_clock(NOVEMBER_END_SECONDS + 61)
    books.run_jobs()
    assert close_periods(books.engine) == 1
    assert_counted_usage_adds_up(books)


def test_an_hour_that_changes_back_and_forth_has_an_event_for_each_change(books: Books) -> None:
    """The session expires, a late refresh reopens it, and it expires again: the sums come again."""
    alice = FakeAllocation(books)
    alice.new(10, 600)
    run_jobs_at(books, HOUR + 61)
    [ended] = counted_usage(books)
    assert ended["sessions_ended"] == 1
    alice.refreshed(HOUR + 70, 600)
    run_jobs_at(books, HOUR + 80)
    alice.deleted(HOUR + 90)
    run_jobs_at(books, 2 * HOUR + 61)
    assert [event["sessions_ended"] for event in counted_usage(books)] == [1, -1, 1]
    assert_counted_usage_adds_up(books)
    # As if the reopening were undone.
    for sign in (1, -1, 1, -1):
        books.query(
            "INSERT INTO accounting.usage_deltas (realm_id, user_key, starts_at, sent_bytes)"
            " SELECT realm_id, user_key, min(starts_at), %s FROM accounting.user_usage_hourly"
            " GROUP BY realm_id, user_key RETURNING 1",
            [sign],
        )
        rollup(books.engine)
    assert [event["sent_bytes"] for event in counted_usage(books)[3:]] == [1, -1, 1, -1]
    number_feed(books.engine)
    assert len(counted_usage(books)) == 7  # numbering has dropped none


def test_late_usage_of_a_closed_period_is_only_an_adjustment(books: Books) -> None:
    close_november_without_late_source(books)
    counted = counted_usage(books)
    assert_counted_usage_adds_up(books)
    receive_late_source(books)
    books.run_jobs()
    assert adjust(books.engine) == 2
    assert counted_usage(books) == counted
    assert_counted_usage_adds_up(books)
    assert_closed_periods_add_up(books)


def test_closing_counts_the_hours_that_no_roll_up_has_folded(books: Books) -> None:
    receive_november(books)
    last = FakeAllocation(books, allocation=9)
    last.new(NOVEMBER_END_SECONDS - 100)
    last.interim(NOVEMBER_END_SECONDS - 60, 1, 7, 1, 7)
    last.close(NOVEMBER_END_SECONDS - 50, (1, 7, 1, 7), (0, 0, 0, 0))
    books.advance_clock(NOVEMBER_END_SECONDS - 10)
    books.run_jobs()
    before = len(counted_usage(books))
    books.advance_clock(NOVEMBER_END_SECONDS + 61)
    books.load()
    assert close_periods(books.engine) == 1
    assert len(counted_usage(books)) > before
    types = books.query("SELECT type FROM accounting.feed_outbox ORDER BY outbox_id")
    assert types[-1]["type"] == "period.closed"
    assert_counted_usage_adds_up(books)


def test_a_rebuild_counts_by_how_much_the_hours_differ(books: Books) -> None:
    close_november_without_late_source(books)
    december = FakeAllocation(books, allocation=20)
    december.new(NOVEMBER_END_SECONDS + HOUR, 600)
    december.interim(NOVEMBER_END_SECONDS + HOUR + 10, 1, 77, 1, 77)
    books.advance_clock(NOVEMBER_END_SECONDS + 3 * HOUR)
    books.run_jobs()
    before = len(counted_usage(books))
    with psycopg.connect(books.url()) as connection:
        connection.execute("UPDATE accounting.reports SET sent_bytes = 70 WHERE sent_bytes = 77")
        connection.execute("UPDATE accounting.reports SET sent_bytes = 201 WHERE sent_bytes = 200")
    assert list(rebuild(books.engine, "the reports were wrong"))
    [correction] = counted_usage(books)[before:]
    assert (correction["sent_bytes"], correction["received_bytes"]) == (-7, 0)
    assert correction["correction"]
    assert_counted_usage_adds_up(books)
    assert_closed_periods_add_up(books)


def test_a_rebuild_of_changed_hours_leaves_what_the_feed_has_of_them(books: Books) -> None:
    alice = FakeAllocation(books)
    alice.new(10, 3 * 3600)
    for hour in (0, 1):
        alice.interim(hour * HOUR + 40, 1, 100, 2, 200)
    run_jobs_at(books, HOUR + 61)
    before = counted_usage(books)
    with psycopg.connect(books.url()) as connection:
        connection.execute("UPDATE accounting.user_usage_hourly SET received_bytes = 7")
    # The first hour is in the feed, and the second is not.
    books.advance_clock(2 * HOUR + 61)
    books.run_jobs()
    [wrong] = counted_usage(books)[len(before) :]
    assert (wrong["received_bytes"], wrong["correction"]) == (7, False)
    found = [row for row in verify(books.engine) if row.what == "usage.counted"]
    assert [(row.column, row.booked, row.recomputed) for row in found] == [
        ("received_bytes", "7", "100")
    ]
    assert list(rebuild(books.engine, "hours were changed"))
    assert hours_counted(books)[-1] == (1, 93, True)
    assert len(counted_usage(books)) == len(before) + 2
    assert list(verify(books.engine)) == []
    assert_counted_usage_adds_up(books)
    assert list(rebuild(books.engine, "to be sure")) == []


def test_a_rebuild_repairs_what_the_feed_has_of_hours_that_are_right(books: Books) -> None:
    alice = FakeAllocation(books)
    for hour in range(3):
        alice.new(hour * HOUR + 10, 600)
        alice.interim(hour * HOUR + 40, 1, 100, 2, 200)
    run_jobs_at(books, 3 * HOUR + 61)
    first, second = (books.start + timedelta(hours=hour) for hour in (0, 1))
    with psycopg.connect(books.url()) as connection:
        connection.execute("DELETE FROM accounting.feed_outbox WHERE started_at = %s", [first])
        connection.execute(
            "UPDATE accounting.feed_outbox SET started_at = started_at - interval '1 day'"
            " WHERE type = 'usage.counted' AND started_at = %s",
            [second],
        )
    found = {
        (row.starts_at, row.kind) for row in verify(books.engine) if row.what == "usage.counted"
    }
    assert found == {
        (first, "missing"),
        (second, "missing"),
        (second - timedelta(days=1), "unfounded"),
    }
    assert list(rebuild(books.engine, "the feed was changed"))
    assert list(verify(books.engine)) == []
    assert_counted_usage_adds_up(books)


def test_hours_that_a_new_time_zone_cuts_keep_their_sums(books: Books) -> None:
    """From UTC to Kolkata, at its midnight: 18:30. The hour from 18:00 has half an hour."""
    set_time_zone(books, "example.net", "Asia/Kolkata")
    users = FakeAllocation(books), FakeAllocation(books, realm="example.net", allocation=2)
    for user in users:
        user.new(10, 20 * 3600)
        user.interim(20, 1, 100, 1, 100)
    run_jobs_at(books, 30)
    set_realm_rule(books, "example.org", time_zone="Asia/Kolkata")
    for hour in (1, 5, 6, 8):
        for user in users:
            user.interim(hour * HOUR - 10, 1, 10, 1, 10)
            user.interim(hour * HOUR + 1810, 1, 1, 1, 1)
        run_jobs_at(books, hour * HOUR + 1820)
        assert_counted_usage_adds_up(books)
    starts = {
        event["starts_at"].strftime("%H:%M"): event["ends_at"][11:16]
        for event in counted_usage(books)
        if event["realm"] == "example.org"
    }
    assert starts["17:00"] == "18:00"
    assert starts["18:00"] == "18:30"
    assert starts["18:30"] == "19:30"
    erase(books.engine, "example.org", "alice")
    books.advance_clock(NOVEMBER_END_SECONDS + 61)
    books.run_jobs()
    assert close_periods(books.engine) == 2
    assert_counted_usage_adds_up(books)
    assert all("alice" not in str(event) for event in counted_usage(books))


@pytest.mark.parametrize("step", [7, pytest.param(1, marks=pytest.mark.long)])
def test_a_kill_between_any_two_statements_counts_each_change_once(books: Books, step: int) -> None:
    receive_november(books)
    fast, slow = FakeAllocation(books, allocation=8), FakeAllocation(books, allocation=9)
    fast.new(3 * DAY)
    books.advance_clock(4 * DAY)
    books.run_jobs()
    slow.source = "slow"
    slow.new(3 * DAY + 10)
    slow.interim(3 * DAY + 20, 1, 50, 0, 0)
    slow.close(3 * DAY + 30, (1, 40, 0, 0), (0, 0, 0, 0))
    fast.new(5 * DAY)
    books.advance_clock(NOVEMBER_END_SECONDS + 61, source="slow")
    books.advance_clock(NOVEMBER_END_SECONDS + 61)
    books.load()
    books.load(source="slow")
    books.settle()

    def jobs() -> None:
        rollup(engine, limit=2)
        close_periods(engine)

    injector = CrashInjector()
    with crashing_engine(books, injector) as engine:
        assert run_through_crashes(books, injector, jobs, USAGE_TABLES, step=step) > 10
    states = [row["state"] for row in books.rows("periods", order="starts_at")]
    assert states == ["closed", "open"]
    assert_counted_usage_adds_up(books)
    assert [event["correction"] for event in counted_usage(books)].count(True) >= 1
    number_feed(books.engine)
    assert_counted_usage_adds_up(books)


Step = tuple[str, int, int]
STEPS = st.lists(
    st.tuples(
        st.sampled_from(
            ("new", "refreshed", "interim", "interim", "close", "load", "settle", "rollup", "jobs")
        ),
        st.integers(0, 3),
        st.sampled_from((1, 70, 900, 2000, 3700)),
    ),
    min_size=5,
    max_size=40,
)


@pytest.mark.parametrize("examples", [2, pytest.param(12, marks=pytest.mark.long)])
def test_any_reports_in_any_batches_add_up(
    postgres_server: PostgresServer, tmp_path_factory: pytest.TempPathFactory, examples: int
) -> None:
    @settings(max_examples=examples)
    @given(steps=STEPS)
    def check(steps: list[Step]) -> None:
        with books_of_their_own(postgres_server, tmp_path_factory.mktemp("books")) as books:
            _play(books, steps)

    check()


def _play(books: Books, steps: list[Step]) -> None:
    sources = ("default", "slow")
    now = dict.fromkeys(sources, 0.0)
    for step, who, seconds in steps:
        source = sources[who % 2]
        now[source] += seconds
        user = FakeAllocation(books, user=f"u{who % 3}", allocation=1 + who, source=source)
        if not _publish(user, step, now[source], seconds):
            books.advance_clock(now[source], source=source)
            _run(books, step, source, 1 + who)
    for source in sources:
        books.advance_clock(NOVEMBER_END_SECONDS + 61, source=source)
    for source in sources:
        books.load(source=source)
    books.settle()
    rollup(books.engine, limit=3)
    assert_counted_usage_adds_up(books)
    close_periods(books.engine)
    assert_counted_usage_adds_up(books)
    books.assert_conserved()


def _publish(user: FakeAllocation, step: str, at: float, count: int) -> bool:
    """Whether the step is a message."""
    match step:
        case "new":
            user.new(at)
        case "refreshed":
            user.refreshed(at)
        case "interim":
            user.interim(at, 1, count, 1, 10)
        case "close":
            user.close(at, (1, 700, 1, 5), (0, 0, 0, 0))
        case _:
            return False
    return True


def _run(books: Books, step: str, source: str, limit: int) -> None:
    match step:
        case "load":
            books.load(source=source, limit=limit)
        case "settle":
            books.settle(limit)
        case "rollup":
            rollup(books.engine, limit=limit)
        case _:
            books.run_jobs()
