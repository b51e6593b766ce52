"""The start and end of sessions in the books (docs/session-rules.md#borders)."""

from typing import Any

import pytest

from tests.support.books import Books
from tests.support.coturn_messages import (
    OTHER_SERVER_ADDRESS,
    FakeAllocation,
    run_jobs_at,
    session_row,
    session_rows,
    unattributed_row,
    unattributed_rows,
)

ONE, TWO = (1, 100, 2, 200), (10, 1000, 20, 2000)
THREE = (11, 1100, 22, 2200)
NOTHING = (0, 0, 0, 0)


def test_a_new_begins_a_session_whose_start_is_known(books: Books) -> None:
    FakeAllocation(books).new(5)
    run_jobs_at(books, 6)
    assert session_rows(books) == [session_row(books, 5, 5, None, None)]


def test_a_total_after_deleted_still_belongs_to_the_session(books: Books) -> None:
    """Also if a job ran in between."""
    alice = FakeAllocation(books)
    alice.new(0)
    alice.interim(9, *ONE)
    alice.deleted(10)
    run_jobs_at(books, 11)
    alice.total(12, *ONE)
    alice.peer_total(12, *NOTHING)
    run_jobs_at(books, 13)
    assert session_rows(books) == [
        session_row(books, 0, 10, 10, "deleted", (*ONE, *NOTHING), total_reported=True)
    ]


def test_a_new_supersedes_the_active_session_at_its_last_report(books: Books) -> None:
    alice = FakeAllocation(books)
    alice.new(0)
    alice.interim(10, *ONE)
    alice.new(20)
    alice.interim(30, *TWO)
    run_jobs_at(books, 31)
    assert session_rows(books) == [
        session_row(books, 0, 10, 10, "superseded", (*ONE, *NOTHING)),
        session_row(books, 20, 30, None, None, (*TWO, *NOTHING)),
    ]


def test_ids_reused_after_a_restart_are_new_sessions(books: Books) -> None:
    """Nothing is published when coturn is killed, and its ids restart from 1.

    docs/coturn.md#no-publish-on-stop, docs/coturn.md#ids-restart
    """
    killed, restarted = FakeAllocation(books), FakeAllocation(books)
    killed.new(0)
    killed.interim(10, *ONE)
    restarted.new(60)
    restarted.interim(70, *TWO)
    restarted.close(80, TWO, NOTHING)
    run_jobs_at(books, 81)
    assert session_rows(books) == [
        session_row(books, 0, 10, 10, "superseded", (*ONE, *NOTHING)),
        session_row(books, 60, 80, 80, "deleted", (*TWO, *NOTHING), total_reported=True),
    ]


def test_a_new_after_expiry_and_grace_expires_the_previous_session(books: Books) -> None:
    alice = FakeAllocation(books)
    alice.new(0)
    alice.interim(10, *ONE)
    alice.new(660.000001)
    run_jobs_at(books, 661)
    assert session_rows(books) == [
        session_row(books, 0, 10, 10, "expired", (*ONE, *NOTHING)),
        session_row(books, 660.000001, 660.000001, None, None),
    ]


def test_a_new_within_grace_supersedes(books: Books) -> None:
    alice = FakeAllocation(books)
    alice.new(0)
    alice.new(660)
    run_jobs_at(books, 661)
    assert session_rows(books)[0] == session_row(books, 0, 0, 0, "superseded")


def test_any_event_without_a_session_begins_one_of_unknown_start(books: Books) -> None:
    FakeAllocation(books, user="a").refreshed(1)
    FakeAllocation(books, user="b").deleted(2)
    FakeAllocation(books, user="c").total(3, *ONE)
    run_jobs_at(books, 4)
    without_addresses: dict[str, Any] = {
        "transport": None,
        "client_address": None,
        "server_address": None,
    }
    assert session_rows(books) == [
        session_row(books, 1, 1, None, None, start_known=False, username="a", user_id="a"),
        session_row(
            books,
            2,
            2,
            2,
            "deleted",
            start_known=False,
            username="b",
            user_id="b",
            **without_addresses,
        ),
        session_row(
            books,
            3,
            3,
            None,
            None,
            (*ONE, *NOTHING),
            start_known=False,
            total_reported=True,
            estimated=True,
            username="c",
            user_id="c",
            **without_addresses,
        ),
    ]


