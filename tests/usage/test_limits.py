"""Limits: events when the usage of a bucket reaches a threshold, and when it no longer does."""

from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any, Final
from uuid import UUID

import psycopg
import pytest

from accounting.audit.rebuild import rebuild
from accounting.audit.verify import verify
from accounting.domain.amounts import parse_bytes
from accounting.errors import UsageError
from accounting.identities.erase import erase
from accounting.identities.realm_rules import remove_realm
from accounting.usage.limits.limit_queries import StoredLimit
from accounting.usage.limits.limit_rules import SetLimit, remove_limit, set_limit
from accounting.usage.rollup import rollup
from tests.support.books import Books
from tests.support.command import turn_accounting
from tests.support.coturn_messages import FakeAllocation, run_jobs_at
from tests.support.crash_injection import CrashInjector, crashing_engine, run_through_crashes
from tests.support.realm_rules import set_realm_rule

HOUR, DAY = 3600, 86_400
REACHED, CLEARED = "limit.reached", "limit.cleared"


def limit(books: Books, **options: Any) -> SetLimit:
    """Set a limit of example.org, by default 1,000 bytes a month for every user."""
    chosen: dict[str, Any] = {"measure": "bytes", "per": "month", "amount": 1000}
    chosen["every_user"] = "user" not in options
    return set_limit(books.engine, "example.org", **(chosen | options))


def open_books(books: Books) -> FakeAllocation:
    """The realm is known, the database's clock goes on from the start, and alice has a session."""
    set_realm_rule(books, "example.org", anchor_day=15)
    run_jobs_at(books, 0)
    alice = FakeAllocation(books)
    alice.new(0, 90 * DAY)
    run_jobs_at(books, 1)
    return alice


def states(books: Books) -> list[tuple[Any, ...]]:
    """(whom, user, threshold, usage, whether it is reached now, times) of all states."""
    return [
        (
            row["whom"],
            row["user_id"],
            row["threshold"],
            int(row["usage"]),
            row["cleared_at"] is None,
            row["times_reached"],
        )
        for row in books.rows("limit_states", order="limit_id, user_id, starts_at, threshold")
    ]


def event_rows(books: Books) -> list[dict[str, Any]]:
    """The limits' events in order; each has an id of its own."""
    rows = books.query(
        "SELECT event_id, type, payload FROM accounting.feed_outbox"
        " WHERE type LIKE 'limit.%%' ORDER BY outbox_id"
    )
    assert len({row["event_id"] for row in rows}) == len(rows)
    return rows


def events(books: Books) -> list[tuple[str, int, float]]:
    """(type, threshold, usage) of the limits' events, in order."""
    return [
        (row["type"], row["payload"]["threshold"], row["payload"]["usage"])
        for row in event_rows(books)
    ]


def use(books: Books, allocation: FakeAllocation, second: float, received: int) -> None:
    """Receive so many bytes from a client, and run the jobs."""
    allocation.interim(second, 1, received, 0, 0)
    run_jobs_at(books, second + 1)


def test_each_threshold_is_one_event_when_usage_reaches_it(books: Books) -> None:
    alice = open_books(books)
    assert limit(books, warnings=[50, 95]) == SetLimit(limit_id=1)
    for second, expected in (
        (10, []),
        (20, [(REACHED, 50, 600)]),
        (30, []),
        (HOUR, [(REACHED, 95, 1200), (REACHED, 100, 1200)]),
        (HOUR + 10, []),
    ):
        before = events(books)
        alice.interim(second, 1, 200, 1, 100)
        run_jobs_at(books, second + 1)
        assert events(books)[len(before) :] == expected
    assert states(books) == [
        ("every_user", "alice", 50, 600, True, 1),
        ("every_user", "alice", 95, 1200, True, 1),
        ("every_user", "alice", 100, 1200, True, 1),
    ]
    [key] = {row["user_key"] for row in books.rows("user_usage_hourly")}
    assert event_rows(books)[0]["payload"] == {
        "limit_id": 1,
        "whom": "every_user",
        "user_key": str(key),
        "measure": "bytes",
        "direction": "both",
        "per": "month",
        "amount": 1000,
        "threshold": 50,
        "usage": 600,
        "starts_at": "2026-11-01T00:00:00+00:00",
        "ends_at": "2026-12-01T00:00:00+00:00",
    }


