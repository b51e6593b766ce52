"""Expired sessions that are reopened, and pending interims (docs/session-rules.md#reopening)."""

import pytest

from tests.support.books import Books
from tests.support.coturn_messages import (
    FakeAllocation,
    run_jobs_at,
    session_row,
    session_rows,
    unattributed_row,
    unattributed_rows,
)

FIRST, SINCE = (5, 500, 4, 400), (9, 900, 8, 800)
BOTH = (14, 1400, 12, 1200)


@pytest.fixture
def alice(books: Books) -> FakeAllocation:
    """An expired session: reports at 0 and 10, a lifetime of 600 and a grace of 60."""
    alice = FakeAllocation(books)
    alice.new(0)
    alice.interim(10, *FIRST)
    run_jobs_at(books, 661)
    assert session_rows(books) == [session_row(books, 0, 10, 10, "expired", (*FIRST, 0, 0, 0, 0))]
    return alice


def test_interims_alone_do_not_reopen_an_expired_session(
    books: Books, alice: FakeAllocation
) -> None:
    alice.interim(700, *SINCE)
    run_jobs_at(books, 701)
    alice.interim(4000, *SINCE)
    run_jobs_at(books, 20_000)
    assert session_rows(books) == [session_row(books, 0, 10, 10, "expired", (*FIRST, 0, 0, 0, 0))]
    assert unattributed_rows(books) == [
        unattributed_row(books, 0, (*SINCE, 0, 0, 0, 0)),
        unattributed_row(books, 3600, (*SINCE, 0, 0, 0, 0)),
    ]


def test_a_later_refreshed_reopens_it_with_its_pending_interims(
    books: Books, alice: FakeAllocation
) -> None:
    alice.interim(700, *SINCE)
    run_jobs_at(books, 701)
    assert unattributed_rows(books) == [unattributed_row(books, 0, (*SINCE, 0, 0, 0, 0))]
    alice.refreshed(710)
    run_jobs_at(books, 711)
    assert unattributed_rows(books) == []
    assert session_rows(books) == [session_row(books, 0, 710, None, None, (*BOTH, 0, 0, 0, 0))]


def test_a_later_deleted_reopens_and_ends_it(books: Books, alice: FakeAllocation) -> None:
    alice.peer_interim(700, *SINCE)
    alice.deleted(710)
    run_jobs_at(books, 711)
    assert session_rows(books) == [session_row(books, 0, 710, 710, "deleted", (*FIRST, *SINCE))]


def test_a_later_total_reopens_it_and_corrects_its_sum(books: Books, alice: FakeAllocation) -> None:
    alice.interim(700, *SINCE)
    alice.total(710, *BOTH)
    run_jobs_at(books, 771)
    assert session_rows(books) == [
        session_row(books, 0, 710, 710, "expired", (*BOTH, 0, 0, 0, 0), total_reported=True)
    ]


def test_pending_interims_are_unattributed_when_new_follows(
    books: Books, alice: FakeAllocation
) -> None:
    alice.interim(700, *SINCE)
    alice.new(710)
    run_jobs_at(books, 720)
    assert session_rows(books) == [
        session_row(books, 0, 10, 10, "expired", (*FIRST, 0, 0, 0, 0)),
        session_row(books, 710, 710, None, None),
    ]
    assert unattributed_rows(books) == [unattributed_row(books, 0, (*SINCE, 0, 0, 0, 0))]


@pytest.mark.parametrize("starts_again", [False, True])
def test_a_session_reopened_and_ended_in_one_batch_keeps_earlier_pending_interims(
    books: Books, alice: FakeAllocation, starts_again: bool
) -> None:
    """Also if its id starts again in the same batch."""
    alice.interim(700, *SINCE)
    run_jobs_at(books, 701)
    alice.refreshed(710)
    alice.close(720, BOTH, (0, 0, 0, 0))
    if starts_again:
        alice.new(730)
    run_jobs_at(books, 731)
    assert unattributed_rows(books) == []
    ended = session_row(books, 0, 720, 720, "deleted", (*BOTH, 0, 0, 0, 0), total_reported=True)
    assert session_rows(books)[0] == ended
    moved = books.query(
        "SELECT sum(h.received_bytes) FROM accounting.session_hours h"
        " JOIN accounting.sessions e USING (session_id) WHERE e.ended_at IS NOT NULL"
    )
    assert moved == [{"sum": BOTH[1]}]
