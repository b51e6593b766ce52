"""Publishes the messages of fake allocations, and returns whole rows to compare with.

alice = FakeAllocation(books)
alice.new(0)
alice.interim(10, 1, 100, 0, 0)
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from decimal import Decimal
from typing import Any, Final

from accounting.domain.counters import COUNTERS
from tests.support.books import Books, channel, status_payload, traffic_payload
from tests.support.invariants import assert_servers_add_up

SERVER_ADDRESS: Final = "192.0.2.1:3478"
OTHER_SERVER_ADDRESS: Final = "192.0.2.2:3478"
NO_COUNTS: Final = (0,) * 8


@dataclass(slots=True, kw_only=True)
class FakeAllocation:
    """One allocation on one server. Its methods publish, some seconds after the books' start."""

    books: Books = field(kw_only=False)
    user: str = "alice"
    realm: str = "example.org"
    allocation: int = 1
    source: str = "default"
    database: int = 0
    server_address: str | None = SERVER_ADDRESS
    transport: str = "UDP"

    def publish(self, seconds: float, suffix: str, payload: bytes) -> None:
        name = channel(suffix, user=self.user, realm=self.realm, allocation=self.allocation)
        self.books.receive(seconds, name, payload, source=self.source, database=self.database)

    def new(self, seconds: float, lifetime: int = 600) -> None:
        self._publish_status(seconds, "new", lifetime)

    def refreshed(self, seconds: float, lifetime: int = 600) -> None:
        self._publish_status(seconds, "refreshed", lifetime)

    def _publish_status(self, seconds: float, word: str, lifetime: int) -> None:
        payload = status_payload(
            word, lifetime, local=self.server_address, transport=self.transport
        )
        self.publish(seconds, "status", payload)

    def deleted(self, seconds: float) -> None:
        self.publish(seconds, "status", b"deleted")

    def interim(self, seconds: float, *counts: int) -> None:
        self.publish(seconds, "traffic", traffic_payload(*counts))

    def peer_interim(self, seconds: float, *counts: int) -> None:
        self.publish(seconds, "traffic/peer", traffic_payload(*counts))

    def total(self, seconds: float, *counts: int) -> None:
        self.publish(seconds, "total_traffic", traffic_payload(*counts))

    def peer_total(self, seconds: float, *counts: int) -> None:
        self.publish(seconds, "total_traffic/peer", traffic_payload(*counts))

    def close(self, seconds: float, total: tuple[int, ...], peer: tuple[int, ...]) -> None:
        """The end in coturn's order: `deleted`, then the totals."""
        self.deleted(seconds)
        self.total(seconds, *total)
        self.peer_total(seconds, *peer)


def run_jobs_at(books: Books, until: float, *sources: str) -> None:
    """Advance the capture clock to that many seconds after the start, and run every job."""
    for source in sources or ("default",):
        books.advance_clock(until, source=source)
    books.run_jobs()
    books.assert_conserved()
    assert_servers_add_up(books)


def datetime_at(books: Books, seconds: float) -> datetime:
    return books.start + timedelta(seconds=seconds)


def counters_by_name(counts: Iterable[int] = NO_COUNTS) -> dict[str, int]:
    """The eight counters by name: client received, sent, then peer received, sent."""
    return dict(zip(COUNTERS, counts, strict=True))


def session_row(
    books: Books,
    started: float,
    last_seen: float,
    ended: float | None,
    cause: str | None,
    counts: Iterable[int] = NO_COUNTS,
    **others: Any,
) -> dict[str, Any]:
    """A whole row of reporting.sessions, but for its keys; times in seconds after the start.

    Of alice's first allocation on the first server unless `others` say otherwise.
    """
    return {
        "source": "default",
        "database": 0,
        "realm": "example.org",
        "username": "alice",
        "user_id": "alice",
        "allocation_id": f"{1:018d}",
        "started_at": datetime_at(books, started),
        "start_known": True,
        "last_seen_at": datetime_at(books, last_seen),
        "ended_at": None if ended is None else datetime_at(books, ended),
        "end_cause": cause,
        "transport": "UDP",
        "client_address": "198.51.100.7:50000",
        "server_address": SERVER_ADDRESS,
        **counters_by_name(counts),
        "total_reported": False,
        "estimated": False,
        "disputed": False,
        **others,
    }


def session_rows(books: Books) -> list[dict[str, Any]]:
    """All rows of reporting.sessions in order of their first report, without their keys."""
    return [
        without_columns(row, "session_id", "user_key")
        for row in books.rows("sessions", order="session_id")
    ]


def usage_row(
    books: Books, starts: float, ends: float, counts: Iterable[int] = NO_COUNTS, **others: Any
) -> dict[str, Any]:
    """A row of reporting.user_usage_*, without its key; times in seconds after the start."""
    return {
        "realm": "example.org",
        "user_id": "alice",
        "starts_at": datetime_at(books, starts),
        "ends_at": datetime_at(books, ends),
        "time_zone": "UTC",
        **counters_by_name(counts),
        "sessions_started": 0,
        "sessions_ended": 0,
        "session_seconds": Decimal(0),
        "estimated_bytes": 0,
        **others,
    }


def usage_rows(books: Books, length: str, subject: str = "user") -> list[dict[str, Any]]:
    """All rows of a usage view in order of time, without the user key."""
    order = "starts_at, realm" + (", user_id" if subject == "user" else "")
    return [
        without_columns(row, "user_key")
        for row in books.rows(f"{subject}_usage_{length}", order=order)
    ]


def unattributed_row(
    books: Books, starts: float, counts: Iterable[int], **others: Any
) -> dict[str, Any]:
    """A whole row of ``reporting.unattributed_usage`` of one UTC hour."""
    return {
        "source": "default",
        "realm": "example.org",
        "username": "alice",
        "starts_at": datetime_at(books, starts),
        "ends_at": datetime_at(books, starts + 3600),
        **counters_by_name(counts),
        **others,
    }


def unattributed_rows(books: Books) -> list[dict[str, Any]]:
    """All rows of reporting.unattributed_usage."""
    return books.rows("unattributed_usage", order="starts_at, source, realm, username")


def without_columns(row: Mapping[str, Any], *names: str) -> dict[str, Any]:
    return {name: value for name, value in row.items() if name not in names}
