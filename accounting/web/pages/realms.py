"""All realms by name, in pages: for readers of more than one."""

from typing import Any, Final

from fastapi import APIRouter, Request
from starlette.responses import Response

from accounting.reporting import overview, view_queries
from accounting.reporting.view_queries import REALM_KEY
from accounting.reporting.view_query import Row
from accounting.web.api.cursor import binding, decode_cursor, encode_cursor
from accounting.web.api.listing import by_key
from accounting.web.pages.page_books import PageBooks, PageBooksDependency
from accounting.web.problems import not_found
from accounting.web.render import page

PAGE_ROWS: Final = 50
router = APIRouter()


@router.get("/realms")
def realms_page(
    request: Request, books: PageBooksDependency, cursor: str | None = None
) -> Response:
    """Realms with their live sessions, usage, and the first period that is not closed."""
    if not books.reader.reads_all:
        raise not_found("Not Found")
    bound_to = binding("/realms", {})
    after = None if cursor is None else decode_cursor(cursor, bound_to, REALM_KEY)
    fetch = by_key(REALM_KEY, lambda part: books.rows(view_queries.realms(part)))
    rows, key = fetch(after, PAGE_ROWS)
    return page(
        request,
        "realms.html",
        realms=_with_usage(books, rows),
        is_first=cursor is None,
        next_cursor=None if key is None else encode_cursor(bound_to, key),
    )


def _with_usage(books: PageBooks, rows: list[Row]) -> list[dict[Any, Any]]:
    """The realms with ``period``, and their traffic by what it is of: ``("month", "now")``."""
    realms: dict[str, dict[Any, Any]] = {row["realm"]: {**row, "period": None} for row in rows}
    names = list(realms)
    for per in overview.NOW_LENGTHS:
        query = overview.of_realms(overview.realm_usage_now(per), names)
        for row in books.rows(query):
            key = per, "now" if row["is_now"] else "before"
            realm = realms[row["realm"]]  # two rows where a new time zone cuts the month
            realm[key] = realm.get(key, 0) + row["received_bytes"] + row["sent_bytes"]
    for row in books.rows(overview.of_realms(overview.first_unclosed_periods(), names)):
        realms[row["realm"]]["period"] = row
    return list(realms.values())
