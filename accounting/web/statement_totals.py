"""The totals of a statement, with the digest of all its lines: for its page, and for the API."""

from typing import Final

from starlette.requests import Request

from accounting.reporting import billing_queries
from accounting.reporting.overview import statement_totals
from accounting.reporting.view_query import Row
from accounting.web.books import Books

KEPT_TOTALS: Final = 1000


def read_totals(request: Request, books: Books, period: Row) -> Row:
    """The totals of a statement. They never change, so that those of a whole one are kept."""
    user_key = books.user_key(None)
    query = billing_queries.statements(period["realm"], period["period"], user_key=user_key)
    if user_key is not None:
        return books.sums(query, statement_totals, by_user=True)
    kept: dict[tuple[object, ...], Row] = request.app.state.statement_totals
    key = period["realm"], period["period"], period["closed_at"]
    totals = kept.get(key)
    if totals is None:
        totals = books.sums(query, statement_totals, by_user=True)
        if len(kept) >= KEPT_TOTALS:
            kept.clear()
        kept[key] = totals
    return totals
