"""Every page over HTTP: what it says of fixed books, hostile names, links, and its size."""

import gzip
import json
import re
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import closing
from datetime import date, datetime, timedelta
from io import BytesIO
from pathlib import Path
from typing import Any, Final
from urllib.parse import quote, urlencode
from uuid import UUID
from zoneinfo import ZoneInfo

import psycopg
import pytest

from accounting.domain.human_text import human_bytes
from accounting.domain.session_ids import short_session_id
from accounting.domain.statements import statement_digest
from accounting.export.export import export_to_stream
from accounting.export.selection import ExportFormat, ExportKind, Selection
from accounting.reporting.billing_queries import statements
from accounting.reporting.overview import with_totals
from accounting.reporting.previews import lines_of_month, month_of_period, with_month_totals
from accounting.reporting.reader import DatabaseReader
from accounting.reporting.view_query import TRAFFIC, Arrangement
from accounting.web.access.reader import Reader
from accounting.web.access.tokens import create_token
from accounting.web.books import Books as WebBooks
from accounting.web.pages import limits, realms, statement
from accounting.web.pages.usage_chart import with_empty_buckets
from tests.support import page_books
from tests.support.books import READER, Books, expected_json
from tests.support.coturn_messages import FakeAllocation
from tests.support.html_page import Element, HtmlPage
from tests.support.page_books import open_page_books
from tests.support.sample_books import open_sample_books
from tests.support.servers import PostgresServer
from tests.support.web_server import Answer, WebServer, serving

MOST_BYTES: Final = 150_000
SAMPLES: Final = 12
"""So many users and sessions are looked at, of many."""
OCTOBER: Final[Mapping[str, Any]] = {"realm": "example.org", "period": "2026-10-01"}


class Site:
    """A server, and the books that it reads."""

    def __init__(self, books: Books, web: WebServer) -> None:
        self.books = books
        self.web = web

    def get(self, path: str, **parameters: object) -> Answer:
        query = f"?{urlencode(parameters, quote_via=quote)}" if parameters else ""
        return self.web.get(f"{path}{query}")

    def page(self, path: str, *, status: int = 200, **parameters: object) -> HtmlPage:
        answer = self.get(path, **parameters)
        assert answer.status == status, answer.text
        return HtmlPage(answer.text)

    def user_key(self, user: str, realm: str = "example.org") -> UUID:
        rows = self.books.rows("user_usage_monthly", "realm", "user_id", "user_key")
        return next(
            UUID(str(row["user_key"]))
            for row in rows
            if (row["realm"], row["user_id"]) == (realm, user)
        )


@pytest.fixture(scope="module")
def site(
    postgres_server: PostgresServer, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Site]:
    directory: Path = tmp_path_factory.mktemp("sample")
    with (
        open_sample_books(postgres_server, directory) as books,
        serving(books.url(READER)) as web,
    ):
        yield Site(books, web)


@pytest.fixture(scope="module")
def hostile(
    postgres_server: PostgresServer, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Site]:
    directory: Path = tmp_path_factory.mktemp("hostile")
    with (
        open_page_books(postgres_server, directory) as books,
        serving(books.url(READER)) as web,
    ):
        yield Site(books, web)


def traffic(row: Any) -> int:
    return int(row["received_bytes"] + row["sent_bytes"])


def links_of(element: Element) -> list[str]:
    return [link.attributes["href"] for link in element.all("a")]


def used_buckets(page: HtmlPage, caption: str) -> list[list[str]]:
    """The figures of a chart, without buckets in which nothing was reported."""
    rows = [row.values() for row in page.rows(caption)]
    assert rows[-1][0] > rows[0][0]
    return [row for row in rows if any(value != "0" for value in row[1:])]


# The overview.


def test_the_overview_has_today_and_this_month_beside_the_last(site: Site) -> None:
    page = site.page("/")
    months = site.books.rows("realm_usage_monthly")
    november = [row for row in months if row["starts_at"].month == 11 or row["starts_at"].day == 31]
    october = [row for row in months if row not in november]
    for label, rows in (("This month", november), ("Last month", october)):
        figure = page.figure(label)
        assert figure.values()[0] == str(sum(map(traffic, rows)))
        assert human_bytes(sum(map(traffic, rows))) in figure.text
    today = [
        row
        for row in site.books.rows("realm_usage_daily")
        if row["starts_at"].isoformat() >= "2026-11-03T23"
    ]
    assert page.figure("Today").values()[0] == str(sum(map(traffic, today)))
    assert page.figure("Yesterday").text.endswith("nothing was reported")


