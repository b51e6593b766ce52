"""docs/billing.md: its worked example, lived through, gives the tables that stand there."""

import re
from pathlib import Path
from typing import Final

import psycopg

from accounting.billing.adjust import adjust, post_manual_adjustment
from accounting.billing.close_period import close_period
from tests.support.billing_scenarios import DAY, NOVEMBER, NOVEMBER_END_SECONDS, receive_november
from tests.support.books import READER, Books
from tests.support.coturn_messages import FakeAllocation

PAGE: Final = (Path(__file__).resolve().parents[2] / "docs/billing.md").read_text()
STEPS: Final = re.findall(r"   ```sql\n(.*?)   ```\n\n((?:   \|[^\n]*\n)+)", PAGE, re.DOTALL)


def table(rows: str) -> list[list[str]]:
    lines = [line.strip().strip("|").split("|") for line in rows.splitlines()]
    return [[cell.strip() for cell in line] for line in lines if not line[0].startswith("---")]


def shown(books: Books, query: str) -> list[list[str]]:
    with psycopg.connect(books.url(READER)) as connection:
        connection.execute("SET timezone = 'UTC'")
        cursor = connection.execute(query.encode())
        assert cursor.description is not None
        names = [column.name for column in cursor.description]
        return [names, *([str(value) for value in row] for row in cursor)]


def test_the_worked_example_is_true(books: Books) -> None:
    (first, billed), (second, corrected), (third, hours) = STEPS
    receive_november(books)
    books.advance_clock(0, source="late")
    books.advance_clock(NOVEMBER_END_SECONDS + 61)
    books.run_jobs()
    close_period(books.engine, "example.org", NOVEMBER, excluded_sources=["late"])
    assert shown(books, first) == table(billed)
    bob = FakeAllocation(books, user="bob", allocation=7, source="late")
    bob.new(5 * DAY)
    bob.interim(5 * DAY + 10, 7, 700, 8, 800)
    bob.close(5 * DAY + 40, (7, 700, 8, 800), (0, 0, 0, 0))
    books.advance_clock(NOVEMBER_END_SECONDS + 61, source="late")
    books.run_jobs()
    assert adjust(books.engine) == 1
    post_manual_adjustment(
        books.engine,
        "example.org",
        NOVEMBER,
        "bob",
        {"sent_bytes": -600},
        reason="a test call",
        author="carol",
    )
    assert shown(books, second) == table(corrected)
    assert shown(books, third) == table(hours)
    assert shown(books, first) == table(billed)
