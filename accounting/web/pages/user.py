"""One user, by the key: usage as a chart, sessions, and what was billed."""

from typing import Final
from uuid import UUID

from fastapi import APIRouter, Request
from starlette.responses import Response

from accounting.reporting import overview
from accounting.web.pages.page_books import PageBooksDependency
from accounting.web.pages.usage_chart import SPANS, Row, now_and_before, span_of
from accounting.web.problems import not_found
from accounting.web.render import page

SHOWN_LINES: Final = 24
SHOWN_SESSIONS: Final = 20
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
    now = books.now()
    since = now - span.length
    current: dict[tuple[str, str], Row] = {}
    for length in ("day", "month"):
        query = overview.user_usage_now(user_key, length)
        current |= now_and_before(books.rows(query, by_user=True), length)
    return page(
        request,
        "user.html",
        user={**names, "user_key": user_key},
        erased=books.erased([{"user_id": names["user_id"], "user_key": user_key}]),
        spans=SPANS,
        span=span,
        since=since,
        now=now,
        rows=books.rows(overview.user_usage(user_key, span.per, since), by_user=True),
        current=current,
        sessions=books.rows(overview.sessions_of(user_key, SHOWN_SESSIONS), by_user=True),
        lines=books.rows(overview.statement_lines_of(user_key, SHOWN_LINES), by_user=True),
        adjustments=books.rows(overview.adjustments_of(user_key, SHOWN_LINES), by_user=True),
    )
