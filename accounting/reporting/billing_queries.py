"""Queries on periods, statements and adjustments."""

from datetime import date
from typing import Final, Literal
from uuid import UUID

from accounting.reporting.view_query import (
    AS_IT_IS,
    Arrangement,
    ViewQuery,
    arranged,
    is_top,
    of_realm,
    of_user,
    view,
)

PERIOD_KEY: Final = ("realm", "starts_at")

STATEMENT_KEY: Final = ("realm", "period", "user_id", "user_key")

ADJUSTMENT_KEY: Final = ("posted_at", "user_id", "adjustment_id")


def periods(realm: str | None = None, arrangement: Arrangement = AS_IT_IS) -> ViewQuery:
    """Billing periods by realm, oldest first."""
    query = of_realm(view("periods"), realm)
    return arranged(query, arrangement, *PERIOD_KEY, key=PERIOD_KEY)


_TOP_LINES: Final = """(
SELECT v.* FROM (
SELECT realm, period, user_key FROM ({lines}) l
ORDER BY received_bytes + sent_bytes DESC FETCH FIRST %(most)s ROWS WITH TIES
) t
CROSS JOIN LATERAL (
SELECT * FROM reporting.statements l
WHERE l.realm = t.realm AND l.period = t.period AND l.user_key = t.user_key LIMIT 1
) v
) s"""
"""Names are looked up for these lines only."""


def statements(
    realm: str | None,
    period: date | None,
    user: str | None = None,
    *,
    user_key: UUID | None = None,
    preview: bool = False,
    arrangement: Arrangement = AS_IT_IS,
) -> ViewQuery:
    """The lines of statements, or of those that are not closed, by realm, period and user."""
    query = view("statement_previews" if preview else "statements")
    query = of_user(query, realm, user, user_key)
    if period is not None:
        query = query.where("period = %(period)s", period=period)
    if is_top(arrangement) and not preview and user is None and user_key is None:
        # As in usage(): a condition that is added selects from the top.
        values = {**query.values, "most": arrangement.limit}
        query = ViewQuery(relation=_TOP_LINES.format(lines=query.text), values=values)
    return arranged(query, arrangement, *STATEMENT_KEY, key=STATEMENT_KEY)


def adjustments(
    realm: str | None,
    period: date | None,
    user: str | None = None,
    *,
    by: Literal["period", "posted_in"],
    user_key: UUID | None = None,
    arrangement: Arrangement = AS_IT_IS,
) -> ViewQuery:
    """The adjustments that correct a period, or that are posted in it, oldest first."""
    query = of_user(view("adjustments"), realm, user, user_key)
    if period is not None:
        query = query.where(by + " = %(period)s", period=period)
    return arranged(query, arrangement, *ADJUSTMENT_KEY, key=ADJUSTMENT_KEY)
