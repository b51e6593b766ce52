"""Queries on the views of schema ``reporting``: filters, and an order that is always the same."""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, date, datetime, time, timedelta, tzinfo
from typing import Any, Final, Literal
from uuid import UUID

from accounting.domain.counters import COUNTERS

_VIEW_SUFFIXES: Final = {"hour": "hourly", "day": "daily", "month": "monthly"}
LENGTHS: Final[tuple[Literal["hour", "day", "month"], ...]] = ("hour", "day", "month")
TRAFFIC: Final = "traffic"
"""A rank: received and sent bytes together."""
_OF_POSSIBLE_USERS: Final = "user_key = ANY (ARRAY(SELECT reporting.possible_user_keys(%(user)s)))"
"""For the index: a session has only the key of its user, and not the names."""
LENGTH: Final = "length"
"""A rank: how long a gap lasts, an open one until now."""
_RANKS: Final = {
    TRAFFIC: "received_bytes + sent_bytes",
    LENGTH: "coalesce(to_at, reporting.database_now()) - from_at",
}
_COLUMN: Final = re.compile(r"[a-z_]+")
_SUM: Final = "sum(f.{0}) AS {0}"
_SUBQUERY: Final = "({}) f"
_UTC: Final = "'UTC'"
_OWN_ZONE: Final = "time_zone"
"""The column with the time zone of a row."""
USAGE_SUMS: Final = (
    *COUNTERS,
    "sessions_started",
    "sessions_ended",
    "session_seconds",
    "estimated_bytes",
)


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
Row = Mapping[str, Any]
"""A row by the columns of its view."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ViewQuery:
    """A SELECT in the style of psycopg: ``relation`` is what it reads, ``values`` its parameters.

    Its parts are texts of this module and names of columns; all else is a parameter.
    """

    relation: str
    columns: Sequence[str] = ("*",)
    conditions: Sequence[str] = ()
    values: Mapping[str, Any] = field(default_factory=dict)
    group: str | None = None
    order: Sequence[str] = ()
    limit: int | None = None

    def where(self, condition: str, **values: Any) -> "ViewQuery":
        """The query with one condition more, and the parameters that it names."""
        return replace(
            self, conditions=(*self.conditions, condition), values={**self.values, **values}
        )

    @property
    def text(self) -> str:
        parts = ["SELECT", ", ".join(self.columns), "FROM", self.relation]
        if self.conditions:
            parts += ["WHERE", " AND ".join(self.conditions)]
        if self.group is not None:
            parts += ["GROUP BY", self.group]
        if self.order:
            parts += ["ORDER BY", ", ".join(self.order)]
        if self.limit is not None:
            parts += ["LIMIT", str(self.limit)]
        return " ".join(parts)


def sessions(
    *,
    realm: str | None = None,
    user: str | None = None,
    since: Bound | None = None,
    until: Bound | None = None,
    live: bool = False,
    arrangement: Arrangement = AS_IT_IS,
) -> ViewQuery:
    """Sessions that were open at some time in [since, until), newest first.

    ``user``: a user_id or a username. ``live``: only open ones. Naive times are UTC.
    """
    query = _of_realm(view("sessions"), realm)
    if user is not None:
        query = query.where("(user_id = %(user)s OR username = %(user)s)", user=user)
        query = query.where(_OF_POSSIBLE_USERS, user=user)
    if until is not None:
        query = _bounded(query, "started_at < {until}", _UTC, until=until)
    if since is not None:
        # Half-open; a session that began and ended in one instant counts at that instant.
        overlaps = "(ended_at IS NULL OR ended_at > {since} OR started_at >= {since})"
        query = _bounded(query, overlaps, _UTC, since=since)
    if live:
        query = query.where("ended_at IS NULL")
    return _arranged(query, arrangement, "started_at DESC", "session_id DESC")


def usage(
    *,
    by: Literal["user", "realm"],
    per: Literal["hour", "day", "month"],
    realm: str | None = None,
    user: str | None = None,
    since: Bound | None = None,
    until: Bound | None = None,
    arrangement: Arrangement = AS_IT_IS,
) -> ViewQuery:
    """Usage in [since, until) by bucket, oldest first.

    A bucket that the span cuts counts from its hours, or days, that start in the span, and shows
    where it is cut. A time with an offset cuts none: programs compare it with ``starts_at``.
    """
    resolution = _usage_resolution(per, since, until)
    query = _of_user(view(f"{by}_usage_{_VIEW_SUFFIXES[resolution]}"), realm, user)
    # For the index: no midnight is further than 40 hours from that of UTC, whatever its day.
    if since is not None:
        query = _bounded(query, "starts_at >= {since}", _OWN_ZONE, since=since)
        query = _bounded(query, "starts_at >= {since} - interval '40 hours'", _UTC, since=since)
    if until is not None:
        query = _bounded(query, "starts_at < {until}", _OWN_ZONE, until=until)
        query = _bounded(query, "starts_at < {until} + interval '40 hours'", _UTC, until=until)
    if resolution != per:
        query = _cut_buckets(query, by, per, since, until)
    order = ("starts_at", "realm", *(["user_id"] if by == "user" else []))
    return _arranged(query, arrangement, *order)


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


_CUT_BUCKETS: Final = """(
SELECT {subject}, b.time_zone, {sums},
    greatest(b.starts_at, {since}) AS starts_at, least(b.ends_at, {until}) AS ends_at
FROM {fine}
JOIN reporting.realm_usage_{per} b
ON b.realm = f.realm AND f.starts_at >= b.starts_at AND f.starts_at < b.ends_at
GROUP BY {subject}, b.starts_at, b.ends_at, b.time_zone
) u"""


def _cut_buckets(
    fine: ViewQuery,
    by: Literal["user", "realm"],
    per: Literal["hour", "day", "month"],
    since: Bound | None,
    until: Bound | None,
) -> ViewQuery:
    """Sum hours or days into the buckets that contain them, each cut to the span."""
    names = ["realm"] if by == "realm" else ["realm", "user_id", "user_key"]
    sums = [_SUM.format(name) for name in USAGE_SUMS]
    if by == "realm":
        sums.append("max(f.peak_sessions) AS peak_sessions")
    relation = _CUT_BUCKETS.format(
        subject=", ".join("f." + name for name in names),
        since="NULL" if since is None else _instant("since", since, "b.time_zone"),
        until="NULL" if until is None else _instant("until", until, "b.time_zone"),
        sums=", ".join(sums),
        fine=_SUBQUERY.format(fine.text),
        per=_VIEW_SUFFIXES[per],
    )
    return ViewQuery(relation=relation, values=fine.values)


def periods(realm: str | None = None, arrangement: Arrangement = AS_IT_IS) -> ViewQuery:
    """Billing periods by realm, oldest first."""
    return _arranged(_of_realm(view("periods"), realm), arrangement, "realm", "starts_at")


def statements(
    realm: str,
    period: date,
    user: str | None = None,
    *,
    preview: bool = False,
    arrangement: Arrangement = AS_IT_IS,
) -> ViewQuery:
    """The lines of a statement, or of one that is not closed, by user."""
    query = _of_user(view("statement_previews" if preview else "statements"), realm, user)
    query = query.where("period = %(period)s", period=period)
    return _arranged(query, arrangement, "user_id", "user_key")


def adjustments(
    realm: str,
    period: date,
    user: str | None = None,
    *,
    by: Literal["period", "posted_in"],
    arrangement: Arrangement = AS_IT_IS,
) -> ViewQuery:
    """The adjustments that correct a period, or that are posted in it, oldest first."""
    query = _of_user(view("adjustments"), realm, user)
    query = query.where(by + " = %(period)s", period=period)
    return _arranged(query, arrangement, "posted_at", "user_id", "adjustment_id")


def gaps(
    *,
    source: str | None = None,
    since: Bound | None = None,
    until: Bound | None = None,
    arrangement: Arrangement = AS_IT_IS,
) -> ViewQuery:
    """The capture gaps that overlap [since, until): open ones, then the newest.

    Naive times are UTC.
    """
    query = view("capture_gaps")
    if source is not None:
        query = query.where("source = %(source)s", source=source)
    if until is not None:
        query = _bounded(query, "from_at < {until}", _UTC, until=until)
    if since is not None:
        query = _bounded(query, "(to_at IS NULL OR to_at > {since})", _UTC, since=since)
    return _arranged(query, arrangement, "to_at IS NOT NULL", "from_at DESC", "gap_id DESC")


def view(name: str) -> ViewQuery:
    """All columns of a view."""
    return ViewQuery(relation=f"reporting.{name}")


def sources(arrangement: Arrangement = AS_IT_IS) -> ViewQuery:
    """All sources by name."""
    return _arranged(view("sources"), arrangement, "source")


def sums(query: ViewQuery, columns: Iterable[str]) -> ViewQuery:
    """The number of rows of a query without its limit, as ``row_count``, and sums of columns."""
    return ViewQuery(
        relation=_SUBQUERY.format(replace(query, order=(), limit=None).text),
        columns=("count(*) AS row_count", *map(_SUM.format, columns)),
        values=query.values,
    )


def database_now() -> ViewQuery:
    """The database's clock, as ``now``."""
    return view("database_now() AS now")


