"""``top``: whole frames of known books in a terminal, its keys, and how it ends."""

import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Final

import psycopg
import pytest

from accounting.billing.close_period import refresh_periods
from accounting.cli.terminal_text import text_width
from accounting.sources.retire import retire_source
from accounting.waiting import wait_until
from tests.support.books import READER, Books, channel, cloned_database, status_payload
from tests.support.command import environment, turn_accounting, turn_accounting_on_terminal
from tests.support.coturn_messages import FakeAllocation, datetime_at
from tests.support.servers import PostgresServer
from tests.support.terminal import open_terminal

HOUR: Final = 3600.0
NOW: Final = 6 * HOUR
FRAMES_FILE: Final = Path(__file__).parents[1] / "data" / "top_frames.txt"
FRAMES: Final = dict(
    re.findall(r"^### (.+)\n((?:(?!###).*\n)*)", FRAMES_FILE.read_text(), re.MULTILINE)
)
HEBREW: Final = "\u05e2\u05d1\u05e8\u05d9\u05ea"
USERS: Final = "users by traffic over 10 s"
SESSIONS: Final = "sessions by traffic over 10 s"


@pytest.fixture(scope="module")
def live_books(
    postgres_server: PostgresServer, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Books]:
    """Two realms at six hours after the start, with the database's clock stopped."""
    with cloned_database(postgres_server) as name:
        books = Books(postgres_server, name, tmp_path_factory.mktemp("live"))
        try:
            fill(books)
            yield books
        finally:
            books.close()


def fill(books: Books) -> None:
    for hour, count in ((1, 4), (2, 8), (4, 2)):
        for number in range(count):
            past = FakeAllocation(books, allocation=100 * hour + number)
            past.new(hour * HOUR)
            past.interim(hour * HOUR + 60, 1_000, 500_000, 100, 50_000)
            past.close(hour * HOUR + 100, (1_000, 500_000, 100, 50_000), (0, 0, 0, 0))
    spool = books.spool()
    gap = spool.open_gap(books.micros_at(5 * HOUR), "disconnected")
    spool.close_gap(gap, books.micros_at(5 * HOUR + 30))
    alice = FakeAllocation(books, allocation=1)
    alice.new(NOW - 1_000, lifetime=3_600)
    FakeAllocation(books, allocation=2).new(NOW - 500, lifetime=3_600)  # it reports nothing
    bob = FakeAllocation(books, user="bob", allocation=3)
    bob.new(NOW - 400, lifetime=3_600)
    hebrew = FakeAllocation(books, user=HEBREW, realm="example.net", allocation=4)
    hebrew.new(NOW - 300, lifetime=3_600)
    wide = FakeAllocation(books, user="日本" * 9, realm="example.net", allocation=5)
    wide.new(NOW - 200, lifetime=3_600)
    mallory = FakeAllocation(books, user="mallory", allocation=6)  # unauthenticated
    ended = FakeAllocation(books, user="bob", allocation=7)
    for seconds in (130, 100, 60, 20, 5):
        alice.interim(NOW - seconds, 3_000, 3_000_000, 1_095, 1_000_000)
        alice.peer_interim(NOW - seconds, 3_000, 9_000_000, 1_095, 9_000_000)
        mallory.interim(NOW - seconds, 4_095, 9_000_000, 0, 0)
        if seconds == 100:
            bob.interim(NOW - 90, 4_000, 40_000_000, 95, 8_000)
        if seconds == 60:
            ended.new(NOW - 30)
    hebrew.interim(NOW - 4, 4_000, 400_000, 95, 100_000)
    wide.interim(NOW - 3, 10, 1_000, 0, 0)
    ended.interim(NOW - 2, 100, 20_000, 0, 0)
    ended.close(NOW - 2, (100, 20_000, 0, 0), (0, 0, 0, 0))
    books.advance_clock(NOW)
    books.run_jobs()
    books.set_database_clock(datetime_at(books, NOW + 1))


