"""Three complete cells and a front: a fleet whose users roam, months that pass, and faults.

Each cell has its own Postgres, Valkey, collector and scheduler; the front has a Postgres and two
schedulers.
"""

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

import psycopg
import pytest

from accounting.capture.spool.status import read_status
from accounting.domain.text_escaping import escape
from accounting.feed.client import Feed
from accounting.simulator import Scenario
from accounting.simulator.oracle import Expected
from accounting.simulator.publisher import run
from tests.support.books import READER, Books, sum_counters
from tests.support.cell_site import Cell, CellSites, Site, open_cell_sites
from tests.support.page_commands import command_blocks
from tests.support.postgres_programs import programs_directory
from tests.support.servers import wait_until
from tests.support.service import all_paused, environment
from tests.support.webhook_receiver import WebhookReceiver

FLEET, ONE = REALMS = ("fleet.example", "one.example")
"""The second one is in one cell only."""
MARCH, APRIL, MAY = MONTHS = ("2027-03-01", "2027-04-01", "2027-05-01")
GENEROUS_SECONDS: Final = 180.0
EXPORT: Final = ("export", "statements", "--realm", FLEET, "--period", MARCH, "--format", "csv")
RESTORE: Final = command_blocks("docs/restore.md")
Usage = dict[tuple[str, str], tuple[int, ...]]
EVENTS_OF_CELL: Final = """
    SELECT accounting.event_id('event of a cell', i.database_id || ' ' || f.event_id)::text AS id
    FROM reporting.feed f CROSS JOIN accounting.installation i
    WHERE f.type NOT IN ('period.closed', 'adjustment.posted')
"""


def moment(month: int, day: int, hour: int = 12) -> datetime:
    return datetime(2027, month, day, hour, tzinfo=UTC)


def add(used: Usage, more: Usage) -> None:
    for who, usage in more.items():
        before = used.get(who, (0,) * len(usage))
        used[who] = tuple(a + b for a, b in zip(before, usage, strict=True))


def publish_fleet(cell: Cell, seed: int) -> Expected:
    """Publish a fleet in a cell; its users are those of all fleets."""
    scenario = Scenario(
        version="4.17",
        servers=2,
        users=12,
        realms=REALMS if cell.site.name == "north" else REALMS[:1],
        sessions=120,
        duration_seconds=60.0,
        rate=0,
        lifetime_seconds=3600,
        restart=True,
        stolen=True,
        lost_interims=True,
        rest_usernames=True,
        seed=seed,
    )
    return run(scenario, cell.valkey.url)


def used_by(fleet: Expected) -> Usage:
    return {
        (escape(realm), escape(user_id)): user.usage
        for (realm, user_id), user in fleet.by_user_id().items()
        if user.sessions
    }


def publish(cells: dict[str, Cell], seed: int) -> Usage:
    """Publish another fleet in each cell, and return what its users used in all."""
    used: Usage = {}
    for number, cell in enumerate(cells.values()):
        add(used, used_by(publish_fleet(cell, seed * 10 + number)))
    return used


def usage_in(books: Books, *views: str) -> Usage:
    """What views of each user add up to, by realm and user_id."""
    grouped: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for view in views:
        for row in books.rows(view):
            grouped.setdefault((row["realm"], row["user_id"]), []).append(row)
    return {who: tuple(sum_counters(rows).values()) for who, rows in grouped.items()}


def wait_for(
    read: Callable[[], object], expected: object, describe: Callable[[], object] = lambda: ""
) -> None:
    """Wait until what is read is what is expected. A cell that comes back may fail once."""
    last: object = None

    def holds() -> bool:
        nonlocal last
        try:
            last = read()
        except psycopg.Error as error:
            last = error
        return last == expected

    try:
        wait_until(holds, GENEROUS_SECONDS)
    except AssertionError as error:
        raise AssertionError(f"{last!r:.2000} is not {expected!r:.2000}; {describe()}") from error


def closed_periods(books: Books) -> list[tuple[str, str]]:
    rows = books.query(
        "SELECT r.realm, p.period::text FROM accounting.periods p"
        " JOIN accounting.realms r USING (realm_id) WHERE p.closed_at IS NOT NULL ORDER BY 2, 1"
    )
    return [(row["realm"], row["period"]) for row in rows]


def wait_until_closed(site: Site, realms: tuple[str, ...], *months: str) -> None:
    wait_for(
        lambda: closed_periods(site.books),
        [(realm, month) for month in months for realm in realms],
        lambda: site.run("period", "list").stdout,
    )


