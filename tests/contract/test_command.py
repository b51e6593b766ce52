"""What the command prints: for people, for programs, and on which stream."""

import json
import os
import re
from datetime import UTC, datetime, timedelta
from math import inf
from pathlib import Path
from typing import Any

import psycopg
import pytest

from accounting.domain.counters import COUNTERS
from accounting.domain.identity import UsernameRule
from accounting.domain.realm_rules import RealmRule
from accounting.errors import UsageError
from accounting.identities.realm_rules import set_rule
from accounting.simulator import Scenario
from tests.support.books import (
    READER,
    WRITER,
    Books,
    channel,
    status_payload,
    traffic_payload,
    view_as_json,
)
from tests.support.command import turn_accounting
from tests.support.sample_books import BEGIN
from tests.support.servers import PostgresServer


@pytest.mark.parametrize(
    ("arguments", "view", "order"),
    [
        ("sessions", "sessions", "started_at DESC, session_id DESC"),
        ("usage", "user_usage_monthly", "starts_at, realm, user_id"),
        ("usage --per day", "user_usage_daily", "starts_at, realm, user_id"),
        ("usage --per hour", "user_usage_hourly", "starts_at, realm, user_id"),
        ("usage --by realm", "realm_usage_monthly", "starts_at, realm"),
        ("usage --by realm --per day", "realm_usage_daily", "starts_at, realm"),
        ("usage --by realm --per hour", "realm_usage_hourly", "starts_at, realm"),
        ("usage --by server --per day", "server_usage_daily", "starts_at, realm, server_address"),
        ("usage --by server --per hour", "server_usage_hourly", "starts_at, realm, server_address"),
        ("usage --by transport --per day", "transport_usage_daily", "starts_at, realm, transport"),
        (
            "usage --by transport --per hour",
            "transport_usage_hourly",
            "starts_at, realm, transport",
        ),
        ("source list", "sources", "source"),
        ("gaps", "capture_gaps", "to_at IS NULL DESC, from_at DESC"),
    ],
)
def test_json_is_the_view_one_object_a_line_for_the_reader(
    sample_books: Books, arguments: str, view: str, order: str
) -> None:
    result = turn_accounting(*arguments.split(), "--json", database_url=sample_books.url(READER))
    assert (result.code, result.err) == (0, "")
    assert result.rows == view_as_json(sample_books, view, order)
    assert all(list(row) == list(result.rows[0]) for row in result.rows)


def test_numbers_in_json_are_exact(books: Books) -> None:
    """Never as floats: one microsecond of a session, and all 53 bits of a counter."""
    books.receive(0, channel("status"), status_payload("new"))
    books.receive(0.000001, channel("status"), status_payload("deleted"))
    books.receive(1, channel("total_traffic"), b"rcvp=1, rcvb=9007199254740991, sentp=0, sentb=0")
    books.advance_clock(2)
    books.run_jobs()
    result = turn_accounting("usage", "--json", database_url=books.url(READER))
    assert '"received_bytes": 9007199254740991,' in result.out
    assert re.search(r'"session_seconds": 0\.0000010*,', result.out)


def test_tables_are_for_people(sample_books: Books) -> None:
    result = turn_accounting(
        "usage", "--realm", "example.org", database_url=sample_books.url(READER)
    )
    assert (result.code, result.err) == (0, "")
    head, october, alice, bob = result.out.splitlines()
    assert re.split(r" {2,}", head)[:3] == ["month", "realm", "user"]
    # In the realm's time zone, with grouped digits.
    assert re.split(r" {2,}", october)[:6] == [
        "2026-10-01 00:00:00+02", "example.org", "alice", "1", "100", "1,000",
    ]  # fmt: skip
    assert alice.startswith("2026-11-01 00:00:00+01 ")
    assert "231,000" in alice
    assert "bob" in bob


