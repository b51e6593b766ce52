"""Unauthenticated clients can't fill the database: only sums stay of what was never billed."""

from collections import Counter
from collections.abc import Callable
from datetime import date, timedelta
from typing import Any, Final

import pytest
from sqlalchemy import text

from accounting.audit import name_pruning
from accounting.audit.pruning import PruneLimits, prune, prune_relay_threads
from accounting.audit.rebuild import rebuild
from accounting.audit.retention import retain
from accounting.audit.verify import verify
from accounting.billing.close_period import close_periods
from accounting.capture.spool.records import RawKeySighting
from accounting.config import Settings
from accounting.domain.counters import COUNTERS
from accounting.ingest import rejected_messages
from accounting.ingest.loader import Loader
from tests.support.books import Books, channel, traffic_payload
from tests.support.coturn_messages import FakeAllocation, run_jobs_at
from tests.support.retention_scenario import (
    DAYS_TO_DROP_ONE,
    kept_days,
    receive_two_days,
    run_jobs_and_close,
)
from tests.support.scenario_player import all_rows

KEPT: Final = 20
"""The bound of the tests; the floods are ten times as large."""
LIMITS: Final = PruneLimits(unattributed_sessions=KEPT, unattributed_days=36_500)
ALL: Final = PruneLimits(unattributed_sessions=0)
HOUR: Final = 3600
DETAILS: Final = (
    "sessions WHERE NOT confirmed",
    "session_usage WHERE NOT confirmed",
    "reports WHERE kind = 4",
    "users",
    "usernames",
    "rejected_messages",
    "key_sightings",
)


def flood(books: Books, since: float, count: int = 10 * KEPT) -> None:
    """Receive interims of that many strangers, each under a name of its own, within an hour."""
    first = int(since) * 1000
    books.receive_all(
        [
            (
                books.micros_at(since + index * 10 / count),
                0,
                channel("traffic", user=f"stranger {first + index}", allocation=first + index),
                traffic_payload(1, 10, 2, 20),
            )
            for index in range(count)
        ]
    )


def row_counts(books: Books) -> dict[str, int]:
    return {
        table: books.query(f"SELECT count(*) AS rows FROM accounting.{table}")[0]["rows"]  # noqa: S608
        for table in DETAILS
    }


def unattributed_sums(books: Books) -> Counter[Any]:
    """The sums of unattributed usage by realm and hour."""
    sums: Counter[Any] = Counter()
    for row in books.rows("unattributed_usage", order="starts_at"):
        for name in COUNTERS:
            sums[row["realm"], row["starts_at"], name] += int(row[name])
    return sums


def billed_rows(books: Books) -> dict[str, Any]:
    """All that an invoice is made of."""
    views = (
        "sessions", "user_usage_hourly", "user_usage_monthly", "realm_usage_hourly",
        "statements", "adjustments", "feed",
    )  # fmt: skip
    return {view: rows for view, rows in all_rows(books).items() if view in views}


def test_a_flood_of_strangers_ends_flat(books: Books) -> None:
    alice = FakeAllocation(books)
    alice.new(0, lifetime=36_000)
    counts = []
    for turn in range(3):
        flood(books, turn * 2 * HOUR + 10)
        alice.interim(turn * 2 * HOUR + 30, 5, 50, 6, 60)
        run_jobs_at(books, (turn + 1) * 2 * HOUR)
        billed, unattributed = billed_rows(books), unattributed_sums(books)
        assert prune(books.engine, LIMITS) == 10 * KEPT - (KEPT if turn == 0 else 0)
        assert prune(books.engine, LIMITS) == 0
        assert billed_rows(books) == billed
        assert unattributed_sums(books) == unattributed
        assert list(verify(books.engine)) == []
        counts.append(row_counts(books))
    assert counts[0] == counts[1] | {"reports WHERE kind = 4": counts[0]["reports WHERE kind = 4"]}
    assert counts[2]["users"] == counts[2]["usernames"] == KEPT + 1
    assert counts[2]["sessions WHERE NOT confirmed"] == KEPT
    assert counts[2]["reports WHERE kind = 4"] == KEPT + 3
    assert sum(unattributed_sums(books).values()) == 3 * 10 * KEPT * 33
    assert list(rebuild(books.engine, "to be sure")) == []
    [pruned] = books.query("SELECT * FROM accounting.pruned_counts")
    assert pruned["sessions"] == pruned["reports"] == pruned["usernames"] == 29 * KEPT