def test_a_session_of_unknown_start_starts_at_its_first_interim(books: Books) -> None:
    alice = FakeAllocation(books)
    alice.interim(5, *ONE)
    run_jobs_at(books, 6)
    assert session_rows(books) == []
    assert unattributed_rows(books) == [unattributed_row(books, 0, (*ONE, *NOTHING))]
    alice.refreshed(7)
    run_jobs_at(books, 8)
    assert unattributed_rows(books) == []
    assert session_rows(books) == [
        session_row(books, 5, 7, None, None, (*ONE, *NOTHING), start_known=False)
    ]


def test_refreshed_with_lifetime_0_does_not_end_the_session(books: Books) -> None:
    """The allocation of the other address family may continue; otherwise `deleted` follows.

    docs/coturn.md#lifetime-zero
    """
    alice = FakeAllocation(books)
    alice.new(0)
    alice.refreshed(500, 0)
    run_jobs_at(books, 660)
    assert session_rows(books) == [session_row(books, 0, 500, None, None)]
    alice.interim(600, *ONE)
    alice.refreshed(660)
    alice.deleted(661)
    run_jobs_at(books, 662)
    assert session_rows(books) == [session_row(books, 0, 661, 661, "deleted", (*ONE, *NOTHING))]


@pytest.mark.parametrize("lifetime", [600, 3600, 30])
def test_a_session_expires_when_captured_until_passes_expiry_and_grace(
    books: Books, lifetime: int
) -> None:
    alice = FakeAllocation(books)
    alice.new(0, lifetime)
    alice.interim(20, *ONE)
    run_jobs_at(books, lifetime + 60)
    assert session_rows(books) == [session_row(books, 0, 20, None, None, (*ONE, *NOTHING))]
    run_jobs_at(books, lifetime + 60.000001)
    assert session_rows(books) == [session_row(books, 0, 20, 20, "expired", (*ONE, *NOTHING))]


def test_the_clock_of_a_source_expires_only_its_own_sessions(books: Books) -> None:
    FakeAllocation(books, source="one").new(0)
    FakeAllocation(books, source="two").new(0)
    books.advance_clock(1, source="two")
    run_jobs_at(books, 1000, "one")
    assert {row["source"]: row["end_cause"] for row in session_rows(books)} == {
        "one": "expired",
        "two": None,
    }


def test_nothing_expires_while_messages_wait_in_the_spool(books: Books) -> None:
    """captured_until is far ahead, but earlier messages are not loaded yet."""
    alice = FakeAllocation(books)
    alice.new(0)
    books.load()
    alice.refreshed(600)
    alice.refreshed(1200)
    books.advance_clock(1300)
    books.settle()
    assert session_rows(books) == [session_row(books, 0, 0, None, None)]
    run_jobs_at(books, 1300)
    assert session_rows(books) == [session_row(books, 0, 1200, None, None)]


def test_refreshes_keep_a_session_without_traffic_active(books: Books) -> None:
    alice = FakeAllocation(books)
    alice.new(0)
    for refresh in range(500, 2500, 500):
        alice.refreshed(refresh)
        run_jobs_at(books, refresh + 1)
    assert session_rows(books) == [session_row(books, 0, 2000, None, None)]


def test_a_session_of_unknown_lifetime_expires_an_hour_after_its_last_report(books: Books) -> None:
    alice = FakeAllocation(books)
    alice.interim(0, *ONE)
    alice.refreshed(10, 0)
    run_jobs_at(books, 10 + 3600 + 60)
    (row,) = session_rows(books)
    assert row["ended_at"] is None
    run_jobs_at(books, 10 + 3600 + 60.000001)
    assert session_rows(books) == [
        session_row(books, 0, 10, 10, "expired", (*ONE, *NOTHING), start_known=False)
    ]


def test_after_a_total_without_deleted_only_the_grace_remains(books: Books) -> None:
    alice = FakeAllocation(books)
    alice.new(0, 3600)
    alice.interim(10, *ONE)
    alice.total(10, *ONE)
    run_jobs_at(books, 71)
    assert session_rows(books) == [
        session_row(books, 0, 10, 10, "expired", (*ONE, *NOTHING), total_reported=True)
    ]


# Another server on the same key (docs/coturn.md#shared-key)


