"""``--since`` and ``--until``: words for times, and buckets that the span cuts."""

from datetime import UTC, datetime
from typing import Any, Literal

import pytest

from accounting.reporting import usage_queries, view_query
from tests.support.books import READER, Books
from tests.support.command import turn_accounting

NOW = datetime(2026, 11, 2, 23, 30, tzinfo=UTC)
"""In Berlin it is 3 November already. Each session of the sample books has its own bytes."""


def received(books: Books, arguments: str) -> list[tuple[str, str, int]]:
    """Realm, start and bytes of each row with bytes."""
    result = turn_accounting(*arguments.split(), "--json", database_url=books.url(READER))
    assert (result.code, result.err) == (0, "")
    start = "started_at" if arguments.startswith("sessions") else "starts_at"
    return [
        (row["user_id"], row[start][:16], row["received_bytes"])
        for row in result.rows
        if row["received_bytes"]
    ]


@pytest.mark.parametrize(
    ("arguments", "rows"),
    [
        # Whatever the bucket is, what counts is from that midnight on.
        ("usage --since yesterday", [
            ("alice", "2026-11-01T23:00", 30_000), ("bob", "2026-11-01T23:00", 47_000)]),
        ("usage --since yesterday --until today", [
            ("alice", "2026-11-01T23:00", 30_000), ("bob", "2026-11-01T23:00", 40_000)]),
        ("usage --since today", [("bob", "2026-11-02T23:00", 7_000)]),
        ("usage --since today --per day", [("bob", "2026-11-03T23:00", 7_000)]),
        ("usage --since 2d --until 1d --per hour", [("alice", "2026-11-01T22:00", 201_000)]),
        ("usage --since 1w --until 2d", [("alice", "2026-10-26T23:00", 1_000)]),
        ("usage --until 2d", [("alice", "2026-09-30T22:00", 1_000)]),
        ("usage --since 2026-11 --until 2026-11-02", [("alice", "2026-10-31T23:00", 201_000)]),
        ("usage --since 2026-10 --until 2026-11", [("alice", "2026-09-30T22:00", 1_000)]),
        ("sessions --since 86m --until 1h", [("bob", "2026-11-02T22:03", 40_000)]),
        # The sessions' words are of UTC.
        ("sessions --since yesterday --until today", [("alice", "2026-11-01T22:00", 201_000)]),
        ("sessions --since 2026-10 --until 2026-11", [("alice", "2026-10-31T22:00", 1_000)]),
    ],
)  # fmt: skip
def test_words_are_times_of_the_database_in_the_zone_of_each_realm(
    sample_books: Books, arguments: str, rows: list[tuple[str, str, int]]
) -> None:
    sample_books.set_database_clock(NOW)
    try:
        assert received(sample_books, arguments) == rows
    finally:
        sample_books.set_database_clock()


@pytest.mark.parametrize("by", ["user", "realm"])
def test_the_parts_of_a_cut_bucket_add_up(
    sample_books: Books, by: Literal["user", "realm"]
) -> None:
    """A day or an hour cuts it; an instant of another zone selects whole buckets."""
    columns = (
        "received_bytes", "sent_packets", "sessions_started", "session_seconds", "estimated_bytes",
    )  # fmt: skip

    def sums(per: Literal["hour", "day", "month"], **span: Any) -> list[Any]:
        rows = sample_books.reader.read_rows(usage_queries.usage(by=by, per=per, **span))
        return [sum(row[column] for row in rows) for column in columns]

    for border in ("2026-11-02", "2026-11-02T22:00", "2026-11-02T23:00+05:00"):
        for per in view_query.LENGTHS:
            time = datetime.fromisoformat(border)
            before, after = sums(per, until=time), sums(per, since=time)
            assert [a + b for a, b in zip(before, after, strict=True)] == sums(per)


def test_the_export_understands_the_same_words_in_utc(sample_books: Books) -> None:
    sample_books.set_database_clock(NOW)
    try:
        exported = turn_accounting(
            "export", "sessions", "--since", "1d", "--until", "today",
            database_url=sample_books.url(READER),
        )  # fmt: skip
    finally:
        sample_books.set_database_clock()
    assert exported.code == 0
    assert [line.split(",")[7] for line in exported.out.splitlines()[1:]] == [
        "000000000000000007", "000000000000000002",
    ]  # fmt: skip
