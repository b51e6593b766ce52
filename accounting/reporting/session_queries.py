"""Queries on sessions, their reports, and what is live."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any, Final
from uuid import UUID

from accounting.reporting.view_query import (
    AS_IT_IS,
    OF_POSSIBLE_USERS,
    UTC_ZONE,
    Arrangement,
    Bound,
    ViewQuery,
    arranged,
    bound_sql,
    bound_values,
    bounded,
    descending,
    of_realm,
    view,
)

# The columns that give each list its usual order, which is total.
SESSION_KEY: Final = ("started_at", "session_id")

REPORT_KEY: Final = ("received_at", "epoch", "position")

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
            name: "NULL" if bound is None else bound_sql(name, bound, UTC_ZONE)
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
                **bound_values(**bounds),
            },
        )
        return _begun(replace(page, order=descending(SESSION_KEY)), since)
    query = of_realm(view("sessions"), realm)
    if user is not None:
        query = query.where("(user_id = %(user)s OR username = %(user)s)", user=user)
        query = query.where(OF_POSSIBLE_USERS, user=user)
    if user_key is not None:
        query = query.where("user_key = %(user_key)s", user_key=user_key)
    if until is not None:
        query = bounded(query, "started_at < {until}", UTC_ZONE, until=until)
    if since is not None:
        # Half-open; a session that began and ended in one instant counts at that instant.
        overlaps = "(ended_at IS NULL OR ended_at > {since} OR started_at >= {since})"
        query = _begun(bounded(query, overlaps, UTC_ZONE, since=since), since)
    if live:
        query = query.where("ended_at IS NULL")
    return arranged(query, arrangement, *descending(SESSION_KEY))


def _begun(query: ViewQuery, since: Bound | None) -> ViewQuery:
    """Nothing is open in a span of the future, also what is open now."""
    if not isinstance(since, datetime):
        return query
    return bounded(query, "{since} <= reporting.database_now()", UTC_ZONE, since=since)


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
    query = of_realm(replace(view("realm_usage_monthly"), columns=("realm", live)), realm)
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