def test_the_overview_says_what_lives_and_what_is_missing(site: Site) -> None:
    page = site.page("/")
    assert page.figure("Live sessions").values()[0] == "1"
    assert "most of 2 sources: second, counted until 11:00:00 UTC" in page.figure("Behind").text
    assert "1 open" in page.figure("Gaps in 24 hours").text
    late, listed = page.by_class("notices")
    assert "usage is counted until 2026-11-04 11:00:00 UTC" in late.text
    notices = [notice.text for notice in listed.all("li")]
    assert "error: source default: not capturing for" in notices[0]
    assert "connection lost" in notices[0]
    assert any("1 message" in notice and "could not be parsed" in notice for notice in notices)
    assert [next(row.all("th")).text for row in page.rows("Realms")] == [
        "example.org",
        "example.net",
    ]


def test_the_overviews_figures_refresh_by_themselves(site: Site) -> None:
    part = site.page("/now")
    [whole] = [each for each in site.page("/").all("div") if each.attributes.get("id") == "now"]
    assert whole.attributes["hx-get"] == "/now"
    refreshed = next(part.all("div"))
    assert refreshed.attributes == whole.attributes
    assert [each.text for each in refreshed.by_class("notices")] == [
        each.text for each in whole.by_class("notices")
    ]
    assert part.figure("Live sessions").values()[0] == "1"


# A realm.


@pytest.mark.parametrize(
    ("per", "view", "bucket_count"),
    [("hour", "hourly", 2), ("day", "daily", 4), ("month", "monthly", 2)],
)
def test_a_realm_has_the_figures_of_its_chart_as_a_table(
    site: Site, per: str, view: str, bucket_count: int
) -> None:
    page = site.page("/realm", realm="example.org", per=per)
    unattributed = site.books.rows("unattributed_usage")[0]
    expected = [
        [
            row["starts_at"].isoformat(),
            str(row["received_bytes"]),
            str(row["sent_bytes"]),
            str(row["estimated_bytes"]),
            str(traffic(unattributed) * is_in(row, unattributed["starts_at"])),
            str(row["sessions_started"]),
            str(row["peak_sessions"]),
        ]
        for row in site.books.rows(f"realm_usage_{view}", order="starts_at")
        if row["realm"] == "example.org"
    ]
    assert used_buckets(page, "Traffic and peak") == expected[-bucket_count:]
    figure = page.by_class("chart")[0]
    assert figure.attributes["data-zone"] == "Europe/Berlin"
    assert figure.by_class("plot")[0].attributes["role"] == "img"
    assert "Unattributed, and never billed: 400 B" in page.text


def test_a_realm_has_its_servers_and_transports_of_the_month(site: Site) -> None:
    page = site.page("/realm", realm="example.org")
    for caption, name in (("Servers", "192.0.2.1"), ("Transports", "UDP")):
        [row] = page.rows(f"{caption} by their traffic this month")
        assert next(row.all("th")).text == name
        assert row.values()[:2] == ["4", "1"]


def test_a_user_has_the_most_sessions_at_once(site: Site) -> None:
    [user] = {
        row["user_key"] for row in site.books.rows("user_usage_daily") if row["user_id"] == "bob"
    }
    assert "Most sessions open at once in this time: 1." in site.page(f"/user/{user}").text


def is_in(bucket: Any, at: Any) -> bool:
    return bool(bucket["starts_at"] <= at < bucket["ends_at"])


def test_unattributed_usage_of_a_bucket_without_sessions_is_shown(hostile: Site) -> None:
    page = hostile.page("/realm", realm="stolen", per="hour")
    [values] = used_buckets(page, "Traffic and peak")
    assert values[1:] == ["0", "0", "0", "400", "0", "0"]


@pytest.mark.parametrize(
    ("per", "since", "now", "starts"),
    [
        (
            "day",
            "2026-10-24T12:00",
            "2026-10-26T12:00",
            ["24T00", "25T00:00:00+02", "26T00:00:00+01"],
        ),
        ("month", "2026-08-20T00:00", "2026-11-01T01:00", ["08-01", "09-01", "10-01", "11-01"]),
        ("hour", "2026-10-25T01:30", "2026-10-25T03:10", ["T01", "T02:00:00+02", "T02:00:00+01"]),
    ],
)
def test_empty_buckets_are_those_of_the_calendar(
    per: Any, since: str, now: str, starts: list[str]
) -> None:
    zone = ZoneInfo("Europe/Berlin")
    begin, end = (datetime.fromisoformat(text).replace(tzinfo=zone) for text in (since, now))
    rows = with_empty_buckets([], per, zone, begin, end)
    found = [row["starts_at"].isoformat() for row in rows]
    assert len(found) == len(starts) + (per == "hour")
    assert all(start in text for start, text in zip(starts, found, strict=False))


@pytest.mark.parametrize(
    "query",
    ["/realm?realm=%00", "/sessions?user=%FF", "/periods?realm=a&realm=b", "/gaps?reason=x"],
)
def test_a_query_that_can_not_be_meant_is_refused(site: Site, query: str) -> None:
    assert site.web.get(query).status == 400


