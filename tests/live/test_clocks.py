"""A collector's process on a machine whose clock is wrong, against the database's clock."""

import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import psycopg
import pytest
import redis

from accounting.capture.clock import wall_clock
from accounting.capture.spool.status import read_status
from accounting.domain.calendar import to_micros
from tests.support import clocked_collector, faulty_libc
from tests.support.books import Books, channel, cloned_database, status_payload
from tests.support.collectors import PROMPT_SYNC
from tests.support.servers import PostgresServer, ValkeyServer
from tests.support.service import Service

DAY: Final = 86_400 * 1_000_000
HOUR: Final = 3600 * 1_000_000
PRECISION: Final = 250_000
"""Microseconds by which a corrected time may differ: the round trip to a busy database."""


CLOCK_IS_OFF: Final = "this machine's clock is off: the database's clock corrects receipt times"


class Site:
    """A Redis, a database, and a machine that collects with a clock that a test sets."""

    def __init__(self, books: Books, valkey: ValkeyServer, directory: Path) -> None:
        self.books = books
        self.valkey = valkey
        self.directory = directory
        self.sent: list[tuple[int, int]] = []

    def collector(self, clock_error: int, capture: str) -> Service:
        self.set_clock(clock_error)
        settings = {
            "ACCOUNTING_DATABASE_URL": self.books.url(),
            "ACCOUNTING_REDIS_URL": self.valkey.url,
            "ACCOUNTING_CAPTURE": capture,
            "ACCOUNTING_LEASE_SECONDS": "1.2",
            "FIRST_ANSWER_TIMEOUT_SECONDS": "0.2",
        }
        return Service("collect", self.directory, settings, module=clocked_collector.MODULE)

    def set_clock(self, error: int) -> None:
        clocked_collector.set_clock(self.directory, error)

    def publish(self, word: str) -> None:
        before = wall_clock()
        with redis.Redis.from_url(self.valkey.url) as client:
            client.publish(channel("status"), status_payload(word))
        self.sent.append((before, wall_clock()))

    def events(self) -> list[dict[str, Any]]:
        return self.books.rows(
            "allocation_events", "received_at", "time_estimated", order="epoch, position"
        )

    def assert_times_are_true(self) -> None:
        """Every message is loaded once, with the time at which it was published."""
        received = [to_micros(row["received_at"]) for row in self.events()]
        assert len(received) == len(self.sent)
        for at, (before, after) in zip(received, self.sent, strict=True):
            assert before - PRECISION <= at <= after + 2_000_000
        (source,) = self.books.rows("sources", "captured_until", "loaded_until")
        for until in source.values():
            assert to_micros(until) <= wall_clock() + PRECISION


@pytest.fixture
def site(postgres_server: PostgresServer, tmp_path: Path) -> Iterator[Site]:
    with cloned_database(postgres_server) as name, ValkeyServer(PROMPT_SYNC) as valkey:
        books = Books(postgres_server, name, tmp_path)
        yield Site(books, valkey, tmp_path / "machine")
        books.close()


def test_a_clock_that_is_ahead_for_seconds_does_not_move_the_books(site: Site) -> None:
    """It was ahead when the collector started; then NTP set it back."""
    with site.collector(32 * DAY, "subscribe") as collector:
        collector.wait_until_capturing()
        site.publish("new")
        collector.wait_for(lambda: len(site.events()) == 1)
        site.set_clock(0)
        collector.wait_for(lambda: collector.events("this machine's clock is right again"))
        site.publish("deleted")
        collector.wait_for(lambda: len(site.events()) == 2)
        assert len(collector.events(CLOCK_IS_OFF)) == 1
        assert len(collector.events("receipt times corrected by the database's clock")) == 1
    assert [row["time_estimated"] for row in site.events()] == [True, False]
    site.assert_times_are_true()
    site.books.settle()
    (session,) = site.books.rows("sessions", "started_at", "ended_at", "end_cause")
    assert session["end_cause"] == "deleted"
    seconds = (session["ended_at"] - session["started_at"]).total_seconds()
    assert 0 < seconds < (wall_clock() - site.sent[0][0]) / 1e6
    assert site.books.rows("capture_gaps") == []


def test_what_a_killed_collector_stored_under_a_wrong_clock_is_corrected_by_the_next(
    site: Site,
) -> None:
    """The database was away all the while, so that nothing was loaded or compared."""
    set_allowed(site.books, connections=False)
    with site.collector(HOUR, "replication") as killed:
        killed.wait_until_capturing()
        site.publish("new")
        killed.wait_for(lambda: is_spooled(site, 1))
        killed.stop(signal.SIGKILL)
    with site.collector(0, "replication") as collector:
        collector.wait_for(lambda: collector.events("capturing again where it had stopped"))
        site.publish("refreshed")
        collector.wait_for(lambda: is_spooled(site, 2))
        set_allowed(site.books, connections=True)
        collector.wait_for(lambda: len(site.events()) == 2)
    assert [row["time_estimated"] for row in site.events()] == [True, True]
    site.assert_times_are_true()
    assert site.books.rows("capture_gaps") == []


def is_spooled(site: Site, messages: int) -> bool:
    status = read_status(site.directory, "default")
    return status is not None and status.backlog.messages == messages


def set_allowed(books: Books, *, connections: bool) -> None:
    books.disconnect()
    with psycopg.connect(books.server.url(), autocommit=True) as connection:
        connection.execute(
            f"ALTER DATABASE {books.name} ALLOW_CONNECTIONS {str(connections).lower()}".encode()
        )


@pytest.mark.needs_compiler
@pytest.mark.parametrize("error", [-HOUR, pytest.param(3653 * DAY, marks=pytest.mark.long)])
def test_the_jobs_go_on_when_the_schedulers_clock_steps(
    books: Books, tmp_path: Path, error: int
) -> None:
    machine = faulty_libc.FaultyMachine(tmp_path / "machine")
    settings = {
        "ACCOUNTING_DATABASE_URL": books.url(),
        "ACCOUNTING_SETTLE_INTERVAL_SECONDS": "0.05",
        "ACCOUNTING_ROLLUP_INTERVAL_SECONDS": "0.05",
        **machine.environment(faulty_libc.build(tmp_path)),
    }

    def runs(job: str) -> int:
        rows = books.query("SELECT runs FROM accounting.job_runs WHERE job = %s", [job])
        return sum(row["runs"] for row in rows)

    with Service("schedule", tmp_path / "schedule", settings) as scheduler:
        scheduler.wait_for(lambda: runs("settle") and runs("rollup"))
        for clock in (error, 0):
            machine.set_clock(clock)
            for job in ("settle", "rollup"):
                before = runs(job)
                scheduler.wait_for(lambda: runs(job) > before + 1, 10)  # noqa: B023
