"""For the billing worker: the feed, one event after another, at least once.

    with Feed("postgresql://billing@db/accounting") as feed:
        for event in feed.consume("invoicer"):
            ...

An event counts as handled when the next one is asked for: its number is then committed as the
consumer's cursor. A worker that dies in between gets the event again, with the same ``event_id``.
Needs a login with the role ``turn_accounting_reader``. Owns the consumer's cursor, and knows no
event's meaning.
"""

import random
import threading
import time
from collections.abc import Callable, Collection, Generator, Iterator
from types import TracebackType
from typing import Final, Self, TypeVar
from uuid import uuid4

from accounting.errors import AccountingError, ConnectionLost
from accounting.feed.reader import FeedEvent, FeedReader

__all__ = ["ConsumerConflict", "Feed", "FeedEvent"]

BATCH_SIZE: Final = 500
"""Events read at once."""
POLL_SECONDS: Final = 5.0
"""The feed is looked at so often where no NOTIFY comes through: behind a pooler, say."""
MAX_BACKOFF_SECONDS: Final = 30.0

Result = TypeVar("Result")


class ConsumerConflict(AccountingError):
    """Somebody else consumes under the same name: two workers would both bill what they read."""


class Feed:
    """The feed of one database. For one thread; ``stop`` may be called from any, or a signal."""

    def __init__(
        self, url: str, *, poll_seconds: float = POLL_SECONDS, reconnect: bool = True
    ) -> None:
        """``url``: libpq's. Connects when first used, and again whenever the server was away.

        ``patient=False``: raise ConnectionLost when it is away, instead of waiting for it.
        """
        self._reconnect = reconnect
        self._url = url
        self._poll_seconds = poll_seconds
        self._reader: FeedReader | None = None
        self._stop = threading.Event()
        self._worker_id = uuid4().hex

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the connection, if there is one."""
        reader, self._reader = self._reader, None
        if reader is not None:
            reader.close()

    def stop(self) -> None:
        """Let :meth:`consume` and :meth:`read` end before the next event."""
        self._stop.set()

    def consume(
        self,
        consumer: str,
        *,
        types: Collection[str] | None = None,
        follow: bool = True,
        commit_every: int = 1,
    ) -> Generator[FeedEvent]:
        """The events that this consumer has not handled yet, in order; then those that come.

        ``types``: only these; the others count as handled. ``follow=False``: end at the end.
        ``commit_every``: events handled for each move of the cursor; more is faster, and a worker
        that dies gets up to as many again. Leave the loop by an exception or ``break`` and the
        event under work was not handled. Waits for ever while the server is away. Raises
        ConsumerConflict, and NotAllowed where the consumer is another login's.
        """
        cursor = handled = self._with_connection(lambda reader: reader.cursor(consumer))
        uncommitted = 0
        for event in self._read_events(cursor, follow=follow):
            if event is None or (types is not None and event.type not in types):
                # A stretch without work for us: what was handled must not wait to be told.
                if event is not None:
                    handled = event.seq
                if event is None and handled > cursor:
                    self._advance(consumer, cursor, handled)
                    cursor, uncommitted = handled, 0
                continue
            yield event
            handled, uncommitted = event.seq, uncommitted + 1
            if uncommitted >= commit_every:
                self._advance(consumer, cursor, handled)
                cursor, uncommitted = handled, 0

    def read(self, after: int = 0, *, follow: bool = False) -> Iterator[FeedEvent]:
        """The events after a number, for who keeps a cursor of their own: beside their invoices."""
        return (event for event in self._read_events(after, follow=follow) if event is not None)

    def _read_events(self, after: int, *, follow: bool) -> Iterator[FeedEvent | None]:
        """Events in order, and None whenever there is no other for now."""
        while not self._stop.is_set():
            since = after
            batch = self._with_connection(
                lambda reader, since=since: reader.read(since, BATCH_SIZE)
            )  # type: ignore[misc]
            for event in batch:
                if self._stop.is_set():
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
        """Until something was numbered, the time is up, or we are to stop."""
        until = time.monotonic() + self._poll_seconds
        while not self._stop.is_set() and (left := until - time.monotonic()) > 0:
            seconds = min(left, 0.5)
            if self._with_connection(lambda reader, seconds=seconds: reader.wait(seconds)):  # type: ignore[misc]
                return

    def _advance(self, consumer: str, from_seq: int, to_seq: int) -> None:
        def move(reader: FeedReader) -> bool:
            return reader.advance(consumer, from_seq, to_seq, self._worker_id)

        if not self._with_connection(move):
            raise ConsumerConflict(
                f"consumer {consumer!r} is not at {from_seq} any more: "
                "another worker consumes under that name"
            )

    def _with_connection(self, operation: Callable[[FeedReader], Result]) -> Result:
        """Do something on the connection; on another one, with backoff, when it breaks."""
        backoff = 0.1
        while True:
            try:
                if self._reader is None:
                    self._reader = FeedReader(self._url)
                return operation(self._reader)
            except ConnectionLost:
                self.close()
                if not self._reconnect or self._stop.wait(backoff * random.uniform(0.5, 1.0)):  # noqa: S311
                    raise
                backoff = min(backoff * 2, MAX_BACKOFF_SECONDS)
