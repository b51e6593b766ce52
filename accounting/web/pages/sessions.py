"""Sessions: filters, the live ones first, and pages by key."""

from typing import Final
from uuid import UUID

from fastapi import APIRouter, Request
from starlette.responses import Response

from accounting.errors import UsageError
from accounting.reporting import session_queries
from accounting.reporting.filters import PARAMETER, time_span
from accounting.reporting.session_queries import SESSION_KEY
from accounting.reporting.view_query import Arrangement, Row
from accounting.web.api.cursor import binding, decode_cursor, encode_cursor
from accounting.web.api.listing import by_key
from accounting.web.pages.page_books import PageBooksDependency
from accounting.web.problems import Problem
from accounting.web.render import page

PAGE_ROWS: Final = 50
SHOWN_LIVE: Final = 10
router = APIRouter()


@router.get("/sessions")
def sessions_page(
    request: Request,
    books: PageBooksDependency,
    realm: str | None = None,
    user: str | None = None,
    user_key: UUID | None = None,
    since: str | None = None,
    until: str | None = None,
    live: bool = False,
    cursor: str | None = None,
    form: str | None = None,
) -> Response:
    """Sessions that were open at some time of a span. Empty fields of the form filter nothing."""
    if form is not None:
        realm = realm or None  # only a link can name the realm without a name
    user, since, until = user or None, since or None, until or None
    filters = {"realm": realm, "user": user, "user_key": user_key, "since": since, "until": until}
    error = ""
    status = 200
    rows: list[Row] = []
    live_rows: list[Row] = []
    next_cursor: str | None = None
    try:
        begin, end = time_span(since, until, dashes=PARAMETER)
        given = {name: str(value) for name, value in filters.items() if value is not None}
        bound_to = binding("/sessions", {**given, "live": str(live)})

        def read(part: Arrangement, *, only_live: bool = live) -> list[Row]:
            query = session_queries.sessions(
                realm=books.realm(realm),
                user=user,
                user_key=books.user_key(user_key),
                since=begin,
                until=end,
                live=only_live,
                arrangement=part,
            )
            return books.rows(query, by_user=True)

        after = None if cursor is None else decode_cursor(cursor, bound_to, SESSION_KEY)
        rows, key = by_key(SESSION_KEY, read)(after, PAGE_ROWS)
        next_cursor = None if key is None else encode_cursor(bound_to, key)
        if not live and cursor is None:
            live_rows = read(Arrangement(limit=SHOWN_LIVE), only_live=True)
        if not rows and cursor is None:
            books.check_names(realm=realm, user=user)
    except UsageError as wrong:
        error, status = str(wrong), 400
    except Problem as problem:  # an unknown name: the form stays, to mend it
        error, status = problem.detail, problem.status
    return page(
        request,
        "sessions.html",
        status=status,
        filters=filters,
        is_filtered=any(value is not None for value in filters.values()),
        live=live,
        now=books.now(),
        error=error,
        rows=rows,
        live_rows=live_rows,
        shown_live=SHOWN_LIVE,
        is_first=cursor is None,
        next_cursor=next_cursor,
        erased=books.erased([*rows, *live_rows]),
    )
