"""Billing periods, statements and adjustments."""

from datetime import date
from typing import Annotated, Final

from fastapi import APIRouter, Query, Request
from starlette.responses import Response

from accounting.errors import NotYet, UsageError
from accounting.reporting import billing_queries
from accounting.reporting.billing_queries import ADJUSTMENT_KEY, PERIOD_KEY, STATEMENT_KEY
from accounting.reporting.filters import period_day
from accounting.reporting.previews import lines_of_month
from accounting.reporting.statement import find_period
from accounting.reporting.view_query import Arrangement, Row
from accounting.web.api.listing import ListParameters, by_key, list_response
from accounting.web.api.openapi import Schema, describe_list
from accounting.web.api.parameters import Period, Realm, User, UserKey
from accounting.web.books import Books, BooksDependency
from accounting.web.problems import Problem, not_found
from accounting.web.statement_totals import read_totals

router = APIRouter(tags=["billing"])

DIGEST: Final[Schema] = {
    "type": ["string", "null"],
    "description": "Of one closed period with all its users: what its lines must give, as "
    "`turn-accounting verify` checks it; null of anything else.",
}


@router.get("/periods", responses=describe_list("Period"))
def list_periods(books: BooksDependency, wanted: ListParameters, realm: Realm = None) -> Response:
    """Billing periods by realm, oldest first: their state, and what each waits for."""
    return list_response(
        wanted,
        PERIOD_KEY,
        by_key(
            PERIOD_KEY, lambda part: books.rows(billing_queries.periods(books.realm(realm), part))
        ),
        if_empty=lambda: books.check_names(realm=realm),
    )


@router.get("/statements", responses=describe_list("Statement", more={"digest": DIGEST}))
def list_statements(
    request: Request,
    books: BooksDependency,
    wanted: ListParameters,
    realm: Realm = None,
    period: Period = None,
    user: User = None,
    user_key: UserKey = None,
    preview: Annotated[
        bool,
        Query(description="The lines that open periods would have now; takes realm and period."),
    ] = False,
) -> Response:
    """The lines of closed periods, by realm, period and user.

    For one closed period as a whole also the `digest` of all its lines.
    """
    books.leave_no_cell_out()
    day = None if period is None else period_day(period)
    if preview and (realm is None or day is None):
        raise UsageError("preview goes with realm and period")

    month = None
    if preview and (user, user_key) == (None, None):
        assert realm is not None
        assert day is not None
        month = books.month_of_period(realm, day)

    def read(part: Arrangement) -> list[Row]:
        if month is not None:
            return books.rows(lines_of_month(month, part), by_user=True)
        query = billing_queries.statements(
            books.realm(realm),
            day,
            user,
            user_key=books.user_key(user_key),
            preview=preview,
            arrangement=part,
        )
        return books.rows(query, by_user=True)

    return list_response(
        wanted,
        STATEMENT_KEY,
        by_key(STATEMENT_KEY, read),
        if_empty=lambda: _check(books, realm, day, user, preview=preview),
        more=lambda: {
            "digest": None
            if preview or (user, user_key) != (None, None)
            else _digest(request, books, realm, day)
        },
    )


@router.get("/adjustments", responses=describe_list("Adjustment"))
def list_adjustments(
    books: BooksDependency,
    wanted: ListParameters,
    realm: Realm = None,
    period: Annotated[
        str | None, Query(description="Only those that correct this period: its first day.")
    ] = None,
    posted_in: Annotated[
        str | None, Query(description="Only those that are billed with this period.")
    ] = None,
    user: User = None,
    user_key: UserKey = None,
) -> Response:
    """Changes of closed periods after the close, oldest first."""
    books.leave_no_cell_out()
    if period is not None and posted_in is not None:
        raise UsageError("period or posted_in: not both")
    text = period if posted_in is None else posted_in
    day = None if text is None else period_day(text)

    def read(part: Arrangement) -> list[Row]:
        query = billing_queries.adjustments(
            books.realm(realm),
            day,
            user,
            by="period" if posted_in is None else "posted_in",
            user_key=books.user_key(user_key),
            arrangement=part,
        )
        return books.rows(query, by_user=True)

    return list_response(
        wanted,
        ADJUSTMENT_KEY,
        by_key(ADJUSTMENT_KEY, read),
        if_empty=lambda: _check(books, realm, day if posted_in is None else None, user),
    )


def _digest(request: Request, books: Books, realm: str | None, period: date | None) -> str | None:
    """The digest of a closed period as a whole; None where that was not asked for."""
    realm = books.realm(realm)
    if realm is None or period is None or not books.reader.reads_realm:
        return None
    query = billing_queries.periods(realm).where("period = %(day)s", day=period)
    closed = [row for row in books.rows(query) if row["closed_at"] is not None]
    digest: str | None = read_totals(request, books, closed[0])["digest"] if closed else None
    return digest


def _check(
    books: Books,
    realm: str | None,
    period: date | None,
    user: str | None,
    *,
    preview: bool = False,
) -> None:
    """Raise a problem for unknown names, and for a period that is unknown or not closed.

    Where one user is read the period is not looked at: what it waits for is the operator's.
    """
    books.check_names(realm=realm, user=user)
    realm = books.realm(realm)
    if realm is None or period is None or not books.reader.reads_realm:
        return
    try:
        find_period(books.database, realm, period, preview=preview)
    except UsageError as error:
        raise not_found(str(error)) from None
    except NotYet:
        raise Problem(
            409,
            "Not Yet",
            f"period {period} of realm '{realm}' is not closed yet: preview=true has its lines as "
            "they are now, and /periods what it waits for",
        ) from None
