"""Books as an operator may have them: two months of calls of three realms, their figures fixed.

Calls follow the hour of the day and the day of the week; most carry sound, some video. A connection
was lost once, October is closed and has an adjustment, and a few calls go on.
"""

import random
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Final

from accounting.billing.adjust import post_manual_adjustment
from accounting.billing.close_period import close_periods
from accounting.domain.calendar import to_micros
from accounting.domain.realm_rules import RealmRule
from accounting.feed.number_feed import number_feed
from accounting.identities.realm_rules import set_rule
from tests.support.books import Books, channel, cloned_database, traffic_payload
from tests.support.servers import PostgresServer

BEGIN: Final = datetime(2026, 10, 1, tzinfo=UTC)
NOW: Final = datetime(2026, 11, 20, 15, 42, 18, tzinfo=UTC)
"""A Friday afternoon."""
OUTAGE: Final = (datetime(2026, 11, 18, 14, 25, 9, tzinfo=UTC), timedelta(minutes=3, seconds=31))
REALMS: Final = {"meet.example.com": 26, "support.example.net": 14, "example.org": 7}
"""The mean number of calls on a working day."""
NAMES: Final = {
    "meet.example.com": (
        "ada", "berta", "carol", "dario", "elif", "frida", "gustav", "hana", "igor", "jana", "kofi",
        "lena",
    ),
    "support.example.net": ("desk-1", "desk-2", "desk-3", "night-desk"),
    "example.org": ("mira", "noor", "omar", "pia"),
}  # fmt: skip
WORKING_HOURS: Final = (8, 9, 9, 10, 10, 10, 11, 12, 13, 13, 14, 14, 14, 15, 15, 16, 17, 19, 20, 21)
PACKETS_PER_REPORT: Final = 4096
Message = tuple[int, int, bytes, bytes]


@dataclass(frozen=True, slots=True, kw_only=True)
class Call:
    """One allocation. ``packets_per_second``: of both directions."""

    user: str
    realm: str
    allocation: int
    starts_at: datetime
    seconds: float
    packets_per_second: float
    received_packet_bytes: int
    sent_packet_bytes: int
    client: str

    def messages(self, until: datetime) -> Iterator[Message]:
        """What coturn publishes for it, up to a time."""
        begin = to_micros(self.starts_at)
        last = to_micros(until)
        addresses = f", type=UDP, local=192.0.2.10:3478, remote={self.client}, ssl=NONE, cipher="
        status = f"lifetime=600{addresses}".encode()
        published: list[tuple[float, str, bytes]] = [(0, "status", b"new " + status)]
        published += [
            (float(at), "status", b"refreshed " + status)
            for at in range(540, int(self.seconds), 540)
        ]
        step = PACKETS_PER_REPORT / self.packets_per_second
        reports = int(self.seconds / step)
        for number in range(1, reports + 1):
            published.append((number * step, "traffic", self._traffic(1)))
            published.append((number * step, "traffic/peer", self._traffic(1, of_peer=True)))
        published.append((self.seconds, "status", b"deleted"))
        published.append((self.seconds, "total_traffic", self._traffic(reports)))
        published.append((self.seconds, "total_traffic/peer", self._traffic(reports, of_peer=True)))
        for seconds, suffix, payload in published:
            at = begin + int(seconds * 1e6)
            if at <= last:
                name = channel(suffix, user=self.user, realm=self.realm, allocation=self.allocation)
                yield at, 0, name, payload

    def _traffic(self, reports: int, *, of_peer: bool = False) -> bytes:
        received = int(PACKETS_PER_REPORT * 0.55) * reports
        sent = PACKETS_PER_REPORT * reports - received
        counts = [received, received * self.received_packet_bytes]
        counts += [sent, sent * self.sent_packet_bytes]
        return traffic_payload(*(counts[2:] + counts[:2] if of_peer else counts))


@contextmanager
def open_month_of_calls(server: PostgresServer, directory: Path) -> Iterator[Books]:
    """The books, counted up to :data:`NOW`."""
    with cloned_database(server) as name:
        books = Books(server, name, directory, start=BEGIN)
        try:
            _fill(books)
            yield books
        finally:
            books.close()


def _fill(books: Books) -> None:
    zone = {"time_zone": "Europe/Berlin"}
    set_rule(books.engine, "meet.example.com", zone, default=RealmRule(), holds_from=None)
    spool = books.spool()
    lost_at, lost_for = OUTAGE
    gap = spool.open_gap(to_micros(lost_at), "disconnected", "connection reset by peer")
    spool.close_gap(gap, to_micros(lost_at + lost_for))
    messages = sorted(
        message
        for call in _calls(random.Random(7))
        for message in call.messages(NOW)
        if not to_micros(lost_at) <= message[0] < to_micros(lost_at + lost_for)
    )
    books.receive_all(messages)
    books.advance_clock((NOW - BEGIN).total_seconds())
    books.run_jobs()
    books.set_database_clock(NOW + timedelta(seconds=2))
    close_periods(books.engine)
    post_manual_adjustment(
        books.engine, "meet.example.com", date(2026, 10, 1), "frida",
        {"sent_bytes": -48_200_000, "session_microseconds": -600_000_000},
        reason="test call of the support", author="kim",
    )  # fmt: skip
    number_feed(books.engine)


def _calls(chance: random.Random) -> Iterator[Call]:
    allocation = 0
    day = BEGIN
    while day < NOW:
        share = 0.25 if day.weekday() >= 5 else 1.0
        for realm, mean in REALMS.items():
            for _ in range(round(chance.uniform(0.7, 1.3) * mean * share)):
                allocation += 1
                at = timedelta(hours=chance.choice(WORKING_HOURS), seconds=chance.uniform(0, 3_600))
                yield _call(chance, realm, allocation, day + at, chance.uniform(90, 3_000))
        day += timedelta(days=1)
    for realm in ("meet.example.com", "meet.example.com", "support.example.net", *REALMS) * 2:
        allocation += 1  # they go on
        ago = timedelta(seconds=chance.uniform(60, 1_500))
        yield _call(chance, realm, allocation, NOW - ago, 7_200)


def _call(chance: random.Random, realm: str, allocation: int, at: datetime, seconds: float) -> Call:
    has_video = chance.random() < 0.3
    return Call(
        user=chance.choice(NAMES[realm]),
        realm=realm,
        allocation=allocation,
        starts_at=at,
        seconds=seconds,
        packets_per_second=chance.uniform(180, 320) if has_video else chance.uniform(80, 110),
        received_packet_bytes=chance.randrange(700, 1_050) if has_video else 160,
        sent_packet_bytes=chance.randrange(700, 1_050) if has_video else 172,
        client=f"198.51.100.{chance.randrange(2, 250)}:{chance.randrange(32_768, 60_999)}",
    )
