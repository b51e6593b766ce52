"""Numbering killed before any statement and either side of a COMMIT: no event twice, none lost."""

from accounting.errors import ConnectionLost
from accounting.feed.number_feed import number_feed
from tests.support.books import Books
from tests.support.crash_injection import CrashInjector, SimulatedCrash, crashing_engine
from tests.support.feed_events import numbered_events, post_events
from tests.support.servers import wait_until


def waiting(books: Books) -> int:
    (row,) = books.query("SELECT count(*) FROM accounting.feed_outbox")
    return int(row["count"])


def test_numbering_killed_at_any_moment_numbers_everything_once(books: Books) -> None:
    death = CrashInjector()
    deaths, at = 0, 0
    with crashing_engine(books, death) as engine:
        while True:
            at += 1
            keys = [f"{at}/{number}" for number in range(5)]
            before = len(numbered_events(books))
            post_events(books, *keys)
            death.arm(at)
            try:
                number_feed(engine, limit=2)
            except (SimulatedCrash, ConnectionLost):
                deaths += 1
            else:
                break
            finally:
                death.moments_left = 0
            # The server may take a moment to notice the death, and to free the lock.
            wait_until(lambda: number_feed(books.engine, limit=2) + waiting(books) == 0)
            assert numbered_events(books)[before:] == list(enumerate(keys, start=before + 1))
    assert deaths > 10
