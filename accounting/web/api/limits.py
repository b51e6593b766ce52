"""Limits of usage, and the thresholds that were reached."""

from fastapi import APIRouter
from starlette.responses import Response

from accounting.reporting import limit_queries
from accounting.reporting.filters import PARAMETER, time_span
from accounting.reporting.limit_queries import LIMIT_KEY, LIMIT_STATE_KEY
from accounting.reporting.view_query import Arrangement, Row
from accounting.web.api.listing import ListParameters, by_key, list_response
from accounting.web.api.openapi import describe_list
from accounting.web.api.parameters import Realm, Since, Until, User, UserKey
from accounting.web.books import BooksDependency

router = APIRouter(tags=["limits"])


@router.get("/limits", responses=describe_list("Limit"))
def list_limits(books: BooksDependency, wanted: ListParameters, realm: Realm = None) -> Response:
    """The limits that are set, the oldest first.

    A reader of one user gets those of every user, and the user's own.
    """
    return list_response(
        wanted,
        LIMIT_KEY,
        by_key(LIMIT_KEY, lambda part: books.limits(realm, part)),
        if_empty=lambda: books.check_names(realm=realm),
    )


@router.get("/limit-states", responses=describe_list("LimitState"))
def list_limit_states(
    books: BooksDependency,
    wanted: ListParameters,
    realm: Realm = None,
    user: User = None,
    user_key: UserKey = None,
    since: Since = None,
    until: Until = None,
) -> Response:
    """The thresholds that were reached in buckets that start in a span, the newest first.

    A threshold is reached now where `cleared_at` is null and `ends_at` lies ahead. Times without
    an offset are UTC.
    """
    begin, end = time_span(since, until, dashes=PARAMETER)
    wanted = wanted.pinned(books, begin, end)

    def read(part: Arrangement) -> list[Row]:
        query = limit_queries.limit_states(
            realm=books.realm(realm),
            user=user,
            user_key=books.user_key(user_key),
            since=wanted.bound(begin),
            until=wanted.bound(end),
            arrangement=part,
        )
        return books.rows(query, by_user=True)

    return list_response(
        wanted,
        LIMIT_STATE_KEY,
        by_key(LIMIT_STATE_KEY, read),
        if_empty=lambda: books.check_names(realm=realm, user=user),
    )
