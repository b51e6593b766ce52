"""Sample books: a few days with rows of every kind, for tests of the views and the commands.

Two realms, one in Berlin's time zone; two sources; sessions that are exact, estimated, disputed,
open, and in October; unauthenticated traffic; hostile names; gaps; a rejected message; October
closed, with an adjustment; limits.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Final

from accounting.billing.adjust import post_manual_adjustment
from accounting.billing.close_period import close_periods
from accounting.domain.realm_rules import RealmRule
from accounting.feed.number_feed import number_feed
from accounting.identities.realm_rules import set_rule
from accounting.usage.limits.limit_rules import set_limit
from tests.support.books import Books, channel, cloned_database, status_payload, traffic_payload
from tests.support.servers import PostgresServer

BEGIN: Final = datetime(2026, 10, 31, 22, 0, tzinfo=UTC)
"""23:00 in Berlin: November begins an hour later."""
HOUR: Final = 3600.0
DAY: Final = 24 * HOUR
HOSTILE: Final = (
    b"turn/realm/example.net/user/\x1b]0;owned\x07\xff\\x41\n/allocation/000000000000000009/"
)


@contextmanager
def open_sample_books(server: PostgresServer, directory: Path) -> Iterator[Books]:
    """Books with the rows that this module lists, rolled up to 4 November, 12:00 UTC."""
    with cloned_database(server) as name:
        books = Books(server, name, directory, start=BEGIN)
        try:
            _fill(books)
            yield books
        finally:
            books.close()


def _fill(books: Books) -> None:
    set_rule(
        books.engine,
        "example.org",
        {"time_zone": "Europe/Berlin"},
        default=RealmRule(),
        holds_from=None,
    )
    spool = books.spool()
    spool.close_gap(
        spool.open_gap(books.micros_at(-20 * DAY), "disconnected", "October's"),
        books.micros_at(-19 * DAY),
    )
    spool.close_gap(
        spool.open_gap(books.micros_at(1.5 * HOUR), "disconnected", "over midnight"),
        books.micros_at(3 * HOUR),
    )
    # alice: one session in October, one exact, one with lost interims (estimated).
    _session(books, 0, allocation=1, interims=[(10, 1_000, 4, 400)], total=(10, 1_000, 4, 400))
    _session(
        books,
        1 * DAY,
        allocation=2,
        interims=[(2_000, 200_000, 48, 4_800), (10, 1_000, 2, 200)],
        total=(2_010, 201_000, 50, 5_000),
    )
    _session(
        books,
        2 * DAY,
        allocation=3,
        interims=[(100, 10_000, 10, 1_000)],
        total=(300, 30_000, 30, 3_000),
    )
    # bob: one whose interims exceed its total (disputed), and an open one.
    _session(
        books,
        2 * DAY + 200,
        user="bob",
        allocation=4,
        interims=[(500, 50_000, 5, 500)],
        total=(400, 40_000, 5, 500),
    )
    _new(books, 3.5 * DAY, "bob", 5)
    books.receive(
        3.5 * DAY + 60,
        channel("traffic", user="bob", allocation=5),
        traffic_payload(700, 7_000, 70, 700),
    )
    books.receive(
        3.5 * DAY + 120,
        channel("status", user="bob", allocation=5),
        status_payload("refreshed", 86_400),
    )
    # Unauthenticated traffic under bob's name, and a username that would control a terminal.
    books.receive(
        3.5 * DAY + 130,
        channel("traffic", user="bob", allocation=6),
        traffic_payload(3, 300, 1, 100),
    )
    books.receive(3.5 * DAY + 140, HOSTILE + b"status", status_payload("new"))
    books.receive(3.5 * DAY + 150, HOSTILE + b"status", status_payload("deleted"))
    books.receive(3.5 * DAY + 160, channel("status"), b"no status at all")
    # Another source, and the other realm.
    books.receive(
        1 * DAY,
        channel("status", user="carol", realm="example.net", allocation=7),
        status_payload("new"),
        source="second",
    )
    books.receive(
        1 * DAY + 50,
        channel("status", user="carol", realm="example.net", allocation=7),
        status_payload("deleted"),
        source="second",
    )
    books.advance_clock(3.5 * DAY + HOUR, source="second")
    spool.open_gap(books.micros_at(3.5 * DAY + 2 * HOUR), "disconnected", "still open")
    books.advance_clock(3.5 * DAY + 2 * HOUR)
    books.run_jobs()
    close_periods(books.engine)
    post_manual_adjustment(
        books.engine,
        "example.org",
        date(2026, 10, 1),
        "alice",
        {"sent_bytes": -100, "session_microseconds": -1_500_000},
        reason="a test call of ours",
        author="carol",
    )
    # Reached by alice and by the realm in November; not by carol.
    set_limit(
        books.engine,
        "example.org",
        every_user=True,
        measure="bytes",
        per="month",
        amount=200_000,
        warnings=[50, 150],
    )
    set_limit(books.engine, "example.org", measure="bytes", per="month", amount=250_000)
    set_limit(books.engine, "example.net", user="carol", measure="sessions", per="day", amount=5)
    number_feed(books.engine)


def _new(books: Books, at: float, user: str, allocation: int) -> None:
    books.receive(at, channel("status", user=user, allocation=allocation), status_payload("new"))


def _session(
    books: Books,
    at: float,
    *,
    user: str = "alice",
    allocation: int,
    interims: list[tuple[int, int, int, int]],
    total: tuple[int, int, int, int],
) -> None:
    """A session of 100 seconds: interims, the end, and a total."""
    _new(books, at, user, allocation)
    for number, counts in enumerate(interims, start=1):
        books.receive(
            at + number,
            channel("traffic", user=user, allocation=allocation),
            traffic_payload(*counts),
        )
    books.receive(
        at + 100, channel("status", user=user, allocation=allocation), status_payload("deleted")
    )
    books.receive(
        at + 100,
        channel("total_traffic", user=user, allocation=allocation),
        traffic_payload(*total),
    )
