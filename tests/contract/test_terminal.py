"""What a terminal shows: whole frames at 80 and at 120 columns; in a pipe nothing is cut."""

import re
import subprocess
import sys
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

import pytest

from accounting.cli.terminal_text import text_width
from tests.support.books import READER, WRITER, Books, status_payload, traffic_payload
from tests.support.command import environment, turn_accounting, turn_accounting_on_terminal

FRAMES_FILE: Final = Path(__file__).parents[1] / "data" / "terminal_frames.txt"
FRAMES: Final = {
    (command, int(columns)): frame
    for command, columns, frame in re.findall(
        r"^### (.+) @([0-9]+)\n((?:(?!###).*\n)*)", FRAMES_FILE.read_text(), re.MULTILINE
    )
}
"""What each command shows of the sample books, by its arguments and the width of the terminal."""
HEBREW: Final = "\u05e2\u05d1\u05e8\u05d9\u05ea"
NOW: Final = re.compile(r"20[0-9]{2}-[0-9]{2}-[0-9]{2} [0-9]{2}:[0-9]{2}(:[0-9]{2}Z)?")


def hide_times_of_closing(shown: str) -> str:
    """October is closed, and gaps are recorded, while the test runs."""
    lines = []
    for line in shown.splitlines():
        is_closed = re.search(
            "  closed  |, closed |  period  |  adjustment  |  source  |  limit  |  usage  ", line
        )
        hidden = "YYYY-MM-DD HH:MM:SSZ" if line.endswith("Z") else "YYYY-MM-DD HH:MM"
        lines.append(NOW.sub(hidden, line) if is_closed else line)
    return "".join(f"{line}\n" for line in lines)


@pytest.fixture
def stopped_clock(sample_books: Books) -> Iterator[None]:
    """It is noon of the books' last day: open gaps and live sessions last until then."""
    sample_books.set_database_clock(datetime(2026, 11, 4, 12, 0, 40, tzinfo=UTC))
    yield
    sample_books.set_database_clock()


@pytest.mark.parametrize(("command", "columns"), FRAMES)
@pytest.mark.usefixtures("stopped_clock")
def test_a_table_fits_the_terminal(sample_books: Books, command: str, columns: int) -> None:
    shown = turn_accounting_on_terminal(
        *command.split(), columns=columns, database_url=sample_books.url(WRITER)
    )
    assert hide_times_of_closing(shown) == FRAMES[command, columns]
    assert max(map(text_width, shown.splitlines())) <= columns


def test_a_locale_that_asks_for_ascii_gets_it_on_a_terminal(sample_books: Books) -> None:
    """Python would write UTF-8 also with LC_ALL=C. A pipe still gets the names as they are."""
    shown = turn_accounting_on_terminal(
        *("trace", "--session", "37a9-1-5"),
        variables={"LC_ALL": "C"},
        database_url=sample_books.url(WRITER),
    )
    assert shown.isascii()
    assert "\n`- session 37a9-1-5 " in shown


def test_a_month_names_the_period_that_begins_on_its_first_day(sample_books: Books) -> None:
    url = sample_books.url(READER)
    by_month, by_day = (
        turn_accounting("statement", "example.org", period, "--json", database_url=url)
        for period in ("2026-10", "2026-10-01")
    )
    assert (by_month.code, by_month.out) == (0, by_day.out)
    assert by_day.rows


def test_an_event_is_one_short_line_also_in_a_pipe(sample_books: Books) -> None:
    shown = turn_accounting("feed", "--limit", "7", database_url=sample_books.url(READER))
    assert shown.out.splitlines()[5:] == [
        (
            "   6  2026-11-02 22:01  session     example.org  100 s, 30,000 B in, 3,000 B out, "
            "estimated"
        ),
        "   7  2026-11-02 22:05  session     example.org  100 s, 40,000 B in, 500 B out, disputed",
    ]


def test_wide_has_every_column_of_the_view(sample_books: Books) -> None:
    url = sample_books.url(READER)
    for command in ("usage", "sessions", "period list", "source list"):
        [row, *_] = turn_accounting(*command.split(), "--json", database_url=url).rows
        for shown in (
            turn_accounting_on_terminal(*command.split(), "--wide", database_url=url),
            turn_accounting(*command.split(), "--wide", database_url=url).out,
            turn_accounting(*command.split(), "--csv", database_url=url).out.replace(",", " "),
        ):
            assert shown.splitlines()[0].split() == list(row)


def test_wide_has_the_total_of_every_number(sample_books: Books) -> None:
    url = sample_books.url(READER)
    rows = turn_accounting("usage", "--json", database_url=url).rows
    sums = [
        f"{sum(row[name] for row in rows):,.0f}"
        for name in rows[0]
        if not isinstance(rows[0][name], str)
    ]
    for top in ([], ["--top", "9"]):
        shown = turn_accounting_on_terminal("usage", "--wide", "--bytes", *top, database_url=url)
        assert shown.splitlines()[-1].split() == ["total", *sums]


