"""docs/billing.md: its worked example gives the tables on the page."""

import re
from pathlib import Path
from typing import Final

import psycopg

from accounting.billing.adjust import adjust
from tests.support.billing_scenarios import (
    DAY,
    NOVEMBER_END_SECONDS,
    close_november_without_late_source,
    credit_test_call,
)
from tests.support.books import READER, Books
from tests.support.coturn_messages import FakeAllocation

PAGE: Final = (Path(__file__).resolve().parents[2] / "docs/billing.md").read_text()
STEPS: Final = re.findall(r"   ```sql\n(.*?)   ```\n\n((?:   \|[^\n]*\n)+)", PAGE, re.DOTALL)


def markdown_rows(text: str) -> list[list[str]]:
    rows = [line.strip().strip("|").split("|") for line in text.splitlines()]
    return [[cell.strip() for cell in row] for row in rows if not row[0].startswith("---")]


def query_rows(books: Books, query: str) -> list[list[str]]:
    with psycopg.connect(books.url(READER)) as connection:
        connection.execute("SET timezone = 'UTC'")
        cursor = connection.execute(query.encode())
        assert cursor.description is not None
        names = [column.name for column in cursor.description]
        return [names, *([str(value) for value in row] for row in cursor)]


def test_the_worked_example_gives_its_tables(books: Books) -> None:
    (lines_query, lines), (adjustments_query, adjustments), (hours_query, hours) = STEPS
    close_november_without_late_source(books)
    assert query_rows(books, lines_query) == markdown_rows(lines)
    bob = FakeAllocation(books, user="bob", allocation=7, source="late")
    bob.new(5 * DAY)
    bob.interim(5 * DAY + 10, 7, 700, 8, 800)
    bob.close(5 * DAY + 40, (7, 700, 8, 800), (0, 0, 0, 0))
    books.advance_clock(NOVEMBER_END_SECONDS + 61, source="late")
    books.run_jobs()
    assert adjust(books.engine) == 1
    credit_test_call(books)
    assert query_rows(books, adjustments_query) == markdown_rows(adjustments)
    assert query_rows(books, hours_query) == markdown_rows(hours)
    assert query_rows(books, lines_query) == markdown_rows(lines)
