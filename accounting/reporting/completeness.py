"""What the books do not have yet, so that an empty result is no wrong answer."""

from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta, tzinfo
from enum import Enum, auto
from typing import TYPE_CHECKING, Final
from zoneinfo import ZoneInfo

from accounting.domain.calendar import TIME_MIN, BucketLength, Calendar, to_micros
from accounting.domain.human_text import human_seconds, second
from accounting.domain.time_zones import time_zone
from accounting.reporting import usage_queries, view_queries, view_query
from accounting.reporting.view_query import Bound, Row

if TYPE_CHECKING:
    from accounting.reporting.reader import DatabaseReader


MAX_CAPTURE_LAG: Final = timedelta(seconds=60)
"""As in ``/healthz``: a collector writes every second how far it captured."""


@dataclass(frozen=True, slots=True)
class NotCaptured:
    """A source in service of which nothing is captured at ``now``, and no gap says so yet.

    ``since``: None if nothing was ever captured.
    """

    source: str
    since: datetime | None
    now: datetime

    def __str__(self) -> str:
        if self.since is None:
            return "nothing was captured yet, Redis was never reached"
        seconds = human_seconds(round((self.now - self.since).total_seconds()))
        return (
            f"nothing is captured since {second(self.since.astimezone(UTC))} UTC ({seconds}): what "
            "is published meanwhile may be lost, and then a gap is recorded when a collector "
            "starts again"
        )


def not_captured(
    now: datetime, sources: Iterable[Row], gaps: Iterable[Row]
) -> Iterator[NotCaptured]:
    """The sources that are not captured now. ``gaps``: with all open ones, which say so."""
    with_open_gap = {gap["source"] for gap in gaps if gap["to_at"] is None}
    for source in sources:
        since: datetime | None = source["captured_until"]
        if source["retired_at"] is not None or source["source"] in with_open_gap:
            continue
        if since is None or now - since > MAX_CAPTURE_LAG:
            yield NotCaptured(source["source"], since, now)


def not_captured_in(
    reader: "DatabaseReader", until: Bound | None = None, source: str | None = None
) -> Collection[NotCaptured]:
    """The sources, or the source, of which a span up to ``until`` is not captured to its end."""
    [clock] = reader.read_rows(view_queries.database_now())
    now: datetime = clock["now"]
    end = None if until is None else view_query.instant(until, now)
    sources = reader.read_rows(view_queries.sources())
    open_gaps = reader.read_rows(view_queries.gaps(since=now))
    return [
        lapse
        for lapse in not_captured(now, sources, open_gaps)
        if source in {None, lapse.source}
        and (end is None or lapse.since is None or end > lapse.since)
    ]


@dataclass(frozen=True, slots=True)
class Progress:
    """How far all sources in service are counted at ``now``; ``until`` is None before the first."""

    until: datetime | None
    now: datetime

    @property
    def is_late(self) -> bool:
        """Whether usage of the last minute, or of more, may still be to come."""
        return self.until is not None and self.now - self.until > MAX_CAPTURE_LAG

    def covers(self, end: datetime) -> bool:
        """Whether everything that was reported before ``end`` is counted."""
        return self.until is None or self.until >= end


def read_progress(reader: "DatabaseReader") -> Progress:
    """Read how far usage is counted. It names no source: any reader of usage may know it."""
    [row] = reader.read_rows(view_queries.progress())
    return Progress(row["counted_until"], row["now"])


class Counted(Enum):
    """What is computed from reports, of which some may not be counted yet."""

    SESSIONS = auto()
    USAGE = auto()


def span_waits_for(
    reader: "DatabaseReader",
    realm: str | None,
    counted: Counted,
    since: datetime | None = None,
    until: datetime | None = None,
) -> str | None:
    """What a span lacks, as sentences without an end; None if nothing.

    ``until``: in the past; None for all that was received.
    """
    is_usage = counted is Counted.USAGE
    [row] = reader.read_rows(view_queries.span_waits_for(realm, since, until, is_usage=is_usage))
    text: str | None = row["waits_for"]
    return text


def explain_empty(
    reader: "DatabaseReader",
    empty: str,
    counted: Counted | None,
    realm: str | None,
    since: Bound | None,
    until: Bound | None,
    per: BucketLength | None = None,
) -> str:
    """Why nothing is in a span. ``empty``: a sentence for a span that is still open.

    ``counted``: None for what does not follow from reports. ``per``: the buckets that are listed if
    they begin in the span.
    """
    nothing = empty.rstrip(".")
    [clock] = reader.read_rows(view_queries.database_now())
    now = clock["now"]
    zones: Sequence[tzinfo] = _zones(reader, realm) if counted is Counted.USAGE else [UTC]
    begin, end = (
        None if bound is None else choose(view_query.instant(bound, now, zone) for zone in zones)
        for bound, choose in ((since, min), (until, max))
    )
    if begin is not None and begin > now:
        return f"{nothing}: that span is in the future."
    if counted is None:
        return empty
    if per is not None and (reason := no_bucket_begins(reader, realm, per, since, until)):
        return f"{nothing}: {reason}, or a time without an offset."
    is_past = end is not None and end <= now
    waits_for = span_waits_for(reader, realm, counted, begin, end if is_past else None)
    if waits_for is not None:
        return f"{nothing} yet: {waits_for}."
    return f"{nothing} in that span; it is complete." if is_past else empty


def no_bucket_begins(
    reader: "DatabaseReader",
    realm: str | None,
    per: BucketLength,
    since: Bound | None,
    until: Bound | None,
) -> str | None:
    """Why there can be no bucket in a span that cuts none: it contains no begin of one.

    In no time zone in which a realm, or any realm, has usage. None if one may be there, and for a
    span that has not begun.
    """
    [clock] = reader.read_rows(view_queries.database_now())
    now: datetime = clock["now"]
    if since is None or usage_queries.cuts_buckets(per.value, since, until):
        return None
    for zone in _zones(reader, realm):
        begin = view_query.instant(since, now, zone)
        end = now if until is None else min(now, view_query.instant(until, now, zone))
        bucket = Calendar([(TIME_MIN, str(zone))]).bucket(per, to_micros(begin))
        starts_at = bucket.starts_at if bucket.starts_at == to_micros(begin) else bucket.ends_at
        if begin > now or starts_at < to_micros(end):
            return None
    shorter = "a longer span" if per is BucketLength.HOUR else "--per hour"
    return f"no {per.value} begins in that span: try {shorter}"


def _zones(reader: "DatabaseReader", realm: str | None) -> Sequence[ZoneInfo]:
    """The time zones in which a realm or any realm has usage; UTC without any."""
    names = reader.read_rows(view_queries.time_zones(realm))
    return [time_zone(row["time_zone"]) for row in names] or [time_zone("UTC")]