def test_in_a_pipe_nothing_is_cut_or_abbreviated(sample_books: Books) -> None:
    """Byte for byte, also where a terminal is narrow."""
    result = turn_accounting("usage", database_url=sample_books.url(READER))
    assert result.out == (
        "month                   realm        user                         sessions  seconds"
        "  received B  sent B  peer received B  peer sent B  estimated B\n"
        "2026-10-01 00:00:00+02  example.org  alice                               1      100"
        "       1,000     400                0            0            0\n"
        "2026-11-01 00:00:00+01  example.org  alice                               2      200"
        "     231,000   8,000                0            0       33,000\n"
        "2026-11-01 00:00:00+01  example.org  bob                                 2      220"
        "      47,000   1,200                0            0            0\n"
        "2026-11-01 00:00:00+00  example.net  \\x1b]0;owned\\x07\\xff\\\\x41\\n         1"
        "       10           0       0                0            0            0\n"
        "2026-11-01 00:00:00+00  example.net  carol                               1       50"
        "           0       0                0            0            0\n"
    )


def test_csv_is_the_view_and_runs_no_formula(books: Books) -> None:
    for number, user in enumerate([b"=cmd()", b'a"b,c', b"plain", b"two\nlines"]):
        channel = b"turn/realm/r/user/" + user + b"/allocation/%018d/" % (number + 1)
        books.receive(number, channel + b"status", status_payload("new"))
    books.advance_clock(10)
    books.run_jobs()
    result = turn_accounting("usage", "--csv", "--sort", "user", database_url=books.url(READER))
    head, *lines = result.out.split("\n", 1)
    assert head.startswith("realm,user_id,user_key,starts_at,ends_at,time_zone,received_packets")
    assert [line.split(",")[0] for line in lines[0].splitlines()] == [
        "r", "r", "r", "r", 'lines"',
    ]  # fmt: skip
    assert "r,'=cmd()," in result.out
    assert 'r,"a""b,c",' in result.out
    assert 'r,"two\nlines",' in result.out


@pytest.mark.parametrize(
    ("variables", "is_coloured"),
    [
        ({"NO_COLOR": ""}, True),
        ({"NO_COLOR": "1"}, False),
        ({"NO_COLOR": "", "TERM": "dumb"}, False),
        ({"NO_COLOR": "", "TERM": ""}, False),
    ],
)
def test_colour_only_where_it_is_wanted(
    sample_books: Books, variables: dict[str, str], *, is_coloured: bool
) -> None:
    url = sample_books.url(READER)
    shown = turn_accounting_on_terminal("sessions", variables=variables, database_url=url)
    assert ("\x1b[" in shown) is is_coloured
    plain = re.sub(r"\x1b\[[0-9]*m", "", shown)
    assert plain == turn_accounting_on_terminal("sessions", database_url=url)


def receive_users(books: Books, *users: str) -> None:
    for number, user in enumerate(users, start=1):
        channel = b"turn/realm/r/user/" + user.encode() + b"/allocation/%018d/" % number
        books.receive(number, channel + b"status", status_payload("new"))
        books.receive(number + 1, channel + b"total_traffic", traffic_payload(1, 1_500, 1, 500))
    books.advance_clock(len(users) + 10)
    books.run_jobs()


def test_hostile_names_stay_apart_and_leave_the_columns_in_place(books: Books) -> None:
    """Wide and right-to-left letters, combining ones, spaces at the ends, and very long names."""
    long_name = "x" * 150
    users = [
        "日本",
        "עברית",
        "e\u0301a",
        "alice",
        "alice ",
        "\u202eevil",
        f"{long_name}1",
        f"{long_name}2",
    ]
    receive_users(books, *users)
    shown = turn_accounting_on_terminal("usage", "--sort", "user", database_url=books.url(READER))
    lines = shown.splitlines()
    assert all(text_width(line) <= 80 for line in lines)
    for name in ("日本", f"\u2068{HEBREW}\u2069", "e\u0301a", "alice", r"alice\x20", r"\u202eevil"):
        [line] = [line for line in lines if f"  {name} " in line]
        assert text_width(line) == text_width(lines[-1])
    joined = re.sub(r"\n *", "", shown)
    assert f"{long_name}1" in joined
    assert f"{long_name}2" in joined
    piped = turn_accounting("usage", database_url=books.url(READER)).out
    assert all(name in piped for name in ("日本", HEBREW, f"{long_name}1", f"{long_name}2"))


def test_letters_that_the_locale_lacks_are_escaped_and_measured(books: Books) -> None:
    receive_users(books, "日本", "bob")
    process = subprocess.run(
        [sys.executable, "-m", "accounting", "usage"],
        env=environment({"database_url": books.url(READER)})
        | {"PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0", "LC_ALL": "C"},
        capture_output=True,
        timeout=60,
        check=True,
    )
    head, bob, japan = process.stdout.decode("ascii").splitlines()
    assert r"\u65e5\u672c" in japan
    assert len(head) == len(bob) == len(japan)
