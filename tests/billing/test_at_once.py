"""Two schedulers at work while late usage comes: what is closed adds up at every moment of rest."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from threading import Event

from accounting.audit.evidence_queries import settled_cutoff
from accounting.audit.recompute_books import quiesced_snapshot
from accounting.audit.verify import verify
from accounting.billing.adjust import adjust
from accounting.billing.close_period import close_periods
from accounting.db.engine import Engine, open_engine
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


def test_two_schedulers_and_late_usage_keep_every_closed_period_whole(books: Books) -> None:
    close_november_without_late_source(books)
    stop = Event()
    jobs: tuple[Callable[[Engine], object], ...] = (settle, rollup, adjust, close_periods)

    def schedule() -> None:
        engine = open_engine(books.url(WRITER))
        try:
            while not stop.is_set():
                for job in jobs:
                    job(engine)
        finally:
            engine.dispose()

    with ThreadPoolExecutor() as threads:
        schedulers = [threads.submit(schedule) for _ in range(2)]
        try:
            for number in range(ROUNDS):
                late = FakeAllocation(
                    books, user=f"u{number % 3}", allocation=100 + number, source="late"
                )
                late.new(number * 2 * DAY)
                late.interim(number * 2 * DAY + 10, 1, 100, 1, 100)
                books.load(source="late")
                # A total that is less than its interims takes back what may be billed by now.
                late.close(number * 2 * DAY + 20, (1, 90, 1, 100), (0, 0, 0, 0))
                books.advance_clock(NOVEMBER_END_SECONDS + (number + 1) * 6 * DAY)
                books.advance_clock(number * 2 * DAY + 30, source="late")
                books.load()
                books.load(source="late")
            books.advance_clock(NOVEMBER_END_SECONDS + 61 + ROUNDS * 6 * DAY, source="late")
            books.load(source="late")
            assert list(verify(books.engine)) == []
        finally:
            stop.set()
        for one in schedulers:
            one.result(timeout=60)
    books.run_jobs()
    adjust(books.engine)
    close_periods(books.engine)
    assert [row["state"] for row in books.rows("periods")].count("closed") == 2
    assert_closed_periods_add_up(books)
    books.assert_conserved()
    told = books.query(
        "SELECT payload->>'period' AS period FROM accounting.feed_outbox"
        " WHERE type = 'period.closed' ORDER BY 1"
    )
    assert len(told) == 2


def test_a_snapshot_is_read_while_settling_goes_on(books: Books) -> None:
    FakeAllocation(books).new(0)
    books.advance_clock(10)
    books.run_jobs()
    with quiesced_snapshot(books.engine) as connection:
        books.advance_clock(20)
        books.run_jobs()
        [mark] = settled_cutoff(connection).watermarks
        assert mark.settled_until == books.micros_at(10)
