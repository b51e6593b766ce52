"""The rules of a realm, and the date from which they hold."""

from datetime import date
from decimal import Decimal
from typing import Any

import pytest

from accounting.domain.identity import UsernameRule
from accounting.domain.realm_rules import RealmRule
from tests.support.books import Books
from tests.support.coturn_messages import (
    FakeAllocation,
    run_jobs_at,
    session_row,
    session_rows,
    usage_row,
    usage_rows,
)
from tests.support.realm_rules import set_realm_rule

NOTHING = (0, 0, 0, 0)
HALF, WHOLE = (5, 500, 4, 400), (10, 1000, 8, 800)
HOUR, DAY = 3600, 86_400
NOON = 12 * HOUR


@pytest.mark.parametrize("grace", [0, 1, 3600])
def test_a_session_expires_after_the_grace_of_its_realm(books: Books, grace: int) -> None:
    set_realm_rule(books, "example.org", grace_seconds=grace)
    FakeAllocation(books).new(0)
    run_jobs_at(books, 600 + grace)
    assert session_rows(books)[0]["ended_at"] is None
    run_jobs_at(books, 600 + grace + 0.000001)
    assert session_rows(books) == [session_row(books, 0, 0, 0, "expired")]


def test_a_realm_without_a_rule_has_the_default(books: Books) -> None:
    books.rule = RealmRule(time_zone="Asia/Kolkata", grace_seconds=5)
    FakeAllocation(books).new(0)
    run_jobs_at(books, 606)
    assert session_rows(books)[0]["end_cause"] == "expired"
    assert usage_rows(books, "hourly")[0]["time_zone"] == "Asia/Kolkata"


def test_the_usernames_of_one_rest_user_are_one_line_of_usage(books: Books) -> None:
    """The time in the username differs, the user does not (docs/coturn.md#rest-usernames)."""
    for index, user in enumerate(("1999999999:alice", "alice:1999999998", "alice")):
        allocation = FakeAllocation(books, user=user)
        allocation.new(index)
        allocation.interim(10, *HALF)
    run_jobs_at(books, 11)
    assert [(row["username"], row["user_id"]) for row in session_rows(books)] == [
        ("1999999999:alice", "alice"),
        ("alice:1999999998", "alice"),
        ("alice", "alice"),
    ]
    (month,) = usage_rows(books, "monthly")
    assert (month["user_id"], month["received_bytes"], month["sessions_started"]) == (
        "alice",
        1500,
        3,
    )


def test_only_a_realm_declared_rest_has_users_without_a_name(books: Books) -> None:
    set_realm_rule(books, "rest", username_rule=UsernameRule.REST)
    for realm in ("rest", "auto"):
        FakeAllocation(books, realm=realm, user="1999999999").new(0)
    run_jobs_at(books, 1)
    assert {(row["realm"], row["user_id"]) for row in usage_rows(books, "daily")} == {
        ("rest", ""),
        ("auto", "1999999999"),
    }


def test_a_realm_has_its_own_separator_and_username_rule(books: Books) -> None:
    set_realm_rule(books, "pipe", separator="|")
    set_realm_rule(books, "plain", username_rule=UsernameRule.PLAIN)
    for realm in ("pipe", "plain", "auto"):
        FakeAllocation(books, realm=realm, user="1999999999:a").new(0)
        FakeAllocation(books, realm=realm, user="1999999999|b").new(1)
    run_jobs_at(books, 2)
    assert {(row["realm"], row["user_id"]) for row in usage_rows(books, "daily")} == {
        ("pipe", "1999999999:a"),
        ("pipe", "b"),
        ("plain", "1999999999:a"),
        ("plain", "1999999999|b"),
        ("auto", "a"),
        ("auto", "1999999999|b"),
    }


def test_a_user_of_two_realms_is_two_users(books: Books) -> None:
    for realm in ("one", "two"):
        FakeAllocation(books, realm=realm).new(0)
    run_jobs_at(books, 1)
    keys = {row["user_key"] for row in books.rows("user_usage_daily")}
    assert len(keys) == 2


