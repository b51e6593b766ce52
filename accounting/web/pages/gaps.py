"""What may be missing from the books, and what became of it."""

from collections.abc import Collection
from typing import Final

from fastapi import APIRouter, Request
from starlette.responses import Response

from accounting.errors import UsageError
from accounting.reporting import view_queries
from accounting.reporting.completeness import NotCaptured
from accounting.reporting.filters import PARAMETER, time_span
from accounting.reporting.view_query import Arrangement, Row
from accounting.web.pages.page_books import PageBooksDependency
from accounting.web.problems import Problem, not_found
from accounting.web.render import page

SHOWN: Final = 100
router = APIRouter()


@router.get("/gaps")
def gaps_page(
    request: Request,
    books: PageBooksDependency,
    source: str | None = None,
    since: str | None = None,
    until: str | None = None,
) -> Response:
    """Capture gaps and sources: they are about the service, so only a reader of all sees them.

    Empty fields of the form filter nothing.
    """
    if not books.reader.reads_all:
        raise not_found("Not Found")
    filters = {"source": source or None, "since": since or None, "until": until or None}
    error = ""
    status = 200
    gaps: list[Row] = []
    lapses: Collection[NotCaptured] = []
    try:
        begin, end = time_span(filters["since"], filters["until"], dashes=PARAMETER)
        gaps = books.service_rows(
            view_queries.gaps(
                source=filters["source"],
                since=begin,
                until=end,
                arrangement=Arrangement(limit=SHOWN),
            )
        )
        if not gaps:
            books.check_names(source=filters["source"])
        lapses = books.lapses(end, filters["source"])
    except UsageError as wrong:
        error, status = str(wrong), 400
    except Problem as problem:  # an unknown source: the form stays, to mend it
        error, status = problem.detail, problem.status
    return page(
        request,
        "gaps.html",
        status=status,
        filters=filters,
        is_filtered=any(filters.values()),
        error=error,
        gaps=gaps,
        sources=books.service_rows(view_queries.sources()),
        lapses=lapses,
        now=books.now(),
        shown=SHOWN,
    )
