"""Every list: as the view has it, page by page, as lines, and as the command prints it."""

import json
import socket
from datetime import UTC, datetime
from random import Random
from typing import Any, Final
from urllib.parse import quote
from uuid import UUID

import psycopg
import pytest

from accounting.domain.coturn_messages import MAX_COUNTER
from accounting.domain.statements import statement_digest
from accounting.web.api.cursor import MOST_CHARACTERS, decode_cursor, encode_cursor
from tests.support.api_site import Site, busy_connections, serving
from tests.support.books import READER, Books, expected_json
from tests.support.command import turn_accounting
from tests.support.coturn_messages import FakeAllocation, run_jobs_at
from tests.support.servers import wait_until

LISTS: Final = {
    "sessions": ("sessions", "started_at DESC, session_id DESC"),
    "periods": ("periods", "realm, starts_at"),
    "statements": ("statements", "realm, period, user_id, user_key"),
    "adjustments": ("adjustments", "posted_at, user_id, adjustment_id"),
    "limits": ("limits", "limit_id"),
    "limit-states": (
        "limit_states",
        "starts_at DESC, limit_id DESC, threshold DESC, user_key DESC",
    ),
    "gaps": ("capture_gaps", "to_at IS NOT NULL, from_at DESC, gap_id DESC"),
    "sources": ("sources", "source"),
    "unattributed": ("unattributed_usage", "starts_at, source, realm, username"),
    **{
        f"usage?per={length}&by={by}": (f"{by}_usage_{view}", f"starts_at, realm{user}")
        for length, view in (("hour", "hourly"), ("day", "daily"), ("month", "monthly"))
        for by, user in (("user", ", user_id, user_key"), ("realm", ""))
    },
}
COMMANDS: Final = {
    "sessions": "sessions",
    "sessions?since=2026-11-02&realm=example.org": "sessions --since 2026-11-02"
    " --realm example.org",
    "sessions?user=bob&live=true": "sessions --user bob --live",
    "usage": "usage",
    "usage?per=day&since=2026-11-02T12:00&until=2026-11-03": "usage --per day"
    " --since 2026-11-02T12:00 --until 2026-11-03",
    "usage?by=realm&per=hour": "usage --by realm --per hour",
    "usage?by=server&per=hour": "usage --by server --per hour",
    "usage?by=transport": "usage --by transport",
    "usage?top=1": "usage --top 1",
    "periods": "period list",
    "statements?realm=example.org&period=2026-10-01": "statement example.org 2026-10-01",
    "statements?realm=example.org&period=2026-11-01&preview=true": "statement example.org"
    " 2026-11-01 --preview",
    "adjustments?realm=example.org&period=2026-10-01": "statement example.org 2026-10-01"
    " --adjustments",
    "limits": "limit list",
    "gaps?since=2026-11-01": "gaps --since 2026-11-01",
    "sources": "source list",
}


def parsed(route: str) -> tuple[str, dict[str, str]]:
    path, _, query = route.partition("?")
    return path, dict(part.split("=", 1) for part in query.split("&") if part)


@pytest.mark.parametrize("route", LISTS)
def test_a_list_is_its_view_in_pages_of_any_size(sample_site: Site, route: str) -> None:
    view, order = LISTS[route]
    path, filters = parsed(route)
    rows = [
        {name: expected_json(value) for name, value in row.items()}
        for row in sample_site.books.rows(view, order=order)
    ]
    assert rows
    for limit in (1, 2, len(rows), 1000):
        assert sample_site.items(path, **filters, limit=limit) == rows
    lines = sample_site.get(path, **filters, format="jsonl")
    assert [json.loads(line) for line in lines.text.splitlines()] == rows
    first = sample_site.get(path, **filters, format="jsonl", limit=1)
    assert [json.loads(line) for line in first.text.splitlines()] == rows[:1]


@pytest.mark.parametrize("route", COMMANDS)
def test_csv_is_that_of_the_command(sample_site: Site, route: str) -> None:
    path, filters = parsed(route)
    printed = turn_accounting(
        *COMMANDS[route].split(), "--csv", database_url=sample_site.books.url()
    )
    answer = sample_site.get(path, **filters, format="csv")
    assert answer.headers["content-type"] == "text/csv; charset=utf-8"
    assert answer.text == printed.out != ""


