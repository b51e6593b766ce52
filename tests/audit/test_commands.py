"""The commands verify, trace and reconcile: output and exit codes."""

from pathlib import Path

import psycopg

from tests.support.billing_scenarios import close_and_adjust_november
from tests.support.books import WRITER, Books
from tests.support.command import turn_accounting


def test_verify_exits_one_and_names_each_difference(books: Books) -> None:
    close_and_adjust_november(books)
    url = books.url(WRITER)
    result = turn_accounting("verify", "--json", database_url=url)
    assert (result.code, result.rows) == (0, [])
    assert "proved: 5 sessions" in result.err
    with psycopg.connect(books.url()) as connection:
        connection.execute("UPDATE accounting.user_usage_daily SET sent_bytes = sent_bytes + 1")
    result = turn_accounting("verify", "--json", "--realm", "example.org", database_url=url)
    assert result.code == 1
    assert {(row["what"], row["column"]) for row in result.rows} == {
        ("user_usage_daily", "sent_bytes")
    }
    assert turn_accounting("verify", "--realm", "nosuch", database_url=url).code == 2
    assert turn_accounting("verify", "--period", "May", database_url=url).code == 2


def test_trace_prints_line_sessions_and_reports(books: Books) -> None:
    close_and_adjust_november(books)
    url = books.url(WRITER)
    result = turn_accounting(
        "trace", "example.org", "2026-11-01", "--user", "alice", "--json", database_url=url
    )
    assert result.code == 0, result.err
    kinds = [row["line"] for row in result.rows]
    assert {kind: kinds.count(kind) for kind in kinds} == {
        "statement": 1,
        "adjustment": 1,
        "session": 4,
        "report": 16,
    }
    assert turn_accounting("trace", "example.org", database_url=url).code == 2
    not_closed = turn_accounting(
        "trace", "example.org", "2026-12-01", "--user", "alice", database_url=url
    )
    assert not_closed.code == 3


def test_reconcile_exits_one_when_a_session_is_missing(books: Books, tmp_path: Path) -> None:
    close_and_adjust_november(books)
    log = tmp_path / "turn.log"
    name = "realm=<example.org>, username=<bob>"
    new = f"1: : session {3:018d}: new, {name}, lifetime=600\n"
    log.write_text(new)
    url = books.url(WRITER)
    assert turn_accounting("reconcile", str(log), database_url=url).code == 0
    log.write_text(new + new.replace("000003", "000033"))
    result = turn_accounting("reconcile", str(log), "--json", database_url=url)
    assert result.code == 1
    assert [(row["kind"], row["line"]) for row in result.rows] == [("missing", 2)]
    assert turn_accounting("reconcile", str(tmp_path / "none"), database_url=url).code == 2
