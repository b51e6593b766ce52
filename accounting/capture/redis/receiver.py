"""The reading thread: bytes off the socket into bounded memory, and nothing else.

Owns the socket while it runs and the queue of chunks. Between two reads it sends what it is given
to say: one thread for both directions, since a TLS connection must not be used by two at once. Must
not parse, store, log or wait for anything but the socket: a thread that did was cut off by Redis
after a tenth of a million pipelined messages. When the queue is full it stops reading; what Redis
then drops is lost to a subscriber, but memory stays bounded.
"""

import socket
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from threading import Event
from typing import Protocol

from accounting.capture.source import SourceLost

# The most that one read takes. The kernel's buffer grows by itself to `net.ipv4.tcp_rmem` (6 MB and
# more); a fixed SO_RCVBUF would end that, and is capped lower.
CHUNK_BYTES = 1 << 20

# What a chunk in the queue takes besides its bytes: objects of Python, a place in the deque.
CHUNK_OVERHEAD_BYTES = 160

# A flood: so much waits to be taken, and something came so lately. When that share of the queue is
# full, nobody can stand aside any more.
FLOOD_BYTES = 4 << 20
FLOOD_SECONDS = 0.01
FLOOD_QUEUE_SHARE = 7 / 8

# How long one read may wait: so late does the thread see that it should end.
READ_TIMEOUT_SECONDS = 0.1


class OutgoingCommands(Protocol):
    """What has to be said to Redis so that it goes on to talk to us."""

    def due(self, now: float) -> bytes:
        """What to send at that time of the monotonic clock; nothing most of the time."""
        ...


class Receiver:
    """A thread that receives; its methods belong to one other thread."""

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
        self._speaker = outgoing
        self._queue_bytes = queue_bytes
        self._silence_seconds = silence_seconds
        self._clock = clock
        self._chunks: deque[tuple[int, bytes]] = deque()
        # Two counters, each written by one thread, instead of one behind a lock.
        self._queued_ever = 0
        self._taken_ever = 0
        self._something = Event()
        self._room = Event()
        self._halted = Event()
        self._said = 0
        self._full_after: int | None = None
        self._unanswered_since: float | None = None
        self._received_at = 0.0
        sock.settimeout(READ_TIMEOUT_SECONDS)
        self._executor = ThreadPoolExecutor(1, thread_name_prefix="receiver")
        self._running: Future[None] = self._executor.submit(self._receive)
        self._running.add_done_callback(lambda _: self._something.set())

    def next_chunk(self, timeout_seconds: float) -> tuple[int, bytes] | None:
        """The next chunk and the time of its receipt; None when none came in time.

        Raises what ended the thread, once every chunk is taken: SourceLost, or a bug.
        """
        if not self._chunks:
            # Cleared before the second look, so that no chunk that comes now is slept over.
            self._something.clear()
            ended = self._running.done()
            if not self._chunks:
                if ended:
                    self._running.result()
                    return None
                self._something.wait(timeout_seconds)
                if not self._chunks:
                    return None
        chunk = self._chunks.popleft()
        self._taken_ever += len(chunk[1]) + CHUNK_OVERHEAD_BYTES
        self._room.set()
        return chunk

    @property
    def queued_bytes(self) -> int:
        """Memory that waits to be taken."""
        return self._queued_ever - self._taken_ever

    def yield_to_receiver(self) -> None:
        """Wait while a flood comes in.

        Two threads of Python share one processor's worth of time, and the machine may have no more
        than Redis and the publisher take: in a burst the receiver must have all of it.
        """
        while (
            FLOOD_BYTES < self.queued_bytes < self._queue_bytes * FLOOD_QUEUE_SHARE
            and time.monotonic() - self._received_at < FLOOD_SECONDS
        ):
            self._halted.wait(FLOOD_SECONDS / 2)

    def clear_overflow(self, said: int) -> None:
        """All that came before what was said as number `said` has been taken."""
        if self._full_after is not None and said > self._full_after:
            self._full_after = None

    def stop(self) -> None:
        """Stop reading and wait for the thread; what was read can still be taken."""
        self._halted.set()
        self._executor.shutdown()

    # -- in the thread

    def _receive(self) -> None:
        view = memoryview(bytearray(CHUNK_BYTES))
        while not self._halted.is_set():
            if words := self._speaker.due(time.monotonic()):
                self._say(words)
            room = self._queue_bytes - self.queued_bytes - CHUNK_OVERHEAD_BYTES
            if room <= 0:
                self._wait_for_room()
                continue
            try:
                count = self._sock.recv_into(view, min(room, CHUNK_BYTES))
            except TimeoutError:
                self._check_silence()
                continue
            except OSError as error:
                raise self._lost(error.strerror or str(error)) from None
            if not count:
                raise self._lost("Redis closed the connection")
            self._unanswered_since = None
            self._received_at = time.monotonic()
            self._queued_ever += count + CHUNK_OVERHEAD_BYTES
            self._chunks.append((self._clock(), bytes(view[:count])))
            if not self._something.is_set():
                self._something.set()

    def _say(self, words: bytes) -> None:
        self._said += 1
        if self._unanswered_since is None:
            self._unanswered_since = time.monotonic()
        try:
            self._sock.sendall(words)
        except OSError as error:
            raise self._lost(error.strerror or str(error)) from None

    def _wait_for_room(self) -> None:
        self._full_after = self._said
        self._room.clear()
        if self.queued_bytes + CHUNK_OVERHEAD_BYTES >= self._queue_bytes:
            self._room.wait(READ_TIMEOUT_SECONDS)
        self._unanswered_since = time.monotonic()

    def _check_silence(self) -> None:
        # Judged only when a read found nothing: after a stop of this process the answer lies there.
        since = self._unanswered_since
        if since is not None and time.monotonic() - since > self._silence_seconds:
            raise SourceLost(
                "redis_unreachable",
                f"no byte from Redis in {self._silence_seconds:g} s",
            )

    def _lost(self, text: str) -> SourceLost:
        if self._full_after is None:
            return SourceLost("disconnected", text)
        return SourceLost(
            "overrun", f"{text}; the queue of {self._queue_bytes} bytes had been full before"
        )