@pytest.mark.parametrize(
    "path",
    ["realms", "usage", "usage?by=realm&per=day", "usage?top=3", "sessions", "periods",
     "statements", "adjustments", "limits", "limit-states", "gaps", "sources", "unattributed",
     "notices", "rates"],
)  # fmt: skip
def test_csv_has_its_headings_also_without_an_item(
    site: Site, sample_site: Site, path: str
) -> None:
    route, filters = parsed(path)
    answer = site.get(route, **filters, format="csv")
    assert (answer.status, answer.text.count("\n")) == (200, 1)
    [headings] = answer.text.splitlines()
    assert headings == sample_site.get(route, **filters, format="csv").text.splitlines()[0]
    assert site.get(route, **filters, format="jsonl").text == ""
    if route == "sessions":
        assert headings == sample_site.get(route, format="csv", since="2030-01").text.strip()


def test_rates_are_those_of_the_view_in_the_api_the_command_and_the_pages(
    sample_site: Site,
) -> None:
    books = sample_site.books
    books.set_database_clock(datetime(2026, 11, 5, tzinfo=UTC))  # it would go on between them
    try:
        rows = [
            {name: expected_json(value) for name, value in row.items()}
            for row in books.rows("rates", order="realm, server_address")
        ]
        assert rows
        assert sample_site.items("rates", limit=1) == rows
        assert sample_site.page("rates", realm="example.org")["counted_until"] is not None
        assert sample_site.items("rates", realm="example.net") == []
        for route, arguments in (("rates", ""), ("rates?realm=example.org", "--realm example.org")):
            path, filters = parsed(route)
            printed = turn_accounting(
                "rates", *arguments.split(), "--csv", database_url=books.url(READER)
            )
            assert sample_site.get(path, **filters, format="csv").text == printed.out
        top = turn_accounting("rates", "--top", "1", "--json", database_url=books.url(READER))
        assert [row["server_address"] for row in top.rows] == [rows[0]["server_address"]]
        server = str(rows[0]["server_address"])
        for path in ("/", "/now", "/realm?realm=example.org"):
            assert server in sample_site.raw(path).text
        for_people = turn_accounting("rates", "--wide", database_url=books.url(READER))
        assert server in for_people.out
        assert "what was reported since then is in no rate yet" in for_people.err
    finally:
        books.set_database_clock()


def test_realms_are_all_that_are_known_with_their_open_sessions(sample_site: Site) -> None:
    assert sample_site.items("realms", limit=1) == [
        {"realm": "example.net", "live": 0},
        {"realm": "example.org", "live": 1},
    ]
    assert sample_site.items("notices") == []


def test_a_session_and_its_reports(sample_site: Site) -> None:
    """Its reports are those of both views, in the order of their positions."""
    for session in sample_site.items("sessions"):
        path = f"sessions/{session['session_id']}"
        assert sample_site.page(path) == session
        reports = sample_site.items(f"{path}/reports", limit=1)
        assert reports == sample_site.items(f"{path}/reports")
        views = [
            row
            for view in ("allocation_events", "traffic_reports")
            for row in sample_site.books.rows(view)
            if row["allocation_id"] == session["allocation_id"]
            and row["user_id"] == session["user_id"]
        ]
        expected = sorted(views, key=lambda row: row["position"])
        assert [report["position"] for report in reports] == [row["position"] for row in expected]
        for report, row in zip(reports, expected, strict=True):
            shown = {**row, "event": row.get("event", row.get("report"))}
            for name, value in report.items():
                # The columns of the other kind are zero or null.
                assert value == expected_json(shown[name]) if name in shown else not value


def test_a_statement_as_a_whole_has_its_digest(sample_site: Site) -> None:
    whole = {"realm": "example.org", "period": "2026-10-01"}
    answer = sample_site.page("statements", **whole)
    lines = ((UUID(line["user_key"]), line["digest"]) for line in answer["items"])
    assert answer["digest"] == statement_digest(lines)
    for part in ({}, {**whole, "user": "alice"}, {**whole, "period": "2026-11-01", "preview": 1}):
        assert sample_site.page("statements", **part)["digest"] is None


