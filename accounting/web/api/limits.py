"""Limits of usage, and the thresholds that were reached."""

from typing import Annotated, Final

from fastapi import APIRouter, Query
from starlette.responses import Response

from accounting.reporting import limit_queries
from accounting.reporting.filters import PARAMETER, time_span
from accounting.reporting.limit_queries import LIMIT_KEY, LIMIT_STATE_KEY
from accounting.reporting.view_query import Arrangement, Row
from accounting.web.api.listing import (
    DEFAULT_LIMIT,
    ListParameters,
    by_key,
    list_response,
    rows_response,
)
from accounting.web.api.openapi import describe_list
from accounting.web.api.parameters import Realm, Since, Until, User, UserKey
from accounting.web.books import BooksDependency
from accounting.web.problems import not_found

MAX_INTEGER: Final = 2**31 - 1

router = APIRouter(tags=["limits"])


@router.get("/limits", responses=describe_list("Limit"))
def list_limits(books: BooksDependency, wanted: ListParameters, realm: Realm = None) -> Response:
    """The limits that are set, the oldest first.

    A reader of one user gets those of every user, and the user's own.
    """
    books.leave_no_cell_out()
    return list_response(
        wanted,
        LIMIT_KEY,
        by_key(LIMIT_KEY, lambda part: books.limits(realm, part)),
        if_empty=lambda: books.check_names(realm=realm),
    )


@router.get("/limit-usage", responses=describe_list("LimitUsage"))
def list_limit_usage(
    books: BooksDependency,
    wanted: ListParameters,
    limit_id: Annotated[int, Query(ge=1, le=MAX_INTEGER, description="The number of a limit.")],
) -> Response:
    """How much of a limit is used in the bucket that runs now, the nearest users first.

    At most `limit` users, 100 by default. A reader of one user gets the user's own usage.
    """
    books.leave_no_cell_out()
    limits = books.limits(None, Arrangement(limit=1), limit_id=limit_id)
    if not limits:
        raise not_found("no such limit")
    own_key = books.user_key(None)
    if own_key is not None:
        query = limit_queries.usage_of_user(own_key, [limit_id])
        return rows_response(wanted, books.rows(query, by_user=True))
    query = limit_queries.nearest(
        limit_ids=[limit_id], arrangement=Arrangement(limit=wanted.limit or DEFAULT_LIMIT)
    )
    return rows_response(wanted, books.rows(query, by_user=True))


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
    books.leave_no_cell_out()
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
