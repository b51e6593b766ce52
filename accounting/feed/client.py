"""The Python client of the feed: events in order, each at least once.

    with Feed("postgresql://billing@db/accounting") as feed:
        for event in feed.consume("invoicer", types=["period.closed"]):
            ...

Asking for the next event commits the number of the one before as the consumer's cursor. A worker
that dies earlier gets the event again, with the same ``event_id``. The login needs the role
``turn_accounting_reader``.
"""

import logging
import time
from collections.abc import Callable, Collection, Generator, Iterator
from typing import Final, Self, TypeVar, TypeVarTuple
from uuid import UUID, uuid4

from accounting.errors import AccountingError, ConnectionLost, LoginRefused
from accounting.feed.reader import CursorMove, FeedEvent, FeedReader
from accounting.waiting import Backoff

__all__ = ["ConsumerConflict", "Feed", "FeedEvent", "FeedRestored", "NumberBeyondEnd"]

log = logging.getLogger(__name__)  # a worker has its own log; structlog would print to its output

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


class FeedRestored(AccountingError):
    """The feed up to a number is not what it was: the database was restored from a backup.

    Other events may have numbers that were read before. ``after``: the number.
    """

    def __init__(self, after: int) -> None:
        """``after``: the number up to which the feed was read."""
        super().__init__(
            f"the feed up to {after} is not the one that was read: its database was restored from "
            "a backup. Read again from a number that the backup has, or from 0, and skip the "
            "event ids that were handled"
        )
        self.after = after


class NumberBeyondEnd(FeedRestored):
    """The feed ends before a number, of which only the caller knows that it was read.

    Either it was and the database was restored from a backup, or the number is wrong.
    ``last_seq``: the feed's last number.
    """

    def __init__(self, after: int, last_seq: int) -> None:
        """``after``: the number up to which the feed was read, as the caller says."""
        super().__init__(after)
        self.last_seq = last_seq


class Feed:
    """The feed of one database. Not thread-safe; only ``stop`` may be called from anywhere."""

    def __init__(
        self,
        url: str,
        *,
        poll_seconds: float = POLL_SECONDS,
        reconnect: bool = True,
        reload_url: Callable[[], str] | None = None,
    ) -> None:
        """``url``: a libpq URL. Connects when first used.

        ``reconnect``: retry for ever while the server is away, instead of raising ConnectionLost;
        each reason is logged once. Errors that a retry can't solve are raised in any case:
        LoginRefused for a wrong password, user or database, NotAllowed for a missing right,
        AccountingError for a database that is not of this service or of another version.
        ``reload_url`` is called when a connection is refused: another URL is tried at once, such as
        one with a new password.
        """
        self._reconnect = reconnect
        self._url = url
        self._reload_url = reload_url
        self._outage = ""
        self._poll_seconds = poll_seconds
        self._reader: FeedReader | None = None
        self._is_stopped = False
        self._worker_id = uuid4().hex
        self._read_up_to: tuple[int, UUID | None] = 0, None

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

        ``types``: yield only these; the others count as handled. Most are ``session.ended`` and
        ``usage.counted``, and later versions may bring other types. ``follow=False``: end at the
        feed's end. ``commit_every``: events per commit of the cursor; a higher number is faster,
        and a worker that dies gets up to that many events again. An event that is left by an
        exception or ``break`` counts as not handled. When the database was restored from a backup,
        so was the cursor: the events after it come again, under the same ids where they say the
        same. Raises ConsumerConflict, and NotAllowed for a consumer of another login.
        """
        while True:
            try:
                yield from self._consume(consumer, types, follow, commit_every)
            except FeedRestored as error:
                if self._with_connection(FeedReader.cursor, consumer) >= error.after:
                    raise  # not a restore, which takes the cursor back with the feed
            else:
                return

    def _consume(
        self, consumer: str, types: Collection[str] | None, follow: bool, commit_every: int
    ) -> Generator[FeedEvent]:
        cursor = handled = self._with_connection(FeedReader.cursor, consumer)
        uncommitted = 0
        for event in self._read_events(cursor, None, follow=follow):
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

    def read(
        self, after: int = 0, *, history: UUID | None = None, follow: bool = False
    ) -> Iterator[FeedEvent]:
        """The events after a number, for workers that store the cursor with their own data.

        ``history``: what :meth:`history` returned for the number when it was stored. Raises
        FeedRestored if the feed up to there is another one now, and NumberBeyondEnd, which is one,
        if it ends before a number without a history.
        """
        events = self._read_events(after, history, follow=follow)
        return (event for event in events if event is not None)

    def history(self, seq: int) -> UUID:
        """What identifies the events up to a number, to be stored with the number as a cursor.

        Raises FeedRestored if the events were read before a restore.
        """
        history = self._with_connection(FeedReader.history, seq)
        read_seq, read_history = self._read_up_to
        if history is None or (
            read_history is not None
            and self._with_connection(FeedReader.history, read_seq) != read_history
        ):
            raise FeedRestored(seq)
        return history

    def source(self) -> str:
        """The URI of the installation; with its ``event_id``, an event is unique anywhere."""
        return self._with_connection(FeedReader.source)

    def _read_events(
        self, after: int, history: UUID | None, *, follow: bool
    ) -> Iterator[FeedEvent | None]:
        """Events in order, and None at the feed's end and before stopping."""
        while not self._is_stopped:
            batch = self._with_connection(FeedReader.read, after, BATCH_SIZE)
            if batch.before is None and history is None:
                raise NumberBeyondEnd(after, self._with_connection(FeedReader.last_seq))
            if batch.before is None or history not in (None, batch.before):
                raise FeedRestored(after)
            history = batch.after
            self._read_up_to = batch.events[-1].seq if batch.events else after, history
            for event in batch.events:
                if self._is_stopped:
                    yield None
                    return
                yield event
                after = event.seq
            if len(batch.events) == BATCH_SIZE:
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
        read_seq, history = self._read_up_to
        assert history is not None
        move = CursorMove(from_seq, to_seq, read_seq, history)
        advanced = self._with_connection(FeedReader.advance, consumer, move, self._worker_id)
        if not advanced:
            # Only a restore moves a cursor back.
            if advanced is None or self._with_connection(FeedReader.cursor, consumer) < from_seq:
                raise FeedRestored(to_seq)
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
                result = operation(self._reader, *arguments)
            except LoginRefused:
                if not self._has_new_url():
                    raise
            except ConnectionLost as lost:
                self.close()
                self._log_outage(str(lost))
                if not self._reconnect:
                    raise
                self._has_new_url()
                self._pause(backoff.next_pause())
                if self._is_stopped:
                    raise
            else:
                self._log_outage("")
                return result

    def _log_outage(self, reason: str) -> None:
        """Log each new reason of an outage, and its end, which is ''."""
        if self._reconnect and reason != self._outage:
            if reason:
                log.warning("the feed can't be reached, trying again: %s", reason)
            else:
                log.warning("the feed is reached again")
        self._outage = reason

    def _has_new_url(self) -> bool:
        """Reload the URL; whether it has changed."""
        old_url = self._url
        if self._reload_url is not None:
            self._url = self._reload_url()
        return self._url != old_url
