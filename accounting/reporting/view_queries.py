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
    """The midnight that began today (0) or an earlier day, by the database's clock.

    ``at``: as of that time instead of now, so that pages of a list have the same bounds.
    """

    days: int
    at: datetime | None = None


@dataclass(frozen=True, slots=True)
class HoursAgo:
    """So many hours before now, by the database's clock. ``at``: as :class:`DaysAgo` has it."""

    hours: float
    at: datetime | None = None


Bound = datetime | DaysAgo | HoursAgo
"""A border of a span of time. A naive time and a midnight are in the time zone of each row."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Arrangement:
    """The order of a list, and how much of it. ``by``: a column, TRAFFIC or LENGTH.

    ``after``: the values of the list's key in the row before the first; only in the usual order.
    """

    by: str | None = None
    descending: bool = False
    limit: int | None = None
    after: Sequence[Any] | None = None


AS_IT_IS: Final = Arrangement()

# The columns that give each list its usual order, which is total.
SESSION_KEY: Final = ("started_at", "session_id")
USER_USAGE_KEY: Final = ("starts_at", "realm", "user_id", "user_key")
REALM_USAGE_KEY: Final = ("starts_at", "realm")
PERIOD_KEY: Final = ("realm", "starts_at")
STATEMENT_KEY: Final = ("realm", "period", "user_id", "user_key")
ADJUSTMENT_KEY: Final = ("posted_at", "user_id", "adjustment_id")
GAP_KEY: Final = ("to_at", "from_at", "gap_id")
SOURCE_KEY: Final = ("source",)
REALM_KEY: Final = ("realm",)
REPORT_KEY: Final = ("received_at", "epoch", "position")
UNATTRIBUTED_KEY: Final = ("starts_at", "source", "realm", "username")

REPORT_COLUMNS: Final = (
    "source",
    "epoch",
    "position",
    "received_at",
    "time_estimated",
    "event",
    "side",
    "lifetime",
    "transport",
    "client_address",
    "server_address",
    "received_packets",
    "received_bytes",
    "sent_packets",
    "sent_bytes",
)
"""Of a report of a session."""
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


_SESSION_PAGE: Final = """(
SELECT v.* FROM reporting.session_page(
%(realm)s::text, %(user)s::text, %(user_key)s::uuid, {since}::timestamptz, {until}::timestamptz,
%(live)s, %(after_at)s::timestamptz, %(after_id)s::uuid, %(most)s
) p
JOIN reporting.sessions v ON v.session_id = p.page_session_id AND v.user_key = p.page_user_key
) s"""


def sessions(
    *,
    realm: str | None = None,
    user: str | None = None,
    user_key: UUID | None = None,
    since: Bound | None = None,
    until: Bound | None = None,
    live: bool = False,
    arrangement: Arrangement = AS_IT_IS,
) -> ViewQuery:
    """Sessions that were open at some time in [since, until), newest first.

    ``user``: a user_id or a username. ``live``: only open ones. Naive times are UTC. With a limit
    and in the usual order, the cost depends on the limit only.
    """
    if arrangement.limit is not None and arrangement.by is None:
        after_at, after_id = arrangement.after or (None, None)
        bounds = {"since": since, "until": until}
        instants = {
            name: "NULL" if bound is None else _instant(name, bound, _UTC)
            for name, bound in bounds.items()
        }
        page = ViewQuery(
            relation=_SESSION_PAGE.format(**instants),
            values={
                "realm": realm,
                "user": user,
                "user_key": user_key,
                "live": live,
                "after_at": after_at,
                "after_id": after_id,
                "most": arrangement.limit,
                **_bound_values(**bounds),
            },
        )
        return _begun(replace(page, order=_descending(SESSION_KEY)), since)
    query = _of_realm(view("sessions"), realm)
    if user is not None:
        query = query.where("(user_id = %(user)s OR username = %(user)s)", user=user)
        query = query.where(_OF_POSSIBLE_USERS, user=user)
    if user_key is not None:
        query = query.where("user_key = %(user_key)s", user_key=user_key)
    if until is not None:
        query = _bounded(query, "started_at < {until}", _UTC, until=until)
    if since is not None:
        # Half-open; a session that began and ended in one instant counts at that instant.
        overlaps = "(ended_at IS NULL OR ended_at > {since} OR started_at >= {since})"
        query = _begun(_bounded(query, overlaps, _UTC, since=since), since)
    if live:
        query = query.where("ended_at IS NULL")
    return _arranged(query, arrangement, *_descending(SESSION_KEY))


def _begun(query: ViewQuery, since: Bound | None) -> ViewQuery:
    """Nothing is open in a span of the future, also what is open now."""
    if not isinstance(since, datetime):
        return query
    return _bounded(query, "{since} <= reporting.database_now()", _UTC, since=since)


def _descending(key: Sequence[str]) -> Sequence[str]:
    return [f"{name} DESC" for name in key]


def usage(
    *,
    by: Literal["user", "realm"],
    per: Literal["hour", "day", "month"],
    realm: str | None = None,
    user: str | None = None,
    user_key: UUID | None = None,
    since: Bound | None = None,
    until: Bound | None = None,
    arrangement: Arrangement = AS_IT_IS,
) -> ViewQuery:
    """Usage in [since, until) by bucket, oldest first.

    A bucket that the span cuts counts from its hours, or days, that start in the span, and shows
    where it is cut. A time with an offset cuts none: programs compare it with ``starts_at``.
    """
    resolution = _usage_resolution(per, since, until)
    if by == "user" and resolution == per and user is None and user_key is None:
        # Whoever restricts these to a user must name the user: a condition that is added to the
        # query selects from the page, or from the top.
        buckets = _in_span(f"realm_usage_{_VIEW_SUFFIXES[per]}", realm, since, until)
        if arrangement.limit is not None and arrangement.by is None:
            return _lines_by_bucket(buckets, per, arrangement)
        if _is_top(arrangement):
            return _top_users(buckets, per, arrangement)
    query = _in_span(f"{by}_usage_{_VIEW_SUFFIXES[resolution]}", realm, since, until)
    query = _of_user(query, None, user, user_key)
    if resolution != per:
        query = _cut_buckets(query, by, per, since, until)
    elif arrangement.after is not None:
        # For the index: the comparison of the whole key uses none.
        query = query.where("starts_at >= %(after_0)s")
    key = USER_USAGE_KEY if by == "user" else REALM_USAGE_KEY
    return _arranged(query, arrangement, *key, key=key)


def _in_span(name: str, realm: str | None, since: Bound | None, until: Bound | None) -> ViewQuery:
    """The buckets of a view of usage that start in a span."""
    query = _of_realm(view(name), realm)
    # For the index: no midnight is further than 40 hours from that of UTC, whatever its day.
    if since is not None:
        query = _bounded(query, "starts_at >= {since}", _OWN_ZONE, since=since)
        query = _bounded(query, "starts_at >= {since} - interval '40 hours'", _UTC, since=since)
    if until is not None:
        query = _bounded(query, "starts_at < {until}", _OWN_ZONE, until=until)
        query = _bounded(query, "starts_at < {until} + interval '40 hours'", _UTC, until=until)
    return query


_LINES_BY_BUCKET: Final = """(
SELECT u.* FROM ({buckets}) b
CROSS JOIN LATERAL (
SELECT v.* FROM reporting.usage_page(%(per)s, b.realm, b.starts_at, {after}, %(most)s) k (user_key)
JOIN reporting.{view} v
ON v.user_key = k.user_key AND v.realm = b.realm AND v.starts_at = b.starts_at
ORDER BY v.user_id, v.user_key LIMIT %(most)s
) u
ORDER BY b.starts_at, b.realm, u.user_id, u.user_key LIMIT %(most)s
) s"""
_AFTER_IN_BUCKET: Final = (
    "CASE WHEN (b.starts_at, b.realm) = (%(after_0)s, %(after_1)s) THEN %(after_2)s::text END, "
    "%(after_3)s::uuid"
)


def _lines_by_bucket(
    buckets: ViewQuery, per: Literal["hour", "day", "month"], arrangement: Arrangement
) -> ViewQuery:
    """A page of users' lines, read bucket by bucket until it is full: few are ever sorted."""
    after = "NULL, NULL"
    if arrangement.after is not None:
        values = {f"after_{number}": value for number, value in enumerate(arrangement.after)}
        buckets = buckets.where("(starts_at, realm) >= (%(after_0)s, %(after_1)s)", **values)
        after = _AFTER_IN_BUCKET
    buckets = replace(buckets, columns=("starts_at", "realm"), order=("starts_at", "realm"))
    relation = _LINES_BY_BUCKET.format(
        buckets=buckets.text, view=f"user_usage_{_VIEW_SUFFIXES[per]}", after=after
    )
    return ViewQuery(
        relation=relation,
        values={**buckets.values, "per": per, "most": arrangement.limit},
        order=USER_USAGE_KEY,
    )


