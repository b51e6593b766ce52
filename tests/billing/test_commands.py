"""The commands ``period``, ``statement`` and ``adjust``."""

import json
from typing import Any

import pytest

from accounting.billing.close_period import close_periods, refresh_periods
from tests.support.billing_scenarios import NOVEMBER_END_SECONDS, receive_november
from tests.support.books import READER, WRITER, Books, view_as_json
from tests.support.command import turn_accounting
from tests.support.coturn_messages import FakeAllocation


def test_json_has_one_object_for_each_row_of_the_view(adjusted: Books) -> None:
    for arguments, view, order in (
        ("period list", "periods", "realm, starts_at"),
        ("statement example.org 2026-11-01", "statements", "user_id"),
        ("statement example.org 2026-11-01 --adjustments", "adjustments", "posted_at"),
    ):
        result = turn_accounting(*arguments.split(), "--json", database_url=adjusted.url(READER))
        assert (result.code, result.err) == (0, "")
        expected: list[dict[str, Any]] = json.loads(json.dumps(view_as_json(adjusted, view, order)))
        assert result.rows == expected


def test_a_statement_shows_lines_estimates_gaps_and_adjustments(
    adjusted: Books,
) -> None:
    result = turn_accounting("statement", "example.org", "2026-11-01", database_url=adjusted.url())
    assert result.code == 0
    heading, lines, estimates, gaps, own_adjustments, earlier_adjustments = result.out.split("\n\n")
    assert heading.startswith(
        "Realm 'example.org', period 2026-11-01: 2026-11-01 00:00 to 2026-12-01 00:00 UTC, closed"
    )
    assert [line.split()[0] for line in lines.splitlines()] == ["user", "alice", "bob"]
    assert estimates.startswith("Estimated: 1,100 of 1,400 bytes, of 1 of 2 users")
    assert gaps == "No gap lies in it."
    assert own_adjustments.startswith("Adjustments of this period\n")
    assert "agreed on the telephone" in own_adjustments
    assert earlier_adjustments == "No adjustments of earlier periods are billed with it.\n"


def test_a_statement_names_its_gaps_and_excluded_sources(books: Books) -> None:
    receive_november(books)
    spool = books.spool()
    spool.close_gap(
        spool.open_gap(books.micros_at(200), "disconnected", "a cut"), books.micros_at(260)
    )
    books.advance_clock(100, source="late")
    books.advance_clock(NOVEMBER_END_SECONDS + 61)
    books.run_jobs()
    close = ("period", "close", "example.org", "2026-11-01")
    waiting = turn_accounting(*close, database_url=books.url(WRITER))
    assert waiting.code == 3
    assert waiting.error_line.endswith(
        "waits for: source 'late' captured until 2026-11-02 12:01:40Z; as it is now: "
        "`turn-accounting statement example.org 2026-11-01 --preview`"
    )
    would_be = turn_accounting(*close, "--dry-run", database_url=books.url(WRITER))
    assert would_be.code == 3
    assert would_be.error_line.endswith(
        "12:01:40Z; as it is now: 2 lines, 600 bytes received, 800 sent"
    )
    assert books.rows("statements") == []
    dry_run = turn_accounting(
        *close, "--without", "late", "--dry-run", database_url=books.url(WRITER)
    )
    assert dry_run.error_line == (
        "period 2026-11-01 of realm 'example.org' would close without 'late': 2 lines, "
        "600 bytes received, 800 sent"
    )
    assert turn_accounting(*close, "--without", "late", database_url=books.url(WRITER)).code == 0
    result = turn_accounting(
        "statement", "example.org", "2026-11-01", database_url=books.url(READER)
    )
    assert "Closed without: late\n" in result.out
    assert "disconnected" in result.out
    assert "a cut" in result.out


def test_period_list_shows_what_each_period_waits_for(books: Books) -> None:
    receive_november(books)
    books.advance_clock(100_000)
    books.run_jobs()
    refresh_periods(books.engine)
    result = turn_accounting("period", "list", database_url=books.url(READER))
    heading, row = result.out.splitlines()
    assert heading.split()[-2:] == ["waits", "for"]
    assert row.split()[-3:] == ["-", "its", "end"]
    early = turn_accounting("statement", "example.org", "2026-11-01", database_url=books.url())
    assert early.code == 3
    assert early.error_line == (
        "period 2026-11-01 of realm 'example.org' is not closed yet: it waits for its end, "
        "2026-12-01 00:00 UTC; as it is now: "
        "`turn-accounting statement example.org 2026-11-01 --preview`"
    )


