"""Slices: the short spans of an hour along which the peak of a realm is counted.

The most sessions alive at one moment of an hour is the highest of its slices, and a begin or an end
of a session changes one slice only. A slice ends on whole fives of seconds, or with its hour. Not a
length that anything is accounted by: the borders of those are ``domain.calendar``'.
"""

from typing import Final

from accounting.domain.calendar import Bucket

SLICE_SECONDS: Final = 5
_SLICE: Final = SLICE_SECONDS * 1_000_000


def slice_start(hour: Bucket, time: int) -> int:
    """Where the slice begins that ``time`` falls in; microseconds, as all times."""
    return max(hour.starts_at, time - time % _SLICE)


def slice_end(hour: Bucket, start: int) -> int:
    """Where the slice ends that begins at ``start``."""
    return min(hour.ends_at, start - start % _SLICE + _SLICE)
