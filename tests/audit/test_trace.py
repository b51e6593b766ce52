"""What was billed is traced to its sessions and their reports, and adds up."""

from datetime import date
from uuid import UUID

import psycopg
import pytest

from accounting.audit.trace import trace, trace_adjustment
from accounting.errors import NotYet, UsageError
from tests.support.billing_scenarios import close_and_adjust_november
from tests.support.books import Books

DAY = 86_400
NOVEMBER = date(2026, 11, 1)


def test_a_line_and_its_adjustments_come_from_reports_that_add_up(books: Books) -> None:
    close_and_adjust_november(books)
    found = trace(books.engine, "example.org", NOVEMBER, user="alice")
    (line,) = [row for row in books.rows("statements") if row["user_id"] == "alice"]
    (adjustment,) = books.rows("adjustments")
    assert found.adds_up
    assert [one.adjustment_id for one in found.lines] == [None, adjustment["adjustment_id"]]
    assert found.lines[0].numbers[1] == line["received_bytes"]
    assert len(found.sessions) == line["sessions_started"] + 1
    brought = {
        session.allocation_id: [(one.report.kind, one.counters[:4]) for one in session.reports]
        for session in found.sessions
    }
    assert brought[1] == [
        (1, (0, 0, 0, 0)),
        (4, (1, 100, 2, 200)),
        (3, (0, 0, 0, 0)),
        (5, (2, 200, 0, -50)),
        (5, (0, 0, 0, 0)),
    ]
    assert brought[2] == [
        (1, (0, 0, 0, 0)),
        (4, (1, 1, 1, 1)),
        (4, (5, 500, 5, 500)),
        (3, (0, 0, 0, 0)),
        (5, (1, 99, 0, 0)),
        (5, (0, 0, 0, 0)),
    ]
    (late,) = [session for session in found.sessions if session.source == "behind"]
    assert [one.late for one in late.reports] == [True, True]
    assert trace_adjustment(books.engine, adjustment["adjustment_id"]) == found


def test_a_trace_that_does_not_add_up_says_so(books: Books) -> None:
    close_and_adjust_november(books)
    with_superuser(books, "UPDATE accounting.reports SET sent_bytes = 502 WHERE sent_bytes = 501")
    assert not trace(books.engine, "example.org", NOVEMBER, user="alice").adds_up
    assert trace(books.engine, "example.org", NOVEMBER, user="bob").adds_up


def test_what_is_not_closed_or_not_known_is_refused(books: Books) -> None:
    close_and_adjust_november(books)
    with pytest.raises(NotYet):
        trace(books.engine, "example.org", date(2026, 12, 1), user="alice")
    with pytest.raises(UsageError):
        trace(books.engine, "example.org", NOVEMBER, user="nobody")
    with pytest.raises(UsageError, match="has usage in period"):
        trace(books.engine, "example.org", NOVEMBER, key=UUID(int=1))


def with_superuser(books: Books, statement: str) -> None:
    with psycopg.connect(books.url()) as connection:
        connection.execute(statement.encode())
