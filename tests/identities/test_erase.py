"""Erasing a user's names and addresses leaves every figure and digest unchanged."""

from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import psycopg
import pytest

from accounting.audit.rebuild import rebuild
from accounting.audit.retention import retain
from accounting.audit.verify import verify
from accounting.billing.adjust import post_manual_adjustment
from accounting.db.locks import lock
from accounting.domain.identity import UsernameRule
from accounting.domain.realm_rules import RealmRule
from accounting.errors import UsageError
from accounting.identities import realm_queries
from accounting.identities.erase import NOT_REACHED, erase
from tests.support.billing_scenarios import NOVEMBER, close_and_adjust_november
from tests.support.books import WRITER, Books, status_payload, sum_counters
from tests.support.command import turn_accounting
from tests.support.coturn_messages import (
    OTHER_SERVER_ADDRESS,
    SERVER_ADDRESS,
    FakeAllocation,
    run_jobs_at,
)
from tests.support.retention_scenario import (
    DAYS_TO_DROP_ALL,
    DAYS_TO_DROP_ONE,
    MIDNIGHT_SECONDS,
    run_jobs_and_close,
)
from tests.support.scenario_player import restarted_loader
from tests.support.servers import wait_until
from tests.support.table_search import tables_containing

NAMES = ("user_id", "username", "client_address")
ALICES_ADDRESS = "203.0.113.9:41000"


def without_names(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{name: row[name] for name in row if name not in NAMES} for row in rows]


def test_no_table_contains_the_name_and_no_figure_changes(books: Books) -> None:
    FakeAllocation(books).publish(1, "status", b"nonsense")
    FakeAllocation(books, user="1999999999:alice", allocation=8).new(2)
    close_and_adjust_november(books)
    views = ("sessions", "user_usage_hourly", "statements", "adjustments", "feed")
    before = {view: without_names(books.rows(view, order="1, 2, 3, 4")) for view in views}
    assert tables_containing(books, b"alice") == {"users", "usernames", "rejected_messages"}
    (bob,) = [row for row in books.rows("sessions") if row["username"] == "bob"]
    erased = erase(books.engine, "example.org", "alice", dry_run=True)
    assert (erased.usernames, erased.rejected_messages) == (2, 1)
    assert tables_containing(books, b"alice") == {"users", "usernames", "rejected_messages"}
    assert erase(books.engine, "example.org", "alice") == erased
    assert tables_containing(books, b"alice") == set()
    for view in views:
        key = repr
        rows = without_names(books.rows(view, order="1, 2, 3, 4"))
        assert sorted(rows, key=key) == sorted(before[view], key=key), view
    of_alice = [row for row in books.rows("sessions") if row["user_key"] == erased.user_key]
    assert sum_counters(of_alice)["received_bytes"] > 0
    assert {(row["user_id"], row["username"]) for row in of_alice} == {("", "")}
    assert bob in books.rows("sessions")
    assert list(verify(books.engine)) == []


def test_an_erased_users_line_is_traced_by_key(adjusted_books: Books) -> None:
    url = adjusted_books.url(WRITER)
    assert turn_accounting("erase", "example.org", "alice", database_url=url).code == 0
    keys = {
        str(row["user_key"]) for row in adjusted_books.rows("statements") if row["user_id"] == ""
    }
    (key,) = keys
    arguments = ("trace", "example.org", "2026-11-01", "--user-key", key)
    assert turn_accounting(*arguments, database_url=url).code == 0
    again = turn_accounting("erase", "example.org", "alice", database_url=url)
    assert (again.code, "erased 0 user_ids, 0 usernames" in again.err) == (0, True)


def test_a_correction_after_an_erasure_finds_its_user(adjusted_books: Books) -> None:
    """And never one of those whose names were erased for the user without a name."""
    key = erase(adjusted_books.engine, "example.org", "alice").user_key

    def credit(user: str) -> None:
        numbers = {"received_bytes": -1}
        post_manual_adjustment(
            adjusted_books.engine, "example.org", NOVEMBER, user, numbers, reason="x", author="y"
        )

    with pytest.raises(UsageError, match="no user '' is known"):
        credit("")
    credit("alice")
    rows = adjusted_books.rows("adjustments", "user_key", "user_id", "author")
    assert [row for row in rows if row["author"] == "y"] == [
        {"user_key": key, "user_id": "", "author": "y"}
    ]
    assert tables_containing(adjusted_books, b"alice") == set()


