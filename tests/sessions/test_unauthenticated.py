"""Traffic that nobody authenticated is kept and shown, and never billed.

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

STRAY, REAL = (2, 200, 1, 100), (5, 500, 4, 400)
NOTHING = (0, 0, 0, 0)


def test_traffic_of_a_wrong_password_is_unattributed_and_bills_nobody(books: Books) -> None:
    FakeAllocation(books, user="victim").interim(0, *STRAY)
    FakeAllocation(books, user="victim").peer_interim(0, *NOTHING)
    run_jobs_at(books, 10_000)
    assert session_rows(books) == []
    assert usage_rows(books, "hourly") == []
    assert usage_rows(books, "monthly", subject="realm") == []
    assert unattributed_rows(books) == [
        unattributed_row(books, 0, (*STRAY, *NOTHING), username="victim")
    ]


def test_stun_bindings_stand_under_the_empty_user(books: Books) -> None:
    """Before 4.17, with and without a realm."""
    FakeAllocation(books, user="").interim(0, *STRAY)
    FakeAllocation(books, user="", realm="").interim(4000, *STRAY)
    run_jobs_at(books, 10_000)
    assert unattributed_rows(books) == [
        unattributed_row(books, 0, (*STRAY, *NOTHING), username=""),
        unattributed_row(books, 3600, (*STRAY, *NOTHING), username="", realm=""),
    ]


def test_a_later_new_under_the_same_id_adopts_no_strangers_interims(books: Books) -> None:
    alice = FakeAllocation(books)
    alice.interim(0, *STRAY)
    alice.new(1)
    alice.interim(2, *REAL)
    alice.close(3, REAL, NOTHING)
    run_jobs_at(books, 4)
    assert session_rows(books) == [
        session_row(books, 1, 3, 3, "deleted", (*REAL, *NOTHING), total_reported=True)
    ]
    assert unattributed_rows(books) == [unattributed_row(books, 0, (*STRAY, *NOTHING))]


def test_interims_after_the_end_of_a_session_are_a_strangers(books: Books) -> None:
    alice = FakeAllocation(books)
    alice.new(0)
    alice.interim(1, *REAL)
    alice.close(2, REAL, NOTHING)
    alice.interim(3, *STRAY)
    run_jobs_at(books, 4)
    alice.interim(5, *STRAY)
    run_jobs_at(books, 10_000)
    assert [row["received_bytes"] for row in session_rows(books)] == [500]
    assert unattributed_rows(books) == [unattributed_row(books, 0, (4, 400, 2, 200, *NOTHING))]


def test_a_strangers_interims_are_adopted_by_nothing_once_their_time_has_passed(
    books: Books,
) -> None:
    alice = FakeAllocation(books)
    alice.interim(0, *STRAY)
    run_jobs_at(books, 3661)
    alice.refreshed(3662)
    alice.interim(3663, *REAL)
    run_jobs_at(books, 3664)
    assert session_rows(books) == [
        session_row(books, 3662, 3663, None, None, (*REAL, *NOTHING), start_known=False)
    ]
    assert unattributed_rows(books) == [unattributed_row(books, 0, (*STRAY, *NOTHING))]


def test_the_data_connection_of_rfc_6062_leaves_a_stray_of_its_own_id(books: Books) -> None:
    """Its allocation reports nothing until it closes (docs/coturn.md#tcp-no-interims)."""
    allocation, connection = FakeAllocation(books), FakeAllocation(books, allocation=2)
    allocation.new(0)
    connection.interim(5, *STRAY)
    allocation.interim(500, *REAL)
    allocation.close(500, REAL, NOTHING)
    run_jobs_at(books, 10_000)
    assert session_rows(books) == [
        session_row(books, 0, 500, 500, "deleted", (*REAL, *NOTHING), total_reported=True)
    ]
    assert unattributed_rows(books) == [unattributed_row(books, 0, (*STRAY, *NOTHING))]


def test_hostile_names_share_nothing_with_the_names_that_they_imitate(books: Books) -> None:
    """The user `x/allocation/000000000000000001/status` is not the user `x`.

    docs/coturn.md#hostile-usernames
    """
    plain = FakeAllocation(books, user="x")
    imitator = FakeAllocation(books, user="x/allocation/000000000000000001/status")
    plain.new(0)
    imitator.new(0)
    plain.interim(1, *REAL)
    imitator.interim(1, *STRAY)
    imitator.deleted(2)
    run_jobs_at(books, 3)
    assert {
        row["username"]: (row["received_bytes"], row["end_cause"]) for row in session_rows(books)
    } == {
        "x": (500, None),
        "x/allocation/000000000000000001/status": (200, "deleted"),
    }
