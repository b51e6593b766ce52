"""Trace leads from a statement line to sessions and reports that add up to it."""

from datetime import date
from typing import Any
from uuid import UUID

import pytest

from accounting.audit.trace import trace, trace_adjustment
from accounting.domain.session_fold import KeyFold
from accounting.errors import NotYet, UsageError
from tests.support.books import Books
from tests.support.corruptions import corrupt

NOVEMBER = date(2026, 11, 1)


def test_the_reports_add_up_to_the_line_and_its_adjustments(adjusted_books: Books) -> None:
    traced = trace(adjusted_books.engine, "example.org", NOVEMBER, user="alice")
    (line,) = [row for row in adjusted_books.rows("statements") if row["user_id"] == "alice"]
    (adjustment,) = adjusted_books.rows("adjustments")
    assert traced.adds_up
    assert [traced_line.adjustment_id for traced_line in traced.lines] == [
        None,
        adjustment["adjustment_id"],
    ]
    assert traced.lines[0].numbers[1] == line["received_bytes"]
    assert len(traced.sessions) == line["sessions_started"] + 1
    contributed = {
        session.allocation_id: [
            (report.report.kind, report.counters[:4]) for report in session.reports
        ]
        for session in traced.sessions
    }
    assert contributed[1] == [
        (1, (0, 0, 0, 0)),
        (4, (1, 100, 2, 200)),
        (3, (0, 0, 0, 0)),
        (5, (2, 200, 0, -50)),
        (5, (0, 0, 0, 0)),
    ]
    assert contributed[2] == [
        (1, (0, 0, 0, 0)),
        (4, (1, 1, 1, 1)),
        (4, (5, 500, 5, 500)),
        (3, (0, 0, 0, 0)),
        (5, (1, 99, 0, 0)),
        (5, (0, 0, 0, 0)),
    ]
    (late,) = [session for session in traced.sessions if session.source == "behind"]
    assert [report.late for report in late.reports] == [True, True]
    assert trace_adjustment(adjusted_books.engine, adjustment["adjustment_id"]) == traced


def test_a_changed_report_does_not_add_up(adjusted_books: Books) -> None:
    corrupt(adjusted_books, "UPDATE accounting.reports SET sent_bytes = 502 WHERE sent_bytes = 501")
    assert not trace(adjusted_books.engine, "example.org", NOVEMBER, user="alice").adds_up
    assert trace(adjusted_books.engine, "example.org", NOVEMBER, user="bob").adds_up


def test_an_open_period_or_an_unknown_user_is_refused(adjusted_books: Books) -> None:
    with pytest.raises(NotYet):
        trace(adjusted_books.engine, "example.org", date(2026, 12, 1), user="alice")
    with pytest.raises(UsageError):
        trace(adjusted_books.engine, "example.org", NOVEMBER, user="nobody")
    with pytest.raises(UsageError, match="has usage in period"):
        trace(adjusted_books.engine, "example.org", NOVEMBER, key=UUID(int=1))


def test_a_trace_leaves_out_what_the_fold_raises_for(
    adjusted_books: Books, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = trace(adjusted_books.engine, "example.org", NOVEMBER, user="alice")
    apply_interim = KeyFold.apply_interim

    def faulty(fold: KeyFold, *report: Any) -> None:
        apply_interim(fold, *report)
        if report[-1][1] == 500:
            raise ZeroDivisionError

    with monkeypatch.context() as patch:
        patch.setattr(KeyFold, "apply_interim", faulty)
        traced = trace(adjusted_books.engine, "example.org", NOVEMBER, user="alice")
    assert (whole.adds_up, traced.adds_up) == (True, True)
    assert len(traced.sessions) == len(whole.sessions)
    kept = next(session for session in traced.sessions if session.allocation_id == 2)
    assert [report.counters[1] for report in kept.reports] == [0, 1, 0, 0, 599, 0]
    assert kept.session.disputed
    assert trace(adjusted_books.engine, "example.org", NOVEMBER, user="alice") == whole
