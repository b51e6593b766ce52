"""Usage by hour, day and month; and traffic that is nobody's."""

from typing import Annotated

from fastapi import APIRouter, Query
from starlette.responses import Response

from accounting.errors import UsageError
from accounting.reporting import usage_queries
from accounting.reporting.filters import PARAMETER, bucket_length, time_span, usage_subject
from accounting.reporting.usage_queries import UNATTRIBUTED_KEY, USAGE_KEYS
from accounting.reporting.view_query import TRAFFIC, Arrangement, Row
from accounting.web.api.listing import (
    MAX_LIMIT,
    ListParameters,
    by_key,
    list_response,
    rows_response,
)
from accounting.web.api.openapi import COUNTED_UNTIL, describe_list
from accounting.web.api.parameters import Realm, Since, Source, Until, User, UserKey
from accounting.web.books import BooksDependency

router = APIRouter(tags=["usage"])


@router.get(
    "/usage",
    responses=describe_list(
        "UserUsage", "RealmUsage", "ServerUsage", "TransportUsage", more=COUNTED_UNTIL
    ),
)
def list_usage(
    books: BooksDependency,
    wanted: ListParameters,
    realm: Realm = None,
    user: User = None,
    user_key: UserKey = None,
    since: Since = None,
    until: Until = None,
    by: Annotated[
        str, Query(description="What an item is of: user, realm, server or transport.")
    ] = "user",
    per: Annotated[str, Query(description="What an item spans: hour, day or month.")] = "month",
    top: Annotated[
        int | None,
        Query(ge=1, le=MAX_LIMIT, description="Instead of pages: the items with most traffic."),
    ] = None,
) -> Response:
    """Usage by user, realm, server or transport, by hour, day or month, oldest first.

    Times without an offset are in the realm's time zone. A month or day that since or until cuts
    counts from there on, or up to there. A time with an offset cuts none.
    """
    begin, end = time_span(since, until, dashes=PARAMETER)
    wanted = wanted.pinned(books, begin, end)
    subject = usage_subject(by, dashes=PARAMETER)
    length = bucket_length(per, dashes=PARAMETER)
    if subject != "user" and (user is not None or user_key is not None):
        raise UsageError("user and user_key go with by=user")
    if top is not None and wanted.limit is not None:
        raise UsageError("top goes without limit: it is one")

    def read(part: Arrangement) -> list[Row]:
        query = usage_queries.usage(
            by=subject,
            per=length,
            realm=books.realm(realm),
            user=user,
            user_key=books.user_key(user_key) if subject == "user" else None,
            since=wanted.bound(begin),
            until=wanted.bound(end),
            arrangement=part,
        )
        return books.rows(query, by_user=subject == "user")

    def check() -> None:
        books.check_names(realm=realm, user=user)

    if top is not None:
        progress = books.progress()
        rows = read(Arrangement(by=TRAFFIC, descending=True, limit=top))
        if not rows:
            check()
        return rows_response(wanted, rows, progress)
    key = USAGE_KEYS[subject]
    return list_response(wanted, key, by_key(key, read), if_empty=check, progress=books.progress)


@router.get("/unattributed", responses=describe_list("Unattributed", more=COUNTED_UNTIL))
def list_unattributed(
    books: BooksDependency,
    wanted: ListParameters,
    realm: Realm = None,
    source: Source = None,
    since: Since = None,
    until: Until = None,
) -> Response:
    """Traffic of allocations that coturn never confirmed, by hour: shown, never billed.

    Times without an offset are UTC.
    """
    begin, end = time_span(since, until, dashes=PARAMETER)
    wanted = wanted.pinned(books, begin, end)

    def read(part: Arrangement) -> list[Row]:
        query = usage_queries.unattributed(
            realm=books.realm(realm),
            source=source,
            since=wanted.bound(begin),
            until=wanted.bound(end),
            arrangement=part,
        )
        return books.rows(query)

    return list_response(
        wanted,
        UNATTRIBUTED_KEY,
        by_key(UNATTRIBUTED_KEY, read),
        if_empty=lambda: books.check_names(realm=realm, source=source),
        progress=books.progress,
    )
