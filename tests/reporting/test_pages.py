"""Pages of sessions and of their reports: the same rows as the views have, read along indexes."""

from collections.abc import Iterator
from datetime import timedelta
from itertools import product
from typing import Any

import pytest

from accounting.reporting import session_queries, usage_queries
from accounting.reporting.reader import DatabaseReader
from accounting.reporting.view_query import Arrangement, Bound, HoursAgo, Row
from tests.support.books import READER, Books, channel, status_payload
from tests.support.coturn_messages import FakeAllocation, datetime_at, run_jobs_at

HOUR = 3600


@pytest.fixture
def reader(shared_books: Books) -> Iterator[DatabaseReader]:
    reader = DatabaseReader(shared_books.url(READER))
    yield reader
    reader.close()


def fill(books: Books) -> None:
    """Sessions of three realms and a day: short ones, some over hours, open and forged ones."""
    for number in range(40):
        allocation = FakeAllocation(
            books,
            user=["alice", "1893456000:alice", "bob", "12345"][number % 4],
            realm=f"r{number % 3}",
            allocation=number,
        )
        start = number * 1_700
        if number % 9 == 8:
            allocation.interim(start, 1, 100, 1, 100)
            continue
        allocation.new(start, 6 * HOUR)
        if number % 5 == 0:
            allocation.refreshed(start + 3 * HOUR, 6 * HOUR)
            allocation.interim(start + 3 * HOUR, 1, 100, 1, 100)
            allocation.deleted(start + 4 * HOUR)
        elif number % 7:
            allocation.deleted(start + 60)
    run_jobs_at(books, 20 * HOUR)


def page_by_page(reader: DatabaseReader, limit: int, **filters: Any) -> list[Row]:
    rows: list[Row] = []
    after = None
    while page := reader.read_rows(
        session_queries.sessions(**filters, arrangement=Arrangement(limit=limit, after=after))
    ):
        rows += page
        after = [page[-1][name] for name in session_queries.SESSION_KEY]
    return rows


@pytest.mark.parametrize("step", [4, pytest.param(1, marks=pytest.mark.long)])
def test_pages_of_sessions_are_the_view_with_any_filters(
    shared_books: Books, reader: DatabaseReader, step: int
) -> None:
    fill(shared_books)
    key = shared_books.rows("sessions", order="started_at")[0]["user_key"]
    times: list[Bound | None] = [
        None,
        *(datetime_at(shared_books, hours * HOUR) for hours in (1.2, 5, 9.9)),
        HoursAgo(3),
    ]
    found = 0
    for since, until in list(product(times, times))[::step]:
        for filters in (
            {},
            {"realm": "r1"},
            {"user": "alice"},
            {"user": "1893456000:alice"},
            {"user": "12345"},
            {"realm": "r0", "user": "bob"},
            {"realm": "nobody's"},
            {"user_key": key},
            {"live": True},
            {"live": True, "realm": "r2", "user": "alice"},
        ):
            bounds: dict[str, Any] = {"since": since, "until": until}
            expected = reader.read_rows(session_queries.sessions(**filters, **bounds))
            found += len(expected)
            limit = 7 if filters else 1000
            assert page_by_page(reader, limit, **filters, **bounds) == expected
    assert found > 500 // step


def test_reports_are_found_a_part_at_a_time(shared_books: Books, reader: DatabaseReader) -> None:
    """However many reports of others are between them."""
    books = shared_books
    wanted = FakeAllocation(books)
    wanted.new(0, 4 * HOUR)
    # An idle time, a burst of others within it, and long gaps.
    for number in range(300):
        books.receive(
            7_000 + number / 1000,
            channel("status", user="other", allocation=100 + number),
            status_payload("new"),
        )
    for second in (1, 2, 7_000.1, 7_000.1, 9_000):
        wanted.interim(second, 1, 100, 1, 100)
    wanted.close(9_001, (5, 500, 5, 500), (0, 0, 0, 0))
    run_jobs_at(books, 9_100)
    (session,) = (row for row in books.rows("sessions") if row["user_id"] == "alice")
    positions = sorted(
        row["position"]
        for view in ("allocation_events", "traffic_reports")
        for row in books.rows(view)
        if row["user_id"] == "alice"
    )
    assert len(positions) == 9
    for limit, most_scanned in ((100, 100_000), (2, 100_000), (100, 40)):
        reports: list[Row] = []
        after: list[Any] | None = None
        requests = 0
        while True:
            rows = reader.read_rows(
                session_queries.session_reports(
                    session["session_id"], after=after, limit=limit, most_scanned=most_scanned
                )
            )
            requests += 1
            until = rows[-1]["scanned_until"] if rows else None
            reports += [row for row in rows if row["scanned_until"] is None]
            if not rows:
                break
            after = (
                [until, -1, -1]
                if until
                else [reports[-1][name] for name in session_queries.REPORT_KEY]
            )
        assert [row["position"] for row in reports] == positions
        assert requests > 1 if most_scanned < 100 or limit == 2 else requests == 2
    unknown = session_queries.session_reports(
        session["user_key"], after=None, limit=1, most_scanned=1
    )
    assert reader.read_rows(unknown) == []


def test_pages_of_usage_are_the_view(shared_books: Books, reader: DatabaseReader) -> None:
    fill(shared_books)
    for per, realm, since in product(
        ("hour", "day", "month"),
        (None, "r1"),
        (
            None,
            shared_books.start.replace(tzinfo=None) + timedelta(hours=2),
            HoursAgo(12, at=datetime_at(shared_books, 20 * HOUR)),
        ),
    ):
        filters: dict[str, Any] = {"by": "user", "per": per, "realm": realm, "since": since}
        expected = reader.read_rows(usage_queries.usage(**filters))
        rows: list[Row] = []
        after = None
        while page := reader.read_rows(
            usage_queries.usage(**filters, arrangement=Arrangement(limit=3, after=after))
        ):
            rows += page
            after = [page[-1][name] for name in usage_queries.USER_USAGE_KEY]
        assert rows == expected != []