@pytest.mark.parametrize(
    ("columns", "lines", "keys"),
    [(80, 24, ""), (80, 24, "s"), (60, 12, "s"), (100, 15, "s"), (120, 40, ""), (120, 40, "sb")],
)
def test_a_frame_fits_the_terminal(live_books: Books, columns: int, lines: int, keys: str) -> None:
    with open_terminal(
        "top", columns=columns, lines=lines, database_url=live_books.url(READER)
    ) as terminal:
        frame = terminal.wait_for("q quit")
        for key, title in zip(keys, ("sessions by traffic", "sessions by bytes"), strict=False):
            terminal.press(key)
            frame = terminal.wait_for(title)
        assert frame == FRAMES[f"{columns}x{lines} {keys}".rstrip()]
        assert frame.count("\n") == lines
        # A narrow terminal does not wrap the head and the keys, but clips them.
        fitting = frame.splitlines() if columns >= 80 else frame.splitlines()[3:-1]
        assert max(map(text_width, fitting)) <= columns


def test_once_prints_a_frame_without_keys(live_books: Books) -> None:
    shown = turn_accounting_on_terminal("top", "--once", database_url=live_books.url(READER))
    assert shown == re.sub(r"\n+q quit.*\n", "\n", FRAMES["80x24"])


def test_a_pipe_gets_one_frame_with_plain_numbers(live_books: Books) -> None:
    url = live_books.url(READER)
    for arguments in (["top"], ["top", "--once"]):
        result = turn_accounting(*arguments, database_url=url)
        assert (result.code, result.out, result.err) == (0, FRAMES["pipe"], "")
    by_session = turn_accounting("top", "--by", "session", "--sort", "time", database_url=url)
    assert by_session.out.endswith(FRAMES["pipe sessions"])


def test_json_is_one_object_with_what_a_frame_shows(live_books: Books) -> None:
    url = live_books.url(READER)
    [state] = turn_accounting("top", "--once", "--json", database_url=url).rows
    assert (state["now"], state["live_sessions"]) == ("2026-11-02T18:00:01+00:00", 5)
    assert [row["source"] for row in state["sources"]] == ["default"]
    assert [(row["cause"], row["to_at"]) for row in state["gaps"]] == [
        ("disconnected", "2026-11-02T17:00:30+00:00")
    ]
    assert state["total"] == {
        "received_bytes_per_second_10s": 342_100,
        "sent_bytes_per_second_10s": 110_000,
        "received_bytes_per_second_120s": 436_842,
        "sent_bytes_per_second_120s": 34_233,
    }
    assert [(row["realm"], row["live_sessions"]) for row in state["realms"]] == [
        ("example.org", 3),
        ("example.net", 2),
    ]
    assert len(state["realms"][0]["bytes_per_second_by_hour"]) == 24
    assert [(row["user_id"], row["active"]) for row in state["users"]] == [
        ("alice", 1), (HEBREW, 1), ("bob", 1), ("日本" * 9, 1),
    ]  # fmt: skip
    [by_session] = turn_accounting(
        "top", "--json", "--by", "session", "--sort", "bytes", database_url=url
    ).rows
    [bob, alice, *_] = by_session["sessions"]
    assert (bob["user_id"], bob["received_bytes"], alice["user_id"]) == (
        "bob", 40_000_000, "alice",
    )  # fmt: skip
    assert bob["received_bytes_per_second_120s"] == 333_333
    assert "users" not in by_session


def test_keys_sort_and_a_new_size_is_filled(live_books: Books) -> None:
    with open_terminal("top", "--every", "60", database_url=live_books.url(READER)) as terminal:
        terminal.wait_for(USERS)
        for key, title in (
            ("m", "users by traffic over 2 min"),
            ("n", "users by name"),
            ("a", "users by active sessions"),
            ("s", SESSIONS),
            ("t", "sessions by time"),
            ("b", "sessions by bytes"),
            ("x", "sessions by bytes"),
            ("u", "users by active sessions"),
        ):
            terminal.press(key)
            terminal.wait_for(title)
        terminal.resize(100, 12)
        assert wait_until(lambda: terminal.frame().count("\n") == 12, 60)
        assert terminal.frame().splitlines()[-1].startswith("q quit")
        terminal.resize(30, 3)
        assert wait_until(lambda: terminal.frame().count("\n") == 3, 60)
        assert terminal.frame().splitlines()[-1].startswith("q quit")


@pytest.mark.parametrize("how", ["q", "\x03", "SIGTERM", "SIGINT", "SIGHUP"])
def test_it_ends_cleanly_and_restores_the_terminal(live_books: Books, how: str) -> None:
    with open_terminal("top", database_url=live_books.url(READER)) as terminal:
        terminal.wait_for(USERS)
        if how.startswith("SIG"):
            os.kill(terminal.pid, signal.Signals[how])
        else:
            terminal.press(how)
        assert terminal.exit_code() == 0
        assert terminal.is_restored()
        assert terminal.err.read_text() == ""