def read_ids(books: Books) -> set[str]:
    """The ids of the events of a cell, as they are on the front."""
    return {row["id"] for row in books.query(EVENTS_OF_CELL)}


def operate(site: Site, step: str) -> None:
    """A step of docs/restore.md, as an operator of a cell runs it."""
    path = f"{Path(sys.executable).parent}:{programs_directory()}:{os.environ['PATH']}"
    settings = {
        "ADMIN_URL": site.postgres.url(database="postgres"),
        "BOOKS_URL": site.books.url(),
    }
    result = subprocess.run(
        ["sh", "-eu", "-c", RESTORE[step]],
        cwd=site.directory,
        env={**environment(site.directory / "operator", settings), "PATH": path},
        capture_output=True,
        text=True,
        timeout=GENEROUS_SECONDS,
        check=False,
    )
    assert result.returncode == 0, result.stderr


@contextmanager
def consuming(books: Books) -> Iterator[set[str]]:
    """A billing worker that reads the feed with a cursor all the while: the ids of its events."""
    ids: set[str] = set()
    feed = Feed(books.url(READER))

    def work() -> None:
        with feed:
            for event in feed.consume("worker", commit_every=20):
                ids.add(str(event.event_id))

    with ThreadPoolExecutor(1) as executor:
        working = executor.submit(work)
        try:
            yield ids
        finally:
            feed.stop()
        working.result(GENEROUS_SECONDS)


@pytest.fixture
def sites(tmp_path: Path) -> Iterator[CellSites]:
    with open_cell_sites(tmp_path, moment(3, 10)) as sites:
        yield sites


@pytest.mark.long
@pytest.mark.timeout(1200)
@pytest.mark.needs_compiler
def test_the_books_of_a_front_equal_the_oracle_whatever_happens_while_periods_close(
    sites: CellSites,
) -> None:
    front, cells = sites.front, dict(sites.cells)
    north, south, west = (cell.site for cell in cells.values())
    expected: Usage = {}

    def wait_for_usage() -> None:
        wait_for(
            lambda: usage_in(front.books, "user_usage_monthly"), expected,
            lambda: front.run("front", "list").stdout,
        )  # fmt: skip

    def pass_time(at: datetime) -> None:
        """Sessions that were cut off end: a later fleet numbers its own alike."""
        sites.wait_until_clocks_agree()
        sites.set_clock(at)
        wait_until(lambda: sites.is_quiet(at), GENEROUS_SECONDS)

    with consuming(front.books) as handled, WebhookReceiver() as receiver:
        receiver.behave("/all", do="answer")
        url = receiver.url("/all")
        front.output("webhook", "add", url, "--allow-private", "--from-start", "--batch", "100")
        add(expected, publish(cells, 1))
        wait_for_usage()
        pass_time(moment(3, 10, 14))
        operate(west, "backup")
        add(expected, publish(cells, 2))
        wait_for_usage()
        pass_time(moment(3, 10, 16))

        # March ends while a loader hangs, whose cell closes without it, and all of another cell.
        loader = south.services["collect"].wait_for_child("load")
        with all_paused(loader):
            late = publish_fleet(cells["south"], 30)
            add(expected, used_by(late))
            wait_until(lambda: backlog(south) == late.published, GENEROUS_SECONDS)
            sites.wait_until_clocks_agree()
            with all_paused(north.postgres.pid), all_paused(north.services["schedule"].pid):
                sites.set_clock(moment(4, 5))
                with (
                    psycopg.connect(
                        front.books.url(READER), options="-c statement_timeout=1s"
                    ) as connection,
                    pytest.raises(psycopg.OperationalError),
                ):
                    connection.execute("SELECT sum(sent_bytes) FROM reporting.realm_usage_monthly")
                usage = front.run("usage")
                assert usage.returncode == 1, usage
                assert "cell 'north' does not answer" in usage.stderr
                close = ("period", "close", FLEET, MARCH, "--without", "south")
                wait_for(lambda: south.run(*close).returncode, 0, lambda: south.run(*close).stderr)
                wait_until_closed(west, (FLEET,), MARCH)
                assert closed_periods(front.books) == []
            wait_until_closed(front, (FLEET,), MARCH)
            statement = front.output(*EXPORT)
        wait_until_closed(front, REALMS, MARCH)
        wait_for_usage()
        wait_for(lambda: usage_in(front.books, "statements", "adjustments"), expected)

        # All of a cell is killed, and one of the front's schedulers.
        for command in ("collect", "schedule"):
            south.kill(command)
        south.postgres.kill()
        with (
            psycopg.connect(front.books.url(READER)) as connection,
            pytest.raises(psycopg.OperationalError, match="cell_south"),
        ):
            connection.execute("SELECT sum(received_bytes) FROM reporting.realm_usage_monthly")
        front.kill("schedule")
        add(expected, publish(cells, 4))
        south.postgres.start()
        south.start("collect", "schedule")
        wait_for_usage()

        pass_time(moment(4, 5, 14))

        # One is restored, while the front's schedulers take turns, and April ends.
        front.start("schedule")
        add(expected, publish(cells, 5))
        wait_for_usage()
        sites.wait_until_clocks_agree()
        west.stop("schedule")
        before_restore = read_ids(west.books)
        west.books.disconnect()
        operate(west, "restore")
        sites.set_clock(moment(5, 5))
        west.start("schedule")
        front.kill("schedule 2")
        wait_until_closed(west, (FLEET,), MARCH, APRIL)
        wait_until_closed(front, REALMS, MARCH, APRIL)
        wait_for_usage()

        # An upgrade of the front and of one cell, and May ends before the others follow.
        version = sites.next_version()
        front.stop()
        front.upgrade(version)
        front.start("schedule", "schedule 2")
        north.stop()
        add(expected, publish(cells, 6))
        north.upgrade(version)
        north.start("collect", "schedule")
        wait_for_usage()
        wait_for(lambda: next_columns(front.books), {"north": 2, "south": None, "west": None})
        sites.wait_until_clocks_agree()
        sites.set_clock(moment(6, 5))
        wait_until_closed(front, REALMS, MARCH, APRIL, MAY)
        for site in (south, west):
            site.stop()
            site.upgrade(version)
            site.start("collect", "schedule")
        wait_for(lambda: next_columns(front.books), {"north": 2, "south": 2, "west": 2})

        # The books of the front are those of the oracle, and its statement is what it was.
        wait_for_usage()
        wait_for(lambda: usage_in(front.books, "statements", "adjustments"), expected)
        assert front.output(*EXPORT) == statement
        wait_for(lambda: front.run("verify").returncode, 0, lambda: front.run("verify").stdout)

        # Its feed has each event of the cells once.
        ids = read_ids(north.books) | read_ids(south.books) | read_ids(west.books)
        wait_for(lambda: feed_ids(front.books, of_cells=True) >= ids, expected=True)
        assert feed_ids(front.books, of_cells=True) - ids <= before_restore
        wait_for(lambda: handled == feed_ids(front.books), expected=True)
        wait_for(lambda: taken_ids(receiver) == feed_ids(front.books), expected=True)
        assert counted(front.books, ids) == expected