MEASURES: Final[Sequence[tuple[dict[str, Any], int]]] = (
    ({"measure": "bytes", "amount": 700}, 700),
    ({"measure": "bytes", "amount": 600, "direction": "received"}, 600),
    ({"measure": "bytes", "amount": 100, "direction": "sent"}, 100),
    ({"measure": "sessions", "amount": 1}, 1),
    ({"measure": "session_seconds", "amount": 30}, 30),
    ({"measure": "bytes", "amount": 700, "user": "alice"}, 700),
    ({"measure": "bytes", "amount": 701, "every_user": False}, 800),
    ({"measure": "session_seconds", "amount": 31, "every_user": False}, 60),
)
"""Options of a limit, and the usage with which it is reached."""
LENGTHS: Final = ("hour", "day", "month", "period")


def test_each_measure_and_whom_is_limited(books: Books) -> None:
    """Alice receives 600 bytes and sends 100 in 30 seconds, bob 100 in all: no limit of bytes."""
    alice = open_books(books)
    bob = FakeAllocation(books, user="bob", allocation=2)
    expected = {
        (limit(books, per=per, **options).limit_id, "" if "every_user" in options else "alice"): use
        for options, use in MEASURES
        for per in LENGTHS
    }
    bob.new(1, DAY)
    alice.interim(30, 1, 600, 1, 100)
    bob.interim(31, 1, 90, 1, 10)
    run_jobs_at(books, 32)
    names = {row["user_key"]: row["user_id"] for row in books.rows("limit_states")}
    found = {
        (
            row["payload"]["limit_id"],
            names[UUID(key)] if (key := row["payload"]["user_key"]) else "",
        ): row["payload"]["usage"]
        for row in event_rows(books)
    }
    assert sorted(use for key, use in found.items() if key[1] == "bob") == [1] * 4 + [30] * 4
    assert {key: use for key, use in found.items() if key[1] != "bob"} == expected
    by_per = {row["per"]: row for row in books.rows("limit_states")}
    assert (by_per["period"]["starts_at"], by_per["period"]["ends_at"]) == (
        datetime(2026, 10, 15, tzinfo=UTC),
        datetime(2026, 11, 15, tzinfo=UTC),
    )
    assert (by_per["hour"]["starts_at"], by_per["hour"]["ends_at"]) == (
        datetime(2026, 11, 2, 12, tzinfo=UTC),
        datetime(2026, 11, 2, 13, tzinfo=UTC),
    )


def test_setting_a_limit_counts_what_is_used_and_changing_it_clears_what_no_longer_holds(
    books: Books,
) -> None:
    alice = open_books(books)
    use(books, alice, 10, 900)
    assert limit(books, warnings=[50]) == SetLimit(limit_id=1, reached=1)
    before = StoredLimit(1, 1000, (50, 100))
    assert limit(books, warnings=[50]) == SetLimit(limit_id=1, before=before, is_changed=False)
    assert limit(books, amount=800) == SetLimit(limit_id=1, before=before, reached=1, cleared=1)
    assert limit(books, amount=2000).cleared == 1
    use(books, alice, 20, 1100)
    assert events(books) == [
        (REACHED, 50, 900),
        (CLEARED, 50, 900),
        (REACHED, 100, 900),
        (CLEARED, 100, 900),
        (REACHED, 100, 2000),
    ]
    assert states(books)[-1] == ("every_user", "alice", 100, 2000, True, 2)
    assert remove_limit(books.engine, 1) == 1
    assert (states(books), books.rows("limits"), len(events(books))) == ([], [], 6)
    with pytest.raises(UsageError, match="there is no limit 1"):
        remove_limit(books.engine, 1)


