"""Traffic of a realm that was never authenticated: how much, under how many names, and which."""

from datetime import timedelta
from typing import Final

from fastapi import APIRouter, Request
from starlette.responses import Response

from accounting.reporting import billing_queries, overview, view_queries
from accounting.reporting.view_query import Arrangement
from accounting.web import html
from accounting.web.pages.page_books import PageBooksDependency
from accounting.web.pages.usage_chart import Span, borders, span_of
from accounting.web.problems import not_found
from accounting.web.render import page

SPANS: Final = (
    Span("hour", "Hours", timedelta(hours=48), "48h"),
    Span("day", "Days", timedelta(days=14), "14d"),
)
TOP_NAMES: Final = 50
TOP_SPAN: Final = timedelta(hours=24)
router = APIRouter()


@router.get("/unattributed")
def unattributed_page(
    request: Request, books: PageBooksDependency, realm: str, per: str = "hour"
) -> Response:
    """A realm that the reader may read; its names too."""
    span = span_of(per, SPANS)
    if not books.rows(view_queries.realms().where("realm = %(realm)s", realm=realm)):
        raise not_found("no such realm")
    newest = Arrangement(by="starts_at", descending=True, limit=1)
    periods = books.rows(billing_queries.periods(realm, newest))
    zone_name = periods[0]["time_zone"] if periods else "UTC"
    now = books.now()
    starts = borders(span.per, html.zone(zone_name), now - span.length, now)
    rows = books.rows(overview.unattributed_names(realm, starts))
    top_since = now - TOP_SPAN
    return page(
        request,
        "unattributed.html",
        realm=realm,
        time_zone=zone_name,
        spans=SPANS,
        span=span,
        since=starts[0],
        rows=rows[::-1],
        first=starts[0],
        top_since=top_since,
        top_names=TOP_NAMES,
        names=books.rows(overview.top_unattributed_names(realm, top_since, TOP_NAMES)),
    )
