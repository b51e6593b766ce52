"""The usage of a session in the books (docs/session-rules.md#sums)."""

import pytest

from tests.support.books import Books
from tests.support.coturn_messages import (
    OTHER_SERVER_ADDRESS,
    FakeAllocation,
    run_jobs_at,
    session_row,
    session_rows,
    usage_row,
    usage_rows,
)

NOTHING = (0, 0, 0, 0)
HALF = (5, 500, 4, 400)
WHOLE = (10, 1000, 8, 800)
PEER = (8, 700, 10, 900)


def test_interims_are_summed(books: Books) -> None:
    alice = FakeAllocation(books)
    alice.new(0)
    for second in (10, 20):
        alice.interim(second, *HALF)
        alice.peer_interim(second, *PEER)
        run_jobs_at(books, second + 1)
    assert session_rows(books) == [
        session_row(books, 0, 20, None, None, (*WHOLE, 16, 1400, 20, 1800))
    ]


def test_a_total_equal_to_the_interims_changes_nothing(books: Books) -> None:
    alice = FakeAllocation(books)
    alice.new(0)
    alice.interim(10, *WHOLE)
    alice.peer_interim(10, *PEER)
    alice.close(10, WHOLE, PEER)
    run_jobs_at(books, 11)
    assert session_rows(books) == [
        session_row(books, 0, 10, 10, "deleted", (*WHOLE, *PEER), total_reported=True)
    ]


def test_a_larger_total_corrects_the_sum_and_marks_the_session_estimated(books: Books) -> None:
    alice = FakeAllocation(books)
    alice.new(0)
    alice.interim(10, *HALF)
    alice.close(20, WHOLE, NOTHING)
    run_jobs_at(books, 21)
    assert session_rows(books) == [
        session_row(
            books,
            0,
            20,
            20,
            "deleted",
            (*WHOLE, *NOTHING),
            total_reported=True,
            estimated=True,
        )
    ]


def test_a_smaller_total_corrects_the_sum_and_marks_the_session_disputed(books: Books) -> None:
    """The negative difference counts in the hour of the total."""
    alice = FakeAllocation(books)
    alice.new(0, 7200)
    alice.interim(10, *WHOLE)
    alice.close(4000, HALF, NOTHING)
    run_jobs_at(books, 4001)
    assert session_rows(books) == [
        session_row(
            books,
            0,
            4000,
            4000,
            "deleted",
            (*HALF, *NOTHING),
            total_reported=True,
            disputed=True,
        )
    ]
    assert usage_rows(books, "hourly") == [
        usage_row(
            books,
            0,
            3600,
            (*WHOLE, *NOTHING),
            sessions_started=1,
            session_seconds=3600,
        ),
        usage_row(
            books,
            3600,
            7200,
            (-5, -500, -4, -400, *NOTHING),
            sessions_ended=1,
            session_seconds=400,
        ),
    ]


def test_a_session_without_a_total_has_the_sum_of_its_interims(books: Books) -> None:
    alice = FakeAllocation(books)
    alice.new(0)
    alice.interim(10, *WHOLE)
    alice.deleted(10)
    run_jobs_at(books, 11)
    assert session_rows(books) == [session_row(books, 0, 10, 10, "deleted", (*WHOLE, *NOTHING))]