_TOP_USERS: Final = """(
SELECT v.* FROM (
SELECT array_agg(realm) AS realms, array_agg(starts_at) AS starts FROM ({buckets}) b
) w
CROSS JOIN LATERAL reporting.top_users(%(per)s, w.realms, w.starts, %(most)s) t
CROSS JOIN LATERAL (
SELECT * FROM reporting.{view} l
WHERE l.user_key = t.top_user_key AND l.starts_at = t.top_starts_at LIMIT 1
) v
) s"""


def _top_users(
    buckets: ViewQuery, per: Literal["hour", "day", "month"], arrangement: Arrangement
) -> ViewQuery:
    """The users' lines with most traffic in these buckets: only theirs are read whole."""
    relation = _TOP_USERS.format(
        buckets=replace(buckets, columns=("starts_at", "realm")).text,
        view=f"user_usage_{_VIEW_SUFFIXES[per]}",
    )
    values = {**buckets.values, "per": per, "most": arrangement.limit}
    query = ViewQuery(relation=relation, values=values)
    return _arranged(query, arrangement, *USER_USAGE_KEY)


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
    query = _of_realm(view("periods"), realm)
    return _arranged(query, arrangement, *PERIOD_KEY, key=PERIOD_KEY)


_TOP_LINES: Final = """(
SELECT v.* FROM (
SELECT realm, period, user_key FROM ({lines}) l
ORDER BY received_bytes + sent_bytes DESC FETCH FIRST %(most)s ROWS WITH TIES
) t
CROSS JOIN LATERAL (
SELECT * FROM reporting.statements l
WHERE l.realm = t.realm AND l.period = t.period AND l.user_key = t.user_key LIMIT 1
) v
) s"""
"""Names are looked up for these lines only."""