def test_a_stranger_that_returns_has_a_name_again(books: Books) -> None:
    """The loader, which has cached the name, must notice that it is gone."""
    stranger = FakeAllocation(books, user="stranger")
    stranger.interim(0, 1, 10, 1, 10)
    run_jobs_at(books, 2 * HOUR)
    assert prune(books.engine, ALL) == 1
    assert books.rows("unattributed_usage", "username") == [{"username": ""}]
    stranger.new(2 * HOUR)
    stranger.interim(2 * HOUR + 1, 2, 20, 2, 20)
    run_jobs_at(books, 2 * HOUR + 2)
    assert books.rows("sessions", "username", "user_id", "received_bytes") == [
        {"username": "stranger", "user_id": "stranger", "received_bytes": 20}
    ]
    assert list(verify(books.engine)) == []


def test_what_may_still_be_confirmed_stays(books: Books) -> None:
    """A live unconfirmed session, and interims after the expiry of a confirmed one."""
    FakeAllocation(books, user="stranger").interim(HOUR, 1, 10, 1, 10)
    alice = FakeAllocation(books, allocation=2)
    alice.new(0)
    alice.interim(1200, 2, 20, 2, 20)
    run_jobs_at(books, HOUR + 60)
    before = all_rows(books)
    assert prune(books.engine, ALL) == 0
    assert all_rows(books) == before
    alice.refreshed(HOUR + 61)
    FakeAllocation(books, user="stranger").refreshed(HOUR + 61)
    run_jobs_at(books, HOUR + 62)
    assert sorted(row["received_bytes"] for row in books.rows("sessions")) == [10, 20]


@pytest.mark.parametrize("rule_changes", [False, True])
def test_a_key_with_a_confirmed_session_stays(books: Books, rule_changes: bool) -> None:
    """Without the interims after it, a late total would belong to the session before them."""
    alice = FakeAllocation(books, user="1700000000:alice")
    alice.new(0)
    alice.deleted(10)
    run_jobs_at(books, 20)
    if rule_changes:
        books.query("UPDATE accounting.realm_rules SET username_rule = 'plain' RETURNING realm_id")
    alice.interim(30, 1, 10, 1, 10)
    run_jobs_at(books, 2 * HOUR)
    assert prune(books.engine, ALL) == 0
    alice.total(2 * HOUR + 1, 7, 70, 7, 70)
    run_jobs_at(books, 2 * HOUR + 2)
    assert prune(books.engine, ALL) == 0
    assert list(verify(books.engine)) == []


def test_a_victims_unauthenticated_sessions_go_and_its_name_stays(books: Books) -> None:
    victim = FakeAllocation(books, user="victim")
    victim.new(0)
    victim.interim(1, 1, 10, 1, 10)
    for number in range(2, 30):
        FakeAllocation(books, user="victim", allocation=number).interim(number, 9, 9, 9, 9)
    run_jobs_at(books, 2 * HOUR)
    billed, unattributed = billed_rows(books), unattributed_sums(books)
    assert prune(books.engine, ALL) == 28
    assert billed_rows(books) == billed
    assert unattributed_sums(books) == unattributed
    assert list(verify(books.engine)) == []


