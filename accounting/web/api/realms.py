"""Realms, and what each server does now in them."""

from fastapi import APIRouter
from starlette.responses import Response

from accounting.reporting import view_queries
from accounting.reporting.view_queries import RATE_KEY, REALM_KEY
from accounting.web.api.listing import ListParameters, by_key, list_response
from accounting.web.api.openapi import COUNTED_UNTIL, describe_list
from accounting.web.api.parameters import Realm
from accounting.web.books import BooksDependency

router = APIRouter(tags=["realms"])


@router.get("/realms", responses=describe_list("Realm"))
def list_realms(books: BooksDependency, wanted: ListParameters) -> Response:
    """Every realm, also without usage, with the number of its open sessions."""
    return list_response(
        wanted, REALM_KEY, by_key(REALM_KEY, lambda part: books.rows(view_queries.realms(part)))
    )


@router.get("/rates", responses=describe_list("ServerRates", more=COUNTED_UNTIL))
def list_rates(books: BooksDependency, wanted: ListParameters, realm: Realm = None) -> Response:
    """What each server does now, by realm: the last minute and five minutes.

    What was reported after `counted_until` is in no rate yet.
    """
    return list_response(
        wanted,
        RATE_KEY,
        by_key(RATE_KEY, lambda part: books.rows(view_queries.rates(books.realm(realm), part))),
        if_empty=lambda: books.check_names(realm=realm),
        progress=books.progress,
    )
