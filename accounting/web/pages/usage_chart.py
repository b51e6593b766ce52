"""The chart of a realm or a user: which buckets, since when, and what is beside them."""

from bisect import bisect_right
from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, time, timedelta, tzinfo
from typing import Any, Final, Literal

from accounting.errors import UsageError

Length = Literal["hour", "day", "month"]
Row = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Span:
    """Buckets of one length up to now. ``since``: as the API has it."""

    per: Length
    label: str
    length: timedelta
    since: str


SPANS: Final = (
    Span("hour", "Hours", timedelta(hours=48), "48h"),
    Span("day", "Days", timedelta(days=31), "31d"),
    Span("month", "Months", timedelta(days=366), "366d"),
)


def span_of(per: str, spans: Sequence[Span] = SPANS) -> Span:
    """The span of a page's parameter. Raises UsageError."""
    for span in spans:
        if span.per == per:
            return span
    raise UsageError(f"per {per!r}: expected {' or '.join(span.per for span in spans)}")


def with_unattributed(
    rows: Sequence[Row], hours: Iterable[Row], per: Length, zone: tzinfo
) -> list[Row]:
    """Usage by bucket with ``unattributed_bytes``, the ``bytes`` of the hours in each.

    A bucket with nothing else has no row in the books, and zeros here.
    """
    by_start: dict[datetime, dict[str, Any]] = {
        row["starts_at"]: {**row, "unattributed_bytes": 0} for row in rows
    }
    starts = sorted(by_start)
    for hour in hours:
        at = hour["starts_at"]
        number = bisect_right(starts, at) - 1
        if number >= 0 and at < by_start[starts[number]]["ends_at"]:
            start = starts[number]
        else:
            start = _bucket_start(at, per, zone)
        row = by_start.setdefault(start, {**_NOTHING, "starts_at": start})
        row["unattributed_bytes"] += int(hour["bytes"])
    return [by_start[start] for start in sorted(by_start)]


def with_empty_buckets(
    rows: Sequence[Row], per: Length, zone: tzinfo, since: datetime, now: datetime
) -> list[Row]:
    """Usage by bucket from ``since`` to ``now``: those without usage have zeros."""
    filled: list[Row] = []
    left = deque(rows)
    start = _bucket_start(since, per, zone)
    while start <= now:
        end = _next_start(start, per, zone)
        if not left or left[0]["starts_at"] >= end:
            filled.append({**_NOTHING, "starts_at": start})
        while left and left[0]["starts_at"] < end:
            filled.append(left.popleft())
        start = end
    return [*filled, *left]


_NOTHING: Final = dict.fromkeys(
    (
        "received_bytes",
        "sent_bytes",
        "estimated_bytes",
        "sessions_started",
        "peak_sessions",
        "unattributed_bytes",
    ),
    0,
)


def borders(per: Length, zone: tzinfo, since: datetime, now: datetime) -> list[datetime]:
    """Where the buckets begin, from that of ``since`` to the one after that of ``now``."""
    starts = [_bucket_start(since, per, zone)]
    while starts[-1] <= now:
        starts.append(_next_start(starts[-1], per, zone))
    return starts


def _bucket_start(at: datetime, per: Length, zone: tzinfo) -> datetime:
    local = at.astimezone(zone)
    if per == "hour":
        return local.replace(minute=0, second=0, microsecond=0)
    first = local.date() if per == "day" else local.date().replace(day=1)
    return datetime.combine(first, time(), zone)


def starts_of(now: datetime, zone: tzinfo) -> dict[str, datetime]:
    """When the day and the month began that are now."""
    return {"day": _bucket_start(now, "day", zone), "month": _bucket_start(now, "month", zone)}


def _next_start(start: datetime, per: Length, zone: tzinfo) -> datetime:
    """When the bucket after the one that begins at ``start`` begins."""
    if per == "hour":
        return (start.astimezone(UTC) + timedelta(hours=1)).astimezone(zone)
    days = timedelta(days=1 if per == "day" else 32)
    return _bucket_start(datetime.combine(start.date() + days, time(12), zone), per, zone)


def now_and_before(rows: Iterable[Row], per: str) -> dict[tuple[str, str], Row]:
    """Rows of the bucket that is now and of the one before, by the length and which it is."""
    return {(per, "now" if row["is_now"] else "before"): row for row in rows}
