"""Limits of usage: what is set, and which thresholds were reached lately."""

from collections.abc import Sequence
from typing import Final

from fastapi import APIRouter, Request
from starlette.responses import Response

from accounting.reporting import limit_queries
from accounting.reporting.limit_queries import LIMIT_STATE_KEY
from accounting.reporting.view_query import Arrangement, Row
from accounting.web.api.cursor import binding, decode_cursor, encode_cursor
from accounting.web.api.listing import by_key
from accounting.web.pages.page_books import PageBooksDependency
from accounting.web.problems import no_such_address
from accounting.web.render import page

SHOWN: Final = 100
PAGE_ROWS: Final = 50
router = APIRouter()


def with_usage(limits: Sequence[Row], usage: Sequence[Row]) -> list[Row]:
    """Limits with what is ``used`` of each now, and ``percent``; both None without usage."""
    by_limit = {row["limit_id"]: row for row in usage}
    nothing = {"usage": None, "percent": None, "ends_at": None, "time_zone": None}
    return [
        {**limit, **{name: row[name] for name in ("percent", "ends_at", "time_zone")}}
        | {"used": row["usage"]}
        for limit in limits
        for row in [by_limit.get(limit["limit_id"], nothing)]
    ]


@router.get("/limits")
def limits_page(
    request: Request,
    books: PageBooksDependency,
    realm: str | None = None,
    cursor: str | None = None,
) -> Response:
    """The limits of a realm, or of all that the reader may read, and what was reached of them.

    A reader of one user has them on the user's page.
    """
    books.leave_no_cell_out()
    if not books.reader.reads_realm:
        raise no_such_address()
    bound_to = binding("/limits", {} if realm is None else {"realm": realm})

    def read(part: Arrangement) -> list[Row]:
        query = limit_queries.limit_states(realm=books.realm(realm), arrangement=part)
        return books.rows(query, by_user=True)

    after = None if cursor is None else decode_cursor(cursor, bound_to, LIMIT_STATE_KEY)
    states, key = by_key(LIMIT_STATE_KEY, read)(after, PAGE_ROWS)
    limits = books.limits(realm, Arrangement(limit=SHOWN + 1))
    if not limits and not states and cursor is None:
        books.check_names(realm=realm)
    return page(
        request,
        "limits.html",
        realm=realm,
        limits=limits[:SHOWN],
        has_more_limits=len(limits) > SHOWN,
        shown=SHOWN,
        states=states,
        now=books.now(),
        is_first=cursor is None,
        next_cursor=None if key is None else encode_cursor(bound_to, key),
        erased=books.erased([row for row in (*limits, *states) if row["user_key"]]),
    )