def test_removing_a_limit_clears_what_it_has_reached_in_buckets_that_run(books: Books) -> None:
    """A receiver that blocked the user has an event by which it unblocks."""
    alice = open_books(books)
    limit(books, per="hour", warnings=[50, 200])
    limit(books, per="month", amount=1500)
    use(books, alice, 10, 1000)
    use(books, alice, HOUR, 600)
    reached = {(row["starts_at"], row["threshold"]) for row in books.rows("limit_states")}
    assert len(reached) == 4
    assert remove_limit(books.engine, 1) == 1
    [cleared] = [row for row in event_rows(books) if row["type"] == CLEARED]
    assert cleared["payload"] == {
        **event_rows(books)[-2]["payload"],
        "limit_id": 1,
        "per": "hour",
        "amount": 1000,
        "threshold": 50,
        "usage": 600,
        "starts_at": "2026-11-02T13:00:00+00:00",
        "ends_at": "2026-11-02T14:00:00+00:00",
    }
    assert [(row["limit_id"], row["per"]) for row in books.rows("limit_states")] == [(2, "month")]
    assert remove_limit(books.engine, 2) == 1
    assert (books.rows("limit_states"), books.rows("limits")) == ([], [])


def test_removing_a_limit_leaves_the_others_watched(books: Books) -> None:
    """The last hour's score had the weight of a session, which is now zero."""
    alice = open_books(books)
    limit(books, per="hour")
    limit(books, measure="sessions", per="day")
    limit(books, user="alice", measure="session_seconds", per="day", amount=DAY)
    use(books, alice, 10, 100)
    remove_limit(books.engine, 2)
    use(books, alice, 20, 5000)
    remove_limit(books.engine, 3)
    limit(books, per="hour", amount=6000)
    use(books, alice, 30, 5000)
    assert events(books) == [(REACHED, 100, 5100), (CLEARED, 100, 5100), (REACHED, 100, 10100)]


def test_what_a_changed_limit_still_reaches_has_its_amount(books: Books) -> None:
    alice = open_books(books)
    limit(books, warnings=[50])
    use(books, alice, 10, 1500)
    assert limit(books, amount=2000, warnings=[50]).cleared == 1
    [half, whole] = books.rows("limit_states", order="threshold")
    assert (half["amount"], half["usage"], half["cleared_at"]) == (2000, 1500, None)
    assert (whole["amount"], whole["cleared_at"] is None) == (1000, False)
    use(books, alice, 20, 500)
    assert events(books)[-1] == (REACHED, 100, 2000)


def test_a_limit_has_at_most_ten_more_percents(books: Books) -> None:
    open_books(books)
    limit(books, warnings=[*range(1, 11), 100])
    with pytest.raises(UsageError, match="at most 10 more percents"):
        limit(books, warnings=range(1, 12))


def test_a_correction_clears_and_more_usage_reaches_again(books: Books) -> None:
    """The total of a session is below its interims."""
    alice = open_books(books)
    limit(books)
    use(books, alice, 10, 600)
    use(books, alice, HOUR, 600)
    alice.deleted(2 * HOUR)
    alice.total(2 * HOUR, 2, 700, 0, 0)
    run_jobs_at(books, 2 * HOUR + 1)
    assert events(books) == [(REACHED, 100, 1200), (CLEARED, 100, 700)]
    again = FakeAllocation(books, allocation=2)
    again.new(2 * HOUR + 10, DAY)
    use(books, again, 2 * HOUR + 20, 300)
    assert events(books) == [
        (REACHED, 100, 1200),
        (CLEARED, 100, 700),
        (REACHED, 100, 1000),
    ]
    assert states(books) == [("every_user", "alice", 100, 1000, True, 2)]


def test_buckets_that_ended_before_the_limit_was_set_have_none(books: Books) -> None:
    alice = open_books(books)
    use(books, alice, 10, 5000)
    run_jobs_at(books, 40 * DAY)
    assert limit(books) == SetLimit(limit_id=1)
    books.query(
        "INSERT INTO accounting.usage_deltas (realm_id, user_key, starts_at, received_bytes)"
        " SELECT realm_id, user_key, min(starts_at), 5000 FROM accounting.user_usage_hourly"
        " GROUP BY 1, 2 RETURNING 1"
    )
    books.rollup()
    assert events(books) == []