def test_a_realm_has_its_periods_and_what_they_wait_for(site: Site) -> None:
    rows = site.page("/realm", realm="example.org").rows("Billing periods")
    november, october = (row.text for row in rows)
    assert "its end, 2026-12-01 00:00 Europe/Berlin" in november
    assert "closed" in october
    assert links_of(rows[1]) == ["/statement?realm=example.org&period=2026-10-01"]


def test_a_realm_has_its_top_users(site: Site) -> None:
    rows = site.page("/realm", realm="example.org").rows("Users by their traffic")
    assert [next(row.all("th")).text for row in rows] == ["alice", "bob"]
    assert links_of(rows[0]) == [f"/user/{site.user_key('alice')}"]
    assert rows[0].text.endswith("14%")


def test_the_top_users_are_those_with_most_traffic(hostile: Site) -> None:
    rows = hostile.page("/realm", realm="example.org").rows("Users by their traffic")
    usage = [
        row for row in hostile.books.rows("user_usage_monthly") if row["realm"] == "example.org"
    ]
    usage.sort(key=lambda row: -traffic(row))
    assert [links_of(row) for row in rows] == [[f"/user/{row['user_key']}"] for row in usage]


def test_a_realm_has_its_limits_and_how_far_they_are(site: Site) -> None:
    """Those of single users are on the page of limits."""
    users, realm = site.page("/realm", realm="example.org").rows("Limits that are set")
    assert "every user 200.0 kB per month 50%, 100%, 150% reached by 1 user" in users.text
    assert "the realm 250.0 kB per month 100%" in realm.text
    [usage] = site.books.query("SELECT percent FROM reporting.limit_usage WHERE whom = 'realm'")
    assert f"{usage['percent']}%, reached" in realm.text
    assert next(realm.all("meter")).attributes["value"] == "100"
    nearest = site.page("/realm", realm="example.org").rows("Users nearest to a limit")
    usages = site.books.query(
        "SELECT user_id, usage, percent FROM reporting.limit_usage WHERE whom = 'every_user'"
        " ORDER BY usage DESC"
    )
    assert len(nearest) == len(usages) > 0
    for row, used in zip(nearest, usages, strict=True):
        assert used["user_id"] in row.text
        assert f"{used['percent']}%" in row.text
    assert "No limit is set" in site.page("/realm", realm="example.net").text


def test_limits_are_listed_with_what_was_reached(site: Site) -> None:
    limits = site.books.rows("limits", order="limit_id")
    states = site.books.rows("limit_states", order="starts_at DESC, limit_id DESC, threshold DESC")
    page = site.page("/limits")
    numbers = [next(row.all("td")).text for row in page.rows("Limits that are set")]
    assert numbers == [str(limit["limit_id"]) for limit in limits]
    reached = [row.text for row in page.rows("Thresholds that were reached")]
    assert len(reached) == len(states) == 3
    for text, state in zip(reached, states, strict=True):
        assert f" {state['threshold']}% " in text
        assert ("the realm" if state["user_id"] is None else state["user_id"]) in text
        assert text.endswith("reached")
    page = site.page("/limits", realm="example.net")
    [carol] = page.rows("Limits that are set")
    assert links_of(carol) == [f"/user/{site.user_key('carol', 'example.net')}"]
    assert "No threshold was reached yet" in page.text
    site.page("/limits", realm="example.ne", status=404)


def test_reached_thresholds_have_pages(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "PAGE_ROWS", 1)
    [whole] = [site.books.rows("limit_states", order="starts_at DESC")]
    path, seen = "/limits?realm=example.org", 0
    while path:
        page = HtmlPage(site.web.get(path).text)
        seen += len(page.rows("Thresholds that were reached"))
        path = next(
            (link.attributes["href"] for link in page.all("a") if link.text == "Older ones"), ""
        )
    assert seen == len(whole) == 3


# A user.


def test_a_user_has_limits_and_how_much_of_them_is_used(site: Site) -> None:
    page = site.page(f"/user/{site.user_key('alice')}")
    [limit] = page.rows("Limits of this user")
    [usage] = site.books.query("SELECT * FROM reporting.limit_usage WHERE user_id = 'alice'")
    assert limit.values()[:2] == ["200000", str(usage["usage"])]
    assert f"{usage['percent']}%, reached" in limit.text
    assert [row.text.split("month ")[1][:4] for row in page.rows("Thresholds")] == ["100%", "50% "]
    page = site.page(f"/user/{site.user_key('carol', 'example.net')}")
    [limit] = page.rows("Limits of this user")
    assert limit.text == "5 sessions per day nothing in this day"