def statements(
    realm: str | None,
    period: date | None,
    user: str | None = None,
    *,
    user_key: UUID | None = None,
    preview: bool = False,
    arrangement: Arrangement = AS_IT_IS,
) -> ViewQuery:
    """The lines of statements, or of those that are not closed, by realm, period and user."""
    query = view("statement_previews" if preview else "statements")
    query = _of_user(query, realm, user, user_key)
    if period is not None:
        query = query.where("period = %(period)s", period=period)
    if _is_top(arrangement) and not preview and user is None and user_key is None:
        # As in usage(): a condition that is added selects from the top.
        values = {**query.values, "most": arrangement.limit}
        query = ViewQuery(relation=_TOP_LINES.format(lines=query.text), values=values)
    return _arranged(query, arrangement, *STATEMENT_KEY, key=STATEMENT_KEY)


def adjustments(
    realm: str | None,
    period: date | None,
    user: str | None = None,
    *,
    by: Literal["period", "posted_in"],
    user_key: UUID | None = None,
    arrangement: Arrangement = AS_IT_IS,
) -> ViewQuery:
    """The adjustments that correct a period, or that are posted in it, oldest first."""
    query = _of_user(view("adjustments"), realm, user, user_key)
    if period is not None:
        query = query.where(by + " = %(period)s", period=period)
    return _arranged(query, arrangement, *ADJUSTMENT_KEY, key=ADJUSTMENT_KEY)


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
    if arrangement.after is not None:
        to_at, from_at, gap_id = arrangement.after
        is_older = "(from_at, gap_id) < (%(after_from)s, %(after_gap)s)"
        if to_at is None:
            query = query.where(f"(to_at IS NOT NULL OR {is_older})")
        else:
            query = query.where(f"to_at IS NOT NULL AND {is_older}")
        query = query.where("true", after_from=from_at, after_gap=gap_id)
    return _arranged(query, arrangement, "to_at IS NOT NULL", "from_at DESC", "gap_id DESC")


