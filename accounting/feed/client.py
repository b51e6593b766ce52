"""The Python client of the feed: events in order, each at least once.

    with Feed("postgresql://billing@db/accounting") as feed:
        for event in feed.consume("invoicer"):
            ...

Asking for the next event commits the number of the one before as the consumer's cursor. A worker
that dies earlier gets the event again, with the same ``event_id``. The login needs the role
``turn_accounting_reader``.
"""

import time
from collections.abc import Callable, Collection, Generator, Iterator
from typing import Final, Self, TypeVar, TypeVarTuple
from uuid import uuid4

from accounting.errors import AccountingError, ConnectionLost
from accounting.feed.reader import FeedEvent, FeedReader
from accounting.waiting import Backoff

__all__ = ["ConsumerConflict", "Feed", "FeedEvent"]

BATCH_SIZE: Final = 500
"""Events read at once."""
POLL_SECONDS: Final = 5.0
"""Interval of polling, for connections that NOTIFY doesn't reach, such as those of a pooler."""
STOP_POLL_SECONDS: Final = 0.5
"""How late a wait notices ``stop``."""
MIN_RETRY_SECONDS: Final = 0.1
MAX_RETRY_SECONDS: Final = 30.0

Arguments = TypeVarTuple("Arguments")
Result = TypeVar("Result")


class ConsumerConflict(AccountingError):
    """Another worker moved the consumer's cursor: both would bill the same events."""


class Feed:
    """The feed of one database. Not thread-safe; only ``stop`` may be called from anywhere."""

    def __init__(
        self, url: str, *, poll_seconds: float = POLL_SECONDS, reconnect: bool = True
    ) -> None:
        """``url``: a libpq URL. Connects when first used.

        ``reconnect``: retry for ever while the server is away, instead of raising ConnectionLost.
        """
        self._reconnect = reconnect
        self._url = url
        self._poll_seconds = poll_seconds
        self._reader: FeedReader | None = None
        self._is_stopped = False
        self._worker_id = uuid4().hex

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the connection, if one is open."""
        reader, self._reader = self._reader, None
        if reader is not None:
            reader.close()

    def stop(self) -> None:
        """End :meth:`consume` and :meth:`read` before the next event. Safe in signal handlers.

        It takes no lock: the handler runs in the thread that may hold it.
        """
        self._is_stopped = True

    def consume(
        self,
        consumer: str,
        *,
        types: Collection[str] | None = None,
        follow: bool = True,
        commit_every: int = 1,
    ) -> Generator[FeedEvent]:
        """Yield the events that this consumer has not handled yet, in order, and wait for more.

        ``types``: yield only these; the others count as handled. ``follow=False``: end at the
        feed's end. ``commit_every``: events per commit of the cursor; a higher number is faster,
        and a worker that dies gets up to that many events again. An event that is left by an
        exception or ``break`` counts as not handled. Raises ConsumerConflict, and NotAllowed for a
        consumer of another login.
        """
        cursor = handled = self._with_connection(FeedReader.cursor, consumer)
        uncommitted = 0
        for event in self._read_events(cursor, follow=follow):
            if event is None:
                if handled > cursor:
                    self._advance(consumer, cursor, handled)
                    cursor, uncommitted = handled, 0
                continue
            if types is not None and event.type not in types:
                handled = event.seq
                continue
            yield event
            handled, uncommitted = event.seq, uncommitted + 1
            if uncommitted >= commit_every:
                self._advance(consumer, cursor, handled)
                cursor, uncommitted = handled, 0

    def read(self, after: int = 0, *, follow: bool = False) -> Iterator[FeedEvent]:
        """The events after a number, for workers that store the cursor with their own data."""
        return (event for event in self._read_events(after, follow=follow) if event is not None)

    def _read_events(self, after: int, *, follow: bool) -> Iterator[FeedEvent | None]:
        """Events in order, and None at the feed's end and before stopping."""
        while not self._is_stopped:
            batch = self._with_connection(FeedReader.read, after, BATCH_SIZE)
            for event in batch:
                if self._is_stopped:
                    yield None
                    return
                yield event
                after = event.seq
            if len(batch) == BATCH_SIZE:
                continue
            yield None
            if not follow:
                return
            self._wait_for_events()

    def _wait_for_events(self) -> None:
        """Return on a notification, after ``poll_seconds``, and on ``stop``."""
        deadline = time.monotonic() + self._poll_seconds
        while not self._is_stopped and (left := deadline - time.monotonic()) > 0:
            if self._with_connection(FeedReader.wait, min(left, STOP_POLL_SECONDS)):
                return

    def _pause(self, seconds: float) -> None:
        """Wait, but return soon after ``stop``."""
        deadline = time.monotonic() + seconds
        while not self._is_stopped and (left := deadline - time.monotonic()) > 0:
            time.sleep(min(left, STOP_POLL_SECONDS))

    def _advance(self, consumer: str, from_seq: int, to_seq: int) -> None:
        if not self._with_connection(
            FeedReader.advance, consumer, from_seq, to_seq, self._worker_id
        ):
            raise ConsumerConflict(
                f"consumer {consumer!r} is not at {from_seq} any more: "
                "another worker consumes under that name"
            )

    def _with_connection(
        self,
        operation: Callable[[FeedReader, *Arguments], Result],
        *arguments: *Arguments,
    ) -> Result:
        """Run an operation; when the connection breaks, run it again on a new one, with backoff."""
        backoff = Backoff(MIN_RETRY_SECONDS, MAX_RETRY_SECONDS)
        while True:
            try:
                if self._reader is None:
                    self._reader = FeedReader(self._url)
                return operation(self._reader, *arguments)
            except ConnectionLost:
                self.close()
                if not self._reconnect:
                    raise
                self._pause(backoff.next_pause())
                if self._is_stopped:
                    raise