def test_it_ends_with_its_terminal(live_books: Books) -> None:
    with open_terminal("top", database_url=live_books.url(READER)) as terminal:
        terminal.wait_for(USERS)
        terminal.hang_up()
        assert terminal.exit_code() == 0
        assert terminal.err.read_text() == ""


def test_a_suspended_one_goes_on(live_books: Books) -> None:
    """The shell gets its terminal back meanwhile."""
    with open_terminal("top", "--every", "60", database_url=live_books.url(READER)) as terminal:
        terminal.wait_for(USERS)
        terminal.press("\x1a")
        terminal.wait_for_text("\x1b[?1049l")
        assert wait_until(terminal.is_stopped, 60)
        assert terminal.is_restored()
        os.kill(terminal.pid, signal.SIGCONT)
        terminal.press("s")
        terminal.wait_for(SESSIONS)
        terminal.press("q")
        assert terminal.exit_code() == 0
        assert terminal.is_restored()


def test_a_reader_that_closes_the_pipe_ends_it(live_books: Books) -> None:
    process = subprocess.Popen(
        [sys.executable, "-m", "accounting", "top"],
        env=environment({"database_url": live_books.url(READER)}),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    assert process.stdout is not None
    process.stdout.close()
    assert process.wait(60) == 0
    assert process.stderr is not None
    assert process.stderr.read() == b""
    process.stderr.close()


def test_a_terminal_without_a_cursor_gets_frames_one_after_another(live_books: Books) -> None:
    with open_terminal(
        "top", "--every", "0.5", variables={"TERM": "dumb"}, database_url=live_books.url(READER)
    ) as terminal:
        first = FRAMES["80x24"].splitlines()[0]
        terminal.wait_for_text(f"{first}\r\n")
        terminal.press(" ")
        terminal.wait_for_text("\r\n\r\n" + first)
        terminal.press("q")
        assert terminal.exit_code() == 0
        assert "\x1b" not in terminal.text


def test_a_locale_without_utf_8_gets_ascii(live_books: Books) -> None:
    process = subprocess.run(
        [sys.executable, "-m", "accounting", "top"],
        env=environment({"database_url": live_books.url(READER)})
        | {"PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0", "LC_ALL": "C"},
        capture_output=True,
        timeout=60,
        check=True,
    )
    shown = process.stdout.decode("ascii")
    assert r"\u05e2\u05d1" in shown
    assert re.search(r"^example.org .* [.:=+*#%@-]{24}$", shown, re.MULTILINE)


def test_colour_only_where_it_is_wanted(live_books: Books) -> None:
    url = live_books.url(READER)
    coloured = turn_accounting_on_terminal(
        "top", "--once", variables={"NO_COLOR": ""}, database_url=url
    )
    plain = turn_accounting_on_terminal("top", "--once", database_url=url)
    assert "\x1b[1m" in coloured
    assert re.sub(r"\x1b\[[0-9]*m", "", coloured) == plain


def test_what_is_late_and_an_open_gap_are_in_the_head(books: Books) -> None:
    FakeAllocation(books).new(0)
    books.spool().open_gap(books.micros_at(10), "disconnected")
    books.advance_clock(10)
    books.run_jobs()
    books.set_database_clock(books.start + timedelta(seconds=200))
    shown = turn_accounting_on_terminal(
        "top", "--once", variables={"NO_COLOR": ""}, database_url=books.url(READER)
    )
    assert (
        "\x1b[31mdefault: captured 3m 10s ago, to load 0s, to settle 0s\x1b[0m\n"
        "\x1b[31mgap open for 3m 10s from 2026-11-02 12:00:10 UTC: connection lost, default"
        "\x1b[0m\n"
        "\n"
    ) in shown


def test_books_of_nothing_have_a_frame_too(books: Books) -> None:
    shown = turn_accounting_on_terminal("top", "--once", database_url=books.url(READER))
    assert "No source is known yet." in shown


def test_several_gaps_of_the_day_are_listed(books: Books) -> None:
    """The open ones first, then the newest; a retired source's open gap is none any more."""
    spool = books.spool()
    for number in range(1, 5):
        FakeAllocation(books, allocation=number).new(number * HOUR)
        gap = spool.open_gap(books.micros_at(number * HOUR + 1), "redis_restarted")
        spool.close_gap(gap, books.micros_at(number * HOUR + 61))
    spool.open_gap(books.micros_at(5 * HOUR), "redis_unreachable")
    books.advance_clock(5 * HOUR)
    books.receive(0, channel("status"), status_payload("new"), source="gone")
    books.spool("gone").open_gap(books.micros_at(HOUR), "disconnected")
    books.advance_clock(HOUR, source="gone")
    books.run_jobs()
    retire_source(books.engine, "gone")
    books.set_database_clock(datetime_at(books, 5 * HOUR + 20))
    shown = turn_accounting("top", database_url=books.url(READER)).out
    assert shown.split("\n\n")[0].splitlines()[2:] == [
        "gap open for 20s from 2026-11-02 17:00:00 UTC: no access to Redis, default",
        "4 gaps in 24 h, 4m 00s in all: see turn-accounting gaps",
        "  1m 00s from 2026-11-02 16:00:01 UTC: Redis restarted, default",
        "  1m 00s from 2026-11-02 15:00:01 UTC: Redis restarted, default",
    ]


def test_what_nobody_captures_is_said_before_a_gap_is_recorded(books: Books) -> None:
    """By each command that shows gaps; a source with an open gap has that instead."""
    alice = FakeAllocation(books)
    alice.new(0)
    alice.interim(10, 1, 1_000, 1, 0)
    books.advance_clock(70)
    books.run_jobs()
    refresh_periods(books.engine)
    url = books.url(READER)
    preview = ("statement", "example.org", "2026-11-01", "--preview")
    books.set_database_clock(datetime_at(books, 70 + 60))
    assert turn_accounting("gaps", database_url=url).out == "No gaps.\n"
    assert "No gap lies in it." in turn_accounting(*preview, database_url=url).out
    books.set_database_clock(datetime_at(books, 70 + 71))
    lapse = (
        "nothing is captured since 2026-11-02 12:01:10 UTC (1m 11s): what is published meanwhile "
        "may be lost, and then a gap is recorded when a collector starts again"
    )
    said = turn_accounting("gaps", database_url=url)
    assert (said.code, said.out) == (0, "No gap is recorded yet.\n")
    assert said.err == f"turn-accounting: source 'default': {lapse}\n"
    assert turn_accounting("gaps", "--json", database_url=url).err == ""  # a program reads times
    before = turn_accounting("gaps", "--until", "2026-11-02T12:01", database_url=url)
    assert (before.out, before.err) == ("No gaps.\n", "")
    previewed = turn_accounting(*preview, database_url=url).out
    assert f"No gap of it is recorded yet.\nSource default: {lapse}.\n" in previewed
    head = turn_accounting("top", database_url=url).out.split("\n\n")[0].splitlines()
    assert head[2:] == [
        "  nothing is captured since 2026-11-02 12:01:10 UTC: messages may be lost",
        "no gap in 24 h is recorded yet",
    ]
    books.spool().open_gap(books.micros_at(70), "redis_unreachable")
    books.load()
    assert turn_accounting("gaps", database_url=url).err == ""
    assert "nothing is captured" not in turn_accounting("top", database_url=url).out


def test_a_database_that_is_away_is_said_and_comes_back(books: Books) -> None:
    FakeAllocation(books).new(0)
    books.advance_clock(10)
    books.run_jobs()
    with open_terminal("top", "--every", "0.5", database_url=books.url(READER)) as terminal:
        terminal.wait_for("1 live session ")
        allow_connections(books, "false")
        terminal.wait_for("not refreshed: Postgres: ")
        allow_connections(books, "true")
        assert wait_until(lambda: "not refreshed" not in terminal.frame(), 60)
        terminal.press("q")
        assert terminal.exit_code() == 0


def allow_connections(books: Books, allowed: str) -> None:
    """Let the database be away, or come back."""
    books.disconnect()
    with psycopg.connect(books.server.url(), autocommit=True) as connection:
        connection.execute(f"ALTER DATABASE {books.name} ALLOW_CONNECTIONS {allowed}".encode())
        connection.execute(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = %s",
            [books.name],
        )
