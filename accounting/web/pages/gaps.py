"""What may be missing from the books, and what became of it."""

from typing import Final

from fastapi import APIRouter, Request
from starlette.responses import Response

from accounting.reporting import view_queries
from accounting.reporting.completeness import not_captured
from accounting.reporting.view_queries import Arrangement
from accounting.web.pages.page_books import PageBooksDependency
from accounting.web.problems import not_found
from accounting.web.render import page

SHOWN: Final = 100
router = APIRouter()


@router.get("/gaps")
def gaps_page(request: Request, books: PageBooksDependency) -> Response:
    """Capture gaps and sources: they are about the service, so only a reader of all sees them."""
    if not books.reader.reads_all:
        raise not_found("Not Found")
    now = books.now()
    gaps = books.service_rows(view_queries.gaps(arrangement=Arrangement(limit=SHOWN)))
    sources = books.service_rows(view_queries.sources())
    return page(
        request,
        "gaps.html",
        gaps=gaps,
        sources=sources,
        lapses=list(not_captured(now, sources, gaps)),
        now=now,
        shown=SHOWN,
    )
