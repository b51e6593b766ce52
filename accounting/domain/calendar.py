"""The bounds of hours, days and months in a realm's time zone; no other module computes them.

Buckets are half-open and contiguous. An hour ends where the local clock shows a full hour, and
where the clock changes; a day and a month end at the first instant of the next local date. So a day
may have 23, 24 or 25 hours (24.5 with Lord Howe's half-hour DST), and hours always nest in days,
days in months. Times are whole microseconds since the Unix epoch, UTC: exact, and cheap to compare.
"""

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from enum import StrEnum
from functools import lru_cache
from typing import Final
from zoneinfo import ZoneInfo

from accounting.domain.time_zones import time_zone

_SECOND: Final = 1_000_000
_MINUTE: Final = 60 * _SECOND
_HOUR: Final = 60 * _MINUTE
_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)

TIME_MIN: Final = -(2**62)
"""Before every time that occurs: a realm's first rule holds from here."""
TIME_MAX: Final = 2**62


class BucketLength(StrEnum):
    """The length of a bucket."""

    HOUR = "hour"
    DAY = "day"
    MONTH = "month"


@dataclass(frozen=True, slots=True, kw_only=True)
class Bucket:
    """A half-open span of time, ``starts_at <= t < ends_at``, microseconds since the epoch."""

    starts_at: int
    ends_at: int
    time_zone: str


def to_micros(moment: datetime) -> int:
    """Whole microseconds since the Unix epoch of an aware datetime, exactly."""
    delta = moment - _EPOCH
    return (delta.days * 86_400 + delta.seconds) * _SECOND + delta.microseconds


def from_micros(time: int) -> datetime:
    """The aware UTC datetime of ``time`` microseconds since the Unix epoch."""
    return _EPOCH + timedelta(microseconds=time)


def micros_or_none(moment: datetime | None) -> int | None:
    """:func:`to_micros` of a nullable column."""
    return None if moment is None else to_micros(moment)


def time_or_none(time: int | None) -> datetime | None:
    """:func:`from_micros` for a nullable column."""
    return None if time is None else from_micros(time)


class Calendar:
    """The buckets of one realm. Where its time zone changes, an hour, a day and a month end."""

    def __init__(self, zones: Sequence[tuple[int, str]]) -> None:
        """``zones``: (holds from, name of the zone), ascending; the first holds from TIME_MIN.

        A zone that follows itself is not a change.
        """
        if not zones or zones[0][0] != TIME_MIN:
            raise ValueError("the first time zone of a calendar holds from the beginning")
        self._starts: list[int] = []
        self._names: list[str] = []
        for start, name in zones:
            if not self._names or name != self._names[-1]:
                self._starts.append(start)
                self._names.append(name)
        self._hour = Bucket(starts_at=0, ends_at=0, time_zone="")

    def hour(self, time: int) -> Bucket:
        """The hour that contains ``time``. Cheap for times in ascending order."""
        if not self._hour.starts_at <= time < self._hour.ends_at:
            self._hour = self.bucket(BucketLength.HOUR, time)
        return self._hour

    def bucket(self, length: BucketLength, time: int) -> Bucket:
        """The bucket of that length that contains ``time``."""
        index = bisect_right(self._starts, time) - 1
        name = self._names[index]
        starts_at, ends_at = _SPANS[length](time_zone(name), time)
        until = self._starts[index + 1] if index + 1 < len(self._starts) else TIME_MAX
        return Bucket(
            starts_at=max(starts_at, self._starts[index]),
            ends_at=min(ends_at, until),
            time_zone=name,
        )

    def hours(self, starts_at: int, ends_at: int) -> list[Bucket]:
        """The hours that overlap a span, in order; for an empty span, the hour of its start."""
        hours = [self.bucket(BucketLength.HOUR, starts_at)]
        while hours[-1].ends_at <= ends_at:
            hours.append(self.bucket(BucketLength.HOUR, hours[-1].ends_at))
        return hours


def is_cut_bucket(length: BucketLength, bucket: Bucket) -> bool:
    """Whether a bucket begins or ends at a change of the time zone instead of its own border."""
    span = _SPANS[length](time_zone(bucket.time_zone), bucket.starts_at)
    return span != (bucket.starts_at, bucket.ends_at)


def _offset(zone: ZoneInfo, time: int) -> int:
    offset = from_micros(time).astimezone(zone).utcoffset()
    assert offset is not None
    return offset // timedelta(microseconds=1)


def _transition(zone: ZoneInfo, before: int, after: int) -> int:
    """The first instant within (before, after] that has the UTC offset of ``after``."""
    wanted = _offset(zone, after)
    while after - before > _SECOND:
        middle = before + (after - before) // 2 // _SECOND * _SECOND
        middle = max(middle, before + _SECOND)
        if middle >= after:
            break
        if _offset(zone, middle) == wanted:
            after = middle
        else:
            before = middle
    return after - after % _SECOND


@lru_cache(maxsize=4096)
def _hour_at(zone: ZoneInfo, second: int) -> tuple[int, int]:
    time = second * _SECOND
    offset = _offset(zone, time)
    into_hour = (time + offset) % _HOUR
    starts_at, ends_at = time - into_hour, time - into_hour + _HOUR
    if _offset(zone, starts_at) != offset:
        starts_at = _transition(zone, starts_at, time)
    if _offset(zone, ends_at - _SECOND) != offset:
        ends_at = _transition(zone, time, ends_at - _SECOND)
    return starts_at, ends_at


def _hour_span(zone: ZoneInfo, time: int) -> tuple[int, int]:
    return _hour_at(zone, time // _SECOND)


def first_instant(zone: ZoneInfo, day: date) -> int:
    """The first instant of a local day, in microseconds since the epoch."""
    # fold=0: the earlier of two midnights; if midnight is skipped, the moment of the change.
    return to_micros(datetime(day.year, day.month, day.day, tzinfo=zone).astimezone(UTC))


def _day_span(zone: ZoneInfo, time: int) -> tuple[int, int]:
    day = from_micros(time).astimezone(zone).date()
    one = timedelta(days=1)
    while first_instant(zone, day) > time:
        day -= one
    while first_instant(zone, day + one) <= time:
        day += one
    return first_instant(zone, day), first_instant(zone, day + one)


def _next_month(day: date) -> date:
    return (day.replace(day=1) + timedelta(days=31)).replace(day=1)


def _month_span(zone: ZoneInfo, time: int) -> tuple[int, int]:
    starts_at, _ = _day_span(zone, time)
    # Noon is far from any clock change, so it has the date of that local day.
    first = from_micros(starts_at + 12 * _HOUR).astimezone(zone).date().replace(day=1)
    return first_instant(zone, first), first_instant(zone, _next_month(first))


_SPANS: Final = {
    BucketLength.HOUR: _hour_span,
    BucketLength.DAY: _day_span,
    BucketLength.MONTH: _month_span,
}
