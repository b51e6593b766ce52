"""Queries on the views of schema ``reporting``: filters, and an order that is always the same."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime, time, timedelta, tzinfo
from typing import Any, Final, Literal
from uuid import UUID

from sqlalchemy import BigInteger, Integer, Select, Uuid, column, func, literal, select, table

from accounting.domain.counters import COUNTERS

_VIEW_SUFFIXES: Final = {"hour": "hourly", "day": "daily", "month": "monthly"}
LENGTHS: Final[tuple[Literal["hour", "day", "month"], ...]] = ("hour", "day", "month")
TRAFFIC: Final = "traffic"
"""A rank: received and sent bytes together."""
LENGTH: Final = "length"
"""A rank: how long a gap lasts, an open one until now."""
_SUMS: Final = (
    *COUNTERS,
    "sessions_started",
    "sessions_ended",
    "session_seconds",
    "estimated_bytes",
)
_MAX_OFFSET: Final = timedelta(hours=40)
"""A midnight of no time zone is further from that of UTC, even where it is another day there."""


@dataclass(frozen=True, slots=True)
class DaysAgo:
    """The midnight that began today (0) or an earlier day, by the database's clock."""

    days: int


@dataclass(frozen=True, slots=True)
class HoursAgo:
    """So many hours before now, by the database's clock."""

    hours: int


