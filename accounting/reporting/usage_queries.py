"""Queries on usage by hour, day and month, and on unattributed usage."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Final, Literal
from uuid import UUID

from accounting.reporting.view_query import (
    AS_IT_IS,
    LENGTHS,
    OWN_ZONE,
    SUBQUERY,
    SUM,
    USAGE_SUMS,
    UTC_ZONE,
    Arrangement,
    Bound,
    ViewQuery,
    arranged,
    bound_sql,
    bound_values,
    bounded,
    is_top,
    of_realm,
    of_user,
    resolution_of,
    view,
)

Subject = Literal["user", "realm", "server", "transport"]
"""What usage is of."""

_VIEW_SUFFIXES: Final = {"hour": "hourly", "day": "daily", "month": "monthly"}

USER_USAGE_KEY: Final = ("starts_at", "realm", "user_id", "user_key")

REALM_USAGE_KEY: Final = ("starts_at", "realm")

USAGE_KEYS: Final[Mapping[Subject, tuple[str, ...]]] = {
    "user": USER_USAGE_KEY,
    "realm": REALM_USAGE_KEY,
    "server": (*REALM_USAGE_KEY, "server_address"),
    "transport": (*REALM_USAGE_KEY, "transport"),
}
"""By what a list of usage is in order."""

UNATTRIBUTED_KEY: Final = ("starts_at", "source", "realm", "username")


def usage(
    *,
    by: Subject,
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
    where it is cut. A time with an offset cuts none: programs compare it with ``starts_at``. Months
    of servers and transports are summed from their days.
    """
    resolution = _usage_resolution(per, since, until)
    if by in {"server", "transport"} and resolution == "month":
        resolution = "day"
    if by == "user" and resolution == per and user is None and user_key is None:
        # Whoever restricts these to a user must name the user: a condition that is added to the
        # query selects from the page, or from the top.
        buckets = _in_span(f"realm_usage_{_VIEW_SUFFIXES[per]}", realm, since, until)
        if arrangement.limit is not None and arrangement.by is None:
            return _lines_by_bucket(buckets, per, arrangement)
        if is_top(arrangement):
            return _top_users(buckets, per, arrangement)
    query = _in_span(f"{by}_usage_{_VIEW_SUFFIXES[resolution]}", realm, since, until)
    query = of_user(query, None, user, user_key)
    if resolution != per:
        query = _cut_buckets(query, by, per, since, until)
    elif arrangement.after is not None:
        # For the index: the comparison of the whole key uses none.
        query = query.where("starts_at >= %(after_0)s")
    key = USAGE_KEYS[by]
    return arranged(query, arrangement, *key, key=key)


def _in_span(name: str, realm: str | None, since: Bound | None, until: Bound | None) -> ViewQuery:
    """The buckets of a view of usage that start in a span."""
    query = of_realm(view(name), realm)
    # For the index: no midnight is further than 40 hours from that of UTC, whatever its day.
    if since is not None:
        query = bounded(query, "starts_at >= {since}", OWN_ZONE, since=since)
        query = bounded(query, "starts_at >= {since} - interval '40 hours'", UTC_ZONE, since=since)
    if until is not None:
        query = bounded(query, "starts_at < {until}", OWN_ZONE, until=until)
        query = bounded(query, "starts_at < {until} + interval '40 hours'", UTC_ZONE, until=until)
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
    return arranged(query, arrangement, *USER_USAGE_KEY)


def cuts_buckets(
    per: Literal["hour", "day", "month"], since: Bound | None, until: Bound | None
) -> bool:
    """Whether such a span may begin or end within a bucket."""
    return _usage_resolution(per, since, until) != per


def _usage_resolution(
    per: Literal["hour", "day", "month"], since: Bound | None, until: Bound | None
) -> Literal["hour", "day", "month"]:
    """The longest buckets, up to ``per``, that this span does not cut."""
    bounds = (resolution_of(bound) for bound in (since, until) if bound is not None)
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
    by: Subject,
    per: Literal["hour", "day", "month"],
    since: Bound | None,
    until: Bound | None,
) -> ViewQuery:
    """Sum hours or days into the buckets that contain them, each cut to the span."""
    names = [name for name in USAGE_KEYS[by] if name != "starts_at"]
    sums = [SUM.format(name) for name in USAGE_SUMS]
    if by != "user":
        sums.append("max(f.peak_sessions) AS peak_sessions")
    relation = _CUT_BUCKETS.format(
        subject=", ".join("f." + name for name in names),
        since="NULL" if since is None else bound_sql("since", since, "b.time_zone"),
        until="NULL" if until is None else bound_sql("until", until, "b.time_zone"),
        sums=", ".join(sums),
        fine=SUBQUERY.format(fine.text),
        per=_VIEW_SUFFIXES[per],
    )
    return ViewQuery(relation=relation, values=fine.values)


def unattributed(
    *,
    realm: str | None = None,
    source: str | None = None,
    since: Bound | None = None,
    until: Bound | None = None,
    arrangement: Arrangement = AS_IT_IS,
) -> ViewQuery:
    """Traffic of allocations that coturn never confirmed, by hour. Naive times are UTC."""
    query = of_realm(view("unattributed_usage"), realm)
    if source is not None:
        query = query.where("source = %(source)s", source=source)
    if arrangement.limit is not None and arrangement.by is None:
        return _unattributed_page(query, realm, since, until, arrangement)
    if since is not None:
        query = bounded(query, "starts_at >= {since}", UTC_ZONE, since=since)
    if until is not None:
        query = bounded(query, "starts_at < {until}", UTC_ZONE, until=until)
    return arranged(query, arrangement, *UNATTRIBUTED_KEY, key=UNATTRIBUTED_KEY)


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
        name: "NULL" if bound is None else bound_sql(name, bound, UTC_ZONE)
        for name, bound in bounds.items()
    }
    lines = arranged(lines, arrangement, *UNATTRIBUTED_KEY, key=UNATTRIBUTED_KEY)
    relation = _UNATTRIBUTED_PAGE.format(
        **instants,
        after="NULL" if arrangement.after is None else "%(after_0)s",
        lines=lines.where("starts_at = h.hour_starts_at").text,
        key=", ".join(UNATTRIBUTED_KEY[1:]),
    )
    values = {
        **lines.values,
        **bound_values(**bounds),
        "realm": realm,
        "most": arrangement.limit,
    }
    return ViewQuery(relation=relation, values=values, order=UNATTRIBUTED_KEY)