@pytest.mark.parametrize(
    ("arguments", "found"),
    [
        ("sessions --realm example.org --user bob", {"4", "5"}),
        ("sessions --realm example.net --user carol", {"7"}),
        ("sessions --live", {"5"}),
        ("sessions --limit 1 --realm example.org", {"5"}),
        # Open at some time in the half-open span; UTC by default.
        ("sessions --since 2026-10-31T22:01:41 --until 2026-11-01T22:00:00", set()),
        ("sessions --since 2026-10-31T22:00:50 --until 2026-11-01T22:00:00", {"1"}),
        ("sessions --since 2026-11-02T23:00:00+01:00 --until 2026-11-02T23:01:00+01:00", {"3"}),
        ("sessions --from 2026-11-04 --to 2026-11-05", {"5", "9"}),
    ],
)
def test_sessions_are_found_by_realm_user_and_time(
    sample_books: Books, arguments: str, found: set[str]
) -> None:
    result = turn_accounting(*arguments.split(), "--json", database_url=sample_books.url(READER))
    assert (result.code, result.err) == (0, "")
    assert {row["allocation_id"].lstrip("0") for row in result.rows} == found


@pytest.mark.parametrize(
    ("arguments", "found"),
    [
        ("--source second", []),
        ("--since 2026-11-01 --until 2026-11-02", [2]),
        ("--since 2026-11-01T01:00", [3]),  # half-open
        ("--until 2026-11-01", [2, 1]),
        ("--top 2", [1, 2]),  # the longest: the open one lasts for seconds
        ("--sort -time --limit 1", [3]),
    ],
)
def test_gaps_are_found_by_source_time_and_length(
    sample_books: Books, arguments: str, found: list[int]
) -> None:
    result = turn_accounting(
        "gaps", *arguments.split(), "--json", database_url=sample_books.url(READER)
    )
    assert (result.code, result.err) == (0, "")
    assert [row["gap_id"] for row in result.rows] == found


def test_bounds_of_usage_are_in_the_time_of_each_realm(sample_books: Books) -> None:
    november = ("--since", "2026-11-01", "--until", "2026-12-01")
    result = turn_accounting("usage", *november, "--json", database_url=sample_books.url(READER))
    assert {(row["realm"], row["starts_at"]) for row in result.rows} == {
        ("example.org", "2026-10-31T23:00:00+00:00"),
        ("example.net", "2026-11-01T00:00:00+00:00"),
    }
    utc = turn_accounting(
        "usage",
        "--since",
        "2026-11-01T00:00+00:00",
        "--json",
        database_url=sample_books.url(READER),
    )
    assert {row["realm"] for row in utc.rows} == {"example.net"}


def test_an_empty_result_is_a_message_for_people_and_nothing_for_programs(
    sample_books: Books,
) -> None:
    arguments = (
        "sessions",
        "--since",
        "2030-01-01",
        "--until",
        "2031-01-01",
        "--realm",
        "example.net",
    )
    for_people = turn_accounting(*arguments, database_url=sample_books.url(READER))
    assert (for_people.code, for_people.err) == (0, "")
    assert for_people.out == "No sessions: that span is in the future.\n"
    for_programs = turn_accounting(*arguments, "--json", database_url=sample_books.url(READER))
    assert (for_programs.code, for_programs.out, for_programs.err) == (0, "", "")
    open_now = ("sessions", "--live", "--since", "2027-01", "--sort", "started", "--json")
    assert turn_accounting(*open_now, database_url=sample_books.url(READER)).out == ""


@pytest.mark.parametrize("arguments", ["sessions", "usage", "usage --per day", "realm list"])
def test_no_name_controls_the_terminal(sample_books: Books, arguments: str) -> None:
    """Names are hostile bytes (docs/coturn.md#hostile-usernames): escapes, line ends and more."""
    for form in ([], ["--json"]):
        result = turn_accounting(*arguments.split(), *form, database_url=sample_books.url(WRITER))
        assert result.code == 0
        assert all(char == "\n" or char.isprintable() for char in result.out)
    if arguments != "realm list":
        table = turn_accounting(*arguments.split(), database_url=sample_books.url(READER))
        assert r"\x1b]0;owned\x07\xff\\x41\n" in table.out


def test_a_hostile_user_is_found_by_its_bytes_and_by_their_escapes(books: Books) -> None:
    books.receive(
        0,
        b"turn/realm/r\xff/user/u\xff/allocation/000000000000000001/status",
        status_payload("new"),
    )
    books.advance_clock(1)
    books.run_jobs()
    for realm, user in ((r"r\xff", r"u\xff"), (os.fsdecode(b"r\xff"), os.fsdecode(b"u\xff"))):
        result = turn_accounting(
            "sessions", "--realm", realm, "--user", user, "--json", database_url=books.url(READER)
        )
        assert [row["user_id"] for row in result.rows] == [r"u\xff"]