def test_a_zone_that_holds_from_a_date_ends_the_hour_day_and_month_there(books: Books) -> None:
    """Midnight of 3 November in Kolkata is 18:30 UTC of the 2nd; the session continues over it."""
    change = 6.5 * HOUR
    alice = FakeAllocation(books)
    alice.new(0, 100_000)
    alice.interim(10, *HALF)
    run_jobs_at(books, 20)
    set_realm_rule(books, "example.org", time_zone="Asia/Kolkata", holds_from=date(2026, 11, 3))
    alice.interim(change + 10, *HALF)
    alice.close(change + 10, WHOLE, NOTHING)
    run_jobs_at(books, 7 * HOUR)
    before: dict[str, Any] = {
        "counts": (*HALF, *NOTHING),
        "sessions_started": 1,
        "session_seconds": Decimal(int(change)),
    }
    after: dict[str, Any] = {
        "counts": (*HALF, *NOTHING),
        "sessions_ended": 1,
        "session_seconds": Decimal(10),
        "time_zone": "Asia/Kolkata",
    }
    assert usage_rows(books, "hourly")[-2:] == [
        usage_row(books, 6 * HOUR, change, session_seconds=Decimal(1800)),
        usage_row(books, change, change + HOUR, **after),
    ]
    assert usage_rows(books, "daily") == [
        usage_row(books, -NOON, change, **before),
        usage_row(books, change, change + DAY, **after),
    ]
    assert usage_rows(books, "monthly") == [
        usage_row(books, -DAY - NOON, change, **before),
        usage_row(books, change, change + 28 * DAY, **after),
    ]


def test_another_grace_from_a_date_does_not_end_the_month(books: Books) -> None:
    alice = FakeAllocation(books)
    alice.new(0)
    run_jobs_at(books, 1)
    set_realm_rule(books, "example.org", grace_seconds=5, holds_from=date(2026, 11, 3))
    FakeAllocation(books, allocation=2).new(DAY)
    run_jobs_at(books, DAY + 606)
    (month,) = usage_rows(books, "monthly")
    assert month["sessions_ended"] == 2
    assert (month["starts_at"].day, month["ends_at"].day, month["ends_at"].month) == (1, 1, 12)


def test_a_session_has_the_grace_in_force_at_its_start(books: Books) -> None:
    change = NOON  # midnight of 3 November, UTC
    alice = FakeAllocation(books)
    alice.new(0)
    run_jobs_at(books, 1)
    set_realm_rule(books, "example.org", grace_seconds=0, holds_from=date(2026, 11, 3))
    alice.refreshed(600)
    alice.new(change - 1)
    FakeAllocation(books, allocation=2).new(change)
    run_jobs_at(books, change + 600.5)
    assert [row["end_cause"] for row in session_rows(books)] == ["expired", None, "expired"]


def test_another_username_rule_from_a_date_does_not_rename_active_sessions(books: Books) -> None:
    change = NOON
    before, after = (
        FakeAllocation(books, user="1999999999:alice", allocation=one) for one in (1, 2)
    )
    before.new(change - 10)
    run_jobs_at(books, change - 9)
    set_realm_rule(
        books, "example.org", username_rule=UsernameRule.PLAIN, holds_from=date(2026, 11, 3)
    )
    after.new(change)
    before.interim(change + 1, *HALF)
    after.interim(change + 1, *HALF)
    before.close(change + 2, HALF, NOTHING)
    run_jobs_at(books, change + 3)
    assert [(row["user_id"], row["received_bytes"]) for row in session_rows(books)] == [
        ("alice", 500),
        ("1999999999:alice", 500),
    ]
    assert {(row["user_id"], row["received_bytes"]) for row in usage_rows(books, "monthly")} == {
        ("alice", 500),
        ("1999999999:alice", 500),
    }
