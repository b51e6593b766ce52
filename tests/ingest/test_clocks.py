"""The database's clock judges the times that a loader writes and that a collector stores."""

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime, timedelta
from typing import Any, Final

import pytest

from accounting.capture.clock import STEP_READINGS, CaptureClock, wall_clock
from accounting.capture.clock_correction import ClockCorrection
from accounting.capture.spool.records import RawKeySighting
from accounting.capture.spool.spool import Spool
from accounting.db.clock import CLOCK_TOLERANCE_SECONDS
from accounting.domain.calendar import from_micros
from accounting.ingest.loader import Loader
from accounting.ingest.source_lease import (
    acquire_lease,
    is_behind,
    release_lease,
    take_over,
)
from accounting.ops.lease_keeper import LeaseKeeper
from tests.support.books import Books, channel, status_payload
from tests.support.servers import wait_until

SECOND: Final = 1_000_000
HOUR: Final = 3600
DAY: Final = 24 * HOUR
NOW: Final = 60.0
"""The database's time in seconds since the start of the books."""


def at(books: Books, seconds: float) -> datetime:
    return books.start + timedelta(seconds=seconds)


@pytest.fixture
def loader(books: Books) -> Loader:
    """A loader of books whose database stands at NOW."""
    books.set_database_clock(at(books, NOW))
    return Loader(books.engine, books.spool(), books.rule)


@pytest.fixture
def impatient_loader(loader: Loader, monkeypatch: pytest.MonkeyPatch) -> Loader:
    """A loader that does not wait for the collector."""
    monkeypatch.setattr("accounting.ingest.loader.CORRECTION_TIMEOUT_SECONDS", 0.0)
    loader.lease_seconds = 0.0
    return loader


def receive(books: Books, *times: float) -> None:
    for seconds in times:
        books.receive(seconds, channel("status"), status_payload("refreshed"))
        books.advance_clock(seconds)


def source_row(books: Books) -> dict[str, Any]:
    (row,) = books.rows("sources", "captured_until", "loaded_until")
    return row


def loaded_times(books: Books) -> list[tuple[float, bool]]:
    rows = books.rows("allocation_events", "received_at", "time_estimated", order="epoch, position")
    return [
        ((row["received_at"] - books.start).total_seconds(), row["time_estimated"]) for row in rows
    ]


@pytest.mark.parametrize("ahead", [HOUR, 32 * DAY, 3653 * DAY])
def test_no_time_later_than_the_databases_clock_enters_the_books(
    books: Books, impatient_loader: Loader, ahead: float
) -> None:
    """Of a collector that does not correct what it stored."""
    receive(books, 0, ahead)
    books.spool().start_epoch("redis_restarted")
    receive(books, ahead + 1, ahead + 2)
    assert impatient_loader.load() == 4
    assert loaded_times(books) == [(0, False), (NOW, True), (NOW, True), (NOW, True)]
    assert source_row(books) == dict.fromkeys(["captured_until", "loaded_until"], at(books, NOW))
    late = books.query(
        "SELECT * FROM accounting.epochs WHERE started_at > accounting.database_now()"
    )
    assert late == []
    assert books.spool().position_at(1, books.micros_at(NOW)) == 2, "a restored database reloads"
    assert Loader(books.engine, books.spool(), books.rule).load() == 0
    assert books.rows("capture_gaps") == []


def test_times_within_the_tolerance_enter_as_they_are(books: Books, loader: Loader) -> None:
    receive(books, 0, NOW + CLOCK_TOLERANCE_SECONDS)
    loader.load()
    assert loaded_times(books) == [(0, False), (NOW + CLOCK_TOLERANCE_SECONDS, False)]


def test_late_times_wait_while_the_collector_can_correct_them(books: Books, loader: Loader) -> None:
    spool = books.spool()
    receive(books, 0)
    assert loader.load() == 1
    gap = spool.open_gap(books.micros_at(1), "disconnected")
    spool.close_gap(gap, books.micros_at(32 * DAY))
    receive(books, 32 * DAY, 32 * DAY + 20)
    spool.add_sightings([sighting(books, 32 * DAY + 20)])
    before = source_row(books)
    assert loader.load() == 0
    assert source_row(books) == before
    (gap_row,) = books.rows("capture_gaps", "from_at", "to_at")
    assert gap_row == {"from_at": at(books, 1), "to_at": None}
    assert books.query("SELECT * FROM accounting.key_sightings") == []
    spool.shift_times(-(32 * DAY - 10) * SECOND, after=books.micros_at(0))
    assert loader.load() == 2
    assert loaded_times(books) == [(0, False), (10, True), (30, True)]
    assert source_row(books)["captured_until"] == at(books, 30)
    assert books.rows("capture_gaps", "to_at") == [{"to_at": at(books, 10)}]
    (seen,) = books.query("SELECT seen_at FROM accounting.key_sightings")
    assert seen["seen_at"] == at(books, 30)


def test_times_of_a_clock_that_was_not_compared_wait_even_if_they_are_early(
    books: Books, loader: Loader
) -> None:
    """The clock may be behind: the database was away when the collector started."""
    spool = books.spool()
    receive(books, 0)
    spool.set_clock("boot", 0, books.micros_at(0))
    receive(books, 5, 25)
    assert loader.load() == 1
    assert loader.load() == 0
    spool.shift_times(30 * SECOND, after=books.micros_at(0))
    spool.set_clock("boot", 0, None)
    assert loader.load() == 2
    assert loaded_times(books) == [(0, False), (35, True), (55, True)]


