"""Jobs of two schedulers at once, while late usage arrives."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from threading import Event

from accounting.audit.evidence_queries import settled_cutoff
from accounting.audit.snapshot import quiesced_snapshot
from accounting.audit.verify import verify
from accounting.billing.adjust import adjust
from accounting.billing.close_period import close_periods
from accounting.db.engine import Engine, open_engine
from accounting.errors import LockHeld
from accounting.sessions.settle import settle
from accounting.usage.rollup import rollup
from tests.support.billing_scenarios import (
    DAY,
    NOVEMBER_END_SECONDS,
    close_november_without_late_source,
)
from tests.support.books import WRITER, Books
from tests.support.coturn_messages import FakeAllocation
from tests.support.invariants import assert_closed_periods_add_up

ROUNDS = 8


def test_closed_periods_add_up_under_two_schedulers(books: Books) -> None:
    close_november_without_late_source(books)
    stop = Event()
    jobs: tuple[Callable[[Engine], object], ...] = (settle, rollup, adjust, close_periods)

    def schedule() -> None:
        engine = open_engine(books.url(WRITER))
        try:
            while not stop.is_set():
                for job in jobs:
                    with suppress(LockHeld):
                        job(engine)
        finally:
            engine.dispose()

    with ThreadPoolExecutor() as threads:
        schedulers = [threads.submit(schedule) for _ in range(2)]
        try:
            for round_number in range(ROUNDS):
                late = FakeAllocation(
                    books, user=f"u{round_number % 3}", allocation=100 + round_number, source="late"
                )
                late.new(round_number * 2 * DAY)
                late.interim(round_number * 2 * DAY + 10, 1, 100, 1, 100)
                books.load(source="late")
                # A total below its interims: a correction downwards of what may be billed by now.
                late.close(round_number * 2 * DAY + 20, (1, 90, 1, 100), (0, 0, 0, 0))
                books.advance_clock(NOVEMBER_END_SECONDS + (round_number + 1) * 6 * DAY)
                books.advance_clock(round_number * 2 * DAY + 30, source="late")
                books.load()
                books.load(source="late")
            books.advance_clock(NOVEMBER_END_SECONDS + 61 + ROUNDS * 6 * DAY, source="late")
            books.load(source="late")
            assert list(verify(books.engine)) == []
        finally:
            stop.set()
        for scheduler in schedulers:
            scheduler.result(timeout=60)
    books.run_jobs()
    adjust(books.engine)
    close_periods(books.engine)
    assert [row["state"] for row in books.rows("periods")].count("closed") == 2
    assert_closed_periods_add_up(books)
    books.assert_conserved()
    events = books.query(
        "SELECT payload->>'period' AS period FROM accounting.feed_outbox"
        " WHERE type = 'period.closed' ORDER BY 1"
    )
    assert len(events) == 2


def test_a_quiesced_snapshot_does_not_block_settling(books: Books) -> None:
    FakeAllocation(books).new(0)
    books.advance_clock(10)
    books.run_jobs()
    with quiesced_snapshot(books.engine) as connection:
        books.advance_clock(20)
        books.run_jobs()
        [watermark] = settled_cutoff(connection).watermarks
        assert watermark.settled_until == books.micros_at(10)