def test_late_usage_of_a_past_bucket_counts_in_it(books: Books) -> None:
    alice = open_books(books)
    limit(books, per="hour")
    slow = FakeAllocation(books, source="slow", allocation=2)
    slow.new(5, DAY)
    run_jobs_at(books, 6, "slow")
    use(books, alice, 10, 600)
    use(books, alice, 5 * HOUR, 600)
    assert events(books) == []
    slow.interim(20, 1, 400, 0, 0)
    run_jobs_at(books, 30, "slow")
    assert events(books) == [(REACHED, 100, 1000)]
    [state] = books.rows("limit_states")
    assert state["starts_at"] == datetime(2026, 11, 2, 12, tzinfo=UTC)


def test_usage_in_a_current_and_a_past_hour_adds_up(books: Books) -> None:
    """Each hour alone stays below what its last look allowed it."""
    alice = open_books(books)
    slow = FakeAllocation(books, source="slow", allocation=2)
    slow.new(5, DAY)
    run_jobs_at(books, 6, "slow")
    limit(books)
    use(books, alice, HOUR, 500)
    slow.interim(20, 1, 300, 0, 0)
    run_jobs_at(books, 30, "slow")
    use(books, alice, HOUR + 10, 199)
    assert events(books) == []
    use(books, alice, HOUR + 20, 1)
    assert events(books) == [(REACHED, 100, 1000)]


def test_late_usage_of_another_bucket_leaves_the_current_one_watched(books: Books) -> None:
    alice = open_books(books)
    slow = FakeAllocation(books, source="slow", allocation=2)
    slow.new(5, DAY)
    run_jobs_at(books, 6, "slow")
    limit(books, per="hour")
    use(books, alice, HOUR, 500)
    slow.interim(20, 1, 300, 0, 0)
    run_jobs_at(books, 30, "slow")
    use(books, alice, HOUR + 10, 500)
    assert events(books) == [(REACHED, 100, 1000)]


def test_a_rule_of_the_realm_that_changes_moves_the_ends_of_what_is_reached(books: Books) -> None:
    alice = open_books(books)
    limit(books, per="period")
    limit(books, per="month")
    use(books, alice, 10, 1000)
    set_realm_rule(books, "example.org", anchor_day=20, time_zone="Asia/Tokyo")
    ends = {row["per"]: row["ends_at"] for row in books.rows("limit_states")}
    # From the next midnight in Tokyo on; the month is cut there.
    assert ends == {
        "period": datetime(2026, 11, 19, 15, tzinfo=UTC),
        "month": datetime(2026, 11, 2, 15, tzinfo=UTC),
    }
    [usage] = [row for row in books.rows("limit_usage") if row["per"] == "period"]
    assert (usage["ends_at"], usage["percent"]) == (ends["period"], 100)
    use(books, alice, 4 * HOUR, 1000)
    assert events(books) == [(REACHED, 100, 1000)] * 3
    assert [row["starts_at"] for row in books.rows("limit_states", order="starts_at")] == [
        datetime(2026, 10, 15, tzinfo=UTC),
        datetime(2026, 11, 1, tzinfo=UTC),
        datetime(2026, 11, 2, 15, tzinfo=UTC),
    ]


def test_a_rebuild_clears_what_the_reports_do_not_say_and_finds_what_they_do(books: Books) -> None:
    alice = open_books(books)
    limit(books)
    use(books, alice, 10, 1000)
    with psycopg.connect(books.url()) as connection:
        connection.execute("UPDATE accounting.reports SET received_bytes = 900 WHERE kind = 4")
    assert list(rebuild(books.engine, "the report was wrong"))
    assert events(books) == [(REACHED, 100, 1000), (CLEARED, 100, 900)]
    with psycopg.connect(books.url()) as connection:
        connection.execute("DELETE FROM accounting.limit_states")
    use(books, alice, 20, 200)
    assert len(states(books)) == 1


def test_a_rebuild_of_right_books_restores_lost_states(books: Books) -> None:
    """With the id of the same event, which numbering drops."""
    alice = open_books(books)
    limit(books)
    use(books, alice, 10, 1000)
    before = states(books)
    [event] = event_rows(books)
    with psycopg.connect(books.url()) as connection:
        connection.execute("DELETE FROM accounting.limit_states")
        connection.execute("DELETE FROM accounting.feed_outbox")
    assert [wrong.kind for wrong in rebuild(books.engine, "a test")] == ["missing"]
    assert states(books) == before
    assert [row["event_id"] for row in event_rows(books)] == [event["event_id"]]


