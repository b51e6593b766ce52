"""Estimates when messages from the backlog were published.

Such a message has no time of receipt of its own, only a position between two offsets whose times
are known.
"""

from bisect import bisect_left
from collections.abc import Sequence
from typing import Final, NamedTuple

KEEPALIVE_MICROSECONDS: Final = 5_000_000
"""Every relay thread of coturn publishes a keepalive in this interval (up to 4.6.1)."""


class OffsetTime(NamedTuple):
    """At ``at`` (microseconds since the epoch) the end of the stream was at ``offset``."""

    at: int
    offset: int


def estimate_times(
    positions: Sequence[int], keepalives: Sequence[int], begin: OffsetTime, end: OffsetTime
) -> list[int]:
    """A time for each position between ``begin`` and ``end``; times never fall.

    coturn's keepalives come at even intervals, so each of them is an equal step of time, and
    between two of them time is proportional to the bytes. It is so over the whole length when there
    are fewer keepalives than one relay thread sends.
    """
    length = end.at - begin.at
    if length <= 0:
        return [begin.at] * len(positions)
    step_ends = [offset for offset in keepalives if begin.offset < offset < end.offset]
    if len(step_ends) < length // KEEPALIVE_MICROSECONDS - 1:
        step_ends = []  # coturn was away for a part of the time
    offsets = [begin.offset, *step_ends, max(end.offset, begin.offset + 1)]
    step_count = len(offsets) - 1
    times = []
    for position in positions:
        step = min(max(bisect_left(offsets, position), 1), step_count)
        left, right = offsets[step - 1], offsets[step]
        bytes_into_step = min(max(position - left, 0), right - left)
        # One division at the end rounds only once.
        numerator = (step - 1) * (right - left) + bytes_into_step
        times.append(begin.at + length * numerator // (step_count * (right - left)))
    return times
