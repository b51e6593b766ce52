"""The receiving thread: moves bytes from the socket into bounded memory.

It only reads, and sends due commands between two reads: a TLS connection must not be used by two
threads at once. It must never parse, store or log. A thread that did was too slow for a hundred
thousand pipelined messages, and Redis disconnected it. When the queue is full it stops reading;
a subscriber then loses what Redis drops, but memory stays bounded.
"""

import socket
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from threading import Event
from typing import Final, Protocol

from accounting.capture.source import SourceLost

CHUNK_BYTES: Final = 1 << 20
"""Most bytes of one read. The kernel grows its buffer up to ``net.ipv4.tcp_rmem`` (6 MB or more);
setting SO_RCVBUF would turn that off, and has a lower limit."""

CHUNK_OVERHEAD_BYTES: Final = 160
"""Memory of a queued chunk besides its bytes: Python objects and an entry of the deque."""

FLOOD_BYTES: Final = 4 << 20
"""A flood: this much is queued, and the last read was less than FLOOD_SECONDS ago."""
FLOOD_SECONDS: Final = 0.01
FLOOD_QUEUE_SHARE: Final = 7 / 8
"""When this share of the queue is full, the parser no longer yields to the receiver."""

READ_TIMEOUT_SECONDS: Final = 0.5
"""How long one read waits, and so how late the thread notices that it should stop."""


class OutgoingCommands(Protocol):
    """Commands that a client must send from time to time to keep its stream."""

    def due(self, now: float) -> bytes:
        """What to send at ``now``, a time of the monotonic clock; usually nothing."""
        ...


class Receiver:
    """Reads a socket in a thread. One other thread calls the methods."""

    def __init__(
        self,
        sock: socket.socket,
        *,
        outgoing: OutgoingCommands,
        queue_bytes: int,
        silence_seconds: float,
        clock: Callable[[], int],
    ) -> None:
        self._sock = sock
        self._outgoing = outgoing
        self._queue_bytes = queue_bytes
        self._silence_seconds = silence_seconds
        self._clock = clock
        self._chunks: deque[tuple[int, bytes]] = deque()
        # Two counters, each written by one thread, need no lock.
        self._total_queued_bytes = 0
        self._total_taken_bytes = 0
        self._not_empty = Event()
        self._not_full = Event()
        self._stopping = Event()
        self._sent_count = 0
        self._overflow_at: int | None = None  # _sent_count when the queue was full
        self._unanswered_since: float | None = None
        self._last_read_at = 0.0
        sock.settimeout(READ_TIMEOUT_SECONDS)
        self._executor = ThreadPoolExecutor(1, thread_name_prefix="receiver")
        self._thread: Future[None] = self._executor.submit(self._receive)
        self._thread.add_done_callback(lambda _: self._not_empty.set())

    def next_chunk(self, timeout_seconds: float) -> tuple[int, bytes] | None:
        """The next chunk with its time of receipt; None when none came in time.

        Raises the error that ended the thread, SourceLost or a bug, after the last chunk.
        """
        if not self._chunks:
            # Cleared before the second look, so that a chunk that arrives now ends the wait.
            self._not_empty.clear()
            thread_ended = self._thread.done()
            if not self._chunks:
                if thread_ended:
                    self._thread.result()
                    return None
                self._not_empty.wait(timeout_seconds)
                if not self._chunks:
                    return None
        chunk = self._chunks.popleft()
        self._total_taken_bytes += len(chunk[1]) + CHUNK_OVERHEAD_BYTES
        self._not_full.set()
        return chunk

    @property
    def queued_bytes(self) -> int:
        """Memory of the chunks in the queue."""
        return self._total_queued_bytes - self._total_taken_bytes

    def yield_to_receiver(self) -> None:
        """Wait while a flood comes in.

        Two Python threads share the time of one processor, and Redis and the publisher may need the
        rest of the machine: in a burst the receiver must have all of that time.
        """
        while (
            FLOOD_BYTES < self.queued_bytes < self._queue_bytes * FLOOD_QUEUE_SHARE
            and time.monotonic() - self._last_read_at < FLOOD_SECONDS
        ):
            self._stopping.wait(FLOOD_SECONDS / 2)

    def clear_overflow(self, sent_count: int) -> None:
        """Note that the reply to command number ``sent_count`` was processed.

        Forgets an overflow of the queue that happened before that command.
        """
        if self._overflow_at is not None and sent_count > self._overflow_at:
            self._overflow_at = None

    def stop(self) -> None:
        """Stop reading and wait for the thread. ``next_chunk`` still returns what was read."""
        self._stopping.set()
        self._executor.shutdown()

    # -- in the thread

    def _receive(self) -> None:
        view = memoryview(bytearray(CHUNK_BYTES))
        while not self._stopping.is_set():
            if commands := self._outgoing.due(time.monotonic()):
                self._send(commands)
            free_bytes = self._queue_bytes - self.queued_bytes - CHUNK_OVERHEAD_BYTES
            if free_bytes <= 0:
                self._wait_until_not_full()
                continue
            try:
                count = self._sock.recv_into(view, min(free_bytes, CHUNK_BYTES))
            except TimeoutError:
                self._check_silence()
                continue
            except OSError as error:
                raise self._to_source_lost(error.strerror or str(error)) from None
            if not count:
                raise self._to_source_lost("Redis closed the connection")
            self._unanswered_since = None
            self._last_read_at = time.monotonic()
            self._total_queued_bytes += count + CHUNK_OVERHEAD_BYTES
            self._chunks.append((self._clock(), bytes(view[:count])))
            if not self._not_empty.is_set():
                self._not_empty.set()

    def _send(self, commands: bytes) -> None:
        self._sent_count += 1
        if self._unanswered_since is None:
            self._unanswered_since = time.monotonic()
        try:
            self._sock.sendall(commands)
        except OSError as error:
            raise self._to_source_lost(error.strerror or str(error)) from None

    def _wait_until_not_full(self) -> None:
        self._overflow_at = self._sent_count
        self._not_full.clear()
        if self.queued_bytes + CHUNK_OVERHEAD_BYTES >= self._queue_bytes:
            self._not_full.wait(READ_TIMEOUT_SECONDS)
        self._unanswered_since = time.monotonic()

    def _check_silence(self) -> None:
        # Only after a read that timed out: when this process was suspended, the reply is there.
        since = self._unanswered_since
        if since is not None and time.monotonic() - since > self._silence_seconds:
            raise SourceLost(
                "redis_unreachable",
                f"no byte from Redis in {self._silence_seconds:g} s",
            )

    def _to_source_lost(self, text: str) -> SourceLost:
        if self._overflow_at is None:
            return SourceLost("disconnected", text)
        return SourceLost(
            "overrun", f"{text}; the queue of {self._queue_bytes} bytes had been full before"
        )