def unattributed(
    *,
    realm: str | None = None,
    source: str | None = None,
    since: Bound | None = None,
    until: Bound | None = None,
    arrangement: Arrangement = AS_IT_IS,
) -> ViewQuery:
    """Traffic of allocations that coturn never confirmed, by hour. Naive times are UTC."""
    query = _of_realm(view("unattributed_usage"), realm)
    if source is not None:
        query = query.where("source = %(source)s", source=source)
    if arrangement.limit is not None and arrangement.by is None:
        return _unattributed_page(query, realm, since, until, arrangement)
    if since is not None:
        query = _bounded(query, "starts_at >= {since}", _UTC, since=since)
    if until is not None:
        query = _bounded(query, "starts_at < {until}", _UTC, until=until)
    return _arranged(query, arrangement, *UNATTRIBUTED_KEY, key=UNATTRIBUTED_KEY)


_UNATTRIBUTED_PAGE: Final = """(
SELECT v.* FROM (
SELECT hour_starts_at FROM reporting.unattributed_hours(
%(realm)s, greatest({since}, {after})::timestamptz, {until}::timestamptz) ORDER BY hour_starts_at
) h
CROSS JOIN LATERAL ({lines}) v
ORDER BY h.hour_starts_at, {key} LIMIT %(most)s
) s"""


def _unattributed_page(
    lines: ViewQuery,
    realm: str | None,
    since: Bound | None,
    until: Bound | None,
    arrangement: Arrangement,
) -> ViewQuery:
    """A page of lines, read hour by hour until it is full: a line has the sums of its sessions."""
    bounds = {"since": since, "until": until}
    instants = {
        name: "NULL" if bound is None else _instant(name, bound, _UTC)
        for name, bound in bounds.items()
    }
    lines = _arranged(lines, arrangement, *UNATTRIBUTED_KEY, key=UNATTRIBUTED_KEY)
    relation = _UNATTRIBUTED_PAGE.format(
        **instants,
        after="NULL" if arrangement.after is None else "%(after_0)s",
        lines=lines.where("starts_at = h.hour_starts_at").text,
        key=", ".join(UNATTRIBUTED_KEY[1:]),
    )
    values = {
        **lines.values,
        **_bound_values(**bounds),
        "realm": realm,
        "most": arrangement.limit,
    }
    return ViewQuery(relation=relation, values=values, order=UNATTRIBUTED_KEY)


def view(name: str) -> ViewQuery:
    """All columns of a view."""
    return ViewQuery(relation=f"reporting.{name}")


def sources(arrangement: Arrangement = AS_IT_IS) -> ViewQuery:
    """All sources by name."""
    return _arranged(view("sources"), arrangement, *SOURCE_KEY, key=SOURCE_KEY)


_REALMS: Final = """(
SELECT k.realm, coalesce(l.live, 0) AS live
FROM reporting.known_realms() k (realm) LEFT JOIN ({live}) l USING (realm)
) r"""


def realms(arrangement: Arrangement = AS_IT_IS) -> ViewQuery:
    """Every realm: ``realm``, and ``live``, the number of its open sessions."""
    query = ViewQuery(relation=_REALMS.format(live=live_sessions_by_realm().text))
    return _arranged(query, arrangement, *REALM_KEY, key=REALM_KEY)


def sums(query: ViewQuery, columns: Iterable[str]) -> ViewQuery:
    """The number of rows of a query without its limit, as ``row_count``, and sums of columns."""
    return ViewQuery(
        relation=_SUBQUERY.format(replace(query, order=(), limit=None).text),
        columns=("count(*) AS row_count", *map(_SUM.format, columns)),
        values=query.values,
    )


def progress() -> ViewQuery:
    """How far all sources in service are counted, and the database's clock."""
    until = "min(settled_until) AS counted_until"
    query = view("sources").where("retired_at IS NULL AND loaded_until IS NOT NULL")
    return replace(query, columns=(until, "reporting.database_now() AS now"))


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


def session_reports(
    session_id: UUID, *, after: Sequence[Any] | None, limit: int, most_scanned: int
) -> ViewQuery:
    """Reports of a session in order, after the one received then at an epoch and position.

    ``scanned_until`` is null but in a last row where the search ended early: after
    ``most_scanned`` reports of any session. It goes on after that time.
    """
    at, epoch, position = after or (None, None, None)
    return ViewQuery(
        relation="reporting.session_reports(%(session_id)s, %(at)s::timestamptz,"
        " %(epoch)s::integer, %(position)s::bigint, %(most)s, %(most_scanned)s)",
        values={
            "session_id": session_id,
            "at": at,
            "epoch": epoch,
            "position": position,
            "most": limit,
            "most_scanned": most_scanned,
        },
    )


