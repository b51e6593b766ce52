"""Pings on a subscribed connection: what was published before one comes before its answer.

Owns which pings are on their way. Must not touch the socket: the receiver sends what is due.
"""

import secrets
from collections import deque
from collections.abc import Callable
from threading import Event
from typing import NamedTuple


class Ping(NamedTuple):
    """A ping on its way, the `number`th; after the `last` there is none."""

    token: bytes
    sent_at: int
    number: int
    is_final: bool


class Pings:
    """A ping every `tick_seconds`. `due` belongs to the receiving thread, the rest to the other."""

    def __init__(self, *, ping_seconds: float, clock: Callable[[], int]) -> None:
        self._tick_seconds = ping_seconds
        self._clock = clock
        self._in_flight: deque[Ping] = deque()
        self._last_wanted = Event()
        self._last_sent = False
        self._next: float | None = None
        self._sent = 0

    def due(self, now: float) -> bytes:
        """The next ping when it is time for it."""
        last = self._last_wanted.is_set()
        if self._next is None:
            self._next = now + self._tick_seconds
        if self._last_sent or not (last or now >= self._next):
            return b""
        self._next, self._last_sent = now + self._tick_seconds, last
        self._sent += 1
        token = secrets.token_hex(8).encode()
        self._in_flight.append(Ping(token, self._clock(), self._sent, last))
        return b"*2\r\n$4\r\nPING\r\n$%d\r\n%b\r\n" % (len(token), token)

    def request_final(self) -> None:
        """Send one more, soon, and none after it."""
        self._last_wanted.set()

    def match_reply(self, token: bytes) -> Ping | None:
        """The ping that this answer belongs to, None when it does not answer the oldest one."""
        if not self._in_flight or self._in_flight[0].token != token:
            return None
        return self._in_flight.popleft()
