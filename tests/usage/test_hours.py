"""Usage by hour, day and month: bytes, session seconds and peaks, in several time zones."""

from collections.abc import Mapping
from datetime import UTC, datetime
from decimal import Decimal
from itertools import pairwise
from typing import Any

import pytest

from tests.support.books import Books
from tests.support.coturn_messages import (
    OTHER_SERVER_ADDRESS,
    FakeAllocation,
    datetime_at,
    run_jobs_at,
    session_rows,
    usage_row,
    usage_rows,
)
from tests.support.realm_rules import set_time_zone

NOTHING = (0, 0, 0, 0)
HALF, WHOLE = (5, 500, 4, 400), (10, 1000, 8, 800)
HOUR, DAY = 3600, 86_400
NOON = 12 * HOUR
"""The books start at noon, 2 November 2026, UTC."""
DAY_SPAN = (-NOON, NOON)
MONTH_SPAN = (-DAY - NOON, 29 * DAY - NOON)


def seconds_of(books: Books, length: str) -> list[tuple[str, Any]]:
    """Session seconds by start of the bucket, UTC."""
    return [
        (row["starts_at"].strftime("%m-%d %H:%M"), row["session_seconds"])
        for row in usage_rows(books, length)
    ]


def receive_session(books: Books, started: float, ended: float, realm: str = "example.org") -> None:
    """Receive a session with one byte at its start and one at its end."""
    allocation = FakeAllocation(books, realm=realm)
    allocation.new(started, 1_000_000)
    allocation.interim(started, 0, 1, 0, 0)
    allocation.interim(ended, 0, 1, 0, 0)
    allocation.close(ended, (0, 2, 0, 0), NOTHING)


def test_bytes_count_in_the_hour_of_their_report_and_seconds_are_split(
    books: Books,
) -> None:
    alice = FakeAllocation(books)
    alice.new(3000, 7200)
    alice.interim(3100, *HALF)
    alice.peer_interim(8000, *HALF)
    alice.interim(8000, *HALF)
    alice.close(8100, WHOLE, HALF)
    run_jobs_at(books, 8101)
    assert usage_rows(books, "hourly") == [
        usage_row(
            books, 0, HOUR, (*HALF, *NOTHING), sessions_started=1, session_seconds=Decimal(600)
        ),
        usage_row(books, HOUR, 2 * HOUR, session_seconds=Decimal(HOUR)),
        usage_row(
            books,
            2 * HOUR,
            3 * HOUR,
            (*HALF, *HALF),
            sessions_ended=1,
            session_seconds=Decimal(900),
        ),
    ]
    whole: dict[str, Any] = {
        "sessions_started": 1,
        "sessions_ended": 1,
        "session_seconds": Decimal(5100),
    }
    assert usage_rows(books, "daily") == [usage_row(books, *DAY_SPAN, (*WHOLE, *HALF), **whole)]
    assert usage_rows(books, "monthly") == [usage_row(books, *MONTH_SPAN, (*WHOLE, *HALF), **whole)]


def test_the_usage_of_a_realm_is_the_sum_of_its_users_and_has_a_peak(books: Books) -> None:
    allocations = [FakeAllocation(books, user=user) for user in ("alice", "bob")]
    for index, allocation in enumerate(allocations):
        allocation.new(10 + index)
    for allocation in allocations:
        allocation.interim(20, *HALF)
        allocation.close(30, HALF, NOTHING)
    run_jobs_at(books, 31)
    counts: dict[str, Any] = {
        "sessions_started": 2,
        "sessions_ended": 2,
        "session_seconds": Decimal(39),
    }
    for length, span in (("hourly", (0, HOUR)), ("daily", DAY_SPAN), ("monthly", MONTH_SPAN)):
        row = usage_row(books, *span, (*WHOLE, *NOTHING), **counts, peak_sessions=2)
        del row["user_id"]
        assert usage_rows(books, length, subject="realm") == [row]


def test_seconds_are_exact_to_the_microsecond(books: Books) -> None:
    receive_session(books, 0.000001, HOUR + 0.000002)
    run_jobs_at(books, 2 * HOUR)
    assert seconds_of(books, "hourly") == [
        ("11-02 12:00", Decimal("3599.999999")),
        ("11-02 13:00", Decimal("0.000002")),
    ]
    assert seconds_of(books, "monthly") == [("11-01 00:00", Decimal("3600.000001"))]


