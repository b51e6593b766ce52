"""Verify recomputes statements at their cutoffs, and checks adjustments against later usage."""

from collections.abc import Sequence
from datetime import date
from itertools import chain
from typing import Final

import psycopg
import pytest

from accounting.audit.verify import verify
from accounting.billing.adjust import adjust, post_manual_adjustment
from accounting.billing.close_period import close_period
from tests.support.books import Books
from tests.support.corruptions import difference_key
from tests.support.coturn_messages import FakeAllocation

DAY: Final = 86_400
NOVEMBER: Final = date(2026, 11, 1)
CORRUPTIONS: Final = {
    "a line with another byte": (
        "UPDATE accounting.statements SET sent_bytes = sent_bytes + 1 WHERE sent_bytes = 400",
        {("statements", "differs", "sent_bytes"), ("adjustments", "differs", "sent_bytes")},
    ),
    "a digest of other figures": (
        "UPDATE accounting.statements SET digest = encode(sha256('x'), 'hex')",
        {("statements", "differs", "digest")},
    ),
    "a lost line": (
        "DELETE FROM accounting.statements WHERE sent_bytes = 400",
        {("statements", "missing", "")},
    ),
    "a doubled line of a user without usage": (
        (
            "INSERT INTO accounting.statements SELECT (l).* FROM (SELECT json_populate_record("
            "l, json_build_object('user_key', gen_random_uuid())) AS l"
            " FROM accounting.statements l LIMIT 1) made"
        ),
        {("statements", "unfounded", "")},
    ),
    "a lost adjustment": (
        "DELETE FROM accounting.adjustments WHERE NOT manual",
        {("adjustments", "differs", "sent_bytes")},
    ),
    "a cutoff that reaches further": (
        (
            "UPDATE accounting.periods SET cutoff = regexp_replace("
            'cutoff, \'"position":\\d+,"sighted\', \'"position":9999,"sighted\')'
            " WHERE closed_at IS NOT NULL"
        ),
        {("statements", "differs", "digest")},
    ),
    "usage of the period that the feed lost": (
        "DELETE FROM accounting.feed_outbox WHERE type = 'usage.counted'",
        {("usage.counted", "missing", "")},
    ),
    "usage of the period that the feed has twice": (
        "UPDATE accounting.feed_outbox SET sent_bytes = 2 * sent_bytes WHERE sent_bytes = 400",
        {("usage.counted", "differs", "sent_bytes")},
    ),
    "a period closed within other borders": (
        (
            "UPDATE accounting.periods SET ends_at = ends_at - interval '1 day'"
            " WHERE closed_at IS NOT NULL"
        ),
        {("periods", "differs", "starts_at, ends_at")},
    ),
}


@pytest.fixture
def closed(books: Books) -> Books:
    """Books whose source `behind` has received usage of November and not loaded it yet."""
    for source in ("default", "behind"):
        for number in (1, 2):
            allocation = FakeAllocation(
                books, user=f"user{number}", allocation=number, source=source
            )
            allocation.new(number)
            allocation.interim(10, 1, 100, 2, 200)
            allocation.close(20, (2, 200, 4, 400 + number - 1), (0, 0, 0, 0))
    FakeAllocation(books, user="long", allocation=7).new(25 * DAY, 10 * DAY)
    books.advance_clock(40 * DAY)
    books.load()
    books.settle()
    books.rollup()
    return books


def close_and_adjust(books: Books) -> None:
    close_period(books.engine, "example.org", NOVEMBER)
    books.advance_clock(40 * DAY, source="behind")
    books.run_jobs()
    adjust(books.engine)
    post_manual_adjustment(
        books.engine,
        "example.org",
        NOVEMBER,
        "user1",
        {"sent_bytes": -5},
        reason="goodwill",
        author="mary",
    )


def test_closed_periods_with_late_usage_and_manual_adjustments_verify(closed: Books) -> None:
    close_and_adjust(closed)
    assert len(closed.rows("statements")) == 3
    assert len(closed.rows("adjustments")) == 3
    assert list(verify(closed.engine)) == []
    assert list(verify(closed.engine, "example.org", NOVEMBER)) == []


FOUND_TOGETHER: Final = (
    (
        "a line with another byte",
        "a digest of other figures",
        "a doubled line of a user without usage",
        "a period closed within other borders",
    ),
    ("a lost line", "a cutoff that reaches further", "usage of the period that the feed lost"),
    ("a lost adjustment", "usage of the period that the feed has twice"),
)
"""Corruptions that neither hide each other nor have the differences that another one is to have."""


def test_every_corruption_is_found_together_with_others() -> None:
    assert sorted(chain(*FOUND_TOGETHER)) == sorted(CORRUPTIONS)


@pytest.mark.parametrize(
    "names",
    [
        *FOUND_TOGETHER,
        *(pytest.param((name,), marks=pytest.mark.long) for name in CORRUPTIONS),
    ],
    ids=" and ".join,
)
def test_verify_names_each_corruption_of_a_closed_period(
    closed: Books, names: Sequence[str]
) -> None:
    close_and_adjust(closed)
    with psycopg.connect(closed.url()) as connection:
        for table in ("periods", "statements", "adjustments"):  # whose triggers refuse it
            connection.execute(f"ALTER TABLE accounting.{table} DISABLE TRIGGER ALL".encode())
        for name in names:
            assert connection.execute(CORRUPTIONS[name][0].encode()).rowcount > 0
    found = {difference_key(difference) for difference in verify(closed.engine)}
    for name in names:
        assert CORRUPTIONS[name][1] <= found, name
