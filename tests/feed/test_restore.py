"""The feed after a restore from a backup: no event is lost, and none is another under the same id.

A worker recognizes an event by its id, and bills late usage by what it says was billed before.
"""

from collections.abc import Callable, Iterator
from decimal import Decimal
from typing import Any
from uuid import UUID

import pytest

from accounting.billing.adjust import adjust
from accounting.billing.close_period import close_period, close_periods
from accounting.feed.client import Feed, FeedEvent, FeedRestored
from accounting.feed.number_feed import number_feed
from tests.support.billing_scenarios import (
    DAY,
    NOVEMBER,
    NOVEMBER_END_SECONDS,
    close_november_without_late_source,
    credit_test_call,
    receive_late_source,
    receive_november,
)
from tests.support.books import READER, Books
from tests.support.coturn_messages import FakeAllocation
from tests.support.feed_events import post_and_number
from tests.support.restored_database import back_up, restore_database

WHOLE, NOTHING = (10, 1000, 8, 800), (0, 0, 0, 0)


class Worker:
    """A billing worker that keeps its list of events and its cursor itself."""

    def __init__(self, books: Books) -> None:
        self._books = books
        self._cursor: tuple[int, UUID | None] = 0, None
        self.events: dict[UUID, FeedEvent] = {}

    def work(self) -> list[FeedEvent]:
        """Read on; after a restore from the start. Returns the events that are new by id."""
        number_feed(self._books.engine)
        new = []
        with Feed(self._books.url(READER)) as feed:
            for event in self._read(feed):
                if event.event_id not in self.events:
                    new.append(event)
                    self.events[event.event_id] = event
                self._cursor = event.seq, feed.history(event.seq)
        return new

    def _read(self, feed: Feed) -> Iterator[FeedEvent]:
        after, history = self._cursor
        try:
            yield from feed.read(after, history=history)
        except FeedRestored:
            yield from feed.read()

    def billed_bytes(self, statement: int, user_key: str) -> int:
        """What a worker bills by its events: what they say was billed before, and their figures."""
        billed = statement
        for event in self.events.values():
            payload = event.payload
            if event.type == "adjustment.posted" and payload["user_key"] == user_key:
                billed += payload["before"]["received_bytes"] + payload["received_bytes"] - billed
        return billed


def restore(books: Books) -> None:
    """Restore the backup and restart the loaders, which read the spools again from there."""
    restore_database(books)
    books._loaders.clear()


def run_jobs(books: Books) -> None:
    books.run_jobs()
    adjust(books.engine)
    number_feed(books.engine)


def feed_ids(books: Books) -> set[UUID]:
    return {row["event_id"] for row in books.rows("feed")}


def test_late_usage_and_corrections_have_the_same_ids_after_a_restore(books: Books) -> None:
    close_november_without_late_source(books)
    worker = Worker(books)
    worker.work()
    back_up(books)
    receive_late_source(books)
    run_jobs(books)
    credit_test_call(books)
    posted = [event for event in worker.work() if event.type == "adjustment.posted"]
    assert [event.payload["before"] is None for event in posted] == [False, False, True]
    restore(books)
    run_jobs(books)
    credit_test_call(books)
    assert worker.work() == []
    assert feed_ids(books) == worker.events.keys()


def test_late_usage_that_is_posted_in_other_portions_says_what_was_billed_before(
    books: Books,
) -> None:
    close_november_without_late_source(books)
    worker = Worker(books)
    worker.work()
    back_up(books)
    bob = FakeAllocation(books, user="bob", allocation=7, source="late")
    bob.new(5 * DAY)
    for second in (10, 20):
        bob.interim(5 * DAY + second, 7, 700, 8, 800)
        run_jobs(books)
    first, second_event = (e for e in worker.work() if e.type == "adjustment.posted")
    assert (first.payload["before"]["received_bytes"], first.payload["received_bytes"]) == (
        500,
        700,
    )
    assert second_event.payload["before"]["received_bytes"] == 1200
    assert second_event.payload["before"]["session_seconds"] == "100.000000"
    restore(books)
    run_jobs(books)
    (whole,) = worker.work()
    assert (whole.payload["before"]["received_bytes"], whole.payload["received_bytes"]) == (
        500,
        1400,
    )
    assert worker.billed_bytes(500, first.payload["user_key"]) == 1900


def test_a_difference_that_comes_goes_and_comes_again_has_three_ids(books: Books) -> None:
    close_november_without_late_source(books)
    bob = FakeAllocation(books, user="bob", allocation=7, source="late")
    bob.new(DAY)
    bob.interim(DAY, 1, 100, 0, 0)
    run_jobs(books)
    bob.deleted(DAY)
    bob.total(DAY, 0, 0, 0, 0)
    run_jobs(books)
    again = FakeAllocation(books, user="bob", allocation=8, source="late")
    again.new(DAY)
    again.interim(DAY, 1, 100, 0, 0)
    run_jobs(books)
    rows = books.rows("adjustments", order="posted_at")
    assert [(row["received_bytes"], row["session_seconds"]) for row in rows] == [
        (100, Decimal(0)),
        (-100, Decimal(0)),
        (100, Decimal(0)),
    ]
    assert len({row["adjustment_id"] for row in rows}) == 3


def close_without_late_source(books: Books) -> None:
    close_period(books.engine, "example.org", NOVEMBER, excluded_sources=["late"])


def close_later(books: Books) -> None:
    """Close when more was captured than at the first close, and so with another cutoff."""
    books.advance_clock(NOVEMBER_END_SECONDS + DAY)
    books.run_jobs()
    close_without_late_source(books)


