"""Unauthenticated traffic is kept and shown, and never billed.

Source: docs/coturn.md#unauthenticated-traffic.
"""

from tests.support.books import Books
from tests.support.coturn_messages import (
    FakeAllocation,
    run_jobs_at,
    session_row,
    session_rows,
    unattributed_row,
    unattributed_rows,
    usage_rows,
)

UNAUTHENTICATED, AUTHENTICATED = (2, 200, 1, 100), (5, 500, 4, 400)
NOTHING = (0, 0, 0, 0)


def test_traffic_with_a_wrong_password_is_unattributed(books: Books) -> None:
    FakeAllocation(books, user="victim").interim(0, *UNAUTHENTICATED)
    FakeAllocation(books, user="victim").peer_interim(0, *NOTHING)
    run_jobs_at(books, 10_000)
    assert session_rows(books) == []
    assert usage_rows(books, "hourly") == []
    assert usage_rows(books, "monthly", subject="realm") == []
    assert unattributed_rows(books) == [
        unattributed_row(books, 0, (*UNAUTHENTICATED, *NOTHING), username="victim")
    ]


def test_stun_bindings_have_an_empty_username(books: Books) -> None:
    """Before 4.17, with and without a realm."""
    FakeAllocation(books, user="").interim(0, *UNAUTHENTICATED)
    FakeAllocation(books, user="", realm="").interim(4000, *UNAUTHENTICATED)
    run_jobs_at(books, 10_000)
    assert unattributed_rows(books) == [
        unattributed_row(books, 0, (*UNAUTHENTICATED, *NOTHING), username=""),
        unattributed_row(books, 3600, (*UNAUTHENTICATED, *NOTHING), username="", realm=""),
    ]


def test_a_later_new_with_the_same_id_does_not_get_unauthenticated_interims(books: Books) -> None:
    alice = FakeAllocation(books)
    alice.interim(0, *UNAUTHENTICATED)
    alice.new(1)
    alice.interim(2, *AUTHENTICATED)
    alice.close(3, AUTHENTICATED, NOTHING)
    run_jobs_at(books, 4)
    assert session_rows(books) == [
        session_row(books, 1, 3, 3, "deleted", (*AUTHENTICATED, *NOTHING), total_reported=True)
    ]
    assert unattributed_rows(books) == [unattributed_row(books, 0, (*UNAUTHENTICATED, *NOTHING))]


def test_interims_after_the_end_of_a_session_are_unattributed(books: Books) -> None:
    alice = FakeAllocation(books)
    alice.new(0)
    alice.interim(1, *AUTHENTICATED)
    alice.close(2, AUTHENTICATED, NOTHING)
    alice.interim(3, *UNAUTHENTICATED)
    run_jobs_at(books, 4)
    alice.interim(5, *UNAUTHENTICATED)
    run_jobs_at(books, 10_000)
    assert [row["received_bytes"] for row in session_rows(books)] == [500]
    assert unattributed_rows(books) == [unattributed_row(books, 0, (4, 400, 2, 200, *NOTHING))]


def test_unconfirmed_interims_stay_unattributed_after_they_expired(
    books: Books,
) -> None:
    alice = FakeAllocation(books)
    alice.interim(0, *UNAUTHENTICATED)
    run_jobs_at(books, 3661)
    alice.refreshed(3662)
    alice.interim(3663, *AUTHENTICATED)
    run_jobs_at(books, 3664)
    assert session_rows(books) == [
        session_row(books, 3662, 3663, None, None, (*AUTHENTICATED, *NOTHING), start_known=False)
    ]
    assert unattributed_rows(books) == [unattributed_row(books, 0, (*UNAUTHENTICATED, *NOTHING))]


def test_an_rfc_6062_data_connection_is_unattributed_under_its_own_id(books: Books) -> None:
    """Its allocation has no reports until it closes (docs/coturn.md#tcp-no-interims)."""
    allocation, connection = FakeAllocation(books), FakeAllocation(books, allocation=2)
    allocation.new(0)
    connection.interim(5, *UNAUTHENTICATED)
    allocation.interim(500, *AUTHENTICATED)
    allocation.close(500, AUTHENTICATED, NOTHING)
    run_jobs_at(books, 10_000)
    assert session_rows(books) == [
        session_row(books, 0, 500, 500, "deleted", (*AUTHENTICATED, *NOTHING), total_reported=True)
    ]
    assert unattributed_rows(books) == [unattributed_row(books, 0, (*UNAUTHENTICATED, *NOTHING))]


def test_a_username_that_imitates_a_channel_is_another_user(books: Books) -> None:
    """The user `x/allocation/000000000000000001/status` is not the user `x`.

    docs/coturn.md#hostile-usernames
    """
    plain = FakeAllocation(books, user="x")
    imitator = FakeAllocation(books, user="x/allocation/000000000000000001/status")
    plain.new(0)
    imitator.new(0)
    plain.interim(1, *AUTHENTICATED)
    imitator.interim(1, *UNAUTHENTICATED)
    imitator.deleted(2)
    run_jobs_at(books, 3)
    assert {
        row["username"]: (row["received_bytes"], row["end_cause"]) for row in session_rows(books)
    } == {
        "x": (500, None),
        "x/allocation/000000000000000001/status": (200, "deleted"),
    }
