"""The commands verify, trace and reconcile: output and exit codes."""

import subprocess
import sys
from pathlib import Path
from typing import Final

import psycopg

from accounting.domain.session_ids import short_session_id
from tests.support.books import WRITER, Books
from tests.support.command import environment, turn_accounting, turn_accounting_on_terminal


def test_verify_exits_one_and_names_each_difference(adjusted_books: Books) -> None:
    url = adjusted_books.url(WRITER)
    result = turn_accounting("verify", "--json", database_url=url)
    assert (result.code, result.rows) == (0, [])
    assert "proved: 5 sessions" in result.err
    with psycopg.connect(adjusted_books.url()) as connection:
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


def test_trace_prints_line_sessions_and_reports(adjusted_books: Books) -> None:
    url = adjusted_books.url(WRITER)
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
realm example.org, period 2026-11-01, user alice
times in UTC, positions as epoch/position
├─ statement  received 909 B, sent 660 B, 18h 02m
├─ adjustment {id}  late usage
│     received 40 B, sent 40 B, 10s
└─ 4 sessions  received 949 B, sent 700 B, 18h 02m
   ├─ session {late}  allocation 000000000000000005  source behind
   │  │  2026-11-02 12:00:20 - 12:00:30  received 40 B, sent 40 B, 10s
   │  ├─ new  2026-11-02 12:00:20  position 1/1  late
   │  └─ interim client  2026-11-02 12:00:30  position 1/2  late
   │        received 40 B, sent 40 B
   ├─ session 37a9-1-1  allocation 000000000000000001  source default
   │  │  2026-11-02 12:00:00 - 13:06:40  estimated  disputed
   │  │  received 300 B, sent 150 B, 1h 07m
   │  ├─ new  2026-11-02 12:00:00  position 1/1
   │  ├─ interim client  2026-11-02 12:00:10  position 1/2
   │  │     received 100 B, sent 200 B
   │  ├─ deleted  2026-11-02 13:06:40  position 1/3
   │  ├─ total client  2026-11-02 13:06:40  position 1/4
   │  │     published received 300 B, sent 150 B
   │  │     added received 200 B, sent -50 B
   │  └─ total peer  2026-11-02 13:06:40  position 1/5
"""


SESSION_TREE: Final = """\
realm example.org, user alice, session 37a9-1-13
times in UTC, positions as epoch/position
├─ in period 2026-11-01, closed  received 9 B, sent 9 B, 56,800 s
├─ in period 2026-12-01, not closed  received 7 B, sent 7 B, 43,199 s
└─ session 37a9-1-13  allocation 000000000000000004  source default  \
2026-11-30 08:13:20 - 2026-12-01 11:59:59  \
received 16 B, sent 16 B, 99,999 s
   ├─ new  2026-11-30 08:13:20  position 1/13
   ├─ interim client  2026-11-30 08:30:00  position 1/14  received 9 B, sent 9 B
   └─ interim client  2026-12-01 11:59:59  position 1/15  received 7 B, sent 7 B
"""


def test_one_session_is_traced_to_its_periods_and_reports(adjusted_books: Books) -> None:
    """Also in a period that is not closed, which has no line to begin with."""
    url = adjusted_books.url(WRITER)
    listed = turn_accounting_on_terminal("sessions", database_url=url).splitlines()
    heading, *rows = (line.split() for line in listed)
    assert heading[2] == "session"
    short_ids = {row[2] for row in rows if row[:1] and row[0].startswith("2026")}
    sessions = turn_accounting("sessions", "--json", database_url=url).rows
    assert len(short_ids) == len(sessions) == 5
    for session_id in short_ids | {row["session_id"] for row in sessions}:
        traced = turn_accounting("trace", "--session", session_id, "--json", database_url=url)
        assert traced.code == 0, traced.err
    [across] = [row for row in sessions if row["allocation_id"].endswith("4")]
    traced = turn_accounting("trace", "--session", across["session_id"], database_url=url)
    assert (traced.out, traced.err) == (SESSION_TREE, "turn-accounting: adds up: 3 reports\n")
    for arguments, message in (
        (("--session", "37a9-9-9"), "no session 37a9-9-9 is known"),
        (("--session", "x"), "--session 'x': expected an id as `turn-accounting sessions` shows"),
        (("example.org", "--session", "37a9-1-1"), "expected REALM PERIOD and"),
    ):
        refused = turn_accounting("trace", *arguments, database_url=url)
        assert refused.code == 2
        assert refused.error_line.startswith(message)


def test_trace_is_a_tree_for_people(adjusted_books: Books) -> None:
    """Of what was billed, the sessions, and their reports, each with its position."""
    command = ("trace", "example.org", "2026-11-01", "--user", "alice")
    url = adjusted_books.url(WRITER)
    [adjustment] = adjusted_books.rows("adjustments")
    shown = turn_accounting_on_terminal(*command, columns=80, database_url=url)
    [late] = [row for row in adjusted_books.rows("sessions") if row["source"] == "behind"]
    tree = TREE.format(id=adjustment["adjustment_id"], late=short_session_id(late["session_id"]))
    assert shown.startswith(tree), shown
    piped = turn_accounting(*command, database_url=url).out.splitlines()
    with_digits = turn_accounting_on_terminal(*command, "--bytes", columns=120, database_url=url)
    assert "300 B, sent 150 B, 4,000 s" in with_digits
    assert len(piped) == 2 + 2 + 1 + 4 + 16
    assert "received 300 B, sent 150 B, 4,000 s" in piped[8]
    ascii_only = subprocess.run(
        [sys.executable, "-m", "accounting", *command],
        env=environment({"database_url": url}) | {"PYTHONIOENCODING": "ascii"},
        capture_output=True,
        timeout=60,
        check=True,
    ).stdout.decode("ascii")
    assert ascii_only.splitlines()[2].startswith("|- statement")
    assert ascii_only.splitlines()[-1].startswith("      `- interim client")


def test_reconcile_exits_one_when_a_session_is_missing(
    adjusted_books: Books, tmp_path: Path
) -> None:
    log = tmp_path / "turn.log"
    name = "realm=<example.org>, username=<bob>"
    new = f"1: : session {3:018d}: new, {name}, lifetime=600\n"
    log.write_text(new)
    url = adjusted_books.url(WRITER)
    assert turn_accounting("reconcile", str(log), database_url=url).code == 0
    log.write_text(new + new.replace("000003", "000033"))
    result = turn_accounting("reconcile", str(log), "--json", database_url=url)
    assert result.code == 1
    assert [(row["kind"], row["line"]) for row in result.rows] == [("missing", 2)]
    assert turn_accounting("reconcile", str(tmp_path / "none"), database_url=url).code == 2
