"""Which source: the one that was asked for, or the best that the server allows.

Owns that decision, made once in the life of a process. Must not hide that the weaker source was
taken.
"""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from threading import Event
from typing import Literal

import structlog

from accounting.capture.pubsub.source import Subscriber
from accounting.capture.replication.source import Replication
from accounting.capture.source import Refused, Source, SourceLost, Stream, Unanswered
from accounting.capture.spool.records import SpoolState

log = structlog.get_logger()

# Some proxies close the connection at a command that they don't know.
unanswered_at_most = 3


def choose(
    capture: Literal["auto", "replication", "subscribe"],
    url: str,
    *,
    queue_bytes: int,
    clock: Callable[[], int],
) -> Source:
    """The source for a setting. Raises ConfigurationError for a URL that can't be one."""
    match capture:
        case "replication":
            return Replication(url, queue_bytes=queue_bytes, clock=clock)
        case "subscribe":
            return Subscriber(url, queue_bytes=queue_bytes, clock=clock)
        case "auto":
            return Best(
                Replication(url, queue_bytes=queue_bytes, clock=clock),
                Subscriber(url, queue_bytes=queue_bytes, clock=clock),
            )


class Best:
    """Replication, unless the server refuses it before it ever allowed it."""

    def __init__(self, replication: Source, subscriber: Source) -> None:
        self._replication = replication
        self._subscriber = subscriber
        self._chosen: Source | None = None
        self._unanswered = 0

    @contextmanager
    def attach(self, state: SpoolState, stop: Event, /) -> Iterator[Stream]:
        """As the source that is chosen; a Redis out of reach decides nothing."""
        with ExitStack() as stack:
            stream = None
            if self._chosen is not self._subscriber:
                stream = self._try_replication(stack, state, stop)
            if stream is None:
                self._chosen = self._subscriber
                stream = stack.enter_context(self._subscriber.attach(state, stop))
            yield stream

    def _try_replication(self, stack: ExitStack, state: SpoolState, stop: Event) -> Stream | None:
        try:
            stream = stack.enter_context(self._replication.attach(state, stop))
        except SourceLost as lost:
            self._unanswered = self._unanswered + 1 if isinstance(lost, Unanswered) else 0
            refused = isinstance(lost, Refused) or self._unanswered >= unanswered_at_most
            if self._chosen is None and refused:
                log.warning("capturing by subscription", reason=str(lost))
                return None
            raise
        self._chosen = self._replication
        return stream