def test_a_new_of_another_server_continues_the_session_as_disputed(books: Books) -> None:
    """It ends after as many `deleted` as `new`, whenever the jobs run in between."""
    one, two = FakeAllocation(books), FakeAllocation(books, server_address=OTHER_SERVER_ADDRESS)
    one.new(0)
    one.interim(1, *ONE)
    run_jobs_at(books, 1)
    two.new(2)
    run_jobs_at(books, 2)
    assert session_rows(books) == [
        session_row(books, 0, 2, None, None, (*ONE, *NOTHING), disputed=True),
    ]
    two.interim(3, *TWO)
    one.deleted(4)
    run_jobs_at(books, 4)
    assert session_rows(books)[0]["ended_at"] is None
    one.total(4, *ONE)
    one.peer_total(4, *NOTHING)
    run_jobs_at(books, 5)
    two.close(6, TWO, NOTHING)
    run_jobs_at(books, 7)
    assert session_rows(books) == [
        session_row(
            books,
            0,
            6,
            6,
            "deleted",
            (*THREE, *NOTHING),
            total_reported=True,
            disputed=True,
        )
    ]


def test_a_new_without_addresses_is_of_the_same_server(books: Books) -> None:
    """Before coturn 4.6 the status has no addresses."""
    one, two = FakeAllocation(books), FakeAllocation(books, server_address=None)
    one.new(0)
    two.new(1)
    run_jobs_at(books, 2)
    assert [(row["end_cause"], row["disputed"]) for row in session_rows(books)] == [
        ("superseded", False),
        (None, False),
    ]


def test_a_new_of_another_server_after_the_end_begins_another_session(books: Books) -> None:
    one, two = FakeAllocation(books), FakeAllocation(books, server_address=OTHER_SERVER_ADDRESS)
    one.new(0)
    one.close(1, NOTHING, NOTHING)
    two.new(2)
    run_jobs_at(books, 3)
    assert session_rows(books) == [
        session_row(books, 0, 1, 1, "deleted", total_reported=True),
        session_row(books, 2, 2, None, None, server_address=OTHER_SERVER_ADDRESS),
    ]


def test_the_totals_of_a_disputed_session_are_summed(books: Books) -> None:
    """The first total alone is a lower bound, also in another batch than the second."""
    one, two = FakeAllocation(books), FakeAllocation(books, server_address=OTHER_SERVER_ADDRESS)
    one.new(0)
    two.new(0)
    two.interim(1, *ONE)
    one.close(2, ONE, NOTHING)
    run_jobs_at(books, 3)
    assert session_rows(books)[0]["received_bytes"] == ONE[1]
    two.close(4, TWO, NOTHING)
    run_jobs_at(books, 5)
    (row,) = session_rows(books)
    assert row == session_row(
        books,
        0,
        4,
        4,
        "deleted",
        (*THREE, *NOTHING),
        total_reported=True,
        estimated=True,
        disputed=True,
    )


# Keys


def test_source_database_realm_username_and_id_are_the_key_of_a_session(books: Books) -> None:
    """A database for each server keeps the sessions of several servers apart."""
    allocations = [
        FakeAllocation(books),
        FakeAllocation(books, source="other"),
        FakeAllocation(books, database=3),
        FakeAllocation(books, realm=""),
        FakeAllocation(books, user="bob"),
        FakeAllocation(books, allocation=2),
    ]
    for second, allocation in enumerate(allocations):
        allocation.new(second)
        allocation.interim(10 + second, 1 + second, 100, 0, 0)
    for second, allocation in enumerate(allocations):
        allocation.close(20 + second, (1 + second, 100, 0, 0), NOTHING)
    run_jobs_at(books, 30, "default", "other")
    rows = session_rows(books)
    assert len(rows) == 6
    assert not any(row["estimated"] or row["disputed"] for row in rows)
    assert {
        (row["source"], row["database"], row["realm"], row["username"], row["allocation_id"])
        for row in rows
    } == {(t.source, t.database, t.realm, t.user, f"{t.allocation:018d}") for t in allocations}
    assert sorted(row["received_packets"] for row in rows) == [1, 2, 3, 4, 5, 6]


def test_a_username_that_changes_during_an_allocation_is_another_session(books: Books) -> None:
    """With OAuth the username may change; each name is billed for its own reports.

    docs/coturn.md#rest-usernames
    """
    first, second = FakeAllocation(books, user="key-1"), FakeAllocation(books, user="key-2")
    first.new(0)
    first.interim(10, *ONE)
    second.interim(20, *TWO)
    second.close(30, THREE, NOTHING)
    run_jobs_at(books, 1000)
    one, two = session_rows(books)
    assert one == session_row(
        books,
        0,
        10,
        10,
        "expired",
        (*ONE, *NOTHING),
        username="key-1",
        user_id="key-1",
    )
    assert two["user_id"] == "key-2"
    assert (two["start_known"], two["estimated"], two["received_bytes"]) == (False, True, 1100)