def test_a_preview_is_the_statement_that_closing_writes(books: Books) -> None:
    receive_november(books)
    books.advance_clock(100_000)
    books.run_jobs()
    refresh_periods(books.engine)
    statement = ("statement", "example.org", "2026-11-01")
    reader = {"database_url": books.url(READER)}
    preview = turn_accounting(*statement, "--preview", **reader)
    assert (preview.code, preview.err) == (0, "")
    heading, lines, notes, *_ = preview.out.split("\n\n")
    assert heading.endswith(", a preview: not closed, may change")
    assert [line.split()[0] for line in lines.splitlines()] == ["user", "alice", "bob"]
    assert notes.endswith("\nWaits for: its end, 2026-12-01 00:00 UTC")
    before = turn_accounting(*statement, "--preview", "--json", **reader).rows
    assert [(row["cutoff"], row["closed_at"], row["digest"]) for row in before] == [
        (None, None, None),
        (None, None, None),
    ]
    [bob] = turn_accounting(*statement, "--preview", "--user", "bob", "--json", **reader).rows
    assert bob == before[1]
    unknown = turn_accounting(*statement, "--preview", "--user", "bbo", **reader)
    assert (unknown.code, unknown.error_line) == (
        2, "no user 'bbo' is known in realm 'example.org'"
    )  # fmt: skip
    FakeAllocation(books, user="carol", allocation=9).new(100_001)
    books.advance_clock(100_010)
    books.load()
    books.settle()
    waiting = turn_accounting(*statement, "--preview", **reader).out
    assert waiting.endswith("\nNot all is counted yet: the roll-up has not counted all of it.\n")
    books.advance_clock(NOVEMBER_END_SECONDS + 61)
    books.run_jobs()
    soon = turn_accounting(*statement, "--preview", "--json", **reader).rows
    assert close_periods(books.engine) == 1
    closed = turn_accounting(*statement, "--preview", "--json", **reader).rows
    assert closed == turn_accounting(*statement, "--json", **reader).rows
    final = {"cutoff": None, "closed_at": None, "digest": None}
    assert [row | final for row in closed] == soon
    assert [row["user_id"] for row in closed] == ["alice", "bob", "carol"]


def test_adjust_prints_the_id_of_the_adjustment(books: Books) -> None:
    receive_november(books)
    books.advance_clock(NOVEMBER_END_SECONDS + 61)
    books.run_jobs()
    assert turn_accounting("job", "run", "close", database_url=books.url(WRITER)).code == 0
    result = turn_accounting(
        *("adjust", "example.org", "2026-11-01", "bob", "--sent-bytes", "-600"),
        *("--session-seconds", "-0.5", "--reason", "a test call", "--author", "carol"),
        database_url=books.url(WRITER),
    )
    [row] = books.rows("adjustments")
    assert (result.code, result.out) == (0, f"{row['adjustment_id']}\n")
    assert (row["sent_bytes"], str(row["session_seconds"])) == (-600, "-0.500000")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("period close example.org november", "'november' is not a period: expected its first day"),
        ("period list nowhere", "no realm 'nowhere' is known: known are 'example.org'"),
        ("statement nowhere 2026-11-01", "no realm 'nowhere' is known: known are 'example.org'"),
        (
            "statement example.org 2026-11-05",
            "realm 'example.org' has no period that begins on 2026-11-05: the nearest begin on",
        ),
        ("statement example.org 2026-11-01 --adjustments", "--adjustments goes with --json"),
        ("adjust example.org 2026-11-01 bob --author c", "Missing option '--reason'"),
        (
            "adjust example.org 2026-11-01 bob --author c --reason r --session-seconds 0.0000001",
            "--session-seconds '0.0000001': expected seconds with at most six decimals",
        ),
        ("adjust example.org 2026-11-01 bob --author c --reason r", "nothing to adjust"),
    ],
)
def test_a_usage_error_is_one_line(adjusted: Books, arguments: str, message: str) -> None:
    result = turn_accounting(*arguments.split(), database_url=adjusted.url(WRITER))
    assert result.code == 2
    assert result.error_line.startswith(message)
