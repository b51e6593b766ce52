"""Selects the source: the configured one, or with ``auto`` the best one that the server allows.

The selection is made once in a process, and a log line says when it is the weaker one.
"""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from threading import Event
from typing import Final, Literal

import structlog

from accounting.capture.pubsub.source import PubSubSource
from accounting.capture.redis.address import Address
from accounting.capture.replication.source import ReplicationSource
from accounting.capture.source import NoReply, Source, SourceLost, SourceRefused, Stream
from accounting.capture.spool.records import SpoolState

log = structlog.get_logger()

MAX_MISSING_REPLIES: Final = 3
"""Attempts at PSYNC without a reply. Some proxies close the connection at an unknown command."""


def make_source(
    capture: Literal["auto", "replication", "subscribe"],
    url: str | Address,
    *,
    queue_bytes: int,
    clock: Callable[[], int],
) -> Source:
    """The source for ``ACCOUNTING_CAPTURE``. Raises ConfigurationError for a malformed URL."""
    match capture:
        case "replication":
            return ReplicationSource(url, queue_bytes=queue_bytes, clock=clock)
        case "subscribe":
            return PubSubSource(url, queue_bytes=queue_bytes, clock=clock)
        case "auto":
            return AutoSource(
                ReplicationSource(url, queue_bytes=queue_bytes, clock=clock),
                PubSubSource(url, queue_bytes=queue_bytes, clock=clock),
            )


class AutoSource:
    """Replication, unless the server refuses it before it has ever allowed it."""

    def __init__(self, replication: Source, pubsub: Source) -> None:
        self._replication = replication
        self._pubsub = pubsub
        self._selected: Source | None = None
        self._missing_replies = 0

    @contextmanager
    def attach(self, state: SpoolState, stop: Event, /) -> Iterator[Stream]:
        """Attach the selected source. An unreachable Redis leaves the selection open."""
        with ExitStack() as stack:
            stream = None
            if self._selected is not self._pubsub:
                stream = self._try_replication(stack, state, stop)
            if stream is None:
                self._selected = self._pubsub
                stream = stack.enter_context(self._pubsub.attach(state, stop))
            yield stream

    def _try_replication(self, stack: ExitStack, state: SpoolState, stop: Event) -> Stream | None:
        try:
            stream = stack.enter_context(self._replication.attach(state, stop))
        except SourceLost as lost:
            self._missing_replies = self._missing_replies + 1 if isinstance(lost, NoReply) else 0
            refused = (
                isinstance(lost, SourceRefused) or self._missing_replies >= MAX_MISSING_REPLIES
            )
            if self._selected is None and refused:
                log.warning("capturing by subscription", reason=str(lost))
                return None
            raise
        self._selected = self._replication
        return stream
