"""Verify finds each kind of corruption, and names the row and column."""

from collections.abc import Mapping, Sequence
from datetime import date
from itertools import chain
from pathlib import Path
from typing import Final

import pytest

from accounting.audit.differences import Difference
from accounting.audit.verify import VerifyResult, verify
from tests.support.books import Books, cloned_database
from tests.support.corruptions import (
    BESIDE_USAGE,
    CORRUPTIONS,
    LOST_COUNT,
    corrupt,
    difference_key,
)
from tests.support.servers import PostgresServer

FOUND_TOGETHER: Final = (
    (
        "a changed byte count of a session",
        "a session that nobody reported",
        "an end moved by a second",
        "an unauthenticated session that is billed",
        "a changed report",
        "a lost report",
        "a report that came too early",
        "a user's hour that was never rolled up",
        "wrong estimated bytes",
        "a realm's day of another realm",
        "a peak too low",
        "usage at a wrong server",
        "a peak of a server too high",
        "a bucket that ends early",
        "a bucket of a wrong zone",
        "a lost bucket",
        "an hour of a user that the feed lost",
    ),
    ("a lost session", "lost reports of one kind", "a doubled report"),
    (
        "a session under another user",
        "a report that is stored twice",
        "a second more of a user's day",
        "a month that counted twice",
        "a byte less of a transport",
        "an hour of a user with another byte in the feed",
    ),
    ("a report with the position of another", "a doubled row of an hour"),
)
"""Corruptions that neither hide each other nor have the difference that another one is to have."""
FOUND_ALONE: Final = [(name,) for name in CORRUPTIONS if name not in chain(*FOUND_TOGETHER)]


@pytest.mark.parametrize(
    "names",
    [
        *FOUND_TOGETHER,
        *FOUND_ALONE,
        *(pytest.param((name,), marks=pytest.mark.long) for name in chain(*FOUND_TOGETHER)),
    ],
    ids=" and ".join,
)
def test_verify_names_each_corruption(right_books: Books, names: Sequence[str]) -> None:
    for name in names:
        corrupt(right_books, CORRUPTIONS[name][0])
    found = {difference_key(difference) for difference in verify(right_books.engine)}
    assert {CORRUPTIONS[name][1] for name in names} <= found


@pytest.mark.long
@pytest.mark.parametrize("names", FOUND_TOGETHER, ids=["first", "second", "third", "fourth"])
def test_no_other_corruption_has_the_difference_of_one(
    postgres_server: PostgresServer, right_database: str, tmp_path: Path, names: Sequence[str]
) -> None:
    """Of those that are found together."""
    for left_out in names:
        with cloned_database(postgres_server, right_database) as database:
            books = Books(postgres_server, database, tmp_path)
            for name in names:
                if name != left_out:
                    corrupt(books, CORRUPTIONS[name][0])
            found = {difference_key(difference) for difference in verify(books.engine)}
            books.close()
        assert CORRUPTIONS[left_out][1] not in found


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