def test_sessions_older_than_the_retention_go_across_hours(books: Books) -> None:
    """One session over three hours, with both sides."""
    stranger = FakeAllocation(books, user="stranger")
    for hour in range(3):
        stranger.interim(hour * HOUR, 1, 10, 2, 20)
        stranger.peer_interim(hour * HOUR + 5, 3, 30, 4, 40)
    run_jobs_at(books, 6 * HOUR)
    unattributed = unattributed_sums(books)
    week = PruneLimits(unattributed_days=7)
    books.set_database_clock(at=books.start + timedelta(days=7, hours=2))
    assert prune(books.engine, week) == 0
    books.set_database_clock(at=books.start + timedelta(days=7, hours=3))
    assert prune(books.engine, week) == 1
    assert unattributed_sums(books) == unattributed
    assert row_counts(books) == dict.fromkeys(DETAILS, 0)
    assert list(verify(books.engine)) == []


@pytest.mark.parametrize("order", ["prune first", "drop first"])
def test_pruning_and_dropping_reports_agree(books: Books, order: str) -> None:
    receive_two_days(books)
    flood(books, 100)
    run_jobs_and_close(books)
    billed, unattributed = billed_rows(books), unattributed_sums(books)
    steps: list[Callable[[], int]] = [
        lambda: prune(books.engine, LIMITS),
        lambda: retain(books.engine, DAYS_TO_DROP_ONE),
        lambda: prune(books.engine, ALL),
    ]
    for step in steps if order == "prune first" else steps[1:]:
        assert step() > 0
        assert list(verify(books.engine)) == []
    assert kept_days(books) == [3, 4]
    assert billed_rows(books) == billed
    assert unattributed_sums(books) == unattributed
    assert list(rebuild(books.engine, "to be sure")) == []
    assert books.query(
        "SELECT count(*) AS rows FROM accounting.users WHERE user_id LIKE 'stranger%%'"
    ) == [{"rows": 0}]


def test_a_statement_is_recomputed_without_the_strangers(books: Books) -> None:
    receive_two_days(books)
    flood(books, 100)
    run_jobs_and_close(books)
    assert close_periods(books.engine) == 0
    before = books.rows("statements")
    prune(books.engine, ALL)
    assert list(verify(books.engine, period=date(2026, 11, 1))) == []
    assert books.rows("statements") == before != []


def test_rejected_messages_are_counted_and_only_the_first_are_stored(books: Books) -> None:
    books.receive_all(
        [(books.micros_at(index), 0, channel("traffic"), b"x" * 9000) for index in range(10 * KEPT)]
    )
    Loader(books.engine, books.spool(), books.rule, rejected_per_hour=KEPT).load()
    rows = books.rows("rejected_messages", order="position")
    assert [row["position"] for row in rows] == list(range(1, KEPT + 1))
    assert {len(bytes(row["payload"])) for row in rows} == {1024}
    counted = {"source": "default", "starts_at": books.start, "reason": "not four traffic counters",
               "messages": 10 * KEPT, "stored": KEPT}  # fmt: skip
    [count] = books.rows("rejected_message_counts")
    assert count | counted == count
    books.receive(10 * KEPT, channel("traffic"), b"y")
    Loader(books.engine, books.spool(), books.rule, rejected_per_hour=KEPT).load()
    books.set_database_clock(at=books.start + timedelta(days=30))
    assert prune(books.engine, PruneLimits()) == 0
    books.set_database_clock(at=books.start + timedelta(days=30, seconds=KEPT))
    assert prune(books.engine, PruneLimits()) == KEPT
    assert books.rows("rejected_messages") == []
    [count] = books.rows("rejected_message_counts")
    assert (count["messages"], count["stored"]) == (10 * KEPT + 1, KEPT)


def test_status_keys_without_a_session_go_with_their_names(books: Books) -> None:
    alice = FakeAllocation(books)
    alice.new(0)
    books.spool().add_sightings(
        [
            RawKeySighting(
                scan_started_at=books.micros_at(1),
                seen_at=books.micros_at(2),
                database=0,
                key=channel("status", user=user, allocation=index),
                idle_seconds=1,
            )
            for index, user in enumerate(["alice", *(f"key {n}" for n in range(10 * KEPT))], 1)
        ]
    )
    FakeAllocation(books, user="bob", allocation=9).new(3)
    run_jobs_at(books, 2 * HOUR)
    assert prune(books.engine, ALL) == 0
    run_jobs_at(books, 25 * HOUR)
    assert prune(books.engine, ALL) == 10 * KEPT
    assert row_counts(books)["key_sightings"] == 1
    assert row_counts(books)["users"] == 2
    assert list(verify(books.engine)) == []