def live_sessions_by_realm(realm: str | None = None) -> ViewQuery:
    """The open sessions of each realm: ``realm`` and ``live``.

    They are those that ever started less those that ended, so that no session is read.
    """
    live = "sum(sessions_started - sessions_ended) AS live"
    query = _of_realm(replace(view("realm_usage_monthly"), columns=("realm", live)), realm)
    return replace(query, group="realm", order=("realm",))


def live_sessions_of_user(user_key: UUID) -> ViewQuery:
    """The number of open sessions of a user, as ``live``; counted as those of a realm."""
    live = "coalesce(sum(sessions_started - sessions_ended), 0) AS live"
    return replace(
        view("user_usage_monthly").where("user_key = %(user_key)s", user_key=user_key),
        columns=(live,),
    )


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


def _of_user(
    query: ViewQuery, realm: str | None, user: str | None, user_key: UUID | None = None
) -> ViewQuery:
    query = _of_realm(query, realm)
    if user is not None:
        query = query.where("user_id = %(user)s", user=user)
    if user_key is not None:
        query = query.where("user_key = %(user_key)s", user_key=user_key)
    return query


def _bounded(query: ViewQuery, condition: str, zone: str, **bounds: Bound) -> ViewQuery:
    """Add a condition on bounds, each ``{name}`` in it; ``zone`` as for :func:`_instant`."""
    instants = {name: _instant(name, bound, zone) for name, bound in bounds.items()}
    return query.where(condition.format(**instants), **_bound_values(**bounds))


def _is_top(arrangement: Arrangement) -> bool:
    """Whether the rows with most traffic are asked for."""
    return arrangement.limit is not None and arrangement.by == TRAFFIC and arrangement.descending


def _arranged(
    query: ViewQuery, arrangement: Arrangement, *order: str, key: Sequence[str] = ()
) -> ViewQuery:
    """A query in the order that was asked for; ``order`` is its usual one, and settles ties.

    ``key``: the columns of that order, if ``arrangement.after`` has their values.
    """
    if arrangement.by is not None:
        assert _COLUMN.fullmatch(arrangement.by)
        rank = _RANKS.get(arrangement.by, arrangement.by)
        order = (rank + " DESC NULLS LAST" * arrangement.descending, *order)
    elif key and arrangement.after is not None:
        values = {f"after_{number}": value for number, value in enumerate(arrangement.after)}
        query = query.where(_beyond(key), **values)
    return replace(query, order=order, limit=arrangement.limit)


def _beyond(key: Sequence[str]) -> str:
    """The condition that a key comes after the one in the parameters ``after_0`` and so on."""
    values = ", ".join(f"%(after_{number})s" for number in range(len(key)))
    return f"({', '.join(key)}) > ({values})"


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
    """The SQL of a bound, with the parameters of :func:`_bound_values`, as a time.

    ``zone``: the SQL of the time zone that it is in if it has no offset.
    """
    now = "reporting.database_now()"
    if isinstance(bound, DaysAgo | HoursAgo) and bound.at is not None:
        now = "%({name}_at)s"
    match bound:
        case HoursAgo():
            template = "(" + now + " - %({name})s)"
        case DaysAgo():
            day = "date_trunc('day', timezone({zone}, " + now + "))"
            template = "timezone({zone}, " + day + " - %({name})s)"
        case datetime(tzinfo=None):
            template = "timezone({zone}, %({name})s)"
        case _:
            template = "%({name})s"
    return template.format(name=name, zone=zone)


def _bound_values(**bounds: Bound | None) -> dict[str, Any]:
    """The parameters of bounds, by name; None has none."""
    values: dict[str, Any] = {}
    for name, bound in bounds.items():
        match bound:
            case HoursAgo():
                values[name] = timedelta(hours=bound.hours)
            case DaysAgo():
                values[name] = timedelta(days=bound.days)
            case datetime():
                values[name] = bound
        if isinstance(bound, DaysAgo | HoursAgo) and bound.at is not None:
            values[f"{name}_at"] = bound.at
    return values


def as_of(bound: Bound | None, at: datetime) -> Bound | None:
    """A bound that stays where it is at a time."""
    return replace(bound, at=at) if isinstance(bound, DaysAgo | HoursAgo) else bound
