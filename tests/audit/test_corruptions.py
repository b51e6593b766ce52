"""Verify finds each kind of corruption, and names the row and column."""

from collections.abc import Mapping
from datetime import date

import pytest

from accounting.audit.differences import Difference
from accounting.audit.verify import VerifyResult, verify
from tests.support.books import Books
from tests.support.corruptions import (
    BESIDE_USAGE,
    CORRUPTIONS,
    LOST_COUNT,
    corrupt,
    difference_key,
)


@pytest.mark.parametrize("corruption", CORRUPTIONS)
def test_verify_names_each_corruption(right_books: Books, corruption: str) -> None:
    statement, expected = CORRUPTIONS[corruption]
    corrupt(right_books, statement)
    assert expected in {difference_key(difference) for difference in verify(right_books.engine)}


@pytest.mark.parametrize("corruptions", [{**BESIDE_USAGE[0], "": LOST_COUNT}, BESIDE_USAGE[1]])
def test_verify_names_what_is_wrong_besides_usage(
    right_books: Books, corruptions: Mapping[str, tuple[str, tuple[str, str, str]]]
) -> None:
    for statement, _ in corruptions.values():
        corrupt(right_books, statement)
    found = {difference_key(difference) for difference in verify(right_books.engine)}
    assert {expected for _, expected in corruptions.values()} <= found


def test_a_difference_has_the_stored_and_the_recomputed_value(right_books: Books) -> None:
    (session,) = [
        row for row in right_books.rows("sessions") if row["allocation_id"] == f"{1:018d}"
    ]
    corrupt(right_books, CORRUPTIONS["a changed byte count of a session"][0])
    result = VerifyResult()
    assert list(verify(right_books.engine, result=result)) == [
        Difference(
            realm="example.org",
            period=date(2026, 11, 1),
            what=what,
            kind="differs",
            user_key=session["user_key"],
            session_id=session["session_id"],
            starts_at=starts_at,
            column="received_bytes",
            booked="151",
            recomputed="150",
        )
        for what, starts_at in (  # active within one hour
            ("sessions", session["started_at"]),
            ("session_usage", right_books.start),
        )
    ]
    assert (result.sessions, result.differences) == (5, 2)


def test_verify_can_be_limited_to_a_realm_or_period(right_books: Books) -> None:
    corrupt(right_books, CORRUPTIONS["a changed byte count of a session"][0])
    assert list(verify(right_books.engine, "kolkata")) == []
    assert list(verify(right_books.engine, "example.org", date(2026, 10, 1))) == []
    assert len(list(verify(right_books.engine, "example.org", date(2026, 11, 1)))) == 2