def test_a_wrapped_peer_total_does_not_change_the_sum(books: Books) -> None:
    """Seen: 37,371,486,204 B from the client, with a peer total of 3,011,745,496.

    docs/coturn.md#peer-total-wraps
    """
    received, relayed = 37_371_486_204, 3_011_745_496 + 8 * 2**32
    alice = FakeAllocation(books)
    alice.new(0)
    for second in range(12):
        alice.interim(second, 10**6, received // 12, 0, 0)
        alice.peer_interim(second, 0, 0, 10**6, relayed // 12)
    run_jobs_at(books, 12)
    alice.close(13, (12 * 10**6, received, 0, 0), (0, 0, 12 * 10**6, 3_011_745_496))
    run_jobs_at(books, 14)
    counts = (12 * 10**6, received, 0, 0, 0, 0, 12 * 10**6, relayed)
    assert session_rows(books) == [
        session_row(books, 0, 13, 13, "deleted", counts, total_reported=True)
    ]
    (month,) = usage_rows(books, "monthly")
    assert (month["received_bytes"], month["peer_sent_bytes"]) == (received, relayed)


def end_without_a_peer_interim(alice: FakeAllocation, client: tuple[int, ...] = HALF) -> None:
    """The end of a session whose peer interims sum to half of its peer total."""
    alice.interim(10, *HALF)
    alice.peer_interim(10, *HALF)
    alice.close(20, client, WHOLE)


def test_a_peer_total_corrects_a_session_whose_client_side_missed_interims(books: Books) -> None:
    alice = FakeAllocation(books)
    alice.new(0)
    end_without_a_peer_interim(alice, client=WHOLE)
    run_jobs_at(books, 21)
    assert session_rows(books) == [
        session_row(
            books,
            0,
            20,
            20,
            "deleted",
            (*WHOLE, *WHOLE),
            total_reported=True,
            estimated=True,
        )
    ]


def test_a_peer_total_corrects_a_session_of_unknown_start(books: Books) -> None:
    alice = FakeAllocation(books)
    alice.refreshed(0)
    end_without_a_peer_interim(alice)
    run_jobs_at(books, 21)
    assert session_rows(books) == [
        session_row(
            books,
            0,
            20,
            20,
            "deleted",
            (*HALF, *WHOLE),
            start_known=False,
            total_reported=True,
            estimated=True,
        )
    ]


def test_a_peer_total_corrects_a_session_around_a_gap(books: Books) -> None:
    alice = FakeAllocation(books)
    alice.new(0)
    gap = books.spool().open_gap(books.micros_at(3), "connection_lost")
    books.spool().close_gap(gap, books.micros_at(4))
    end_without_a_peer_interim(alice)
    run_jobs_at(books, 21)
    assert session_rows(books) == [
        session_row(
            books,
            0,
            20,
            20,
            "deleted",
            (*HALF, *WHOLE),
            total_reported=True,
            estimated=True,
        )
    ]


@pytest.mark.parametrize("gap_at", [-5, 30])
def test_any_other_peer_difference_only_disputes_the_session(books: Books, gap_at: int) -> None:
    """A gap before or after the session does not explain it."""
    if gap_at < 0:
        gap = books.spool().open_gap(books.micros_at(gap_at), "connection_lost")
        books.spool().close_gap(gap, books.micros_at(gap_at + 1))
    alice = FakeAllocation(books)
    alice.new(0)
    end_without_a_peer_interim(alice)
    if gap_at > 0:
        books.spool().open_gap(books.micros_at(gap_at), "connection_lost")
    run_jobs_at(books, 21)
    assert session_rows(books) == [
        session_row(
            books,
            0,
            20,
            20,
            "deleted",
            (*HALF, *HALF),
            total_reported=True,
            disputed=True,
        )
    ]


def test_a_gap_of_another_source_does_not_explain_a_peer_difference(books: Books) -> None:
    books.spool("other").open_gap(books.micros_at(5), "connection_lost")
    alice = FakeAllocation(books)
    alice.new(0)
    end_without_a_peer_interim(alice)
    books.advance_clock(1, source="other")
    run_jobs_at(books, 21)
    assert [(row["estimated"], row["disputed"]) for row in session_rows(books)] == [(False, True)]


def test_a_peer_total_below_the_interims_does_not_correct(books: Books) -> None:
    """Modulo 2^32 it would look like four billion missed bytes."""
    alice = FakeAllocation(books)
    alice.refreshed(0)
    alice.interim(10, *WHOLE)
    alice.peer_interim(10, *WHOLE)
    alice.close(20, WHOLE, HALF)
    run_jobs_at(books, 21)
    (row,) = session_rows(books)
    assert (row["peer_received_bytes"], row["estimated"], row["disputed"]) == (1000, False, True)


def test_versions_without_peer_traffic_have_none(books: Books) -> None:
    """Before 4.5.1.2."""
    alice = FakeAllocation(books, server_address=None)
    alice.new(0)
    alice.interim(10, *WHOLE)
    alice.deleted(10)
    alice.total(10, *WHOLE)
    run_jobs_at(books, 11)
    assert session_rows(books) == [
        session_row(
            books,
            0,
            10,
            10,
            "deleted",
            (*WHOLE, *NOTHING),
            total_reported=True,
            transport=None,
            client_address=None,
            server_address=None,
        )
    ]


def test_a_version_without_totals_has_the_sum_of_its_interims(
    books: Books,
) -> None:
    """Before 4.5.0.7."""
    alice = FakeAllocation(books, server_address=None)
    for begin in (0, 100):
        alice.new(begin)
        alice.interim(begin + 10, *HALF)
        alice.deleted(begin + 10)
    run_jobs_at(books, 200)
    assert [(row["received_bytes"], row["end_cause"]) for row in session_rows(books)] == [
        (500, "deleted"),
        (500, "deleted"),
    ]


def test_a_correction_by_the_first_of_two_totals_stays_in_its_hour(books: Books) -> None:
    """Two servers on one key: the correction by the first total counts at the first total."""
    one, two = FakeAllocation(books), FakeAllocation(books, server_address=OTHER_SERVER_ADDRESS)
    one.new(0, 7200)
    two.new(0, 7200)
    one.close(10, HALF, NOTHING)
    two.close(4000, HALF, NOTHING)
    run_jobs_at(books, 4001)
    hours = usage_rows(books, "hourly")
    assert [hour["received_bytes"] for hour in hours] == [500, 500]
    assert [hour["estimated_bytes"] for hour in hours] == [900, 900]
