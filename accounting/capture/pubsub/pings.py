"""Pings on a subscribed connection: everything published before a PING arrives before its reply.

The receiver's thread sends what ``Pings.due`` returns.
"""

import secrets
from collections import deque
from collections.abc import Callable
from threading import Event
from typing import Final, NamedTuple

MAX_IN_FLIGHT: Final = 10_000
"""PINGs without a reply, hours of them. While messages come in, their replies may be late."""


class Ping(NamedTuple):
    """A PING in flight, the ``number``-th of its connection. None follows the final one."""

    token: bytes
    sent_at: int
    number: int
    is_final: bool


class Pings:
    """A PING every ``ping_seconds``.

    The receiving thread calls ``due``, the parsing thread calls the rest.
    """

    def __init__(self, *, ping_seconds: float, clock: Callable[[], int]) -> None:
        self._ping_seconds = ping_seconds
        self._clock = clock
        self._in_flight: deque[Ping] = deque()
        self._final_requested = Event()
        self._final_sent = False
        self._next_due: float | None = None
        self._sent_count = 0

    def due(self, now: float) -> bytes:
        """The next PING when it is due, else nothing."""
        is_final = self._final_requested.is_set()
        if self._next_due is None:
            self._next_due = now + self._ping_seconds
        if self._final_sent or not (is_final or now >= self._next_due):
            return b""
        if len(self._in_flight) >= MAX_IN_FLIGHT:
            return b""
        self._next_due, self._final_sent = now + self._ping_seconds, is_final
        self._sent_count += 1
        token = secrets.token_hex(8).encode()
        self._in_flight.append(Ping(token, self._clock(), self._sent_count, is_final))
        return b"*2\r\n$4\r\nPING\r\n$%d\r\n%b\r\n" % (len(token), token)

    def request_final(self) -> None:
        """Send one more PING soon, and none after it."""
        self._final_requested.set()

    def match_reply(self, token: bytes) -> Ping | None:
        """The PING that this reply answers; None when it isn't the oldest one in flight."""
        if not self._in_flight or self._in_flight[0].token != token:
            return None
        return self._in_flight.popleft()