def test_a_session_that_ends_on_a_border_ends_in_the_hour_that_begins(books: Books) -> None:
    """Hours are half-open: a report at the border counts in the later hour too."""
    receive_session(books, 10, HOUR)
    run_jobs_at(books, 2 * HOUR)
    counts = (0, 1, 0, 0, *NOTHING)
    assert usage_rows(books, "hourly") == [
        usage_row(books, 0, HOUR, counts, sessions_started=1, session_seconds=Decimal(3590)),
        usage_row(books, HOUR, 2 * HOUR, counts, sessions_ended=1),
    ]


def test_a_session_across_midnight_and_the_end_of_a_month_is_split_there(books: Books) -> None:
    until_december = 29 * DAY - NOON
    receive_session(books, until_december - 100, until_december + 50)
    run_jobs_at(books, until_december + 60)
    for length in ("hourly", "daily", "monthly"):
        assert [row[1] for row in seconds_of(books, length)] == [100, 50]
    assert [row["received_bytes"] for row in usage_rows(books, "monthly")] == [1, 1]


def test_a_live_session_counts_until_its_last_report(books: Books) -> None:
    alice = FakeAllocation(books)
    alice.new(0, 7200)
    alice.interim(100, *HALF)
    run_jobs_at(books, 1000)
    assert seconds_of(books, "hourly") == [("11-02 12:00", 100)]
    alice.refreshed(5000)
    run_jobs_at(books, 5001)
    assert seconds_of(books, "hourly") == [("11-02 12:00", 3600), ("11-02 13:00", 1400)]


def test_an_expired_session_counts_until_its_last_report(books: Books) -> None:
    alice = FakeAllocation(books)
    alice.new(0)
    alice.interim(100, *HALF)
    run_jobs_at(books, 10_000)
    assert usage_rows(books, "hourly") == [
        usage_row(
            books,
            0,
            HOUR,
            (*HALF, *NOTHING),
            sessions_started=1,
            sessions_ended=1,
            session_seconds=Decimal(100),
        )
    ]


def test_a_reopened_session_gets_the_seconds_since_its_supposed_end(books: Books) -> None:
    alice = FakeAllocation(books)
    alice.new(0)
    alice.interim(4000, *HALF)
    run_jobs_at(books, 4001)
    assert seconds_of(books, "hourly") == [("11-02 12:00", 0)]
    alice.deleted(7300)
    run_jobs_at(books, 7400)
    assert usage_rows(books, "hourly") == [
        usage_row(books, 0, HOUR, sessions_started=1, session_seconds=Decimal(HOUR)),
        usage_row(books, HOUR, 2 * HOUR, (*HALF, *NOTHING), session_seconds=Decimal(HOUR)),
        usage_row(books, 2 * HOUR, 3 * HOUR, sessions_ended=1, session_seconds=Decimal(100)),
    ]


@pytest.mark.parametrize("late", [2 * HOUR, 2 * DAY, 40 * DAY])
def test_a_late_total_changes_only_its_own_hour_day_and_month(books: Books, late: float) -> None:
    alice = FakeAllocation(books)
    alice.new(0)
    alice.interim(100, *HALF)
    alice.deleted(200)
    FakeAllocation(books, user="bob").new(300)
    run_jobs_at(books, late - 1)
    lengths = ("hourly", "daily", "monthly")
    before = {
        (subject, length): usage_rows(books, length, subject)
        for subject in ("user", "realm")
        for length in lengths
    }
    alice.total(late, *HALF)
    alice.peer_total(late, *NOTHING)
    run_jobs_at(books, late + 1)
    (session,) = (row for row in session_rows(books) if row["username"] == "alice")
    assert (session["total_reported"], session["ended_at"]) == (True, datetime_at(books, 200))
    for (subject, length), rows in before.items():
        after = usage_rows(books, length, subject)
        assert [row for row in after if row in rows] == rows
        for row in after:
            if row not in rows:
                assert row["starts_at"] <= datetime_at(books, late) < row["ends_at"]
                assert row["sessions_started"] == row["sessions_ended"] == 0