def test_the_books_go_on_in_real_time_after_late_times_were_capped(
    books: Books, impatient_loader: Loader
) -> None:
    receive(books, 3653 * DAY)
    impatient_loader.load()
    books.set_database_clock(at(books, NOW + 100))
    receive(books, NOW + 10, NOW + 30)
    impatient_loader.load()
    assert loaded_times(books) == [(NOW, True), (NOW + 10, False), (NOW + 30, False)]


def test_what_stands_still_after_the_databases_clock_was_ahead_is_marked(
    books: Books, impatient_loader: Loader
) -> None:
    """A source's times never decrease: they wait at the time that the database once had."""
    books.set_database_clock(at(books, DAY))
    receive(books, 0, DAY)
    impatient_loader.load()
    books.set_database_clock(at(books, NOW))
    receive(books, NOW - 1)
    impatient_loader.load()
    receive(books, NOW + 1)
    impatient_loader.load()
    assert loaded_times(books) == [(0, False), (DAY, False), (DAY, True), (DAY, True)]


def sighting(books: Books, seconds: float) -> RawKeySighting:
    return RawKeySighting(
        books.micros_at(seconds), books.micros_at(seconds), 0, channel("status"), 1
    )


def test_a_source_does_not_begin_with_the_time_of_a_wrong_clock(books: Books) -> None:
    """The times of a source never fall: it would stay at that time for years."""
    path = books.directory / "new.sqlite3"
    with Spool.open(path, "new", clock=lambda: wall_clock() + 3653 * DAY * SECOND) as spool:
        acquire_lease(books.engine, spool, 60.0)
    (row,) = books.query(
        "SELECT s.loaded_until <= now() AS loaded, e.started_at <= now() AS started"
        " FROM accounting.sources s JOIN accounting.epochs e USING (source_id)"
    )
    assert row == {"loaded": True, "started": True}


def test_a_wrong_clock_prunes_nothing(books: Books) -> None:
    """What is loaded must stay in the spool for its retention."""
    spool = books.spool()
    receive(books, 0)
    spool.set_clock("boot", 0, spool.state().newest_at)
    books.advance_clock(3653 * DAY)
    assert spool.state().confirmed_until == books.micros_at(0)


@contextmanager
def running_collector(
    books: Books, spool: Spool, ahead_seconds: float
) -> Iterator[tuple[CaptureClock, ClockCorrection]]:
    """A collector with the lease, whose clock was corrected."""
    error = round(ahead_seconds * SECOND)
    clock = CaptureClock(wall=lambda: wall_clock() + error, boot=f"machine {ahead_seconds}")
    position = acquire_lease(books.engine, spool, 60.0)
    if position is not None and is_behind(spool, position):
        take_over(spool, position)
    times = ClockCorrection(clock, spool)
    times.start()
    spool.append([(clock(), 0, channel("status"), status_payload("refreshed"))], clock())
    for _ in range(STEP_READINGS):
        acquire_lease(books.engine, spool, 60.0, clock)
    times.follow_database()
    yield clock, times
    release_lease(books.engine, spool, 60.0)


def test_collectors_with_differing_clocks_take_over_from_one_another(books: Books) -> None:
    began_at = wall_clock()
    with Spool.open(books.directory / "other.sqlite3", "default") as other:
        for spool, ahead_seconds in ((books.spool(), HOUR), (other, -HOUR), (other, 90 * DAY)):
            with running_collector(books, spool, ahead_seconds) as (clock, times):
                spool.append(
                    [(clock(), 0, channel("status"), status_payload("refreshed"))],
                    clock(),
                    correction=times.correction,
                )
                assert Loader(books.engine, spool, books.rule).load()
                now = clock.now()
                assert abs(now - wall_clock()) < SECOND
    rows = books.rows("allocation_events", "received_at", order="epoch, position")
    times_loaded = [row["received_at"] for row in rows]
    assert len(rows) >= 5
    assert times_loaded == sorted(times_loaded)
    assert times_loaded[0] >= from_micros(began_at)
    assert times_loaded[-1] <= from_micros(wall_clock())


def test_the_lease_shows_how_far_a_collectors_clock_is_ahead(
    books: Books, capsys: pytest.CaptureFixture[str]
) -> None:
    error = 32 * DAY * SECOND

    def ahead_seconds() -> float | None:
        rows = books.query("SELECT clock_ahead_seconds FROM accounting.source_leases")
        return rows[0]["clock_ahead_seconds"] if rows else None

    clock = CaptureClock(wall=lambda: wall_clock() + error)
    with LeaseKeeper(books.engine, books.spool(), 1.0, clock).running():
        wait_until(lambda: (ahead_seconds() or 0) > 1)
        assert ahead_seconds() == pytest.approx(32 * DAY, abs=1)
        error = 0
        wait_until(lambda: abs(ahead_seconds() or 0) < 1)
    log = capsys.readouterr().out
    assert "this machine's clock is off" in log
    assert "this machine's clock is right again" in log


def test_the_lease_compares_the_clocks(books: Books) -> None:
    books.set_database_clock(ahead=timedelta(days=400))
    clock = CaptureClock()
    acquire_lease(books.engine, books.spool(), 60.0, clock)
    assert clock.wall_ahead == pytest.approx(-400 * DAY * SECOND, abs=SECOND)
    assert clock.wall_is_off
    found = clock.next_error()
    assert found is not None
    assert found.error == pytest.approx(400 * DAY * SECOND, abs=SECOND)
    assert not found.is_certain