WRONG: Final = (
    (
        "DELETE FROM accounting.limit_states WHERE threshold = 50 AND limit_id = 1",
        ("limit_states", "missing", "50 % of limit 1", "", "600"),
        0,
    ),
    (
        "UPDATE accounting.limit_states SET cleared_at = reached_at WHERE limit_id = 2",
        ("limit_states", "missing", "100 % of limit 2", "", "600"),
        0,
    ),
    (
        (
            "INSERT INTO accounting.limit_states SELECT limit_id, realm_id, user_key,"
            " starts_at, 100, ends_at, time_zone, amount, 1000, reached_at, NULL, 1"
            " FROM accounting.limit_states WHERE limit_id = 1"
        ),
        ("limit_states", "unfounded", "100 % of limit 1", "1000", "600"),
        1,
    ),
    (
        "UPDATE accounting.user_usage_hourly SET next_check_score = 10001",
        ("user_usage_hourly", "differs", "next_check_score", "10001", "at most 10000"),
        0,
    ),
)
"""A statement that makes something of limits wrong, its difference, and the events that heal it."""


def test_verify_finds_wrong_states_and_late_checks_and_a_rebuild_heals_them(books: Books) -> None:
    alice = open_books(books)
    limit(books, per="day", warnings=[50])
    limit(books, every_user=False, per="period", amount=600)
    use(books, alice, 10, 600)
    right, rebuilds = states(books), list(rebuild(books.engine, "nothing is wrong"))
    assert (list(verify(books.engine)), rebuilds) == ([], [])
    cleared = 0
    for statement, wrong, clears in WRONG:
        with psycopg.connect(books.url()) as connection:
            connection.execute(statement.encode())
        for found in (verify(books.engine), rebuild(books.engine, "a test")):
            [difference] = found
            assert (
                difference.what,
                difference.kind,
                difference.column,
                difference.booked,
                difference.recomputed,
            ) == wrong
        assert list(verify(books.engine)) == []
        assert [row[:5] for row in states(books) if row[4]] == [row[:5] for row in right]
        events_of = books.query("SELECT type FROM accounting.feed_outbox")
        cleared += clears
        assert sum(row["type"] == CLEARED for row in events_of) == cleared


def test_an_erasure_leaves_the_states_without_a_name(books: Books) -> None:
    alice = open_books(books)
    limit(books, user="alice")
    use(books, alice, 10, 1000)
    erase(books.engine, "example.org", "alice")
    assert [row["user_id"] for row in books.rows("limits")] == [""]
    assert states(books) == [("user", "", 100, 1000, True, 1)]
    assert "alice" not in str(event_rows(books))


def test_a_limit_of_one_user_is_evaluated_for_that_user_only(books: Books) -> None:
    """Unless it is the first or the last that counts a measure, by which all scores change."""
    alice = open_books(books)
    bob = FakeAllocation(books, user="bob", allocation=2)
    bob.new(2, 90 * DAY)
    use(books, alice, 10, 600)
    limit(books)

    def versions() -> dict[str, Any]:
        """Which transaction wrote each user's hour last."""
        rows = books.query(
            "SELECT user_id, h.xmin::text AS version FROM accounting.user_usage_hourly h"
            " JOIN accounting.users USING (user_key)"
        )
        return {row["user_id"]: row["version"] for row in rows}

    before = versions()
    assert limit(books, user="alice", per="day", amount=500).reached == 1
    assert limit(books, user="alice", per="day", amount=700).cleared == 1
    assert limit(books, user="alice", per="day", amount=600).reached == 1
    assert remove_limit(books.engine, 2) == 1
    after = versions()
    assert (after["bob"], after["alice"] == before["alice"]) == (before["bob"], False)
    limit(books, user="alice", measure="sessions", amount=5)
    assert versions()["bob"] != after["bob"]
    after = versions()
    remove_limit(books.engine, 3)
    assert versions()["bob"] != after["bob"]
    assert list(verify(books.engine)) == []


