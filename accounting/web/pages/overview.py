"""The first page: today and this month beside the last, what lives now, and what is wrong."""

from fastapi import APIRouter, Request
from starlette.responses import Response

from accounting.reporting import view_queries
from accounting.web.books import BooksDependency
from accounting.web.render import page

router = APIRouter()


@router.get("/")
def overview(request: Request, books: BooksDependency) -> Response:
    """Realms and what lives in them."""
    return page(request, "overview.html", realms=books.rows(view_queries.live_sessions_by_realm()))
