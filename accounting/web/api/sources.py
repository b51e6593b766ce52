"""Sources and what may be missing of them: for those who read everything."""

from fastapi import APIRouter
from starlette.responses import Response

from accounting.reporting import view_queries
from accounting.reporting.filters import PARAMETER, time_span
from accounting.reporting.view_queries import GAP_KEY, SOURCE_KEY
from accounting.web.api.listing import ListParameters, by_key, list_response, rows_response
from accounting.web.api.openapi import describe_list
from accounting.web.api.parameters import Since, Source, Until
from accounting.web.books import BooksDependency

router = APIRouter(tags=["sources"])


@router.get("/sources", responses=describe_list("Source"))
def list_sources(books: BooksDependency, wanted: ListParameters) -> Response:
    """Every source, and how far it is captured, loaded and settled."""
    books.require_all()
    return list_response(
        wanted,
        SOURCE_KEY,
        by_key(SOURCE_KEY, lambda part: books.service_rows(view_queries.sources(part))),
    )


@router.get("/notices", responses=describe_list("Notice"))
def list_notices(books: BooksDependency, wanted: ListParameters) -> Response:
    """What needs attention of the sources."""
    books.require_all()
    return rows_response(wanted, books.service_rows(view_queries.source_notices()))


@router.get("/gaps", responses=describe_list("Gap"))
def list_gaps(
    books: BooksDependency,
    wanted: ListParameters,
    source: Source = None,
    since: Since = None,
    until: Until = None,
) -> Response:
    """Spans in which events may have been lost: open ones, then the newest; and their outcome.

    Times without an offset are UTC.
    """
    books.require_all()
    begin, end = time_span(since, until, dashes=PARAMETER)
    wanted = wanted.pinned(books, begin, end)
    return list_response(
        wanted,
        GAP_KEY,
        by_key(
            GAP_KEY,
            lambda part: books.service_rows(
                view_queries.gaps(
                    source=source,
                    since=wanted.bound(begin),
                    until=wanted.bound(end),
                    arrangement=part,
                )
            ),
        ),
        if_empty=lambda: books.check_names(source=source),
    )
