"""Queries for a look at all realms, one realm or one user: what is now beside what was before.

Users are found by their key, which does not change when a name is erased.
"""

from collections.abc import Collection, Sequence
from dataclasses import replace
from datetime import datetime, timedelta
from typing import Final, Literal
from uuid import UUID

from accounting.reporting.view_query import USAGE_SUMS, ViewQuery, view

_SUFFIXES: Final = {"hour": "hourly", "day": "daily", "month": "monthly"}
NOW_LENGTHS: Final[Sequence[Literal["day", "month"]]] = ("day", "month")
_LONGEST: Final = {"day": timedelta(days=4), "month": timedelta(days=63)}
"""How long ago the bucket before the present one began at most."""


def realm_usage_now(per: Literal["day", "month"]) -> ViewQuery:
    """Usage of each realm in its day or month that is now, and in the one before.

    With ``is_now``: which of both it is.
    """
    return _now_and_before("realm", per)


def user_usage_now(user_key: UUID, per: Literal["day", "month"]) -> ViewQuery:
    """As :func:`realm_usage_now`, of one user."""
    return _of_key(_now_and_before("user", per), user_key)


def _now_and_before(subject: Literal["realm", "user"], per: Literal["day", "month"]) -> ViewQuery:
    begin = f"date_trunc('{per}', timezone(time_zone, starts_at))"
    this = f"date_trunc('{per}', timezone(time_zone, reporting.database_now()))"
    query = replace(
        view(f"{subject}_usage_{_SUFFIXES[per]}"), columns=("*", f"{begin} = {this} AS is_now")
    )
    return replace(
        query.where(
            "starts_at > reporting.database_now() - %(longest)s", longest=_LONGEST[per]
        ).where(f"{begin} >= {this} - interval '1 {per}'"),
        order=("realm", "starts_at"),
    )


def of_realms(query: ViewQuery, realms: Collection[str]) -> ViewQuery:
    """A query of several realms, for these only."""
    return query.where("realm = ANY(%(realms)s)", realms=list(realms))


def first_unclosed_periods() -> ViewQuery:
    """Of each realm its first period that is not closed."""
    query = view("periods").where("closed_at IS NULL")
    return replace(query, columns=("DISTINCT ON (realm) *",), order=("realm", "starts_at"))


def hours_of_all(hours: int) -> ViewQuery:
    """Usage of all realms together in each of the last hours."""
    of_realm = (
        "(SELECT v.* FROM reporting.known_realms() AS known (name) CROSS JOIN LATERAL"
        " (SELECT * FROM reporting.realm_usage_hourly WHERE realm = known.name"
        " AND starts_at > reporting.database_now() - %(span)s) v) u"
    )
    sums = (f"sum({name}) AS {name}" for name in USAGE_SUMS)
    return ViewQuery(
        relation=of_realm,
        values={"span": timedelta(hours=hours)},
        columns=("starts_at", *sums),
        group="starts_at",
        order=("starts_at",),
    )


def user_names(user_key: UUID) -> ViewQuery:
    """``realm``, ``user_id`` and ``time_zone`` of a user who has usage; no row without."""
    return replace(
        _of_key(view("user_usage_monthly"), user_key),
        columns=("realm", "user_id", "time_zone"),
        order=("starts_at DESC",),
        limit=1,
    )


def erased_users(user_keys: Collection[UUID]) -> ViewQuery:
    """Those of the users whose name was erased: ``user_key``."""
    query = view("erased_users(%(user_keys)s) AS user_key")
    return replace(query, values={"user_keys": list(user_keys)})


def rejected_lately(hours: int) -> ViewQuery:
    """How many messages of each source could not be parsed in the last hours."""
    query = view("rejected_message_counts").where(
        "ends_at > reporting.database_now() - %(span)s", span=timedelta(hours=hours)
    )
    return replace(
        query,
        columns=("source", "sum(messages) AS messages"),
        group="source",
        order=("source",),
    )


def unattributed_by_hour(realm: str, since: datetime) -> ViewQuery:
    """Bytes of unattributed usage of a realm by hour: ``realm``, ``starts_at`` and ``bytes``."""
    return ViewQuery(
        relation="reporting.unattributed_hours(%(realm)s, %(since)s, NULL)"
        " CROSS JOIN (SELECT %(realm)s::text AS realm) r",
        columns=("realm", "hour_starts_at AS starts_at", "bytes"),
        values={"realm": realm, "since": since},
        order=("starts_at",),
    )


def unattributed_names(realm: str, borders: Sequence[datetime]) -> ViewQuery:
    """Unattributed usage of a realm between borders: ``starts_at``, ``bytes``, ``names``.

    And ``new_names``, those that were not there since the first border. A bucket without any has no
    row.
    """
    return ViewQuery(
        relation="reporting.unattributed_names(%(realm)s, %(borders)s)"
        " CROSS JOIN (SELECT %(realm)s::text AS realm) r",
        columns=("realm", "starts_at", "bytes", "names", "new_names"),
        values={"realm": realm, "borders": list(borders)},
        order=("starts_at",),
    )


def top_unattributed_names(realm: str, since: datetime, most: int) -> ViewQuery:
    """The usernames with most unattributed usage: ``bytes``, ``hours``, and ``last_hour``."""
    return ViewQuery(
        relation="reporting.top_unattributed_names(%(realm)s, %(since)s, %(most)s)"
        " CROSS JOIN (SELECT %(realm)s::text AS realm) r",
        columns=("realm", "username", "bytes", "hours", "last_hour"),
        values={"realm": realm, "since": since, "most": most},
        order=("bytes DESC", "username"),
    )


def statement_totals(lines: ViewQuery) -> ViewQuery:
    """Of all lines of a statement: ``row_count``, sums, ``digest`` and ``estimated_users``.

    The digest is that of :func:`accounting.domain.statements.statement_digest`.
    """
    texts = "string_agg(user_key::text || ' ' || digest, E'\\n' ORDER BY user_key)"
    digest = f"encode(sha256(convert_to(coalesce({texts}, ''), 'UTF8')), 'hex') AS digest"
    estimated = "count(*) FILTER (WHERE estimated_bytes > 0) AS estimated_users"
    sums = (f"coalesce(sum({name}), 0) AS {name}" for name in USAGE_SUMS)
    return ViewQuery(
        relation=f"({replace(lines, order=(), limit=None).text}) r",
        columns=("count(*) AS row_count", estimated, digest, *sums),
        values=lines.values,
    )


def with_totals(lines: ViewQuery) -> ViewQuery:
    """Lines, each with the totals of all before the limit, as ``total_...``: read only once."""
    estimated = "count(*) FILTER (WHERE estimated_bytes > 0) OVER () AS total_estimated_users"
    sums = (f"sum({name}) OVER () AS total_{name}" for name in USAGE_SUMS)
    return replace(lines, columns=("*", "count(*) OVER () AS total_row_count", estimated, *sums))


def _of_key(query: ViewQuery, user_key: UUID) -> ViewQuery:
    return query.where("user_key = %(user_key)s", user_key=user_key)


def user_peak(realm: str, user_key: UUID, since: datetime) -> ViewQuery:
    """The most sessions of a user that were open at once since a time, as ``peak_sessions``."""
    return ViewQuery(
        relation="(SELECT %(realm)s AS realm, %(user_key)s::uuid AS user_key,"
        " reporting.user_peak_sessions(%(user_key)s, %(since)s, NULL) AS peak_sessions) p",
        values={"realm": realm, "user_key": user_key, "since": since},
    )
