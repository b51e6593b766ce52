"""docs/billing-worker.md: its statements, run in order by the role of a reader."""

import re
from pathlib import Path
from typing import Final

import psycopg

from accounting.billing.close_period import close_periods
from accounting.feed.number_feed import number_feed
from tests.support.books import READER, Books

PAGE: Final = (Path(__file__).resolve().parents[2] / "docs/billing-worker.md").read_text()
STATEMENTS: Final = re.findall(r"^```sql\n(.*?)^```$", PAGE, re.DOTALL | re.MULTILINE)


def test_the_statements_of_the_page_work(november_books: Books) -> None:
    assert close_periods(november_books.engine) == 0
    number_feed(november_books.engine)
    cursor, read, advance, listen, bill = (statement.encode() for statement in STATEMENTS)
    with psycopg.connect(november_books.url(READER), autocommit=True) as connection:
        assert connection.execute(cursor).fetchone() == (0,)
        events = connection.execute(read).fetchall()
        assert [row[0] for row in events] == list(range(1, len(events) + 1))
        assert [row[2] for row in events if row[2] != "usage.counted"] == [
            "session.ended",
            "session.ended",
            "period.closed",
        ]
        assert connection.execute(advance).fetchone() == (True,)
        assert connection.execute(cursor).fetchone() == (2,)
        assert connection.execute(read).fetchall() == events[2:]
        connection.execute(listen)
        bills = [row[1:] for row in connection.execute(bill).fetchall()]
        assert bills == [("alice", 300, "usage"), ("bob", 1100, "usage")]
