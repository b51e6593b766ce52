"""One user, by the key: usage as a chart, sessions, and what was billed."""

from typing import Final
from uuid import UUID

from fastapi import APIRouter, Request
from starlette.responses import Response

from accounting.reporting import (
    billing_queries,
    limit_queries,
    overview,
    session_queries,
    usage_queries,
)
from accounting.reporting.view_query import Arrangement
from accounting.web import html
from accounting.web.pages.limits import with_usage
from accounting.web.pages.page_books import PageBooksDependency
from accounting.web.pages.usage_chart import (
    SPANS,
    Row,
    now_and_before,
    span_of,
    starts_of,
    with_empty_buckets,
)
from accounting.web.problems import not_found
from accounting.web.render import page

SHOWN_LINES: Final = 24
SHOWN_SESSIONS: Final = 20
SHOWN_LIMITS: Final = 20
SHOWN_STATES: Final = 10
router = APIRouter()


@router.get("/user/{user_key}")
def user_page(
    request: Request, books: PageBooksDependency, user_key: UUID, per: str = "day"
) -> Response:
    """A user who has usage, also one whose name was erased."""
    span = span_of(per)
    found = books.rows(overview.user_names(user_key), by_user=True)
    if not found:
        raise not_found("no such user")
    names = found[0]
    progress = books.progress()
    since = progress.now - span.length
    current: dict[tuple[str, str], Row] = {}
    for length in ("day", "month"):
        query = overview.user_usage_now(user_key, length)
        current |= now_and_before(books.rows(query, by_user=True), length)
    usage = usage_queries.usage(by="user", per=span.per, user_key=user_key, since=since)
    sessions = session_queries.sessions(
        user_key=user_key, arrangement=Arrangement(limit=SHOWN_SESSIONS)
    )
    lines = billing_queries.statements(
        None, None, user_key=user_key, arrangement=_newest("period", SHOWN_LINES)
    )
    adjustments = billing_queries.adjustments(
        None,
        None,
        user_key=user_key,
        by="period",
        arrangement=_newest("posted_at", SHOWN_LINES),
    )
    rows = books.rows(usage, by_user=True)
    peaks = books.rows(overview.user_peak(names["realm"], user_key, since), by_user=True)
    limits = books.limits(names["realm"], Arrangement(limit=SHOWN_LIMITS), user_key=user_key)
    used = limit_queries.usage_of_user(user_key, [limit["limit_id"] for limit in limits])
    states = limit_queries.limit_states(
        user_key=user_key, arrangement=Arrangement(limit=SHOWN_STATES)
    )
    return page(
        request,
        "user.html",
        user={**names, "user_key": user_key},
        erased=books.erased([{"user_id": names["user_id"], "user_key": user_key}]),
        spans=SPANS,
        span=span,
        since=since,
        now=progress.now,
        progress=progress,
        starts=starts_of(progress.now, html.zone(names["time_zone"])),
        rows=with_empty_buckets(rows, span.per, html.zone(names["time_zone"]), since, progress.now)
        if rows
        else [],
        current=current,
        peak_sessions=peaks[0]["peak_sessions"] if peaks else 0,
        limits=with_usage(limits, books.rows(used, by_user=True) if limits else []),
        states=books.rows(states, by_user=True),
        sessions=books.rows(sessions, by_user=True),
        lines=books.rows(lines, by_user=True),
        adjustments=books.rows(adjustments, by_user=True),
    )


def _newest(column: str, most: int) -> Arrangement:
    return Arrangement(by=column, descending=True, limit=most)
