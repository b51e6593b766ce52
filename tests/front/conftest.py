"""Fronts that many tests read, each with one database that has all of it."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from accounting.billing.close_period import refresh_periods
from accounting.front.billing.copy_billing import copy_billing
from accounting.front.peaks.count_peaks import count_peaks
from tests.support.books import channel, traffic_payload
from tests.support.fronts import (
    HOUR,
    Front,
    FrontTemplate,
    call,
    copied_front,
    front_template,
    open_front,
)
from tests.support.servers import PostgresServer


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
        copy_billing(front.books.engine)
        for books in (*front.cells.values(), front.whole):
            books.query("UPDATE test_clock.clock SET fixed_at = '2026-11-04 12:00:05Z' RETURNING 1")
        front.follow_clock()
        count_peaks(front.books.engine)
        yield front


@pytest.fixture(scope="session")
def closed(
    postgres_server: PostgresServer, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Front]:
    """Two cells over which alice roams, closed for November. Tests put back what they change."""
    directory = tmp_path_factory.mktemp("closed")
    with open_front(postgres_server, directory, ("north", "south")) as front:
        call(front, "north", "alice", HOUR, 1)
        call(front, "south", "alice", HOUR * 2, 2)
        call(front, "south", "bob", HOUR * 3, 3, realm="example.net")
        front.advance_clocks(HOUR * 24 * 31)
        front.run_jobs()
        front.close_periods()
        yield front


@pytest.fixture(scope="module")
def template(
    request: pytest.FixtureRequest,
    postgres_server: PostgresServer,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[FrontTemplate]:
    """What the module's function ``fill`` makes of a front with two cells."""
    directory, fill = tmp_path_factory.mktemp("template"), request.module.fill
    with front_template(postgres_server, directory, fill, ("north", "south")) as template:
        yield template


@pytest.fixture
def front(
    postgres_server: PostgresServer, template: FrontTemplate, tmp_path: Path
) -> Iterator[Front]:
    """A copy of the module's template."""
    with copied_front(postgres_server, template, tmp_path) as front:
        yield front