def backlog(site: Site) -> int:
    """The messages in the spool of a cell that are not loaded."""
    status = read_status(site.directory / "collect", site.name)
    assert status is not None
    return status.backlog.messages


def next_columns(books: Books) -> dict[str, int | None]:
    """The column that the later version has, by source."""
    return {row["source"]: row["next"] for row in books.rows("sources", "source", "next")}


def feed_ids(books: Books, *, of_cells: bool = False) -> set[str]:
    rows = books.query(
        "SELECT event_id::text AS id, payload ? 'cell' AS of_cell FROM reporting.feed"
    )
    ids = [row["id"] for row in rows if row["of_cell"] or not of_cells]
    assert len(ids) == len(set(ids))
    return set(ids)


def taken_ids(receiver: WebhookReceiver) -> set[str]:
    """The ids of the events that the endpoint took."""
    taken = [request for request in receiver.requests() if request.is_taken]
    return {event.removeprefix("evt_") for request in taken for event in request.event_ids}


def counted(books: Books, ids: set[str]) -> Usage:
    """What a metering engine adds up: usage.counted of these ids, and adjustments."""
    names = {str(row["user_key"]): row["user_id"] for row in books.rows("user_usage_monthly")}
    grouped: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for row in books.query(
        "SELECT event_id::text AS id, type, realm, payload FROM reporting.feed"
        " WHERE type IN ('usage.counted', 'adjustment.posted')"
    ):
        if row["type"] == "adjustment.posted" or row["id"] in ids:
            user = names[row["payload"]["user_key"]]
            grouped.setdefault((row["realm"], user), []).append(row["payload"])
    return {who: tuple(sum_counters(rows).values()) for who, rows in grouped.items()}
