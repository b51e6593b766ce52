"""The billing periods of a realm or of all, newest first."""

from typing import Final

from fastapi import APIRouter, Request
from starlette.responses import Response

from accounting.reporting import billing_queries
from accounting.reporting.view_query import Arrangement
from accounting.web.pages.page_books import PageBooksDependency
from accounting.web.render import page

SHOWN: Final = 100
router = APIRouter()


@router.get("/periods")
def periods_page(
    request: Request, books: PageBooksDependency, realm: str | None = None
) -> Response:
    """Periods, their state, and what each waits for."""
    newest = Arrangement(by="starts_at", descending=True, limit=SHOWN)
    return page(
        request,
        "periods.html",
        realm=realm,
        periods=books.rows(billing_queries.periods(realm, newest)),
        shown=SHOWN,
    )
