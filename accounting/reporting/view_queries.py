"""Queries on sources, realms, gaps and the books as a whole."""

from dataclasses import replace
from datetime import datetime
from typing import Final

from accounting.reporting.session_queries import live_sessions_by_realm
from accounting.reporting.view_query import (
    AS_IT_IS,
    UTC_ZONE,
    Arrangement,
    Bound,
    ViewQuery,
    arranged,
    bounded,
    of_realm,
    view,
)

GAP_KEY: Final = ("to_at", "from_at", "gap_id")

SOURCE_KEY: Final = ("source",)

REALM_KEY: Final = ("realm",)

RATE_KEY: Final = ("realm", "server_address")
RATE_SUMS: Final = (
    "live_sessions",
    "sessions_started_1m",
    "sessions_started_5m",
    "received_bytes_per_second_1m",
    "sent_bytes_per_second_1m",
    "received_bytes_per_second_5m",
    "sent_bytes_per_second_5m",
)
"""The columns of ``rates`` that have sums over realms and servers."""


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
        query = bounded(query, "from_at < {until}", UTC_ZONE, until=until)
    if since is not None:
        query = bounded(query, "(to_at IS NULL OR to_at > {since})", UTC_ZONE, since=since)
    if arrangement.after is not None:
        to_at, from_at, gap_id = arrangement.after
        is_older = "(from_at, gap_id) < (%(after_from)s, %(after_gap)s)"
        if to_at is None:
            query = query.where(f"(to_at IS NOT NULL OR {is_older})")
        else:
            query = query.where(f"to_at IS NOT NULL AND {is_older}")
        query = query.where("true", after_from=from_at, after_gap=gap_id)
    return arranged(query, arrangement, "to_at IS NOT NULL", "from_at DESC", "gap_id DESC")


def sources(arrangement: Arrangement = AS_IT_IS) -> ViewQuery:
    """All sources by name."""
    return arranged(view("sources"), arrangement, *SOURCE_KEY, key=SOURCE_KEY)


_REALMS: Final = """(
SELECT k.realm, coalesce(l.live, 0) AS live
FROM reporting.known_realms() k (realm) LEFT JOIN ({live}) l USING (realm)
) r"""


def realms(arrangement: Arrangement = AS_IT_IS) -> ViewQuery:
    """Every realm: ``realm``, and ``live``, the number of its open sessions."""
    query = ViewQuery(relation=_REALMS.format(live=live_sessions_by_realm().text))
    return arranged(query, arrangement, *REALM_KEY, key=REALM_KEY)


def rates(realm: str | None = None, arrangement: Arrangement = AS_IT_IS) -> ViewQuery:
    """What each server does now, by realm: the last minute and five minutes."""
    return arranged(of_realm(view("rates"), realm), arrangement, *RATE_KEY, key=RATE_KEY)


def rates_of_servers(realm: str | None, most: int) -> ViewQuery:
    """The servers with most bytes per second now, over all realms or in one."""
    sums = (f"sum({name})::bigint AS {name}" for name in RATE_SUMS)
    query = of_realm(view("rates"), realm)
    return replace(
        query,
        columns=("server_address", *sums),
        group="server_address",
        order=(
            "sum(received_bytes_per_second_1m + sent_bytes_per_second_1m) DESC",
            "sum(live_sessions) DESC",
            "server_address",
        ),
        limit=most,
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


def source_notices() -> ViewQuery:
    """What an operator should know of sources: ``source``, ``is_error`` and ``notice``."""
    return replace(view("source_notices()"), order=("source", "notice"))


def time_zones(realm: str | None = None) -> ViewQuery:
    """The time zones of the months in which a realm, or any realm, has usage: ``time_zone``."""
    months = of_realm(view("realm_usage_monthly"), realm)
    return replace(months, columns=("time_zone",), group="time_zone")
