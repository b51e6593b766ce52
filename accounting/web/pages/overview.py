"""The first page: today and this month beside the last, what is live, and what is wrong."""

from collections.abc import Mapping, Sequence
from datetime import UTC, timedelta
from typing import Any, Final

from fastapi import APIRouter, Request
from starlette.responses import RedirectResponse, Response

from accounting.reporting import overview as overview_queries
from accounting.reporting import session_queries, view_queries
from accounting.reporting.completeness import not_captured
from accounting.reporting.view_query import HoursAgo
from accounting.web import html
from accounting.web.pages.notices import notices_of
from accounting.web.pages.page_books import PageBooks, PageBooksDependency
from accounting.web.pages.usage_chart import starts_of, with_empty_buckets
from accounting.web.render import page

CHART_HOURS: Final = 24
GAP_HOURS: Final = 24
SHOWN_REALMS: Final = 20
SHOWN_SERVERS: Final = 20
LATE_SECONDS: Final = 60
router = APIRouter()
Row = Mapping[str, Any]


@router.get("/")
def overview(request: Request, books: PageBooksDependency) -> Response:
    """The state of all realms that the reader may read."""
    if books.reader.user_key is not None:
        root = request.scope.get("root_path", "")
        return RedirectResponse(html.url(root, f"/user/{books.reader.user_key}"), 303)
    realms = _realms(books)
    spans = {
        (per, which): _sum([realm[per, which] for realm in realms if (per, which) in realm])
        for per in ("day", "month")
        for which in ("now", "before")
    }
    state = _now(books, realms)
    realms.sort(key=lambda realm: (-_traffic(realm.get(("month", "now"))), realm["realm"]))
    hours = books.rows(overview_queries.hours_of_all(CHART_HOURS))
    chart_from = state["now"] - timedelta(hours=CHART_HOURS)
    return page(
        request,
        "overview.html",
        realms=realms[:SHOWN_REALMS],
        realm_count=len(realms),
        starts=starts_of(state["now"], UTC),
        spans=spans,
        hours=with_empty_buckets(hours, "hour", UTC, chart_from, state["now"]) if hours else [],
        chart_hours=CHART_HOURS,
        **state,
    )


@router.get("/now")
def now(request: Request, books: PageBooksDependency) -> Response:
    """What changes all the time, for the page to refresh itself: notices and figures."""
    return page(request, "now.html", **_now(books, _realms(books)))


def _now(books: PageBooks, realms: Sequence[Mapping[Any, Any]]) -> dict[str, Any]:
    at = books.now()
    sources = [
        row for row in books.service_rows(view_queries.sources()) if row["retired_at"] is None
    ]
    settled = [
        (row, (at - (row["settled_until"] or row["captured_until"])).total_seconds())
        for row in sources
        if row["captured_until"] is not None
    ]
    today = [realm["day", "now"] for realm in realms if ("day", "now") in realm]
    gaps = books.service_rows(view_queries.gaps(since=HoursAgo(GAP_HOURS)))
    lapses = list(not_captured(at, sources, gaps))
    return {
        "now": at,
        "live": sum(realm["live"] for realm in realms),
        "peak": max(today, key=lambda row: row["peak_sessions"], default=None),
        "sources": sources,
        "furthest": max(settled, key=lambda source: source[1], default=None),
        "late_seconds": LATE_SECONDS,
        "gaps": gaps,
        "lapses": lapses,
        "unknown_since": min((lapse.since for lapse in lapses if lapse.since), default=None),
        "progress": books.progress(),
        "notices": notices_of(
            at,
            sources,
            gaps,
            books.service_rows(view_queries.source_notices()),
            books.service_rows(overview_queries.rejected_lately(GAP_HOURS)),
            GAP_HOURS,
        ),
        "gap_hours": GAP_HOURS,
        "rates": books.rows(view_queries.rates_of_servers(None, SHOWN_SERVERS)),
    }


def _realms(books: PageBooks) -> list[dict[Any, Any]]:
    """Every realm with ``live``, and its usage by what it is of: ``("month", "now")``."""
    realms: dict[str, dict[Any, Any]] = {}
    for row in books.rows(session_queries.live_sessions_by_realm()):
        realms[row["realm"]] = {"realm": row["realm"], "live": int(row["live"])}
    for per in ("day", "month"):
        for row in books.rows(overview_queries.realm_usage_now(per)):
            realm = realms.setdefault(row["realm"], {"realm": row["realm"], "live": 0})
            key = per, "now" if row["is_now"] else "before"
            realm[key] = _sum([realm[key], row]) if key in realm else row
    return list(realms.values())


def _sum(rows: Sequence[Row]) -> Row:
    """The sums of usage over realms; of peaks the highest one."""
    names = ("received_bytes", "sent_bytes", "sessions_started", "estimated_bytes")
    sums = {name: sum(row[name] for row in rows) for name in names}
    highest = max(rows, key=lambda row: row["peak_sessions"], default=None)
    if highest is None:
        return sums | {"peak_sessions": 0, "realm": ""}
    return sums | {"peak_sessions": highest["peak_sessions"], "realm": highest["realm"]}


def _traffic(row: Row | None) -> int:
    return int(row["received_bytes"] + row["sent_bytes"]) if row else 0
