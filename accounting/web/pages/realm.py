"""One realm: its usage as a chart in its own zone, its top users, and its periods."""

from collections.abc import Sequence
from datetime import datetime, tzinfo
from typing import Any, Final, Literal

from fastapi import APIRouter, Request
from starlette.responses import Response

from accounting.reporting import (
    billing_queries,
    limit_queries,
    overview,
    usage_queries,
    view_queries,
)
from accounting.reporting.view_query import TRAFFIC, Arrangement
from accounting.web import html
from accounting.web.pages.limits import with_usage
from accounting.web.pages.page_books import PageBooks, PageBooksDependency
from accounting.web.pages.usage_chart import (
    SPANS,
    Row,
    Span,
    now_and_before,
    span_of,
    starts_of,
    with_empty_buckets,
    with_unattributed,
)
from accounting.web.problems import not_found
from accounting.web.render import page

TOP_USERS: Final = 20
SHOWN_PLACES: Final = 20
SHOWN_PERIODS: Final = 4
SHOWN_LIMITS: Final = 10
NEAREST_LIMITS: Final = 2
"""Of so many limits of every user the page has the nearest users: each is a look at all of them."""
NEAREST_USERS: Final = 5
MOST_REACHED: Final = 10_000
"""Users who have reached a limit are counted up to this number."""
router = APIRouter()


@router.get("/realm")
def realm_page(
    request: Request, books: PageBooksDependency, realm: str, per: str = "day"
) -> Response:
    """A realm that the reader may read; its users too."""
    span = span_of(per)
    found = books.rows(view_queries.realms().where("realm = %(realm)s", realm=realm))
    if not found:
        raise not_found("no such realm")
    periods = books.rows(
        billing_queries.periods(
            realm, Arrangement(by="starts_at", descending=True, limit=SHOWN_PERIODS)
        )
    )
    progress = books.progress()
    since = progress.now - span.length
    query = usage_queries.usage(by="realm", per=span.per, realm=realm, since=since)
    rows = books.rows(query)
    hours = books.rows(overview.unattributed_by_hour(realm, since))
    zone_name = (periods or rows)[0]["time_zone"] if periods or rows else "UTC"
    current: dict[tuple[str, str], Row] = {}
    for length in ("day", "month"):
        query = overview.realm_usage_now(length).where("realm = %(realm)s", realm=realm)
        current |= now_and_before(books.rows(query), length)
    month = current.get(("month", "now"))
    return page(
        request,
        "realm.html",
        realm=realm,
        live=int(found[0]["live"]),
        time_zone=zone_name,
        periods=periods,
        spans=SPANS,
        span=span,
        rows=_chart_rows(rows, hours, span, html.zone(zone_name), progress.now),
        since=since,
        now=progress.now,
        progress=progress,
        starts=starts_of(progress.now, html.zone(zone_name)),
        current=current,
        unattributed_bytes=sum(int(row["bytes"]) for row in hours),
        month=month,
        **_limits(books, realm),
        **_top_users(books, realm, month),
        places=_places(books, realm, month),
        rates=books.rows(view_queries.rates_of_servers(realm, SHOWN_PLACES)),
    )


def _limits(books: PageBooks, realm: str) -> dict[str, Any]:
    """Limits of more than one user: how many have reached them, and how far the realm is."""
    limits = books.limits(realm, Arrangement(limit=SHOWN_LIMITS), of_many=True)
    own = [limit for limit in limits if limit["whom"] == "realm"]
    used = books.rows(limit_queries.usage_of_realms([limit["limit_id"] for limit in own]))
    of_users = [limit["limit_id"] for limit in limits if limit["whom"] != "realm"]
    # These limits are the reader's own, and have no realm to restrict them by.
    reached = books.database.read_rows(limit_queries.reached_now(of_users, MOST_REACHED))
    nearest = []
    for limit_id in [limit["limit_id"] for limit in limits if limit["whom"] == "every_user"][
        :NEAREST_LIMITS
    ]:
        query = limit_queries.nearest(
            limit_ids=[limit_id], arrangement=Arrangement(limit=NEAREST_USERS)
        )
        nearest += books.rows(query, by_user=True)
    return {
        "nearest": nearest,
        "nearest_erased": books.erased(nearest),
        "limits": limits,
        "own": {row["limit_id"]: row for row in with_usage(own, used)},
        "most_reached": MOST_REACHED,
        "reached": {row["limit_id"]: int(row["reached"]) for row in reached},
    }


def _chart_rows(
    rows: Sequence[Row], hours: Sequence[Row], span: Span, zone: tzinfo, now: datetime
) -> list[Row]:
    """The buckets of the chart; none at all where nothing was reported."""
    rows = with_unattributed(rows, hours, span.per, zone)
    return with_empty_buckets(rows, span.per, zone, now - span.length, now) if rows else []


def _top_users(books: PageBooks, realm: str, month: Row | None) -> dict[str, Any]:
    """The users with most traffic in the month that is now."""
    users: list[Row] = []
    if month is not None:
        query = usage_queries.usage(
            by="user",
            per="month",
            realm=realm,
            user_key=books.user_key(None),
            since=month["starts_at"],
            until=month["ends_at"],
            arrangement=Arrangement(by=TRAFFIC, descending=True, limit=TOP_USERS),
        )
        users = books.rows(query, by_user=True)
    return {"users": users, "erased": books.erased(users)}


def _places(books: PageBooks, realm: str, month: Row | None) -> list[tuple[str, str, list[Row]]]:
    """The servers and the transports of the month that is now: heading, column and rows."""
    if month is None:
        return []
    subjects: tuple[tuple[Literal["server", "transport"], str, str], ...] = (
        ("server", "Server", "server_address"),
        ("transport", "Transport", "transport"),
    )
    return [
        (
            heading,
            column,
            books.rows(
                usage_queries.usage(
                    by=subject,
                    per="month",
                    realm=realm,
                    since=month["starts_at"],
                    until=month["ends_at"],
                    arrangement=Arrangement(by=TRAFFIC, descending=True, limit=SHOWN_PLACES),
                )
            ),
        )
        for subject, heading, column in subjects
    ]
