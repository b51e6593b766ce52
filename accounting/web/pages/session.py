"""One session: what is known of it, and its reports as a time line, with their positions."""

from typing import Final
from uuid import UUID

from fastapi import APIRouter, Request
from starlette.responses import Response

from accounting.reporting.session_queries import REPORT_KEY
from accounting.web.api.cursor import binding, decode_cursor, encode_cursor
from accounting.web.api.sessions import reports_page
from accounting.web.pages.page_books import PageBooksDependency
from accounting.web.render import page

PAGE_REPORTS: Final = 100
router = APIRouter()


@router.get("/session/{session_id}")
def session_page(
    request: Request, books: PageBooksDependency, session_id: UUID, cursor: str | None = None
) -> Response:
    """A session, and a part of its reports."""
    session = books.session(session_id)
    bound_to = binding(f"/session/{session_id}", {})
    after = None if cursor is None else decode_cursor(cursor, bound_to, REPORT_KEY)
    reports, key = reports_page(books, session_id, after, PAGE_REPORTS)
    return page(
        request,
        "session.html",
        session=session,
        now=books.now(),
        erased=books.erased([session]),
        reports=reports,
        is_first=cursor is None,
        next_cursor=None if key is None else encode_cursor(bound_to, key),
    )