def test_a_user_has_usage_sessions_lines_and_adjustments(site: Site) -> None:
    page = site.page(f"/user/{site.user_key('alice')}")
    days = [
        [
            row["starts_at"].isoformat(),
            *(str(row[name]) for name in ("received_bytes", "sent_bytes", "estimated_bytes")),
            str(row["sessions_started"]),
        ]
        for row in site.books.rows("user_usage_daily", order="starts_at")
        if row["user_id"] == "alice"
    ]
    assert used_buckets(page, "Traffic, by day") == days
    sessions = [
        f"/session/{row['session_id']}"
        for row in site.books.rows("sessions", order="started_at DESC")
        if row["user_id"] == "alice"
    ]
    assert [link for row in page.rows("Sessions") for link in links_of(row)] == sessions
    [line] = page.rows("Statement lines")
    assert line.text.startswith("2026-10-01")
    [adjustment] = page.rows("Adjustments of this user")
    assert "a test call of ours" in adjustment.text
    assert "-100 B" in adjustment.text


def test_an_erased_user_is_called_so(hostile: Site) -> None:
    [row] = hostile.books.query("SELECT user_key FROM accounting.erasures")
    key = str(row["user_key"])
    page = hostile.page(f"/user/{key}")
    assert next(page.all("h1")).text == f"erased user {key[:8]}"
    assert "The name was erased" in page.text
    assert key in page.text
    listed = hostile.page("/realm", realm="example.org").rows("Users by their traffic")
    names = [next(row.all("th")).text for row in listed]
    assert names.count(f"erased user {key[:8]}") == 1
    assert names.count("without a name") == 1  # of whom coturn published no name
    assert page_books.ERASED_NAME not in hostile.get(f"/user/{key}").text


# Periods, statements and their files.


def test_periods_are_listed_newest_first(site: Site) -> None:
    rows = site.page("/periods").rows("Billing periods")
    assert rows[-1].text.startswith("example.org 2026-10-01")
    of_realm = site.page("/periods", realm="example.net")
    assert [row.text[:10] for row in of_realm.rows("Billing periods")] == ["2026-11-01"]


def test_a_statement_has_its_lines_digest_cutoff_adjustments_and_gaps(site: Site) -> None:
    page = site.page("/statement", **OCTOBER)
    lines = site.books.rows("statements")
    [row] = page.rows("Lines of the statement")
    assert row.values() == [
        str(lines[0][name]) if name != "total" else str(traffic(lines[0]))
        for name in ("sessions_started", "session_seconds", "received_bytes", "sent_bytes", "total")
    ]
    digest = statement_digest((UUID(str(line["user_key"])), line["digest"]) for line in lines)
    assert digest in page.text
    positions = json.loads(lines[0]["cutoff"])["sources"]
    for source, position in positions.items():
        assert f"Source {source} up to position {position['epoch']}/{position['position']}" in (
            page.text
        )
    [adjustment] = page.rows("Adjustments of this period")
    assert "a test call of ours" in adjustment.text
    [gap] = page.rows("Capture gaps")
    assert "connection lost" in gap.text
    assert "October's" in gap.text
    assert "No adjustments of earlier periods" in page.text


def test_a_period_that_is_not_closed_has_a_preview_and_says_what_it_waits_for(site: Site) -> None:
    page = site.page("/statement", realm="example.org", period="2026-11-01")
    assert "It waits for its end, 2026-12-01 00:00 Europe/Berlin" in page.text
    assert "A preview: not closed, may change" in page.text
    lines = [row for row in site.books.rows("statement_previews") if row["realm"] == "example.org"]
    lines.sort(key=lambda row: -traffic(row))
    shown = page.rows("Lines so far")
    assert [next(row.all("th")).text for row in shown] == [row["user_id"] for row in lines]
    assert [row.values()[4] for row in shown] == [str(traffic(row)) for row in lines]
    total = next(page.table("Lines so far").all("tfoot"))
    sums = ("sessions_started", "session_seconds", "received_bytes", "sent_bytes")
    expected = [str(sum(row[name] for row in lines)) for name in sums]
    assert total.values()[:5] == [str(len(lines)), *expected]
    assert "Digest" not in page.table("Lines so far").text
    assert not [link for link in page.links() if "download" in link]
    data = "/api/v1/statements?realm=example.org&period=2026-11-01&preview=true"
    assert data in page.links()
    lines.sort(key=lambda row: str(row["user_id"]))
    assert site.get(data).json["items"] == [
        {name: expected_json(value) for name, value in row.items()} for row in lines
    ]