def test_the_command_names_what_it_does_not_erase(adjusted_books: Books) -> None:
    ran = turn_accounting(
        "erase", "example.org", "alice", "--dry-run", database_url=adjusted_books.url(WRITER)
    )
    first, second, *listed = ran.err.splitlines()
    assert first.startswith(
        "turn-accounting: would erase 1 user_id, 1 username, the client address of 4 sessions and "
        "4 reports, and 0 rejected messages; user_key "
    )
    assert second == "turn-accounting: not reached:"
    assert "\n".join(listed) + "\n" == NOT_REACHED
    assert (
        NOT_REACHED in (Path(__file__).resolve().parents[2] / "docs/personal-data.md").read_text()
    )
    assert "alice" not in ran.err


class Allocation(FakeAllocation):
    """An allocation whose client has an address of its own."""

    def status(self, seconds: float, word: str, address: str = ALICES_ADDRESS) -> None:
        payload = status_payload(word, local=self.server_address)
        self.publish(seconds, "status", payload.replace(b"198.51.100.7:50000", address.encode()))


def test_no_table_contains_the_address_and_the_books_stay_proved(books: Books) -> None:
    """Also of sessions that go on, of a key that two servers share, and of dropped reports."""
    for seconds in (0.0, MIDNIGHT_SECONDS - 10):
        alice = Allocation(books, allocation=1 + int(seconds))
        alice.status(seconds, "new")
        alice.interim(seconds + 5, 1, 100, 2, 200)
        other = Allocation(books, allocation=alice.allocation, server_address=OTHER_SERVER_ADDRESS)
        other.status(seconds + 6, "new", "203.0.113.9:42000")
        if not seconds:
            alice.close(seconds + 20, (1, 100, 2, 200), (0, 0, 0, 0))
    alice.status(MIDNIGHT_SECONDS + 100, "refreshed")
    FakeAllocation(books, user="bob", allocation=5).new(20)
    run_jobs_and_close(books)
    assert retain(books.engine, DAYS_TO_DROP_ONE) == 1
    assert "carried_sessions" in tables_containing(books, b"203.0.113.9")
    before = without_names(books.rows("sessions"))
    erased = erase(books.engine, "example.org", "alice", dry_run=True)
    assert tables_containing(books, b"203.0.113.9") >= {"reports", "sessions"}
    assert erase(books.engine, "example.org", "alice") == erased
    assert tables_containing(books, b"203.0.113.9") == set()
    assert (erased.sessions, erased.reports) == (2, 1)
    assert without_names(books.rows("sessions")) == before
    assert {row["disputed"] for row in before} == {True, False}
    assert list(verify(books.engine)) == []
    assert list(rebuild(books.engine, "to be sure")) == []
    assert retain(books.engine, DAYS_TO_DROP_ALL) == 1
    assert list(verify(books.engine)) == []
    assert tables_containing(books, b"203.0.113.9") == set()
    again = erase(books.engine, "example.org", "alice")
    assert (again.sessions, again.reports, again.usernames) == (0, 0, 0)
    assert {row["client_address"] for row in books.rows("sessions")} == {None, "198.51.100.7:50000"}
    assert {row["callingstationid"] for row in books.rows("radacct")} == {"", "198.51.100.7"}


def test_addresses_received_after_an_erasure_are_erased_by_the_next(books: Books) -> None:
    """Those captured before it, but loaded later, are not stored at all."""
    books.start = datetime.now(UTC) - timedelta(hours=2)
    settled, second, unloaded, returned = (
        Allocation(books, allocation=number) for number in (1, 2, 3, 4)
    )
    settled.status(0, "new")
    run_jobs_at(books, 1)
    second.status(10, "new")
    books.load()
    unloaded.status(20, "new")
    books.set_database_clock(ahead=timedelta(0))
    erased = erase(books.engine, "example.org", "alice")
    books.set_database_clock()
    assert (erased.sessions, erased.reports) == (2, 2)
    run_jobs_at(books, 30)
    settled.status(40, "refreshed")
    run_jobs_at(books, 50)
    assert tables_containing(books, b"203.0.113.9") == set()
    assert len(books.rows("sessions")) == 3
    assert {row["server_address"] for row in books.rows("sessions")} == {SERVER_ADDRESS}
    returned.status(3 * 3600, "new")
    settled.status(3 * 3600, "refreshed")
    run_jobs_at(books, 3 * 3600 + 10)
    assert tables_containing(books, b"203.0.113.9") >= {"reports", "sessions"}
    again = erase(books.engine, "example.org", "alice")
    assert (again.sessions, again.reports) == (1, 2)
    assert tables_containing(books, b"203.0.113.9") == set()
    assert list(verify(books.engine)) == []