def test_sessions_are_found_by_every_name_that_a_user_has(books: Books) -> None:
    """By user_id and by username, whatever rule and separator its realm has, or had."""
    set_rule(
        books.engine,
        "rest",
        {"username_rule": UsernameRule.REST},
        default=RealmRule(),
        holds_from=None,
    )
    set_rule(books.engine, "bar", {"separator": "||"}, default=RealmRule(), holds_from=None)
    usernames = (
        ("r", b"1700000000:alice", "alice"),
        ("r", b"alice:1700000001", "alice"),
        ("r", b"12:34", "12:34"),
        ("rest", b"1700000002", ""),
        ("bar", b"1700000003||alice:1", "alice:1"),
        ("bar", b"1700000004||u\xff", r"u\xff"),
    )
    for number, (realm, username, _) in enumerate(usernames):
        topic = b"turn/realm/%s/user/%s/allocation/%018d/status"
        books.receive(0, topic % (realm.encode(), username, number), status_payload("new"))
    books.advance_clock(1)
    books.run_jobs()
    reader = {"database_url": books.url(READER)}
    for realm, username, user_id in usernames:
        [row] = turn_accounting(
            "sessions", "--user", os.fsdecode(username), "--json", **reader
        ).rows
        assert (row["realm"], row["user_id"]) == (realm, user_id)
        if user_id:
            of_user = turn_accounting("sessions", "--user", user_id, "--json", **reader).rows
            assert len(of_user) == (2 if user_id == "alice" else 1)
        empty = turn_accounting(
            "sessions", "--user", os.fsdecode(username), "--realm", realm, "--until", "2020-01",
            **reader,
        )  # fmt: skip
        assert (empty.code, empty.out[:11]) == (0, "No sessions")


def test_jobs_run_by_hand_do_what_the_scheduler_does(books: Books) -> None:
    books.receive(0, channel("status"), status_payload("new"))
    books.advance_clock(5_000)
    books.load()
    writer = books.url(WRITER)
    for name, done in (
        ("settle", "0 reports"),
        ("rollup", "1 hour"),
        ("partitions", "7 partitions"),
    ):
        result = turn_accounting("job", "run", name, database_url=writer)
        assert (result.code, result.out) == (0, "")
        assert result.err == f"turn-accounting: {name}: {done}\n"
    assert len(books.rows("user_usage_monthly")) == 1


def test_an_empty_database_is_upgraded_to_this_version(
    postgres_server: PostgresServer,
) -> None:
    with psycopg.connect(postgres_server.url(), autocommit=True) as connection:
        connection.execute("CREATE DATABASE unborn")
        url = postgres_server.url(database="unborn")
        before = turn_accounting("db", "current", database_url=url)
        assert (before.code, before.out) == (1, "none\n")
        assert "turn-accounting db upgrade" in before.err
        for arguments in (
            "sessions", "usage", "realm list", "realm set x --grace 1", "job run settle",
            "source list", "source retire x", "schedule", "gaps", "top",
        ):  # fmt: skip
            result = turn_accounting(*arguments.split(), database_url=url)
            assert result.code == 1
            assert "turn-accounting db upgrade" in result.error_line
        upgraded = turn_accounting("db", "upgrade", database_url=url)
        current = turn_accounting("db", "current", database_url=url)
        assert (upgraded.code, upgraded.out) == (current.code, current.out)
        assert turn_accounting("sessions", database_url=url).out == (
            "No sessions yet: no source is captured yet.\n"
        )
        connection.execute("DROP DATABASE unborn WITH (FORCE)")


def listed_rules(books: Books, realm: str) -> list[tuple[Any, ...]]:
    result = turn_accounting("realm", "list", realm, "--json", database_url=books.url(WRITER))
    return [(row["holds_from"], row["time_zone"], row["grace_seconds"]) for row in result.rows]


def set_realm(books: Books, realm: str, *arguments: str) -> tuple[int, str]:
    result = turn_accounting("realm", "set", realm, *arguments, database_url=books.url(WRITER))
    assert result.out == ""
    return result.code, result.err