def test_a_statement_has_the_newest_gaps_of_many(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(statement, "SHOWN_GAPS", 1)
    for period in ("2026-10-01", "2026-11-01"):
        page = site.page("/statement", realm="example.org", period=period)
        assert len(page.rows("Capture gaps")) == 1
        [more] = [link for link in page.links() if link.startswith("/gaps?since=")]
        assert site.get(more).status == 200


def test_a_preview_from_the_month_is_the_sum_of_its_hours(site: Site) -> None:
    """In any order and in pages of any size, with the same totals."""
    realm, period = "example.org", date(2026, 11, 1)
    with closing(DatabaseReader(site.books.url(READER))) as database:
        books = WebBooks(database, Reader())
        month = books.month_of_period(realm, period)
        assert month is not None
        for arrangement in (
            Arrangement(by=TRAFFIC, descending=True, limit=2),
            Arrangement(by=TRAFFIC, descending=True),
            Arrangement(limit=1),
            Arrangement(limit=2, after=(realm, period, "alice", UUID(int=0))),
            Arrangement(after=(realm, period, "alice", UUID(int=0))),
        ):
            summed = statements(realm, period, preview=True, arrangement=arrangement)
            expected = books.rows(summed, by_user=True)
            assert books.rows(lines_of_month(month, arrangement), by_user=True) == expected != []
        every = database.read_rows(with_totals(statements(realm, period, preview=True)))
        quick = with_month_totals(lines_of_month(month, Arrangement(limit=1000)), month)
        assert database.read_rows(quick) == every


def test_a_period_with_other_bounds_than_its_month_is_not_that_month(site: Site) -> None:
    query = month_of_period("example.org", date(2026, 11, 1))
    with psycopg.connect(site.books.url()) as connection:
        assert connection.execute(query.text.encode(), query.values).fetchall()
        connection.execute(
            "UPDATE accounting.periods SET starts_at = starts_at + interval '1 hour'"
            " WHERE closed_at IS NULL"
        )
        assert connection.execute(query.text.encode(), query.values).fetchall() == []
        connection.rollback()


def test_a_preview_has_the_lines_of_its_reader_only(site: Site) -> None:
    november = "/statement?realm=example.org&period=2026-11-01"
    token, _ = create_token(site.books.engine, realm="example.org", user="alice", days=1)
    with serving(site.books.url(READER), log_in=True) as web:
        page = HtmlPage(web.get(november, token=token).text)
    assert [next(row.all("th")).text for row in page.rows("Lines so far")] == ["alice"]
    total = next(page.table("Lines so far").all("tfoot"))
    assert total.text.startswith("Total of 1 ")
    assert "waits for" not in page.text


def test_realms_have_their_usage_and_the_first_period_that_is_not_closed(site: Site) -> None:
    rows = site.page("/realms").rows("Realms")
    assert [next(row.all("th")).text for row in rows] == ["example.net", "example.org"]
    for row in rows:
        realm = next(row.all("th")).text
        months = [
            traffic(month)
            for month in site.books.rows("realm_usage_monthly", order="starts_at DESC")
            if month["realm"] == realm
        ]
        assert str(months[0]) in row.values()
        assert f"/statement?realm={realm}&period=2026-11-01" in links_of(row)
    assert rows[1].text.endswith("open")


def test_pages_of_realms_have_each_realm_once(
    hostile: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(realms, "PAGE_ROWS", 2)
    found: list[str] = []
    address: str | None = "/realms"
    while address is not None:
        page = HtmlPage(hostile.get(address).text)
        found += [links_of(row)[0] for row in page.rows("Realms")]
        nexts = [link for link in page.all("a") if link.attributes.get("rel") == "next"]
        address = nexts[0].attributes["href"] if nexts else None
    known = sorted(str(row["name"]) for row in hostile.books.rows("known_realms() AS name"))
    assert len(known) > 4
    assert found == [f"/realm?{urlencode({'realm': name}, quote_via=quote)}" for name in known]


@pytest.mark.parametrize("format_", ExportFormat)
@pytest.mark.parametrize("kind", [ExportKind.STATEMENTS, ExportKind.ADJUSTMENTS])
def test_a_download_is_the_file_of_an_export(
    site: Site, kind: ExportKind, format_: ExportFormat
) -> None:
    period = site.books.rows("statements", "period")[0]["period"]
    expected = BytesIO()
    with closing(DatabaseReader(site.books.url(READER))) as reader:
        selection = Selection(kind=kind, realm="example.org", period=period)
        export_to_stream(reader, selection, format_, expected)
    answer = site.get("/statement/download", **OCTOBER, export=kind.value, format=format_.value)
    assert (answer.status, answer.body) == (200, expected.getvalue())
    assert answer.headers["content-length"] == str(len(answer.body))
    name = f"{kind}_example.org_2026-10-01.{format_}"
    assert answer.headers["content-disposition"] == f"attachment; filename*=UTF-8''{name}"


def test_a_statement_links_to_each_file(site: Site) -> None:
    links = [link for link in site.page("/statement", **OCTOBER).links() if "download" in link]
    assert len(links) == len(ExportFormat) * 2


@pytest.mark.parametrize(
    ("parameters", "status"),
    [
        ({**OCTOBER, "period": "2026-11-01"}, 409),
        ({**OCTOBER, "period": "2020-01-01"}, 404),
        ({**OCTOBER, "realm": "nowhere"}, 404),
        ({**OCTOBER, "export": "sessions"}, 400),
        ({**OCTOBER, "format": "xml"}, 400),
    ],
)
def test_a_download_that_is_not_there_says_why(
    site: Site, parameters: dict[str, Any], status: int
) -> None:
    assert next(site.page("/statement/download", status=status, **parameters).all("h1")).text


# Sessions.


def test_live_sessions_come_first(site: Site) -> None:
    page = site.page("/sessions")
    [live] = page.rows("Live sessions")
    assert live.by_class("live")
    assert len(page.rows("Sessions")) == len(site.books.rows("sessions"))


@pytest.mark.parametrize(
    ("filters", "expected"),
    [
        ({"user": "alice"}, {"user_id": "alice"}),
        ({"realm": "example.net"}, {"realm": "example.net"}),
        ({"live": "true"}, {"ended_at": None}),
        ({"form": "1", "realm": "", "user": "bob", "since": "", "until": ""}, {"user_id": "bob"}),
    ],
)
def test_sessions_are_filtered(
    site: Site, filters: dict[str, Any], expected: dict[str, Any]
) -> None:
    sessions = [
        f"/session/{row['session_id']}"
        for row in site.books.rows("sessions", order="started_at DESC, session_id DESC")
        if {name: row[name] for name in expected} == expected
    ]
    assert len(sessions) >= 1
    rows = site.page("/sessions", **filters).rows("Sessions")
    assert [links_of(row)[0] for row in rows] == sessions


def test_the_form_shows_what_is_filtered_by(site: Site) -> None:
    page = site.page("/sessions", realm="example.org", user="alice", since="2026-11")
    fields = {each.attributes["name"]: each.attributes.get("value") for each in page.all("input")}
    assert fields == {
        "form": "1",
        "realm": "example.org",
        "user": "alice",
        "since": "2026-11",
        "until": "",
        "live": "true",
    }


def test_pages_of_sessions_have_each_session_once(hostile: Site) -> None:
    found: list[str] = []
    address: str | None = "/sessions?realm=many"
    page_count = 0
    while address is not None:
        page = HtmlPage(hostile.get(address).text)
        found += [links_of(row)[0] for row in page.rows("Sessions")]
        nexts = [link for link in page.all("a") if link.attributes.get("rel") == "next"]
        address = nexts[0].attributes["href"] if nexts else None
        page_count += 1
    expected = [
        f"/session/{row['session_id']}"
        for row in hostile.books.rows("sessions", order="started_at DESC, session_id DESC")
        if row["realm"] == "many"
    ]
    assert found == expected
    assert page_count == 3


@pytest.mark.parametrize(
    ("parameters", "status", "words"),
    [
        ({"since": "nonsense"}, 400, "since 'nonsense': expected today, yesterday"),
        ({"since": "today", "until": "7d"}, 400, "since today is not before until 7d"),
        ({"cursor": "nonsense"}, 400, "cursor"),
        ({"realm": "example.ogr"}, 404, "example.org"),
        ({"user": "alcie"}, 404, "alice"),
    ],
)
def test_a_wrong_filter_is_explained(
    site: Site, parameters: dict[str, Any], status: int, words: str
) -> None:
    page = site.page("/sessions", status=status, **parameters)
    assert words in page.text
    fields = {each.attributes["name"]: each.attributes.get("value") for each in page.all("input")}
    for name in parameters.keys() & fields.keys():
        assert fields[name] == parameters[name]


def test_a_disputed_session_is_explained(site: Site) -> None:
    assert any(row["disputed"] for row in site.books.rows("sessions"))
    assert "reports of the session contradict each other" in site.page("/sessions").text
    user = site.page(f"/user/{site.user_key('bob')}")
    assert "reports of the session contradict each other" in user.text
    user = site.page(f"/user/{site.user_key('alice')}")
    assert "contradict" not in user.text


def test_a_live_session_lasts_until_now(site: Site) -> None:
    [session] = [row for row in site.books.rows("sessions") if row["ended_at"] is None]
    [clock] = site.books.query("SELECT reporting.database_now() AS now")
    seconds = (clock["now"] - session["started_at"]).total_seconds()
    [row] = site.page("/sessions").rows("Live sessions")
    assert float(row.values()[1]) >= int(seconds)


# A session.


def test_a_session_has_its_reports_with_their_positions(site: Site) -> None:
    sessions = site.books.rows("sessions", order="started_at")
    session = next(row for row in sessions if row["estimated"])
    page = site.page(f"/session/{session['session_id']}")
    reports = [
        (row["received_at"].isoformat(), f"{row['epoch']}/{row['position']}")
        for view in ("allocation_events", "traffic_reports")
        for row in site.books.rows(view)
        if row["allocation_id"] == session["allocation_id"]
    ]
    shown = [
        (entry.values()[0], next(entry.all("code")).text)
        for entry in page.by_class("timeline")[0].all("li")
    ]
    assert shown == sorted(reports, key=lambda report: int(report[1].partition("/")[2]))
    assert "Estimated: reports were lost" in page.text
    assert short_session_id(UUID(str(session["session_id"]))) in page.text


def test_all_reports_of_a_long_session_are_reached(hostile: Site) -> None:
    [session] = [row for row in hostile.books.rows("sessions") if row["realm"] == "long"]
    address: str | None = f"/session/{session['session_id']}"
    positions: list[str] = []
    while address is not None:
        page = HtmlPage(hostile.get(address).text)
        for line in page.by_class("timeline"):
            positions += [code.text for code in line.all("code")]
        nexts = [link for link in page.all("a") if link.attributes.get("rel") == "next"]
        address = nexts[0].attributes["href"] if nexts else None
    assert len(positions) == page_books.REPORT_COUNT + 1
    assert len(set(positions)) == len(positions)


# Gaps.


def test_gaps_say_what_may_be_missing(site: Site) -> None:
    page = site.page("/gaps")
    rows = page.rows("Capture gaps")
    assert len(rows) == len(site.books.rows("capture_gaps"))
    assert "still open" in rows[0].text
    assert [next(row.all("th")).text for row in page.rows("Sources")] == ["default", "second"]


@pytest.mark.parametrize(
    "filters",
    [
        {"source": "default"},
        {"source": "second"},
        {"since": "2026-11-01"},
        {"until": "2026-11-01", "source": "", "since": ""},
    ],
)
def test_gaps_are_filtered_as_the_api_does(site: Site, filters: dict[str, Any]) -> None:
    page = site.page("/gaps", **filters)
    given = {name: value for name, value in filters.items() if value}
    expected = site.get("/api/v1/gaps", **given).json["items"]
    try:
        shown = [next(row.all("data")).attributes["value"] for row in page.rows("Capture gaps")]
    except ValueError:
        assert page.by_class("empty")[0].text.startswith("No gap")
        shown = []
    assert shown == [str(gap["gap_id"]) for gap in expected]
    assert f"/api/v1/gaps?{urlencode(given)}" in page.links()


@pytest.mark.parametrize(
    ("filters", "status", "words"),
    [
        ({"since": "nonsense"}, 400, "since 'nonsense': expected today"),
        ({"source": "defualt"}, 404, "default"),
    ],
)
def test_a_wrong_filter_of_gaps_is_explained(
    site: Site, filters: dict[str, Any], status: int, words: str
) -> None:
    page = site.page("/gaps", status=status, **filters)
    assert words in page.text
    fields = {each.attributes["name"]: each.attributes.get("value") for each in page.all("input")}
    assert filters.items() <= fields.items()


# What holds on all pages.


def test_hostile_names_are_text(hostile: Site) -> None:
    pages = [
        hostile.page("/sessions"),
        hostile.page("/realm", realm="example.org"),
        hostile.page("/realm", realm=page_books.HTML_REALM),
        hostile.page("/"),
        *(
            hostile.page(f"/user/{hostile.user_key(name)}")
            for name in (page_books.HTML_NAME, page_books.REVERSED_NAME, page_books.QUOTED_NAME)
        ),
    ]
    for page in pages:
        assert not list(page.all("img"))
        assert not any("onerror" in element.attributes for element in page.all())
        assert not any("<b>" in element.attributes for element in page.all())
    listed = {
        name.text for row in pages[1].rows("Users by their traffic") for name in row.all("bdi")
    }
    assert listed == {
        page_books.HTML_NAME,
        "\\u202egnimoc",
        page_books.HEBREW_NAME,
        "\\x1b]0;owned\\x07",
        page_books.QUOTED_NAME,
    }
    assert next(pages[2].all("h1")).text == page_books.HTML_REALM
    assert not list(next(pages[2].all("h1")).all("b"))


def test_the_realm_without_a_name_has_a_page(hostile: Site) -> None:
    page = hostile.page("/realm", realm="")
    assert next(page.all("h1")).text == "Realm without a name"
    rows = hostile.page("/sessions", realm="").rows("Sessions")
    assert len(rows) == 1


def crawl(site: Site, token: str | None = None) -> tuple[dict[str, int], dict[str, HtmlPage]]:
    """Follow every link from the overview; the sizes of all answers, and the pages."""
    kinds: Counter[str] = Counter()
    sizes: dict[str, int] = {}
    pages: dict[str, HtmlPage] = {}
    waiting = ["/"]
    while waiting:
        address = waiting.pop()
        kind = re.sub("[0-9a-f-]{36}", "*", address)
        kinds[kind] += 1
        if address in sizes or kinds[kind] > SAMPLES:
            continue
        answer = site.web.get(address, token=token)
        if answer.status == 303:
            waiting.append(answer.headers["location"])
            continue
        assert answer.status == 200, (address, answer.text)
        sizes[address] = len(answer.body)
        if answer.headers["content-type"].startswith("text/html"):
            page = pages[address] = HtmlPage(answer.text)
            assert all(link.startswith("/") for link in page.links()), address
            waiting += page.links()
    return sizes, pages


@pytest.mark.parametrize("name", ["site", pytest.param("hostile", marks=pytest.mark.long)])
def test_every_link_leads_somewhere_and_no_page_is_heavy(
    request: pytest.FixtureRequest, name: str
) -> None:
    sizes, pages = crawl(request.getfixturevalue(name))
    assert len(pages) > 20
    for address, page in pages.items():
        assert sizes[address] + sum(sizes[asset] for asset in page.assets()) < MOST_BYTES, address


@pytest.mark.parametrize("user", [pytest.param(None, marks=pytest.mark.long), "alice"])
def test_every_link_that_a_customer_is_shown_leads_somewhere(site: Site, user: str | None) -> None:
    token, _ = create_token(site.books.engine, realm="example.org", user=user, days=1)
    with serving(site.books.url(READER), log_in=True) as web:
        _, pages = crawl(Site(site.books, web), token)
    kinds = {address.partition("?")[0].split("/")[1] for address in pages}
    everywhere = {"user", "sessions", "session", "statement"}
    assert kinds == everywhere | (
        set() if user else {"", "realm", "unattributed", "periods", "limits"}
    )
    assert not any("example.net" in page.text for page in pages.values())


def test_a_page_is_compressed_for_clients_that_can_read_it(site: Site) -> None:
    plain = site.get("/periods")
    assert "content-encoding" not in plain.headers
    for accepted in ("gzip", "deflate, gzip;q=0.5", "br, gzip"):
        answer = site.web.get("/periods", Accept_Encoding=accepted)
        assert answer.headers["content-encoding"] == "gzip"
        assert answer.headers["vary"] == "Accept-Encoding"
        assert gzip.decompress(answer.body) == plain.body
        assert len(answer.body) < len(plain.body) / 2
    for refused in ("identity", "gzip;q=0", "gzip; q=0.0, br"):
        assert site.web.get("/periods", Accept_Encoding=refused).body == plain.body


def test_no_page_has_scripts_or_styles_of_its_own(site: Site) -> None:
    for path in ("/", "/realm?realm=example.org", "/sessions", "/gaps", "/limits", "/periods"):
        page = HtmlPage(site.get(path).text)
        assert not list(page.all("style"))
        for element in page.all():
            assert "style" not in element.attributes
            assert not any(name.startswith("on") for name in element.attributes)
            assert element.tag != "script" or (element.attributes["src"] and not element.text)


def test_the_page_that_is_open_is_marked(site: Site) -> None:
    for path in ("/", "/realms", "/sessions", "/periods", "/limits", "/gaps"):
        assert current_links(site.page(path)) == [path]


def test_the_page_that_is_open_is_marked_behind_a_proxy(site: Site) -> None:
    """Whether the proxy strips its path or leaves it."""
    with serving(site.books.url(READER), root_path="/turn") as web:
        for path in ("/", "/sessions"):
            for address in (path, f"/turn{path}"):
                assert current_links(HtmlPage(web.get(address).text)) == [f"/turn{path}"]
        pages = [web.get(f"{root}/api/v1/sessions?limit=1").json for root in ("", "/turn")]
        assert pages[0] == pages[1]  # also the cursor


def current_links(page: HtmlPage) -> list[str]:
    links = (each for each in page.all("a") if each.attributes.get("aria-current") == "page")
    return [link.attributes["href"] for link in links]


@pytest.mark.parametrize(
    "path",
    [
        "/realm?realm=nowhere",
        "/user/00000000-0000-0000-0000-000000000000",
        "/session/00000000-0000-0000-0000-000000000000",
        "/statement?realm=nowhere&period=2026-10-01",
        "/nowhere",
    ],
)
def test_what_is_not_there_is_a_page_that_says_so(site: Site, path: str) -> None:
    answer = site.get(path)
    assert answer.status == 404
    assert HtmlPage(answer.text).links()


def test_books_without_anything_say_so_in_words(books: Books) -> None:
    with serving(books.url(READER)) as web:
        site = Site(books, web)
        assert "No sessions yet: coturn has not reported any" in site.page("/").text
        assert "No sessions yet: coturn has not reported any" in site.page("/sessions").text
        assert "No periods yet" in site.page("/periods").text
        assert "No gap is known" in site.page("/gaps").text
        FakeAllocation(books).new(0)
        books.advance_clock(1)
        books.run_jobs()
        assert "nothing was missed" in site.page("/").figure("Gaps in 24 hours").text
        [source] = books.rows("sources")
        until = source["captured_until"]
        books.set_database_clock(until + timedelta(seconds=61))
        gaps = site.page("/").figure("Gaps in 24 hours").text
        assert f"unknown since {until:%H:%M:%S} UTC" in gaps
        assert "what was published since then is unknown" in site.page("/gaps").text
