"""Realms."""

from fastapi import APIRouter
from starlette.responses import Response

from accounting.reporting import view_queries
from accounting.reporting.view_queries import REALM_KEY
from accounting.web.api.listing import ListParameters, by_key, list_response
from accounting.web.api.openapi import describe_list
from accounting.web.books import BooksDependency

router = APIRouter(tags=["realms"])


@router.get("/realms", responses=describe_list("Realm"))
def list_realms(books: BooksDependency, wanted: ListParameters) -> Response:
    """Every realm, also without usage, with the number of its open sessions."""
    return list_response(
        wanted, REALM_KEY, by_key(REALM_KEY, lambda part: books.rows(view_queries.realms(part)))
    )