def test_rules_of_a_realm_without_usage_hold_from_the_beginning(books: Books) -> None:
    code, message = set_realm(books, "new.example", "--time-zone", "Asia/Kolkata")
    assert code == 0
    assert message == (
        "turn-accounting: new realm 'new.example', of which no session has come yet\n"
        "turn-accounting: to take it back: turn-accounting realm remove new.example\n"
        "turn-accounting: realm 'new.example' always: time zone Asia/Kolkata, billing periods from "
        "day 1 of a month, grace 60 s, usernames auto with separator ':'\n"
    )
    assert set_realm(books, "new.example", "--grace", "5")[0] == 0
    assert listed_rules(books, "new.example") == [(None, "Asia/Kolkata", 5)]
    # Any day, also in the past: the realm has no usage yet.
    code, message = set_realm(books, "new.example", "--grace", "7", "--from", "2020-02-03")
    assert code == 0
    assert message.split("turn-accounting: realm 'new.example' ", 1)[1] == (
        "until 2020-02-03 00:00:00+05:30: time zone Asia/Kolkata, billing periods from day 1 of a "
        "month, grace 5 s, usernames auto with separator ':'\n"
        "turn-accounting: realm 'new.example' from 2020-02-03 00:00:00+05:30 on: time zone "
        "Asia/Kolkata, billing periods from day 1 of a month, grace 7 s, usernames auto with "
        "separator ':'\n"
    )
    assert listed_rules(books, "new.example") == [
        (None, "Asia/Kolkata", 5),
        ("2020-02-02T18:30:00+00:00", "Asia/Kolkata", 7),
    ]


def test_rules_of_a_realm_with_usage_hold_from_the_next_midnight_of_its_zone(books: Books) -> None:
    books.receive(0, channel("status"), status_payload("new"))
    books.advance_clock(1)
    books.run_jobs()
    columns = ("realm", "user_id", "starts_at", "time_zone", "sessions_started", *COUNTERS)
    before = books.rows("user_usage_monthly", *columns)
    code, message = set_realm(books, "example.org", "--time-zone", "America/New_York")
    assert code == 0
    assert "new realm" not in message
    assert re.search(
        "'example.org' from 20[-0-9:+ ]+ on: time zone America/New_York, billing", message
    )
    first, second = listed_rules(books, "example.org")
    assert first == (None, "UTC", 60)
    assert second[1:] == ("America/New_York", 60)
    midnight = datetime.fromisoformat(second[0])
    assert midnight.astimezone(UTC).hour in {4, 5}
    assert 0 < (midnight - books.start).total_seconds() <= 25 * 3600
    books.run_jobs()
    assert books.rows("user_usage_monthly", *columns) == before
    assert books.rows("user_usage_monthly", "ends_at") == [{"ends_at": midnight}]
    # The month, and the period, that the change cuts.
    end = f"{midnight:%Y-%m-%d %H:%M}"
    assert message.endswith(
        "turn-accounting: the period 2026-11-01 ends at 2026-12-01 05:00 UTC instead of "
        "2026-12-01 00:00 UTC\n"
        f"turn-accounting: the month 2026-11 is cut at {end} UTC: usage lists its parts apart\n"
    )
    headings, row, *_ = turn_accounting("usage", database_url=books.url(READER)).out.splitlines()
    assert headings.split()[:3] == ["from", "to", "realm"]
    assert row.split()[:4] == ["2026-11-01", "00:00:00+00", *f"{end}:00+00".split()]
    by_hour = turn_accounting("usage", "--per", "hour", database_url=books.url(READER))
    assert by_hour.out.split()[0] == "hour"


def test_rules_are_refused_for_a_past_day_with_usage(books: Books) -> None:
    books.receive(0, channel("status"), status_payload("new"))
    books.advance_clock(1)
    books.run_jobs()
    code, message = set_realm(books, "example.org", "--grace", "9", "--from", "2026-01-01")
    assert code == 2
    assert message.count("\n") == 1
    assert "2026-01-01 is accounted already" in message
    assert listed_rules(books, "example.org") == [(None, "UTC", 60)]


def test_a_realm_that_may_be_misspelt_is_named_as_new(books: Books) -> None:
    assert "known are" not in set_realm(books, "example.org", "--grace", "1")[1]
    for _ in range(2):
        code, message = set_realm(books, "exampel.org", "--grace", "1")
        assert code == 0
        assert message.splitlines()[0] == (
            "turn-accounting: new realm 'exampel.org', of which no session has come yet: did you "
            "mean 'example.org'?"
        )
    words = message.splitlines()[1].partition("take it back: turn-accounting ")[2].split()
    removed = turn_accounting(*words, database_url=books.url(WRITER))
    assert (removed.code, removed.err) == (0, "turn-accounting: realm 'exampel.org' is removed\n")
    assert turn_accounting(*words, database_url=books.url(WRITER)).code == 2