def test_the_service_can_not_delete_billed_reports(books: Books) -> None:
    """The database's own function refuses, whoever calls it."""
    alice = FakeAllocation(books)
    alice.new(0)
    alice.interim(1, 1, 10, 1, 10)
    stranger = FakeAllocation(books, user="stranger", allocation=2)
    stranger.interim(2, 1, 10, 1, 10)
    run_jobs_at(books, 2 * HOUR)
    ids = [row["session_id"] for row in books.query("SELECT * FROM accounting.sessions")]
    with pytest.raises(Exception, match="refused"), books.engine.begin() as connection:
        connection.exec_driver_sql(
            "SELECT accounting.delete_unattributed_reports(1::smallint, %s::uuid[], 0, 0, 9, 9)",
            (ids,),
        )
    assert row_counts(books)["reports WHERE kind = 4"] == 2


def test_the_name_of_a_report_that_is_not_settled_stays(books: Books) -> None:
    FakeAllocation(books, user="stranger").interim(0, 1, 10, 1, 10)
    books.load()
    for statement in (
        "DELETE FROM accounting.sessions RETURNING 1",
        "UPDATE accounting.settle_watermarks SET position = position - 1 RETURNING 1",
    ):
        assert len(books.query(statement)) == 1
    deleted = []
    for _ in range(2):
        with books.engine.begin() as connection:
            connection.execute(text("CREATE TEMP TABLE pruned_names AS TABLE accounting.usernames"))
            deleted.append(name_pruning.delete_unused_names(connection))
            connection.execute(text("DROP TABLE pruned_names, names_in_use"))
        books.query("UPDATE accounting.settle_watermarks SET position = position + 1 RETURNING 1")
    assert deleted == [0, 1]


def test_a_flood_of_realms_ends_at_a_bound(books: Books) -> None:
    FakeAllocation(books).new(0)
    for number in range(10 * KEPT):
        FakeAllocation(books, realm=f"realm {number}").interim(1, 1, 1, 1, 1)
    FakeAllocation(books).interim(2, 5, 50, 5, 50)
    Loader(books.engine, books.spool(), books.rule, max_realms=KEPT).load()
    assert books.query("SELECT count(*) AS rows FROM accounting.realms") == [{"rows": KEPT}]
    [count] = books.rows("rejected_message_counts", "reason", "messages")
    assert count == {"reason": "too many realms", "messages": 9 * KEPT + 1}
    run_jobs_at(books, 3)
    assert [row["received_bytes"] for row in books.rows("sessions")] == [50]


def test_a_flood_of_relay_threads_ends_at_a_bound(books: Books) -> None:
    for number in range(10 * KEPT):
        server = f"192.0.2.{number}:3478"
        FakeAllocation(books, allocation=number, server_address=server).new(number)
    run_jobs_at(books, 10 * KEPT)
    [source] = books.query("SELECT source_id FROM accounting.sources")
    prune_relay_threads(books.engine, source["source_id"], KEPT)
    rows = books.query("SELECT server FROM accounting.relay_threads ORDER BY last_report_at")
    assert [row["server"] for row in rows] == [
        f"192.0.2.{number}" for number in range(9 * KEPT, 10 * KEPT)
    ]


def test_jobs_without_settings_have_the_defaults_of_the_settings() -> None:
    """Jobs and loaders that are called from Python have the limits that README states."""
    defaults = {name: field.default for name, field in Settings.model_fields.items()}
    assert PruneLimits() == PruneLimits(
        unattributed_days=defaults["unattributed_retention_days"],
        unattributed_sessions=defaults["unattributed_sessions"],
        rejected_days=defaults["rejected_retention_days"],
    )
    assert defaults["rejected_messages_per_hour"] == rejected_messages.PER_HOUR