def test_counters_are_exact(site: Site) -> None:
    """Also where a double is not: above 2^53."""
    exact = 3 * MAX_COUNTER
    assert float(exact) != exact > 2**53
    allocation = FakeAllocation(site.books)
    allocation.new(0)
    for second in range(3):
        allocation.interim(second, 1, MAX_COUNTER, 1, 1)
    run_jobs_at(site.books, 10)
    for route in ("sessions", "usage"):
        text = site.get(route).text
        assert f'"received_bytes": {exact},' in text
        assert site.get(route, format="jsonl").json["received_bytes"] == exact
        assert f",{exact}," in site.get(route, format="csv").text


def test_pages_neither_repeat_nor_skip_what_was_there_while_sessions_start(site: Site) -> None:
    def start(number: int) -> None:
        # Several start at once, so that the id decides too.
        FakeAllocation(site.books, user=f"u{number % 3}", allocation=number).new(number // 4)

    for number in range(20):
        start(number)
    run_jobs_at(site.books, 100)
    before = [item["session_id"] for item in site.items("sessions")]
    seen: list[str] = []
    cursor: dict[str, Any] = {}
    for number in range(400, 430):
        page = site.page("sessions", limit=3, **cursor)
        seen += [item["session_id"] for item in page["items"]]
        if page["next"] is None:
            break
        cursor = {"cursor": page["next"]}
        start(number)
        run_jobs_at(site.books, 100 + number)
    assert seen == before


def test_a_cursor_belongs_to_its_list_and_filters(sample_site: Site) -> None:
    cursor = sample_site.page("sessions", limit=1, realm="example.org")["next"]
    assert sample_site.get("sessions", realm="example.org", cursor=cursor).status == 200
    expected = "cursor: expected what `next` said of the same list with the same filters"
    for route, filters in (
        ("sessions", {}),
        ("sessions", {"realm": "example.net"}),
        ("sessions", {"realm": "example.org", "live": "true"}),
        ("usage", {"realm": "example.org"}),
    ):
        assert sample_site.problem(route, **filters, cursor=cursor) == (400, expected)
    for broken in ("x", "e30", cursor[:-4], "!" + cursor, quote("é"), "W10", "bnVsbA"):
        assert sample_site.problem("sessions", realm="example.org", cursor=broken) == (
            400,
            expected,
        )


def test_the_longest_names_have_cursors_that_fit_in_an_address() -> None:
    """A name has up to 512 bytes, a realm 127; each may be an escape of four characters."""
    random = Random(1)
    names = [
        "".join(f"\\x{random.randrange(256):02x}" for _ in range(length)) for length in (127, 512)
    ]
    names += ["".join(chr(random.randrange(1, 32)) for _ in range(512))]
    cursor = encode_cursor("x" * 24, names, None)
    assert len(cursor) <= MOST_CHARACTERS
    assert decode_cursor(cursor, "x" * 24, ("realm", "user_id", "username")) == names


@pytest.mark.parametrize(
    ("query", "status", "words"),
    [
        ("sessions?realm=exmaple.org", 404, "did you mean 'example.org'?"),
        ("usage?user=alise", 404, "no user 'alise' is known: did you mean 'alice'?"),
        ("usage?realm=example.org&user=carol", 404, "no user 'carol' is known in realm"),
        ("gaps?source=x", 404, "no source 'x' is known: known are 'default', 'second'"),
        ("statements?realm=example.org&period=2026-09-01", 404, "begin on 2026-10-01"),
        ("statements?realm=example.org&period=2026-11-01", 409, "is not closed yet"),
        ("sessions/7c9e6679-7425-40de-944b-e07fc1f90ae7", 404, "no session 7c9e6679"),
        ("sessions/x/reports", 404, "no session x is known"),
        ("sessions?since=tomorrow", 400, "since 'tomorrow': expected today"),
        ("sessions?since=2026-11-03&until=2026-11-02", 400, "is not before"),
        ("sessions?since=0000-01-01", 400, "expected today"),
        ("sessions?until=10000-01-01", 400, "expected today"),
        ("sessions?limit=0", 400, "limit: "),
        ("sessions?limit=-1", 400, "limit: "),
        ("sessions?limit=1001", 400, "limit: "),
        (f"sessions?limit={'9' * 1000}", 400, "limit: "),
        ("sessions?relam=x", 400, "'relam' is not a parameter here: expected cursor"),
        ("sessions?realm=a&realm=b", 400, "realm: given more than once"),
        ("sessions?realm=%00", 400, "NUL"),
        ("sessions?realm=%ff", 400, "not UTF-8"),
        ("sessions?realm=%ed%a0%80", 400, "not UTF-8"),
        ("usage?by=day", 400, "by 'day': expected user, realm, server or transport"),
        ("usage?by=realm&user=x", 400, "by=user"),
        ("usage?user_key=x", 400, "user_key: "),
        ("usage?top=3&limit=3", 400, "top goes without limit"),
        ("periods?format=xml", 400, "format: "),
        ("statements?period=x", 400, "'x' is not a period"),
        ("feed?after=-1", 400, "after: "),
        (f"feed?after={2**64}", 400, "after: "),
        ("feed?wait=nan", 400, "wait: "),
        ("nothing", 404, ""),
    ],
)
def test_problems(sample_site: Site, query: str, status: int, words: str) -> None:
    answer = sample_site.raw(f"/api/v1/{query}")
    assert answer.headers["content-type"] == "application/problem+json"
    assert (answer.status, answer.json["status"]) == (status, status)
    assert words in answer.json["detail"]
    assert not {"--since", "--until", "--by", "--per"} & set(answer.json["detail"].split())


def test_times_at_the_ends_of_the_calendar_select_all_or_nothing(sample_site: Site) -> None:
    everything = sample_site.items("sessions")
    early, late = "0001-01-01T00:00:00+14:00", "9999-12-31T23:59:59-14:00"
    for route in ("sessions", "usage", "gaps", "unattributed"):
        assert sample_site.items(route, since=early, until=late) == sample_site.items(route)
        assert sample_site.items(route, until=early) == []
    assert sample_site.items("sessions", since="9999d") == everything
    assert sample_site.items("sessions", until="9999d") == []


def test_a_query_that_takes_too_long_is_ended_and_a_client_that_left_holds_nothing(
    shared_books: Books,
) -> None:
    for number in range(3):
        FakeAllocation(shared_books, allocation=number).new(number)
    run_jobs_at(shared_books, 10)
    with serving(shared_books, statement_seconds=1) as site:
        with psycopg.connect(shared_books.url()) as other:
            other.execute("LOCK TABLE accounting.realms IN ACCESS EXCLUSIVE MODE")
            status, detail = site.problem("sessions")
            assert (status, "took too long" in detail) == (503, True)
        with socket.create_connection(("127.0.0.1", site.port)) as client:
            client.sendall(b"GET /api/v1/sessions?format=jsonl HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n")
            assert client.recv(12) == b"HTTP/1.1 200"
        wait_until(lambda: busy_connections(shared_books) == 0)
        assert len(site.items("sessions")) == 3


def test_usage_says_until_when_it_is_counted(sample_site: Site) -> None:
    counted_until = "2026-11-04T11:00:00+00:00"
    assert sample_site.page("usage")["counted_until"] == counted_until
    assert sample_site.page("sessions", user="alice")["counted_until"] == counted_until
    assert sample_site.page("usage", top=1)["counted_until"] == counted_until
    assert "counted_until" not in sample_site.page("periods")


def test_reached_thresholds_are_found_by_realm_user_and_span(sample_site: Site) -> None:
    states = sample_site.items("limit-states")
    of_alice = [state for state in states if state["user_id"] == "alice"]
    assert len(states) == 3
    assert len(of_alice) == 2
    key = of_alice[0]["user_key"]
    for filters, expected in (
        ({"user": "alice"}, of_alice),
        ({"user_key": key, "limit": 1}, of_alice),
        ({"realm": "example.org", "until": "2026-11-01", "limit": 2}, states),
        ({"realm": "example.org", "since": "2026-11-01"}, []),  # November begins an hour earlier
        ({"realm": "example.net"}, []),
        ({"realm": "example.net", "user_key": key}, []),
    ):
        assert sample_site.items("limit-states", **filters) == expected, filters
    assert sample_site.problem("limit-states", user="alicia")[0] == 404
    assert sample_site.problem("limits", realm="example.ne")[0] == 404
