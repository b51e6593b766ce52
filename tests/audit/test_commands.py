"""The commands verify, trace and reconcile: output and exit codes."""

import subprocess
import sys
from pathlib import Path
from typing import Final

import psycopg

from tests.support.billing_scenarios import close_and_adjust_november
from tests.support.books import WRITER, Books
from tests.support.command import environment, turn_accounting, turn_accounting_on_terminal


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
    unknown = turn_accounting("verify", "--period", "1999-01-01", database_url=url)
    assert unknown.code == 2
    assert unknown.error_line == (
        "no realm has a period that begins on 1999-01-01: the nearest begin on 2026-11-01, "
        "2026-12-01"
    )


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


TREE: Final = """\
realm example.org, period 2026-11-01, user alice; times in UTC, positions as epoch/position
├─ statement  received 909 B, sent 660 B, 18h 02m
├─ adjustment {id}  late usage
│     received 40 B, sent 40 B, 10s
└─ 4 sessions  received 949 B, sent 700 B, 18h 02m
   ├─ session 000000000000000005  source behind  2026-11-02 12:00:20 - 12:00:30
   │  │  received 40 B, sent 40 B, 10s
   │  ├─ new  2026-11-02 12:00:20  position 1/1  late
   │  └─ interim client  2026-11-02 12:00:30  position 1/2  late
   │        received 40 B, sent 40 B
   ├─ session 000000000000000001  source default  2026-11-02 12:00:00 - 13:06:40
   │  │  estimated  disputed  received 300 B, sent 150 B, 1h 07m
   │  ├─ new  2026-11-02 12:00:00  position 1/1
   │  ├─ interim client  2026-11-02 12:00:10  position 1/2
   │  │     received 100 B, sent 200 B
"""


def test_trace_is_a_tree_for_people(books: Books) -> None:
    """Of what was billed, the sessions, and their reports, each with its position."""
    close_and_adjust_november(books)
    command = ("trace", "example.org", "2026-11-01", "--user", "alice")
    url = books.url(WRITER)
    [adjustment] = books.rows("adjustments")
    shown = turn_accounting_on_terminal(*command, columns=80, database_url=url)
    tree = TREE.format(id=adjustment["adjustment_id"])
    assert shown.startswith(tree), shown
    piped = turn_accounting(*command, database_url=url).out.splitlines()
    assert len(piped) == 1 + 2 + 1 + 4 + 16
    assert "received 300 B, sent 150 B, 4,000 s" in piped[7]
    ascii_only = subprocess.run(
        [sys.executable, "-m", "accounting", *command],
        env=environment({"database_url": url}) | {"PYTHONIOENCODING": "ascii"},
        capture_output=True,
        timeout=60,
        check=True,
    ).stdout.decode("ascii")
    assert ascii_only.splitlines()[1].startswith("|- statement")
    assert ascii_only.splitlines()[-1].startswith("      `- interim client")


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
