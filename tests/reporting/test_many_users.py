"""Pages and tops of realms with thousands of users are those of the views, in their order."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from datetime import date
from typing import Final

import pytest

from accounting.reporting import billing_queries, usage_queries, view_query
from accounting.reporting.reader import DatabaseReader
from accounting.reporting.usage_queries import UNATTRIBUTED_KEY, USER_USAGE_KEY
from accounting.reporting.view_query import LENGTHS, TRAFFIC, Arrangement, Row, ViewQuery
from benchmarks.scale import QUICK
from benchmarks.web_books import LARGEST_REALM, fill
from tests.support.books import READER, Books

MANY: Final = replace(QUICK, web_sessions=9_000, web_users=7_000, rows=10)
"""More than two thousand of them have usage in the largest realm, and few in the others."""
TOP: Final = Arrangement(by=TRAFFIC, descending=True, limit=20)


@pytest.fixture
def reader(books: Books) -> Iterator[DatabaseReader]:
    fill(books.url(), MANY)
    reader = DatabaseReader(books.url(READER))
    yield reader
    reader.close()


def test_pages_and_tops_are_those_of_the_views(reader: DatabaseReader) -> None:
    def rows(name: str, order: Iterable[str], realm: str | None = None) -> list[Row]:
        query = replace(view_query.view(name), order=tuple(order))
        if realm is not None:
            query = query.where("realm = %(realm)s", realm=realm)
        return reader.read_rows(query)

    months = rows("user_usage_monthly", USER_USAGE_KEY)
    assert len([row for row in months if row["realm"] == LARGEST_REALM]) > 2_000
    assert _by_pages(reader, USER_USAGE_KEY, _months) == months
    lines = rows("unattributed_usage", UNATTRIBUTED_KEY)
    assert lines
    assert _by_pages(reader, UNATTRIBUTED_KEY, _unattributed) == lines

    by_traffic = ("received_bytes + sent_bytes DESC", *USER_USAGE_KEY)
    for per, name in zip(LENGTHS, ("hourly", "daily", "monthly"), strict=True):
        query = usage_queries.usage(by="user", per=per, realm=LARGEST_REALM, arrangement=TOP)
        usage = rows(f"user_usage_{name}", by_traffic, LARGEST_REALM)
        assert reader.read_rows(query) == usage[: TOP.limit]
    everywhere = usage_queries.usage(by="user", per="day", arrangement=TOP)
    assert reader.read_rows(everywhere) == rows("user_usage_daily", by_traffic)[: TOP.limit]
    statement = billing_queries.statements(LARGEST_REALM, date(2026, 10, 1), arrangement=TOP)
    lines = rows("statements", (by_traffic[0], "user_id", "user_key"), LARGEST_REALM)
    assert reader.read_rows(statement) == lines[: TOP.limit]


def _months(arrangement: Arrangement) -> ViewQuery:
    return usage_queries.usage(by="user", per="month", arrangement=arrangement)


def _unattributed(arrangement: Arrangement) -> ViewQuery:
    return usage_queries.unattributed(arrangement=arrangement)


def _by_pages(
    reader: DatabaseReader, key: Sequence[str], query: Callable[[Arrangement], ViewQuery]
) -> list[Row]:
    found: list[Row] = []
    after = None
    while page := reader.read_rows(query(Arrangement(limit=1_000, after=after))):
        found += page
        after = [page[-1][name] for name in key]
    return found