def close_with_late_source(books: Books) -> None:
    receive_late_source(books)
    books.run_jobs()
    assert close_periods(books.engine) == 1


@pytest.mark.parametrize(
    ("close_again", "differs"), [(close_later, False), (close_with_late_source, True)]
)
def test_a_period_that_is_closed_again_is_another_event_if_its_figures_differ(
    books: Books, close_again: Callable[[Books], None], differs: bool
) -> None:
    receive_november(books)
    books.advance_clock(0, source="late")
    books.advance_clock(NOVEMBER_END_SECONDS + 61)
    books.run_jobs()
    worker = Worker(books)
    worker.work()
    back_up(books)
    close_without_late_source(books)
    (closed,) = worker.work()
    cutoff = books.rows("statements", "cutoff")
    restore(books)
    books.run_jobs()
    close_again(books)
    assert books.rows("statements", "cutoff") != cutoff
    events = [event for event in worker.work() if event.type == "period.closed"]
    assert len(events) == differs
    for event in events:
        for name in ("realm", "period", "starts_at", "ends_at"):
            assert event.payload[name] == closed.payload[name]
        assert event.payload["figures"] != closed.payload["figures"]


def current(events: dict[UUID, FeedEvent]) -> dict[str, Any]:
    """The current event of each session: the last to end, then the highest number."""
    by_session: dict[str, Any] = {}
    for event in events.values():
        payload = event.payload
        known = by_session.get(payload["session_id"])
        if known is None or (payload["ended_at"], payload["number"]) > (
            known["ended_at"],
            known["number"],
        ):
            by_session[payload["session_id"]] = payload
    return by_session


def test_a_session_that_ends_in_other_batches_has_the_same_last_event(books: Books) -> None:
    """Before the restore it expires and is reopened; from the spool it just ends."""
    alice = FakeAllocation(books)
    alice.new(0)
    books.advance_clock(1)
    run_jobs(books)
    worker = Worker(books)
    worker.work()
    back_up(books)
    books.advance_clock(661)
    run_jobs(books)
    alice.refreshed(700)
    alice.interim(750, *WHOLE)
    alice.deleted(800)
    books.advance_clock(801)
    run_jobs(books)
    ends = [event.payload["end_cause"] for event in worker.work()]
    assert ends == ["expired", "deleted"]
    restore(books)
    alice.total(802, *WHOLE)
    alice.peer_total(803, *NOTHING)
    books.advance_clock(810)
    run_jobs(books)
    (last,) = worker.work()
    (payload,) = current(worker.events).values()
    assert payload == last.payload
    assert (payload["end_cause"], payload["total_reported"]) == ("deleted", True)


def test_sources_that_come_in_another_order_have_the_same_sessions(books: Books) -> None:
    FakeAllocation(books).new(0)
    books.run_jobs()
    back_up(books)
    for source in ("west", "east"):
        FakeAllocation(books, source=source).new(1)
        books.load(source=source)
    books.run_jobs()
    before = books.rows("sessions", "session_id", "source", order="source")
    restore(books)
    for source in ("east", "west"):
        books.load(source=source)
    books.run_jobs()
    assert books.rows("sessions", "session_id", "source", order="source") == before


def test_a_cursor_ahead_of_a_restored_feed_is_noticed(books: Books) -> None:
    """At first its number is beyond the end; later another event has it."""
    post_and_number(books, "a")
    with Feed(books.url(READER)) as feed:
        kept = 1, feed.history(1)
        feed.close()
        back_up(books)
        post_and_number(books, "b", "c")
        ahead = 3, feed.history(3)
        restore_database(books)
        with pytest.raises(FeedRestored, match="up to 3"):
            list(feed.read(ahead[0], history=ahead[1]))
        post_and_number(books, "d", "b", "c")
        with pytest.raises(FeedRestored, match="up to 3"):
            list(feed.read(ahead[0], history=ahead[1]))
        events = list(feed.read(kept[0], history=kept[1]))
        assert [event.payload["period"] for event in events] == ["d", "b", "c"]


def test_a_consumer_reads_again_from_its_restored_cursor(books: Books) -> None:
    post_and_number(books, "a")
    seen = []
    with Feed(books.url(READER)) as feed:
        seen += [event.payload["period"] for event in feed.consume("invoicer", follow=False)]
        feed.close()
        back_up(books)
        post_and_number(books, "b", "c", "d")
        for event in feed.consume("invoicer", follow=False):
            seen.append(event.payload["period"])
            if seen == ["a", "b", "c"]:
                restore_database(books)
                post_and_number(books, "e", "b", "c")
    assert seen == ["a", "b", "c", "e", "b", "c"]


def test_a_consumer_that_read_nothing_after_the_backup_loses_nothing(books: Books) -> None:
    """Its cursor is where it was, but it has events in memory that are not in the feed any more."""
    post_and_number(books, "a")
    back_up(books)
    post_and_number(books, "b")
    seen = []
    with Feed(books.url(READER)) as feed:
        for event in feed.consume("invoicer", follow=False, commit_every=2):
            seen.append(event.payload["period"])
            if seen == ["a"]:
                restore_database(books)
                post_and_number(books, "c")
    assert seen == ["a", "b", "a", "c"]


def test_a_reader_that_follows_notices_a_restore(books: Books) -> None:
    post_and_number(books, "a")
    back_up(books)
    post_and_number(books, "b")
    with Feed(books.url(READER), poll_seconds=0.05) as feed:
        events = feed.read(follow=True)
        assert [next(events).payload["period"] for _ in range(2)] == ["a", "b"]
        restore_database(books)
        post_and_number(books, "c")
        with pytest.raises(FeedRestored):
            next(events)
        with pytest.raises(FeedRestored):
            feed.history(1)