def test_a_late_correction_counts_in_the_buckets_of_the_total(books: Books) -> None:
    """Bytes that were reported in the earlier month stay there."""
    alice = FakeAllocation(books)
    alice.new(0)
    alice.interim(100, *HALF)
    alice.deleted(200)
    run_jobs_at(books, 300)
    alice.total(40 * DAY, *WHOLE)
    run_jobs_at(books, 40 * DAY + 1)
    assert [
        (
            row["starts_at"].month,
            row["received_bytes"],
            row["session_seconds"],
            row["estimated_bytes"],
        )
        for row in usage_rows(books, "monthly")
    ] == [(11, 500, 200, 900), (12, 500, 0, 900)]


def test_estimated_bytes_are_those_of_estimated_sessions_in_every_hour(books: Books) -> None:
    estimated, exact = FakeAllocation(books), FakeAllocation(books, allocation=2)
    for allocation in (estimated, exact):
        allocation.new(0, 7200)
        allocation.interim(10, *HALF)
    run_jobs_at(books, 20)
    assert [row["estimated_bytes"] for row in usage_rows(books, "hourly")] == [0]
    estimated.close(4000, WHOLE, NOTHING)
    exact.close(4000, HALF, NOTHING)
    run_jobs_at(books, 4001)
    for subject in ("user", "realm"):
        rows = usage_rows(books, "hourly", subject)
        assert [(row["received_bytes"], row["estimated_bytes"]) for row in rows] == [
            (1000, 900),
            (500, 900),
        ]


# Peaks


def peaks(books: Books, length: str = "hourly") -> list[int]:
    return [row["peak_sessions"] for row in usage_rows(books, length, subject="realm")]


def receive_sessions(books: Books, *spans: tuple[float, float]) -> None:
    """Receive the events of sessions over these spans, in order of time."""
    events = [
        (time, is_start, index)
        for index, span in enumerate(spans)
        for time, is_start in zip(span, (True, False), strict=True)
    ]
    for time, is_start, index in sorted(events, key=lambda event: (event[0], event[2])):
        allocation = FakeAllocation(books, user=f"user{index}", allocation=index)
        if is_start:
            allocation.new(time, 1_000_000)
        else:
            allocation.deleted(time)


def test_the_peak_is_the_maximum_of_concurrent_sessions(books: Books) -> None:
    receive_sessions(books, (0, 100), (50, 150), (99, 200), (120, 130))
    run_jobs_at(books, 201)
    assert peaks(books) == peaks(books, "daily") == [3]


def test_an_end_comes_before_a_start_at_the_same_time(books: Books) -> None:
    receive_sessions(books, (0, 100), (100, 200), (200, 300))
    run_jobs_at(books, 301)
    assert peaks(books) == [1]


def test_a_session_counts_in_the_peak_of_every_hour_until_its_end(books: Books) -> None:
    """Also in an hour without reports of it, but not in an hour that starts when it ends."""
    receive_sessions(books, (0, 3 * HOUR), (HOUR + 1, HOUR + 2), (2 * HOUR + 1, 3 * HOUR + 1))
    run_jobs_at(books, 4 * HOUR)
    assert peaks(books) == [1, 2, 2, 1]


def test_the_peak_of_a_day_and_a_month_is_that_of_the_highest_hour(books: Books) -> None:
    receive_sessions(books, (0, 10), (5, 15), (HOUR, HOUR + 10), (DAY, DAY + 9))
    run_jobs_at(books, 2 * DAY)
    assert (peaks(books), peaks(books, "daily"), peaks(books, "monthly")) == (
        [2, 1, 1],
        [2, 1],
        [2],
    )


def test_a_session_of_no_length_does_not_count_in_the_peak(books: Books) -> None:
    receive_sessions(books, (10, 10))
    run_jobs_at(books, 11)
    assert peaks(books) == [0]


def test_late_totals_and_unauthenticated_traffic_do_not_count_in_the_peak(books: Books) -> None:
    alice = FakeAllocation(books)
    alice.new(0)
    alice.deleted(100)
    FakeAllocation(books, user="unauthenticated").interim(50, *HALF)
    alice.total(2 * HOUR, *HALF)
    run_jobs_at(books, 2 * HOUR + 1)
    assert peaks(books) == [1, 0]