def test_a_realm_with_limits_is_not_removed(books: Books) -> None:
    set_realm_rule(books, "example.org", anchor_day=1)
    limit(books)
    with pytest.raises(UsageError, match="has 1 limit: remove them before"):
        remove_realm(books.engine, "example.org")
    remove_limit(books.engine, 1)
    remove_realm(books.engine, "example.org")


def test_a_roll_up_that_is_killed_at_any_statement_makes_each_event_once(books: Books) -> None:
    alice = open_books(books)
    limit(books, warnings=[50])
    limit(books, every_user=False, per="hour")
    alice.interim(10, 1, 600, 0, 0)
    books.advance_clock(20)
    books.load()
    books.settle()
    injector = CrashInjector()
    tables = ("usage_deltas", "limit_states", "feed_outbox", "user_usage_hourly")
    with crashing_engine(books, injector) as engine:
        assert run_through_crashes(books, injector, lambda: rollup(engine), tables, step=2) > 15
    use(books, alice, 30, 400)
    assert sorted(events(books)) == [
        (REACHED, 50, 600),
        (REACHED, 100, 1000),
        (REACHED, 100, 1000),
    ]


def test_the_users_nearest_to_a_limit_are_first(books: Books) -> None:
    """From hours that are folded, and from those that are not."""
    users = [FakeAllocation(books, user=name, allocation=n + 2) for n, name in enumerate("abcd")]
    open_books(books)
    for measure, per, direction in (
        ("bytes", "day", "both"),
        ("bytes", "month", "sent"),
        ("sessions", "hour", "both"),
        ("session_seconds", "day", "both"),
    ):
        limit(books, measure=measure, per=per, direction=direction)
    for second in (10, 2 * HOUR):
        for number, user in enumerate(users):
            if second == 10:
                user.new(second, DAY)
            user.interim(second + number + 1, 1, 100 * (number + 1), 1, 10 * (4 - number))
        run_jobs_at(books, second + 10)
    for number in range(1, 5):
        nearest = books.query("SELECT * FROM reporting.nearest_to_limit(%s, NULL)", [number])
        assert nearest == sorted(
            [row for row in books.rows("limit_usage") if row["limit_id"] == number],
            key=lambda row: (-row["usage"], row["user_key"]),
        )
        first = books.query("SELECT * FROM reporting.nearest_to_limit(%s, 2)", [number])
        assert first == nearest[:2]
    printed = turn_accounting("limit", "status", "--top", "1", database_url=books.url())
    highest = max(row["percent"] for row in books.rows("limit_usage"))
    assert str(highest) in printed.out.splitlines()[-1].split()


def test_how_much_is_used_now_is_shown(books: Books) -> None:
    alice = open_books(books)
    for per in ("hour", "day", "month", "period"):
        limit(books, per=per)
        limit(books, per=per, every_user=False, amount=2000)
    use(books, alice, 10, 333)
    shown = {
        (row["whom"], row["per"], row["user_id"], int(row["usage"]), float(row["percent"]))
        for row in books.rows("limit_usage")
    }
    for number in range(1, 9):
        assert books.query("SELECT * FROM reporting.nearest_to_limit(%s, 5)", [number]) == [
            row for row in books.rows("limit_usage") if row["limit_id"] == number
        ]
    assert shown == {
        *(("every_user", per, "alice", 333, 33.3) for per in ("hour", "day", "month", "period")),
        *(("realm", per, None, 333, 16.6) for per in ("hour", "day", "month", "period")),
    }


@pytest.mark.parametrize(
    ("text", "amount"),
    [
        ("100GB", 100 * 10**9),
        ("1TiB", 2**40),
        ("1.5 kB", 1500),
        ("20000", 20_000),
        ("8EiB", None),
        ("0", None),
        ("1.5", None),
        ("1iB", None),
        ("-5GB", None),
        ("many", None),
    ],
)
def test_amounts_have_decimal_and_binary_units(text: str, amount: int | None) -> None:
    assert parse_bytes(text) == amount
