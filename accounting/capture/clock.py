"""The clock of capture: whole microseconds since the Unix epoch."""

import time


def wall_clock() -> int:
    """The time now, in microseconds since the epoch."""
    return time.time_ns() // 1_000