def test_the_address_of_a_report_that_is_not_settled_is_erased(books: Books) -> None:
    FakeAllocation(books).new(0)
    FakeAllocation(books, user="bob", allocation=2).new(1)
    books.load()
    assert len(books.query("DELETE FROM accounting.sessions RETURNING 1")) == 2
    books.query(
        "UPDATE accounting.settle_watermarks SET epoch = 0, position = 0, received_at = NULL"
        " RETURNING 1"
    )
    assert erase(books.engine, "example.org", "alice").reports == 1
    addresses = books.rows("allocation_events", "client_address", order="received_at")
    assert [row["client_address"] is None for row in addresses] == [True, False]


def test_an_erasure_waits_for_the_settling_that_has_read_an_address(books: Books) -> None:
    Allocation(books).status(0, "new")
    run_jobs_at(books, 1)
    waiting = (
        "SELECT FROM pg_stat_activity"
        " WHERE datname = current_database() AND wait_event_type = 'Lock'"
    )
    with ThreadPoolExecutor() as pool, psycopg.connect(books.url(), autocommit=True) as observer:
        with books.engine.begin() as connection:
            lock(connection, f"settle.{books.source_id()}")
            erasing = pool.submit(erase, books.engine, "example.org", "alice")
            wait_until(lambda: observer.execute(waiting).fetchone() is not None)
            assert not erasing.done()
        assert erasing.result(20).sessions == 1


def test_a_username_with_two_users_by_its_realms_rules_leaves_no_address(books: Books) -> None:
    """Else recomputing would give a session the address of a report of the other user."""
    user = Allocation(books, user="1999999999:alice")
    user.interim(0, 1, 1, 1, 1)
    run_jobs_at(books, 1)
    with books.engine.begin() as connection:
        realm_id = realm_queries.find_realm(connection, "example.org")
        rule = RealmRule(holds_from=books.micros_at(5), username_rule=UsernameRule.PLAIN)
        realm_queries.insert_rule(connection, realm_id, rule)
    user.status(10, "refreshed")
    run_jobs_at(books, 20)
    (row,) = books.rows("sessions")
    assert (row["user_id"], row["client_address"]) == ("alice", ALICES_ADDRESS)
    erased = erase(books.engine, "example.org", "1999999999:alice")
    assert (erased.sessions, erased.reports) == (1, 1)
    assert tables_containing(books, b"203.0.113.9") == set()
    assert list(verify(books.engine)) == []


def test_rejected_messages_are_erased_by_the_user_that_they_name(books: Books) -> None:
    """Also by a username that no report had; those of other users are kept."""
    for user in ("alice", "1999999999:alice", "1999999999:bob", "alice/bob", "alicent"):
        FakeAllocation(books, user=user).publish(1, "status", b"nonsense")
    FakeAllocation(books).new(2)
    run_jobs_at(books, 10)
    assert erase(books.engine, "example.org", "alice").rejected_messages == 2
    assert [
        row["channel"].split(b"/user/")[1].rpartition(b"/allocation/")[0]
        for row in books.rows("rejected_messages", order="channel")
    ] == [b"1999999999:bob", b"alice/bob", b"alicent"]


def test_an_erased_name_is_restored_only_by_messages_received_afterwards(books: Books) -> None:
    """Messages still in a spool restore none. A returning user is billed under the same key."""
    books.start = datetime.now(UTC) - timedelta(hours=2)
    FakeAllocation(books, user="1999999999:alice").new(0)
    run_jobs_at(books, 10)
    books.set_database_clock(ahead=timedelta(0))
    key = erase(books.engine, "example.org", "alice").user_key
    books.set_database_clock()
    held = FakeAllocation(books, user="1999999998:alice", allocation=2)
    held.publish(20, "status", b"nonsense")
    held.new(30)
    FakeAllocation(books, user="1999999999:alice").refreshed(40)
    run_jobs_at(books, 50)
    assert tables_containing(books, b"alice") == set()
    assert len(books.rows("sessions")) == 2
    held.new(3 * 3600)
    books.load()
    restarted_loader(books).load()
    run_jobs_at(books, 3 * 3600 + 10)
    names = {(row["username"], row["user_id"], row["user_key"]) for row in books.rows("sessions")}
    assert names == {("", "alice", key), ("1999999998:alice", "alice", key)}
    assert erase(books.engine, "example.org", "alice").usernames == 1
    assert tables_containing(books, b"alice") == set()


def test_an_unknown_realm_or_user_is_refused(adjusted_books: Books) -> None:
    for realm, user in (("nosuch", "alice"), ("example.org", "nobody"), ("example.org", "")):
        with pytest.raises(UsageError):
            erase(adjusted_books.engine, realm, user)