def test_the_realm_without_a_name_has_rules_too(books: Books) -> None:
    assert set_realm(books, "", "--username-rule", "rest", "--separator", "|")[0] == 0
    result = turn_accounting("realm", "list", "", "--json", database_url=books.url(WRITER))
    assert result.rows == [
        {
            "realm": "", "holds_from": None, "time_zone": "UTC", "anchor_day": 1,
            "grace_seconds": 60, "username_rule": "rest", "separator": "|",
            "client_addresses": "keep", "radacct_username": "user@realm",
        }
    ]  # fmt: skip


def test_a_realm_says_how_radacct_names_its_users(books: Books) -> None:
    books.receive(0, channel("status"), status_payload("new"))
    books.advance_clock(1)
    books.run_jobs()
    code, message = set_realm(books, "example.org", "--radacct-username", "user")
    assert (code, message) == (
        0, "turn-accounting: radacct names the users of realm 'example.org' as user\n"
    )  # fmt: skip
    assert books.rows("radacct", "username") == [{"username": "alice"}]
    listed = turn_accounting("realm", "list", "--json", database_url=books.url(WRITER))
    assert [row["radacct_username"] for row in listed.rows] == ["user"]
    options = "--radacct-username", "user@realm", "--grace", "5"
    code, message = set_realm(books, "example.org", *options)
    assert (code, message.splitlines()[-1]) == (
        0, "turn-accounting: radacct names the users of realm 'example.org' as user@realm"
    )  # fmt: skip
    assert books.rows("radacct", "username") == [{"username": "alice@example.org"}]


def test_a_source_is_retired_once_and_lists_when(books: Books) -> None:
    books.receive(0, channel("status"), status_payload("new"), source="old")
    books.advance_clock(1, source="old")
    books.run_jobs()
    writer = books.url(WRITER)
    assert turn_accounting("source", "retire", "old", database_url=writer).code == 0
    [first] = turn_accounting("source", "list", "--json", database_url=writer).rows
    assert first["retired_at"] is not None
    assert turn_accounting("source", "retire", "old", database_url=writer).code == 0
    assert turn_accounting("source", "list", "--json", database_url=writer).rows == [first]


def test_everything_works_on_the_embedded_database(tmp_path: Path) -> None:
    """Without a URL: the database in the data directory is created, upgraded and stopped."""
    created = turn_accounting(
        "realm", "set", "r", "--grace", "3", data_dir=str(tmp_path), log_level="error"
    )
    assert created.code == 0
    listed = turn_accounting("realm", "list", "--json", data_dir=str(tmp_path), log_level="error")
    assert [row["realm"] for row in listed.rows] == ["r"]
    # The realm is known, although it has no usage.
    usage = turn_accounting("usage", "--realm", "r", data_dir=str(tmp_path), log_level="error")
    assert (usage.code, usage.out) == (0, "No usage yet: no source is captured yet.\n")
    assert not list((tmp_path / "postgres" / "data").glob("postmaster.pid"))


@pytest.mark.parametrize("arguments", ["", "db", "job", "realm", "source"])
def test_help_names_every_command(arguments: str) -> None:
    result = turn_accounting(*arguments.split(), "--help")
    assert (result.code, result.err) == (0, "")
    commands = {
        "": "up collect schedule simulate config db job realm source sessions usage",
        "db": "upgrade current",
        "job": "run",
        "realm": "list set",
        "source": "list retire reopen",
    }
    for command in commands[arguments].split():
        assert re.search(rf"\b{command}\b", result.out)


