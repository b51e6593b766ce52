"""A front with three cells that users roam over, and one database with all of it."""

from collections.abc import Iterator

import pytest

from accounting.billing.close_period import refresh_periods
from tests.support.books import channel, status_payload, traffic_payload
from tests.support.fronts import Front, open_front
from tests.support.servers import PostgresServer

HOUR = 3600.0


@pytest.fixture(scope="session")
def roaming(
    postgres_server: PostgresServer, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Front]:
    """Users who roam over three cells for two days, a realm in all of them, and one in one.

    Some sessions go on at the end, one cell has a gap, and someone probes without a password. Tests
    only read it.
    """
    with open_front(postgres_server, tmp_path_factory.mktemp("front")) as front:
        for number, cell in enumerate(front.cells):
            for user in range(3):
                call(front, cell, f"roamer{user}", number * 600, user + 1)
            call(front, cell, f"1700000000:{cell} only", HOUR * 20, 9)
            call(front, cell, "roamer1", HOUR * 47, 20, ends=False)
            front.receive(cell, 90_000, b"turn/realm/r/user/u/allocation/x/status", b"new")
            scan = channel("traffic", user=f"scan{number % 2}", allocation=77)
            front.receive(cell, 90_001, scan, traffic_payload(1, 100, 1, 50))
        call(front, "south", "alice", HOUR * 3, 4, realm="example.net")
        for books in (front.cells["west"], front.whole):
            spool = books.spool("west")
            spool.close_gap(
                spool.open_gap(books.micros_at(HOUR * 30), "disconnected"),
                books.micros_at(HOUR * 31),
            )
        front.advance_clocks(HOUR * 48)
        front.run_jobs()
        for books in (*front.cells.values(), front.whole):
            refresh_periods(books.engine)
        yield front


def call(
    front: Front,
    cell: str,
    user: str,
    at: float,
    number: int,
    *,
    realm: str = "example.org",
    ends: bool = True,
) -> None:
    """A session of an hour and a half with three interims, and a total if it ends."""

    def receive(seconds: float, suffix: str, payload: bytes) -> None:
        name = channel(suffix, user=user, realm=realm, allocation=number)
        front.receive(cell, at + seconds, name, payload)

    local = f"192.0.2.{1 + list(front.cells).index(cell)}:3478"
    receive(0, "status", status_payload("new", 3600, local=local))
    for interim in range(3 if ends else 1):
        seconds = interim * HOUR / 2
        receive(seconds + 10, "traffic", traffic_payload(4096, 400_000 * number, 10, 1_000))
        receive(seconds + 11, "traffic/peer", traffic_payload(10, 1_000, 4096, 400_000 * number))
        receive(seconds + 20, "status", status_payload("refreshed", 3600, local=local))
    if ends:
        receive(1.5 * HOUR, "status", status_payload("deleted"))
        total = traffic_payload(12_300, 1_200_500 * number, 31, 3_100)
        receive(1.5 * HOUR + 0.1, "total_traffic", total)