Bound = datetime | DaysAgo | HoursAgo
"""A border of a span of time. A naive time and a midnight are in the time zone of each row."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Arrangement:
    """The order of a list, and how much of it. ``by``: a column, TRAFFIC or LENGTH."""

    by: str | None = None
    descending: bool = False
    limit: int | None = None


AS_IT_IS: Final = Arrangement()


def sessions(
    *,
    realm: str | None = None,
    user: str | None = None,
    since: Bound | None = None,
    until: Bound | None = None,
    live: bool = False,
    arrangement: Arrangement = AS_IT_IS,
) -> Select[Any]:
    """Sessions that were open at some time in [since, until), newest first.

    ``user``: a user_id or a username. ``live``: only open ones. Naive times are UTC.
    """
    query = view("sessions")
    if realm is not None:
        query = query.where(column("realm") == realm)
    if user is not None:
        query = query.where((column("user_id") == user) | (column("username") == user))
    if until is not None:
        query = query.where(column("started_at") < _instant(until, literal("UTC")))
    if since is not None:
        ended_at: Any = column("ended_at")
        begin = _instant(since, literal("UTC"))
        # Half-open; a session that began and ended in one instant counts at that instant.
        query = query.where(
            ended_at.is_(None) | (ended_at > begin) | (column("started_at") >= begin)
        )
    if live:
        query = query.where(column("ended_at").is_(None))
    order: list[Any] = [column("started_at").desc(), column("session_id").desc()]
    return _arranged(query, arrangement, order)


def usage(
    *,
    by: Literal["user", "realm"],
    per: Literal["hour", "day", "month"],
    realm: str | None = None,
    user: str | None = None,
    since: Bound | None = None,
    until: Bound | None = None,
    arrangement: Arrangement = AS_IT_IS,
) -> Select[Any]:
    """Usage in [since, until) by bucket, oldest first.

    A bucket that the span cuts counts from its hours, or days, that start in the span, and shows
    where it is cut. A time with an offset cuts none: programs compare it with ``starts_at``.
    """
    resolution = _usage_resolution(per, since, until)
    query = view(f"{by}_usage_{_VIEW_SUFFIXES[resolution]}")
    if realm is not None:
        query = query.where(column("realm") == realm)
    if user is not None:
        query = query.where(column("user_id") == user)
    starts_at: Any = column("starts_at")
    zone: Any = column("time_zone")
    if since is not None:
        query = query.where(starts_at >= _instant(since, zone))
        query = query.where(starts_at >= _instant(since, literal("UTC")) - _MAX_OFFSET)
    if until is not None:
        query = query.where(starts_at < _instant(until, zone))
        query = query.where(starts_at < _instant(until, literal("UTC")) + _MAX_OFFSET)
    if resolution != per:
        query = _cut_buckets(query, by, per, since, until)
    order: list[Any] = [
        column("starts_at"),
        column("realm"),
        *([column("user_id")] if by == "user" else []),
    ]
    return _arranged(query, arrangement, order)


def cuts_buckets(
    per: Literal["hour", "day", "month"], since: Bound | None, until: Bound | None
) -> bool:
    """Whether such a span may begin or end within a bucket."""
    return _usage_resolution(per, since, until) != per


def _usage_resolution(
    per: Literal["hour", "day", "month"], since: Bound | None, until: Bound | None
) -> Literal["hour", "day", "month"]:
    """The longest buckets, up to ``per``, that this span does not cut."""
    bounds = (_resolution(bound) for bound in (since, until) if bound is not None)
    return min((per, *bounds), key=LENGTHS.index)


def _cut_buckets(
    fine: Select[Any],
    by: Literal["user", "realm"],
    per: Literal["hour", "day", "month"],
    since: Bound | None,
    until: Bound | None,
) -> Select[Any]:
    """Sum hours or days into the buckets that contain them, each cut to the span."""
    peak = ["peak_sessions"] if by == "realm" else []
    names = ["realm"] if by == "realm" else ["realm", "user_id", "user_key"]
    fields = (*names, "starts_at", *_SUMS, *peak)
    f = fine.with_only_columns(*map(column, fields)).subquery("f").c
    bucket_view = table(
        f"realm_usage_{_VIEW_SUFFIXES[per]}",
        *map(column, ("realm", "starts_at", "ends_at", "time_zone")),
        schema="reporting",
    ).alias("b")
    b = bucket_view.c
    begins: Any = b.starts_at
    ends: Any = b.ends_at
    if since is not None:
        begins = func.greatest(begins, _instant(since, b.time_zone))
    if until is not None:
        ends = func.least(ends, _instant(until, b.time_zone))
    subject = [f[name] for name in names]
    cut = (
        select(
            *subject,
            begins.label("starts_at"),
            ends.label("ends_at"),
            b.time_zone,
            *(func.sum(f[name]).label(name) for name in _SUMS),
            *(func.max(f[name]).label(name) for name in peak),
        )
        .join_from(
            f.starts_at.table,
            bucket_view,
            (b.realm == f.realm) & (f.starts_at >= b.starts_at) & (f.starts_at < b.ends_at),
        )
        .group_by(*subject, b.starts_at, b.ends_at, b.time_zone)
    )
    return select(column("*", is_literal=True)).select_from(cut.subquery("u"))


def periods(realm: str | None = None, arrangement: Arrangement = AS_IT_IS) -> Select[Any]:
    """Billing periods by realm, oldest first."""
    query = view("periods")
    if realm is not None:
        query = query.where(column("realm") == realm)
    return _arranged(query, arrangement, [column("realm"), column("starts_at")])


def statements(
    realm: str,
    period: date,
    user: str | None = None,
    *,
    preview: bool = False,
    arrangement: Arrangement = AS_IT_IS,
) -> Select[Any]:
    """The lines of a statement, or of one that is not closed, by user."""
    name = "statement_previews" if preview else "statements"
    query = view(name).where(column("realm") == realm, column("period") == period)
    if user is not None:
        query = query.where(column("user_id") == user)
    return _arranged(query, arrangement, [column("user_id"), column("user_key")])


def adjustments(
    realm: str,
    period: date,
    user: str | None = None,
    *,
    by: Literal["period", "posted_in"],
    arrangement: Arrangement = AS_IT_IS,
) -> Select[Any]:
    """The adjustments that correct a period, or that are posted in it, oldest first."""
    query = view("adjustments").where(column("realm") == realm, column(by) == period)
    if user is not None:
        query = query.where(column("user_id") == user)
    order: list[Any] = [column("posted_at"), column("user_id"), column("adjustment_id")]
    return _arranged(query, arrangement, order)


def gaps(
    *,
    source: str | None = None,
    since: Bound | None = None,
    until: Bound | None = None,
    arrangement: Arrangement = AS_IT_IS,
) -> Select[Any]:
    """The capture gaps that overlap [since, until): open ones, then the newest.

    Naive times are UTC.
    """
    from_at: Any = column("from_at")
    to_at: Any = column("to_at")
    query = view("capture_gaps")
    if source is not None:
        query = query.where(column("source") == source)
    if until is not None:
        query = query.where(from_at < _instant(until, literal("UTC")))
    if since is not None:
        query = query.where(to_at.is_(None) | (to_at > _instant(since, literal("UTC"))))
    order = [to_at.is_not(None), from_at.desc(), column("gap_id").desc()]
    return _arranged(query, arrangement, order)


def view(name: str) -> Select[Any]:
    """All columns of a view."""
    return select(column("*", is_literal=True)).select_from(table(name, schema="reporting"))


def sources(arrangement: Arrangement = AS_IT_IS) -> Select[Any]:
    """All sources by name."""
    return _arranged(view("sources"), arrangement, [column("source")])


def sums(query: Select[Any], columns: Iterable[str]) -> Select[Any]:
    """The number of rows of a query without its limit, as ``row_count``, and sums of columns."""
    rows = query.order_by(None).limit(None).subquery("r")
    fields: list[Any] = [func.sum(column(name)).label(name) for name in columns]
    return select(func.count().label("row_count"), *fields).select_from(rows)


def database_now() -> Select[Any]:
    """The database's clock, as ``now``."""
    return select(func.reporting.database_now().label("now"))


