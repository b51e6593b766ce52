"""Waiting: retries with exponential backoff, and polling with a deadline."""

import random
import time
from collections.abc import Callable


class Backoff:
    """The pauses between retries: each limit is twice the one before, up to ``max_seconds``.

    A pause lasts 50 to 100 % of its limit. This jitter keeps processes that failed together from
    retrying together.
    """

    def __init__(self, first_seconds: float, max_seconds: float) -> None:
        self._first_seconds = first_seconds
        self._max_seconds = max_seconds
        self._limit_seconds = first_seconds
        self.has_failed = False

    def next_pause(self) -> float:
        """Count a failure; return the seconds to pause before the next attempt."""
        self.has_failed = True
        pause_seconds = self._limit_seconds * random.uniform(0.5, 1.0)  # noqa: S311
        self._limit_seconds = min(2 * self._limit_seconds, self._max_seconds)
        return pause_seconds

    def reset(self) -> None:
        """Start again with the first pause, after a success."""
        self._limit_seconds = self._first_seconds
        self.has_failed = False


def wait_until(
    condition: Callable[[], bool], timeout_seconds: float, *, poll_seconds: float = 0.02
) -> bool:
    """Poll until the condition is true; return whether that was within ``timeout_seconds``."""
    deadline = time.monotonic() + timeout_seconds
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(poll_seconds)
    return True
