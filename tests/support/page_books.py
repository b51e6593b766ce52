"""Books with what pages must not break on: hostile names, an erased user, and many sessions."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from accounting.identities.erase import erase
from tests.support.books import Books, channel, cloned_database, status_payload, traffic_payload
from tests.support.servers import PostgresServer

HTML_NAME: Final = "<img src=x onerror=alert(1)>"
REVERSED_NAME: Final = "\u202egnimoc"
HEBREW_NAME: Final = "\u05e2\u05dc\u05d9\u05d6\u05d4"
ESCAPE_NAME: Final = "\x1b]0;owned\x07"
QUOTED_NAME: Final = "a&b\"'>"
HTML_REALM: Final = "<b>realm</b>"
ERASED_NAME: Final = "forgotten"
MANY: Final = "busy"
SESSION_COUNT: Final = 120
"""Of the user ``MANY``: more than two pages of sessions have room for."""
REPORT_COUNT: Final = 230
"""Interims of the one session of realm ``long``: more than two pages of reports."""


@contextmanager
def open_page_books(server: PostgresServer, directory: Path) -> Iterator[Books]:
    """Everything lies within two hours of a day in November."""
    with cloned_database(server) as name:
        books = Books(server, name, directory)
        try:
            _fill(books)
            yield books
        finally:
            books.close()


def _fill(books: Books) -> None:
    names = (HTML_NAME, REVERSED_NAME, HEBREW_NAME, ESCAPE_NAME, QUOTED_NAME, ERASED_NAME, "")
    for number, user in enumerate(names, start=1):
        _session(books, number, user=user, realm="example.org", allocation=number)
    _session(books, 20, user="bob", realm=HTML_REALM, allocation=20)
    _session(books, 21, user="bob", realm="", allocation=21)
    for number in range(SESSION_COUNT):
        _session(books, 100 + number, user=MANY, realm="many", allocation=100 + number)
    for number in range(REPORT_COUNT):
        at = 1000 + number
        if not number:
            books.receive(
                at, channel("status", realm="long", allocation=900), status_payload("new", 3600)
            )
        books.receive(
            at, channel("traffic", realm="long", allocation=900), traffic_payload(1, 10, 1, 10)
        )
    books.receive(
        1290, channel("traffic", realm="stolen", allocation=950), traffic_payload(3, 300, 1, 100)
    )
    books.advance_clock(1300)
    books.run_jobs()
    erase(books.engine, "example.org", ERASED_NAME)


def _session(books: Books, at: float, *, user: str, realm: str, allocation: int) -> None:
    """A session of half a second with one interim."""

    def of(suffix: str) -> bytes:
        return channel(suffix, user=user, realm=realm, allocation=allocation)

    traffic = traffic_payload(10, 10_000 * allocation, 5, 500)
    books.receive(at, of("status"), status_payload("new"))
    books.receive(at + 0.1, of("traffic"), traffic)
    books.receive(at + 0.5, of("status"), status_payload("deleted"))
    books.receive(at + 0.5, of("total_traffic"), traffic)
