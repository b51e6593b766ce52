"""Batches: what both kinds of streams yield, bounded in size and in time."""

import time
from abc import ABC, abstractmethod
from collections.abc import Iterator
from threading import Event
from typing import Final

from accounting.capture.redis.receiver import Receiver
from accounting.capture.source import Batch, SourceLost
from accounting.capture.spool.records import Message

BATCH_MESSAGES: Final = 10_000
"""Bounds the memory between the receiver's queue and the disk."""

BATCH_SECONDS: Final = 0.05
"""How long a message waits for others before it is stored."""

IDLE_SECONDS: Final = 0.5
"""How long it waits for the first message, and so how late it notices that it should stop."""

STOP_TIMEOUT_SECONDS: Final = 3.0
"""How long a stop waits for the last checkpoint."""


class BatchingStream(ABC):
    """Reads from a receiver and yields batches.

    Subclasses append to ``_messages``, set ``_captured_until`` at a checkpoint, and set
    ``_finished`` at the last one.
    """

    def __init__(self, receiver: Receiver) -> None:
        self._receiver = receiver
        self._messages: list[Message] = []
        self._captured_until: int | None = None
        self._finished = False

    def batches(self, stop: Event) -> Iterator[Batch]:
        """Yield what arrives; after ``stop``, the rest and a last checkpoint."""
        deadline = None
        while not self._finished and (deadline is None or time.monotonic() < deadline):
            if deadline is None and stop.is_set():
                self._request_final_checkpoint()
                deadline = time.monotonic() + STOP_TIMEOUT_SECONDS
            yield from self._next_batch()
        self._receiver.stop()
        while self._receiver.queued_bytes:
            yield from self._next_batch()

    def _next_batch(self) -> Iterator[Batch]:
        """Yield at most one batch, then raise the error that ended the connection, if one did."""
        lost = None
        try:
            self._fill()
        except SourceLost as error:
            lost = error
        batch = self._take_batch()
        if batch is not None:
            yield batch
        if lost:
            raise lost

    def _fill(self) -> None:
        """Read chunks until the batch is full or old enough, or has a checkpoint."""
        wait_seconds, deadline = IDLE_SECONDS, None
        while wait_seconds > 0:
            self._receiver.yield_to_receiver()
            self._process(self._receiver.next_chunk(wait_seconds))
            if self._captured_until is not None or len(self._messages) >= BATCH_MESSAGES:
                return
            if not self._messages:
                return
            deadline = deadline or time.monotonic() + BATCH_SECONDS
            wait_seconds = deadline - time.monotonic()

    @abstractmethod
    def _request_final_checkpoint(self) -> None: ...

    @abstractmethod
    def _process(self, chunk: tuple[int, bytes] | None) -> None:
        """Process a received chunk and its time of receipt; None when none came in time."""

    @abstractmethod
    def _take_batch(self) -> Batch | None:
        """The messages and the checkpoint so far, which this removes; None when there is none."""