def known_realms() -> ViewQuery:
    """Every realm, as ``name``."""
    return view("known_realms() AS name")


def known_users(realm: str | None, user: str) -> ViewQuery:
    """A user if it is known, and similar ones, as ``name``; of any realm for None."""
    values = {"realm": realm, "user": user}
    return replace(view("known_users(%(realm)s, %(user)s) AS name"), values=values)


def span_waits_for(
    realm: str | None, since: datetime | None, until: datetime | None, *, is_usage: bool
) -> ViewQuery:
    """What the usage or the sessions of a span wait for, as ``waits_for``; None for any."""
    return ViewQuery(
        relation="reporting.span_waits_for(%(realm)s, %(since)s, %(until)s, %(is_usage)s)"
        " AS waits_for",
        values={"realm": realm, "since": since, "until": until, "is_usage": is_usage},
    )


def sessions_by_id(session_ids: Sequence[UUID]) -> ViewQuery:
    """These sessions, in no order."""
    return view("sessions").where("session_id = ANY(%(ids)s)", ids=list(session_ids))


def live_sessions_by_realm() -> ViewQuery:
    """The open sessions of each realm: ``realm`` and ``live``.

    They are those that ever started less those that ended, so that no session is read.
    """
    live = "sum(sessions_started - sessions_ended) AS live"
    query = replace(view("realm_usage_monthly"), columns=("realm", live))
    return replace(query, group="realm", order=("realm",))


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
) -> ViewQuery:
    """Traffic that was reported after one position and up to another, and received since then.

    At most the newest ``most`` reports are summed. By allocation and second: ``realm``,
    ``user_id``, ``user_key``, ``session_id`` (null if it ended), ``confirmed``, ``received_at``,
    ``received_bytes``, ``sent_bytes``; and ``covered_from``, in each row the time since when all
    reports are in the sums.
    """
    return ViewQuery(
        relation="reporting.recent_traffic(%(source)s, %(since)s, %(after_epoch)s, %(after)s,"
        " %(to_epoch)s, %(to)s, %(most)s)",
        values={
            "source": source,
            "since": since,
            "after_epoch": after.epoch,
            "after": after.position,
            "to_epoch": to.epoch,
            "to": to.position,
            "most": most,
        },
    )