def test_simulate_prints_an_oracle_for_programs_and_a_table_for_people(tmp_path: Path) -> None:
    """Its options are those of a scenario; an impossible scenario is wrong usage."""
    result = turn_accounting(
        "simulate", "--servers", "0", redis_url="redis://127.0.0.1:1", data_dir=str(tmp_path)
    )
    assert result.code == 2
    assert result.error_line == "can't simulate: servers is 0, not 1 to 200"
    with pytest.raises(UsageError, match="sessions is 999999999999, not 0 to 10000000"):
        Scenario(sessions=999_999_999_999)
    with pytest.raises(UsageError, match="concurrency is 9000000, and 25 s of sessions of 8 s"):
        Scenario(concurrency=9_000_000)
    with pytest.raises(UsageError, match="duration is inf s, not above 0 and up to 31622400"):
        Scenario(duration_seconds=inf)
    with pytest.raises(UsageError, match="users is 99999999, more than 10000000"):
        Scenario(users=99_999_999)


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        ("--history 3days",
         "--history '3days' is no number of months: expected one such as 3months"),
        ("--history 25months", "can't simulate: months is 25, not 1 to 24"),
        ("--history 1month --realm r --realms 2", "--realms does not go with --realm"),
        ("--history 1month --realms 0", "can't simulate: realms is 0, less than 1"),
        ("--history 1month --servers 2", "--servers does not go with --history"),
    ],
)  # fmt: skip
def test_a_history_that_cannot_be_simulated_is_wrong_use(
    tmp_path: Path, options: str, problem: str
) -> None:
    result = turn_accounting("simulate", *options.split(), data_dir=str(tmp_path / "none"))
    assert (result.code, result.error_line) == (2, problem)
    assert not (tmp_path / "none").exists()


def test_times_in_json_are_utc_and_complete(sample_books: Books) -> None:
    result = turn_accounting(
        "sessions", "--json", "--limit", "50", database_url=sample_books.url(READER)
    )
    assert result.rows[-1]["started_at"] == BEGIN.isoformat()
    assert json.loads(result.out.splitlines()[0])


def test_an_empty_result_says_what_is_not_counted_yet(books: Books) -> None:
    books.receive(0, channel("status"), status_payload("new"))
    books.receive(1, channel("traffic"), traffic_payload(1, 100, 2, 200))
    books.advance_clock(300)
    books.load()
    books.settle()
    reader = {"database_url": books.url(READER)}
    assert turn_accounting("usage", **reader).out == (
        "No usage yet: the roll-up has not counted all of it.\n"
    )
    assert turn_accounting("usage", "--json", **reader).out == ""
    books.rollup()
    assert "No usage" not in turn_accounting("usage", **reader).out


def test_an_empty_span_says_whether_anything_can_still_come(books: Books) -> None:
    books.receive(0, channel("status"), status_payload("new"))
    books.receive(10, channel("status"), status_payload("deleted"))
    books.advance_clock(300)
    books.load()
    books.settle()
    now = books.start + timedelta(seconds=300)
    yesterday, tomorrow = (f"{now + timedelta(days=days):%Y-%m-%d}" for days in (-1, 1))
    later = now + timedelta(hours=2)
    hour = f"--since {later - timedelta(hours=1):%Y-%m-%dT%H:%M} --until {later:%Y-%m-%dT%H:%M}"
    naive = ", or a time without an offset"
    no_month = "no month begins in that span: try --per hour"
    settled = f"source 'default' is settled only until {now:%Y-%m-%d %H:%M:%SZ}"
    try:
        for clock, arguments, expected in (
            (now, f"usage --since {tomorrow}", "No usage: that span is in the future."),
            (now, f"sessions --since {tomorrow}", "No sessions: that span is in the future."),
            (now, "sessions --since 2027-01", "No sessions: that span is in the future."),
            (
                now,
                "sessions --live --since 2027-01 --limit 3",
                "No live sessions: that span is in the future.",
            ),
            (now, f"usage --since {now:%Y-%m-%dT%H}:00Z", f"No usage: {no_month}{naive}."),
            (now, f"usage --until {yesterday}", "No usage in that span; it is complete."),
            (now, f"sessions --until {yesterday}", "No sessions in that span; it is complete."),
            (now, "usage --since 1h", "No usage yet: the roll-up has not counted all of it."),
            (now, "sessions --live", "No live sessions."),
            (later, f"sessions {hour}", f"No sessions yet: {settled}."),
            (later, f"usage {hour}", f"No usage yet: {settled}."),
        ):
            books.set_database_clock(clock)
            result = turn_accounting(*arguments.split(), database_url=books.url(READER))
            assert (result.code, result.out, result.err) == (0, f"{expected}\n", "")
        exported = turn_accounting(
            "export", "usage", "--since", "24h", "--per", "month", database_url=books.url(READER)
        )
        assert (exported.code, exported.out) == (2, "")
        assert exported.error_line == f"there is nothing to export: {no_month}"
    finally:
        books.set_database_clock()
