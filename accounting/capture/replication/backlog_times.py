"""When what was missed was published: times for messages that come out of the backlog.

Owns that estimate. Pure: no clock, no socket. A replayed message has no time of its own, only its
place in the stream between two places whose times are known.
"""

from bisect import bisect_left
from collections.abc import Sequence
from typing import NamedTuple

# Every relay thread of coturn up to 4.6.1 publishes one in that time, whatever else it does.
KEEPALIVE_INTERVAL = 5_000_000


class OffsetTime(NamedTuple):
    """At that time (microseconds since the epoch) the stream had come to that offset."""

    at: int
    offset: int


def estimate_times(
    positions: Sequence[int], keepalives: Sequence[int], begin: OffsetTime, end: OffsetTime
) -> list[int]:
    """A time for each position between two moments; all rise, none leaves what lies between them.

    coturn's keepalives come evenly, so as many of them as one thread sends are the clock: each is
    one step of time, and between two of them time goes with the bytes. Without them it does so
    all the way.
    """
    length = end.at - begin.at
    if length <= 0:
        return [begin.at] * len(positions)
    beats = [offset for offset in keepalives if begin.offset < offset < end.offset]
    if len(beats) < length // KEEPALIVE_INTERVAL - 1:
        beats = []  # coturn was away for a part of the time: they say nothing of that part
    offsets = [begin.offset, *beats, max(end.offset, begin.offset + 1)]
    steps = len(offsets) - 1
    times = []
    for position in positions:
        step = min(max(bisect_left(offsets, position), 1), steps)
        left, right = offsets[step - 1], offsets[step]
        passed = min(max(position - left, 0), right - left)
        # One division at the end, so that nothing is rounded twice.
        part = (step - 1) * (right - left) + passed
        times.append(begin.at + length * part // (steps * (right - left)))
    return times