def source_notices() -> ViewQuery:
    """What an operator should know of sources: ``source``, ``is_error`` and ``notice``."""
    return replace(view("source_notices()"), order=("source", "notice"))


def time_zones(realm: str | None = None) -> ViewQuery:
    """The time zones of the months in which a realm, or any realm, has usage: ``time_zone``."""
    months = _of_realm(view("realm_usage_monthly"), realm)
    return replace(months, columns=("time_zone",), group="time_zone")


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


def _of_realm(query: ViewQuery, realm: str | None) -> ViewQuery:
    return query if realm is None else query.where("realm = %(realm)s", realm=realm)


def _of_user(query: ViewQuery, realm: str | None, user: str | None) -> ViewQuery:
    query = _of_realm(query, realm)
    return query if user is None else query.where("user_id = %(user)s", user=user)


def _bounded(query: ViewQuery, condition: str, zone: str, **bounds: Bound) -> ViewQuery:
    """Add a condition on bounds, each ``{name}`` in it; ``zone`` as for :func:`_instant`."""
    instants = {name: _instant(name, bound, zone) for name, bound in bounds.items()}
    values = {name: _value(bound) for name, bound in bounds.items()}
    return query.where(condition.format(**instants), **values)


def _arranged(query: ViewQuery, arrangement: Arrangement, *order: str) -> ViewQuery:
    """A query in the order that was asked for; ``order`` is its usual one, and settles ties."""
    if arrangement.by is not None:
        assert _COLUMN.fullmatch(arrangement.by)
        rank = _RANKS.get(arrangement.by, arrangement.by)
        order = (rank + " DESC NULLS LAST" * arrangement.descending, *order)
    return replace(query, order=order, limit=arrangement.limit)


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


def _instant(name: str, bound: Bound, zone: str) -> str:
    """The SQL of a bound, whose :func:`_value` is the parameter ``name``, as a time.

    ``zone``: the SQL of the time zone that it is in if it has no offset.
    """
    match bound:
        case HoursAgo():
            template = "(reporting.database_now() - %({name})s)"
        case DaysAgo():
            template = (
                "timezone({zone}, date_trunc('day', timezone({zone}, reporting.database_now()))"
                " - %({name})s)"
            )
        case datetime(tzinfo=None):
            template = "timezone({zone}, %({name})s)"
        case _:
            template = "%({name})s"
    return template.format(name=name, zone=zone)


def _value(bound: Bound) -> datetime | timedelta:
    """The parameter of a bound."""
    match bound:
        case HoursAgo():
            return timedelta(hours=bound.hours)
        case DaysAgo():
            return timedelta(days=bound.days)
        case _:
            return bound