def sessions_by_id(session_ids: Sequence[UUID]) -> Select[Any]:
    """These sessions, in no order."""
    return view("sessions").where(column("session_id", Uuid).in_(session_ids))


def live_sessions_by_realm() -> Select[Any]:
    """The open sessions of each realm: ``realm`` and ``live``.

    They are those that ever started less those that ended, so that no session is read.
    """
    live: Any = func.sum(column("sessions_started", Integer) - column("sessions_ended", Integer))
    months = table("realm_usage_monthly", schema="reporting")
    realm: Any = column("realm")
    return select(realm, live.label("live")).select_from(months).group_by(realm).order_by(realm)


@dataclass(frozen=True, slots=True)
class ReportPosition:
    """A position of a source."""

    epoch: int
    position: int


def recent_traffic(
    source: str,
    since: datetime,
    *,
    after: ReportPosition,
    to: ReportPosition,
    most: int,
) -> Select[Any]:
    """Traffic that was reported after one position and up to another, and received since then.

    At most the newest ``most`` reports are summed. By allocation and second: ``realm``,
    ``user_id``, ``user_key``, ``session_id`` (null if it ended), ``confirmed``, ``received_at``,
    ``received_bytes``, ``sent_bytes``; and ``covered_from``, in each row the time since when all
    reports are in the sums.
    """
    arguments = (
        literal(source),
        literal(since),
        after.epoch,
        literal(after.position, BigInteger),
        to.epoch,
        literal(to.position, BigInteger),
        most,
    )
    rows = func.reporting.recent_traffic(*arguments).table_valued(
        "realm",
        "user_id",
        "user_key",
        "session_id",
        "confirmed",
        "received_at",
        "received_bytes",
        "sent_bytes",
        "covered_from",
    )
    return select(rows)


def source_notices() -> Select[Any]:
    """What an operator should know of sources: ``source``, ``is_error`` and ``notice``."""
    notices = func.reporting.source_notices().table_valued("source", "is_error", "notice")
    return select(notices).order_by(notices.c.source, notices.c.notice)


def time_zones(realm: str | None = None) -> Select[Any]:
    """The time zones of the months in which a realm, or any realm, has usage: ``time_zone``."""
    query: Select[Any] = select(column("time_zone")).select_from(
        table("realm_usage_monthly", schema="reporting")
    )
    if realm is not None:
        query = query.where(column("realm") == realm)
    return query.distinct()


def instant(bound: Bound, now: datetime, zone: tzinfo = UTC) -> datetime:
    """A bound as a time. ``zone``: of naive times and midnights."""
    match bound:
        case HoursAgo():
            return now - timedelta(hours=bound.hours)
        case DaysAgo():
            day = now.astimezone(zone).date() - timedelta(days=bound.days)
            return datetime.combine(day, time(), zone)
        case _:
            return bound if bound.tzinfo else bound.replace(tzinfo=zone)


def _arranged(query: Select[Any], arrangement: Arrangement, order: list[Any]) -> Select[Any]:
    """A query in the order that was asked for; ``order`` is its usual one, and settles ties."""
    if arrangement.by is not None:
        rank = _rank(arrangement.by)
        order = [rank.desc().nulls_last() if arrangement.descending else rank, *order]
    query = query.order_by(*order)
    return query if arrangement.limit is None else query.limit(arrangement.limit)


def _rank(by: str) -> Any:
    """What a column, TRAFFIC or LENGTH is in SQL."""
    if by == TRAFFIC:
        return column("received_bytes") + column("sent_bytes")
    if by == LENGTH:
        now = func.reporting.database_now()
        return func.coalesce(column("to_at"), now) - column("from_at")
    return column(by)


def _resolution(bound: Bound) -> Literal["hour", "day", "month"]:
    """The longest buckets that this bound does not cut."""
    match bound:
        case datetime(tzinfo=tzinfo) if tzinfo is not None:
            return "month"
        case DaysAgo():
            return "day"
        case datetime(tzinfo=None) if bound.time() == time():
            return "month" if bound.day == 1 else "day"
        case _:
            return "hour"


def _instant(bound: Bound, zone: Any) -> Any:
    """A bound as a time in SQL. ``zone``: the time zone that it is in if it has no offset."""
    now = func.reporting.database_now()
    match bound:
        case HoursAgo():
            return now - timedelta(hours=bound.hours)
        case DaysAgo():
            midnight = func.date_trunc("day", func.timezone(zone, now))
            return func.timezone(zone, midnight - timedelta(days=bound.days))
        case datetime(tzinfo=None):
            return func.timezone(zone, bound)
        case _:
            return literal(bound)
