"""Erasing a user's names leaves every figure and digest unchanged."""

from datetime import UTC, datetime, timedelta
from typing import Any

import psycopg
import pytest
from psycopg.sql import SQL, Identifier

from accounting.audit.verify import verify
from accounting.errors import UsageError
from accounting.identities.erase import erase
from tests.support.billing_scenarios import close_and_adjust_november
from tests.support.books import WRITER, Books, sum_counters
from tests.support.command import turn_accounting
from tests.support.coturn_messages import FakeAllocation, run_jobs_at
from tests.support.scenario_player import restarted_loader

NAMES = ("user_id", "username")


def tables_containing(books: Books, word: bytes) -> set[str]:
    """The tables that contain the word, as text or as bytes."""
    with psycopg.connect(books.url()) as connection:
        tables = connection.execute(
            "SELECT tablename FROM pg_tables WHERE schemaname = 'accounting'"
        ).fetchall()
        query = SQL(
            "SELECT count(*) FROM accounting.{} t WHERE position(%s in t::text) > 0"
            " OR position(%s in t::text) > 0"
        )
        return {
            name
            for (name,) in tables
            if connection.execute(
                query.format(Identifier(name)), (word.decode(), word.hex())
            ).fetchall()
            != [(0,)]
        }


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


def test_an_erased_users_line_is_traced_by_key(books: Books) -> None:
    close_and_adjust_november(books)
    books.set_database_clock(ahead=timedelta(0))
    url = books.url(WRITER)
    assert turn_accounting("erase", "example.org", "alice", database_url=url).code == 0
    keys = {str(row["user_key"]) for row in books.rows("statements") if row["user_id"] == ""}
    (key,) = keys
    arguments = ("trace", "example.org", "2026-11-01", "--user-key", key)
    assert turn_accounting(*arguments, database_url=url).code == 0
    again = turn_accounting("erase", "example.org", "alice", database_url=url)
    assert (again.code, "erased 0 user_id, 0 usernames" in again.err) == (0, True)


def test_the_command_names_what_it_does_not_erase(books: Books) -> None:
    close_and_adjust_november(books)
    ran = turn_accounting(
        "erase", "example.org", "alice", "--dry-run", database_url=books.url(WRITER)
    )
    first, second = ran.err.splitlines()
    assert first.startswith("turn-accounting: would erase 1 user_id, 1 usernames and 0 rejected")
    assert second.startswith("turn-accounting: not reached: the spools of the collectors, which")
    assert "alice" not in ran.err


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


def test_an_unknown_realm_or_user_is_refused(books: Books) -> None:
    close_and_adjust_november(books)
    for realm, user in (("nosuch", "alice"), ("example.org", "nobody"), ("example.org", "")):
        with pytest.raises(UsageError):
            erase(books.engine, realm, user)
