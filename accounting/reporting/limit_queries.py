"""Queries on limits of usage: what is set, what was reached, and how far along users are."""

from collections.abc import Collection
from dataclasses import replace
from typing import Final
from uuid import UUID

from accounting.reporting.view_query import (
    AS_IT_IS,
    UTC_ZONE,
    Arrangement,
    Bound,
    ViewQuery,
    arranged,
    bound_sql,
    bound_values,
    descending,
    of_realm,
    view,
)

LIMIT_KEY: Final = ("limit_id",)

LIMIT_USAGE_KEY: Final = ("limit_id", "user_key")

LIMIT_STATE_KEY: Final = ("starts_at", "limit_id", "threshold", "user_key")

_OF_USER: Final = "(whom = 'every_user' OR user_key = %(user_key)s)"

_NEAREST: Final = """(
SELECT n.* FROM reporting.limits l
CROSS JOIN LATERAL reporting.nearest_to_limit(l.limit_id, %(most)s) n
WHERE (%(realm)s::text IS NULL OR l.realm = %(realm)s)
AND (%(limit_ids)s::integer[] IS NULL OR l.limit_id = ANY (%(limit_ids)s))
) s"""

_STATE_PAGE: Final = """(
SELECT * FROM reporting.limit_state_page(
%(realm)s::text, %(user)s::text, %(user_key)s::uuid, {since}::timestamptz, {until}::timestamptz,
%(after_at)s::timestamptz, %(after_limit)s::integer, %(after_threshold)s::integer,
%(after_key)s::uuid, %(most)s
)
) s"""


def limits(
    realm: str | None = None,
    *,
    user_key: UUID | None = None,
    of_many: bool = False,
    arrangement: Arrangement = AS_IT_IS,
) -> ViewQuery:
    """The limits, the oldest first.

    ``user_key``: those of one user, and of every user. ``of_many``: none of one user.
    """
    query = of_realm(view("limits"), realm)
    if of_many:
        query = query.where("whom <> 'user'")
    if user_key is not None:
        query = query.where(_OF_USER, user_key=user_key)
    return arranged(query, arrangement, *LIMIT_KEY, key=LIMIT_KEY)


def limit_states(
    *,
    realm: str | None = None,
    user: str | None = None,
    user_key: UUID | None = None,
    since: Bound | None = None,
    until: Bound | None = None,
    arrangement: Arrangement,
) -> ViewQuery:
    """Thresholds that were reached in buckets that start in [since, until), the newest first.

    Naive times are UTC. The cost depends on the limit of the arrangement, which it needs.
    """
    bounds = {"since": since, "until": until}
    instants = {
        name: "NULL" if bound is None else bound_sql(name, bound, UTC_ZONE)
        for name, bound in bounds.items()
    }
    after_at, after_limit, after_threshold, after_key = arrangement.after or (None,) * 4
    return ViewQuery(
        relation=_STATE_PAGE.format(**instants),
        values={
            "realm": realm,
            "user": user,
            "user_key": user_key,
            "after_at": after_at,
            "after_limit": after_limit,
            "after_threshold": after_threshold,
            "after_key": after_key,
            "most": arrangement.limit,
            **bound_values(**bounds),
        },
        order=descending(LIMIT_STATE_KEY),
    )


def reached_now(limit_ids: Collection[int], most: int) -> ViewQuery:
    """How often each of these limits is reached now, counted up to ``most``: ``reached``."""
    return ViewQuery(
        relation="reporting.limits_reached(%(limit_ids)s, %(most)s)",
        values={"limit_ids": list(limit_ids), "most": most},
    )


def nearest(
    realm: str | None = None,
    *,
    limit_ids: Collection[int] | None = None,
    arrangement: Arrangement,
) -> ViewQuery:
    """How much of limits is used in the buckets that run now, the nearest users first.

    ``limit_ids``: of these only. One of every user costs a look at the usage of all of them.
    """
    by_share = arrangement.by is None or (arrangement.by == "percent" and arrangement.descending)
    query = ViewQuery(
        relation=_NEAREST,
        values={
            "realm": realm,
            "limit_ids": None if limit_ids is None else list(limit_ids),
            "most": arrangement.limit if by_share else None,
        },
    )
    if arrangement.by is None:
        arrangement = replace(arrangement, by="percent", descending=True)
    return arranged(query, arrangement, *LIMIT_USAGE_KEY)


def usage_of_user(user_key: UUID, limit_ids: Collection[int]) -> ViewQuery:
    """How much of these limits a user has used in the buckets that run now, as far as any."""
    return _usage(limit_ids).where("whom <> 'realm' AND user_key = %(user_key)s", user_key=user_key)


def usage_of_realms(limit_ids: Collection[int]) -> ViewQuery:
    """How much of these limits, of realms as a whole, is used in the buckets that run now."""
    return _usage(limit_ids).where("whom = 'realm'")


def _usage(limit_ids: Collection[int]) -> ViewQuery:
    return view("limit_usage").where("limit_id = ANY (%(limit_ids)s)", limit_ids=list(limit_ids))
