"""The page of traffic that was never authenticated: bytes and names by hour and day."""

from collections.abc import Iterator
from datetime import timedelta
from typing import Final
from urllib.parse import quote, urlencode

import pytest

from accounting.audit.pruning import PruneLimits, prune
from tests.support.books import READER, Books, channel, cloned_database, traffic_payload
from tests.support.coturn_messages import FakeAllocation
from tests.support.html_page import Element, HtmlPage
from tests.support.servers import PostgresServer
from tests.support.web_server import WebServer, serving

HOUR: Final = 3600
DAY: Final = 24 * HOUR
BURST: Final = 30


def receive(books: Books) -> None:
    """Some failed clients each day, and a burst of names in the last hour."""
    FakeAllocation(books).new(0, 10 * DAY)
    for number, (at, user) in enumerate(
        (
            (10, "mallory"),
            (DAY, "mallory"),
            (DAY + HOUR, "<b>trent</b>"),
            (2 * DAY - HOUR, ""),
            (2 * DAY - HOUR + 1, "1999999999:mallory"),
            *((2 * DAY + place, f"guess{place}") for place in range(BURST)),
        ),
        start=2,
    ):
        name = channel("traffic", user=user, allocation=number)
        books.receive(at, name, traffic_payload(1, 100, 1, 20))
    books.advance_clock(2 * DAY + 600)
    books.run_jobs()


@pytest.fixture(scope="module")
def flooded(
    postgres_server: PostgresServer, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Books]:
    with cloned_database(postgres_server) as name:
        books = Books(postgres_server, name, tmp_path_factory.mktemp("unattributed"))
        receive(books)
        yield books
        books.close()


@pytest.fixture(scope="module")
def web(flooded: Books) -> Iterator[WebServer]:
    with serving(flooded.url(READER)) as server:
        yield server


def page_of(web: WebServer, **parameters: str) -> HtmlPage:
    answer = web.get(f"/unattributed?{urlencode(parameters)}")
    assert answer.status == 200, answer.text
    return HtmlPage(answer.text)


def cells(row: Element) -> list[str]:
    return [cell.text for cell in row.all("th", "td")]


def test_a_burst_of_new_names_is_seen_by_hour(web: WebServer) -> None:
    """The usernames of one TURN REST user are one name; what came before the table is not new."""
    rows = page_of(web, realm="example.org").rows("Unattributed bytes and names")
    assert [cells(row)[1:] for row in rows] == [
        ["3.6 kB", str(BURST), str(BURST)],
        ["240 B", "2", "1"],
        ["120 B", "1", "1"],
        ["120 B", "1", "0"],
        ["120 B", "1", ""],
    ]


def test_days_are_those_of_the_realm(web: WebServer) -> None:
    rows = page_of(web, realm="example.org", per="day").rows("Unattributed bytes and names")
    assert [row.values() for row in rows] == [
        ["2026-11-04", str(120 * (BURST + 2)), str(BURST + 2), str(BURST + 1)],
        ["2026-11-03", "240", "2", "1"],
        ["2026-11-02", "120", "1", "1"],
    ]


def test_the_names_of_the_last_day_are_listed_by_bytes(web: WebServer, flooded: Books) -> None:
    page = page_of(web, realm="example.org")
    rows = [cells(row) for row in page.rows("Usernames by their unattributed bytes")]
    since = flooded.start + timedelta(days=1, seconds=600)
    expected = {
        row["username"] or "without a name"
        for row in flooded.rows("unattributed_usage")
        if row["starts_at"] >= since
    }
    assert {row[0] for row in rows} == expected
    assert "<b>trent</b>" in expected
    assert {tuple(row[1:3]) for row in rows} == {("120 B", "1")}
    [link] = [link for link in page.links() if link.startswith("/api/v1/unattributed?") and
              "csv" not in link and f"since={quote(since.isoformat()[:13])}" in link]  # fmt: skip
    assert web.get(link).json["items"]


def test_pruned_names_leave_their_bytes(books: Books) -> None:
    receive(books)
    prune(books.engine, PruneLimits(unattributed_sessions=0))
    with serving(books.url(READER)) as web:
        rows = page_of(web, realm="example.org").rows("Unattributed bytes and names")
    assert [cells(row)[1:] for row in rows] == [
        ["3.6 kB", str(BURST), str(BURST)],
        *([size, "not kept", ""] for size in ("240 B", "120 B", "120 B", "120 B")),
    ]


def test_a_realm_without_any_says_so(web: WebServer, flooded: Books) -> None:
    FakeAllocation(flooded, realm="example.net", allocation=999).new(2 * DAY + 601)
    flooded.advance_clock(2 * DAY + 602)
    flooded.run_jobs()
    page = page_of(web, realm="example.net")
    assert "There is no unattributed traffic in this time." in page.text
    assert web.get("/unattributed?realm=nowhere").status == 404
    assert web.get("/unattributed?realm=example.org&per=month").status == 400
