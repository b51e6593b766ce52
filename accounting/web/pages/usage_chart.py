"""The chart of a realm or a user: which buckets, since when, and what is beside them."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
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


def span_of(per: str) -> Span:
    """The span of a page's parameter. Raises UsageError."""
    for span in SPANS:
        if span.per == per:
            return span
    raise UsageError(f"per {per!r}: expected hour, day or month")


def fold_hours(hours: Iterable[Row], rows: Sequence[Row]) -> dict[datetime, int]:
    """The ``bytes`` of hours by the start of the bucket that each is in."""
    folded: dict[datetime, int] = {}
    buckets = iter(rows)
    bucket = next(buckets, None)
    for hour in hours:
        while bucket is not None and bucket["ends_at"] <= hour["starts_at"]:
            bucket = next(buckets, None)
        if bucket is not None and bucket["starts_at"] <= hour["starts_at"]:
            start = bucket["starts_at"]
            folded[start] = folded.get(start, 0) + int(hour["bytes"])
    return folded


def now_and_before(rows: Iterable[Row], per: str) -> dict[tuple[str, str], Row]:
    """Rows of the bucket that is now and of the one before, by the length and which it is."""
    return {(per, "now" if row["is_now"] else "before"): row for row in rows}