def test_a_live_session_is_in_the_peak_until_the_hour_ends(books: Books) -> None:
    FakeAllocation(books).new(0, 7200)
    bob = FakeAllocation(books, user="bob")
    bob.new(100)
    run_jobs_at(books, 200)
    assert peaks(books) == [2]


# Zones


@pytest.mark.parametrize(
    ("zone", "start", "hours", "day", "length"),
    [
        # From one evening to the next, in the local time of the realm.
        (
            "America/New_York",
            datetime(2026, 3, 8, 4, 30, tzinfo=UTC),
            [1800] + [3600] * 23 + [1800],
            ["03-07 05:00", "03-08 05:00", "03-09 04:00"],
            [1800, 23 * HOUR, 1800],
        ),
        (
            "America/New_York",
            datetime(2026, 11, 1, 3, 30, tzinfo=UTC),
            [1800] + [3600] * 25 + [1800],
            ["10-31 04:00", "11-01 04:00", "11-02 05:00"],
            [1800, 25 * HOUR, 1800],
        ),
        (
            "Australia/Lord_Howe",
            datetime(2026, 4, 4, 12, 30, tzinfo=UTC),
            [1800, 3600, 3600] + [1800] + [3600] * 22 + [1800],
            ["04-03 13:00", "04-04 13:00", "04-05 13:30"],
            [1800, 24 * HOUR + 1800, 1800],
        ),
        (
            "Australia/Lord_Howe",
            datetime(2026, 10, 3, 13, 0, tzinfo=UTC),
            [1800, 3600, 3600] + [1800] + [3600] * 21 + [1800],
            ["10-02 13:30", "10-03 13:30", "10-04 13:00"],
            [1800, 23 * HOUR + 1800, 1800],
        ),
        (
            "Asia/Kolkata",
            datetime(2026, 3, 31, 18, 0, tzinfo=UTC),
            [1800] + [3600] * 24 + [1800],
            ["03-30 18:30", "03-31 18:30", "04-01 18:30"],
            [1800, 24 * HOUR, 1800],
        ),
    ],
)
def test_a_session_across_a_clock_change_is_split_exactly(
    books: Books, zone: str, start: datetime, hours: list[int], day: list[str], length: list[int]
) -> None:
    """From half an hour before a local midnight to half an hour after the next."""
    set_time_zone(books, "example.org", zone)
    books.start = start
    receive_session(books, 0, sum(hours))
    run_jobs_at(books, sum(hours) + 1)
    assert [row[1] for row in seconds_of(books, "hourly")] == hours
    assert seconds_of(books, "daily") == list(zip(day, length, strict=True))
    assert sum(row[1] for row in seconds_of(books, "monthly")) == sum(hours)
    assert {row["time_zone"] for row in usage_rows(books, "hourly")} == {zone}
    for subject in ("user", "realm"):
        for each in ("hourly", "daily"):
            assert_contiguous(usage_rows(books, each, subject))
        assert sum(row["received_bytes"] for row in usage_rows(books, "daily", subject)) == 2


def assert_contiguous(rows: list[dict[str, Any]]) -> None:
    for before, after in pairwise(rows):
        assert before["ends_at"] == after["starts_at"]


def test_each_realm_has_its_own_borders(books: Books) -> None:
    zones: Mapping[str, str] = {"in": "Asia/Kolkata", "us": "America/New_York", "jp": "Asia/Tokyo"}
    for realm, zone in zones.items():
        set_time_zone(books, realm, zone)
        FakeAllocation(books, realm=realm).new(0)
    run_jobs_at(books, 1)
    found = {
        (row["realm"], row["starts_at"].strftime("%d %H:%M"), row["time_zone"])
        for row in usage_rows(books, "daily")
    }
    assert found == {
        ("in", "01 18:30", "Asia/Kolkata"),
        ("us", "02 05:00", "America/New_York"),
        ("jp", "01 15:00", "Asia/Tokyo"),
    }


def test_two_servers_on_one_key_are_one_session_in_the_peak(books: Books) -> None:
    FakeAllocation(books).new(0)
    FakeAllocation(books, server_address=OTHER_SERVER_ADDRESS).new(1)
    run_jobs_at(books, 2)
    assert peaks(books) == [1]
