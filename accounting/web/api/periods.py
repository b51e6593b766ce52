"""Billing periods, statements and adjustments."""

from fastapi import APIRouter
from starlette.responses import Response

from accounting.reporting import view_queries
from accounting.web.books import BooksDependency
from accounting.web.render import items_response

router = APIRouter()


@router.get("/periods")
def list_periods(books: BooksDependency, realm: str | None = None) -> Response:
    """Billing periods by realm, oldest first."""
    return items_response(books.rows(view_queries.periods(realm)), None)
