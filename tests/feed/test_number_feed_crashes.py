"""Crashes of the job ``feed`` at any moment neither lose nor duplicate an event."""

from contextlib import suppress

from accounting.errors import ConnectionLost, LockHeld
from accounting.feed.number_feed import number_feed
from tests.support.books import Books
from tests.support.crash_injection import CrashInjector, SimulatedCrash, crashing_engine
from tests.support.feed_events import numbered_events, post_events
from tests.support.servers import wait_until


def outbox_count(books: Books) -> int:
    (row,) = books.query("SELECT count(*) FROM accounting.feed_outbox")
    return int(row["count"])


def is_all_numbered(books: Books) -> bool:
    with suppress(LockHeld):
        return number_feed(books.engine, limit=2) + outbox_count(books) == 0
    return False


def test_numbering_that_crashes_at_any_moment_numbers_everything_once(books: Books) -> None:
    injector = CrashInjector()
    crash_count, moment = 0, 0
    with crashing_engine(books, injector) as engine:
        while True:
            moment += 1
            keys = [f"{moment}/{number}" for number in range(5)]
            before = len(numbered_events(books))
            post_events(books, *keys)
            injector.arm(moment)
            try:
                number_feed(engine, limit=2)
            except (SimulatedCrash, ConnectionLost):
                crash_count += 1
            else:
                break
            finally:
                injector.moments_left = 0
            # The server frees the lock when it notices the closed connection.
            wait_until(lambda: is_all_numbered(books))
            assert numbered_events(books)[before:] == list(enumerate(keys, start=before + 1))
    assert crash_count > 10
