"""Rates of traffic from what was reported within a span of time."""

from collections import deque
from collections.abc import Container, KeysView, Sequence
from datetime import datetime, timedelta
from heapq import nlargest
from typing import Final, NamedTuple
from uuid import UUID

Key = str | UUID | None
"""What a rate is of: a realm by its name, a user or session by its id; None for everything."""
MIN_SECONDS: Final = 1.0
"""A span that has just begun counts as this long."""


class Rate(NamedTuple):
    """Bytes per second."""

    received: float = 0.0
    sent: float = 0.0

    @property
    def total(self) -> float:
        return self.received + self.sent

    def plus(self, other: "Rate") -> "Rate":
        return Rate(self.received + other.received, self.sent + other.sent)


class TrafficRates:
    """The traffic of the last seconds by key: what is older is subtracted again."""

    def __init__(self, seconds: float) -> None:
        self._span = timedelta(seconds=seconds)
        self._reported: deque[tuple[datetime, Sequence[Key], int, int]] = deque()
        self._sums: dict[Key, list[int]] = {}
        self._from_at: datetime | None = None
        self._until: datetime | None = None

    def add(self, at: datetime, keys: Sequence[Key], received_bytes: int, sent_bytes: int) -> None:
        """Count traffic that was reported at a time, not before that of any added before."""
        self._reported.append((at, keys, received_bytes, sent_bytes))
        for key in keys:
            sums = self._sums.setdefault(key, [0, 0, 0])
            sums[0] += received_bytes
            sums[1] += sent_bytes
            sums[2] += 1

    def move_to(self, until: datetime, covered_from: datetime) -> None:
        """Let the span end at a time. ``covered_from``: all since then was added, or is to be."""
        self._until = until
        self._from_at = max(until - self._span, covered_from)
        while self._reported and self._reported[0][0] < self._from_at:
            _, keys, received_bytes, sent_bytes = self._reported.popleft()
            for key in keys:
                sums = self._sums[key]
                sums[0] -= received_bytes
                sums[1] -= sent_bytes
                sums[2] -= 1
                if not sums[2]:
                    del self._sums[key]

    def keys(self) -> KeysView[Key]:
        """What has traffic in the span."""
        return self._sums.keys()

    def busiest(self, most: int, among: Container[Key]) -> list[Key]:
        """The keys with most traffic."""
        keys = [key for key in self._sums if key in among]
        return nlargest(most, keys, key=lambda key: sum(self._sums[key][:2]))

    def rate(self, key: Key) -> Rate:
        if key not in self._sums or self._until is None or self._from_at is None:
            return Rate()
        seconds = max((self._until - self._from_at).total_seconds(), MIN_SECONDS)
        received_bytes, sent_bytes, _ = self._sums[key]
        return Rate(received_bytes / seconds, sent_bytes / seconds)
