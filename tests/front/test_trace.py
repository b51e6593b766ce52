"""`trace` on a front goes down into the cells."""

from tests.support.command import turn_accounting
from tests.support.fronts import Front


def test_a_line_is_traced_to_the_reports_of_each_cell(closed: Front) -> None:
    url = closed.books.url("turn_accounting_writer")
    arguments = ("trace", "example.org", "2026-11-01", "--user", "alice")
    result = turn_accounting(*arguments, "--json", database_url=url)
    assert (result.code, result.err) == (0, "turn-accounting: adds up: 2 sessions\n")
    assert [row["cell"] for row in result.rows if row["line"] == "session"] == ["north", "south"]
    sessions = [row for row in result.rows if row["line"] == "session"]
    [line] = [row for row in result.rows if row["line"] == "statement"]
    assert line["received_bytes"] == sum(row["received_bytes"] for row in sessions)
    whole = turn_accounting(*arguments, "--json", database_url=closed.whole.url())
    rows = [{name: row[name] for name in row if name != "cell"} for row in result.rows]
    assert sorted(map(repr, rows)) == sorted(map(repr, whole.rows))
    tree = turn_accounting(*arguments, database_url=url).out
    assert "cell north  1 session" in tree
    assert "cell south  1 session" in tree


def test_a_session_is_found_in_its_cell(closed: Front) -> None:
    url = closed.books.url("turn_accounting_writer")
    [session] = closed.rows("sessions WHERE user_id = 'bob'", "session_id::text")
    result = turn_accounting("trace", "--session", session["session_id"], database_url=url)
    assert (result.code, "realm example.net, user bob" in result.out) == (0, True)
    unknown = turn_accounting("trace", "--session", "0001-1-1", database_url=url)
    assert unknown.code == 2
    assert "in any cell" in unknown.error_line
    unknown = turn_accounting(
        "trace", "example.org", "2026-11-01", "--user", "nobody", database_url=url
    )
    assert unknown.code == 2
