"""Checks the ``usage.counted`` of the feed: they add up to what is billed.

Of a closed period they are its statement; of other hours that are folded, the recomputed ones.
"""

from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Final

from sqlalchemy import Connection, RowMapping

from accounting.audit.differences import Difference, DifferenceFactory
from accounting.billing.period_queries import PeriodRow, realm_periods
from accounting.billing.statement_queries import LINE_NUMBERS
from accounting.db.queries import Queries
from accounting.domain.calendar import from_micros, to_micros

WHAT: Final = "usage.counted"
"""The name of these differences."""
Span = tuple[datetime, datetime]
ALWAYS: Final = (datetime(1970, 1, 1, tzinfo=UTC), datetime(9999, 1, 1, tzinfo=UTC))
"""A span that contains all times of the books."""
_QUERIES: Final = Queries("accounting.audit")


def open_spans(
    connection: Connection, realm_id: int, bounds: tuple[int, int] | None = None
) -> list[Span]:
    """From when to when a realm has no closed period, within ``bounds``, in microseconds."""
    since, until = ALWAYS if bounds is None else (from_micros(bounds[0]), from_micros(bounds[1]))
    spans: list[Span] = []
    for row in realm_periods(connection, realm_id):
        if row.closed_at is not None:
            spans.append((since, min(row.starts_at, until)))
            since = max(row.ends_at, since)
    return [(begin, end) for begin, end in [*spans, (since, until)] if begin < end]


def check_open_hours(
    connection: Connection,
    differences: DifferenceFactory,
    realm_id: int,
    bounds: tuple[int, int] | None = None,
) -> Iterator[Difference]:
    """Compare the hours of users that the feed has with the recomputed ones, of open periods."""
    for since, until in open_spans(connection, realm_id, bounds):
        rows = connection.execute(
            _QUERIES.text("compare_counted_hours"),
            {"realm_id": realm_id, "since": since, "until": until},
        )
        for row in rows.mappings():
            yield from _compare(differences, realm_id, row["starts_at"], row)


def check_closed_period(
    connection: Connection, differences: DifferenceFactory, period: PeriodRow
) -> Iterator[Difference]:
    """Compare the sums of the feed, by user, with the statement of a closed period."""
    rows = connection.execute(
        _QUERIES.text("compare_counted_statement"),
        {
            "realm_id": period.realm_id,
            "period": period.period,
            "starts_at": period.starts_at,
            "ends_at": period.ends_at,
        },
    )
    for row in rows.mappings():
        yield from _compare(differences, period.realm_id, period.starts_at, row)


def _compare(
    differences: DifferenceFactory, realm_id: int, starts_at: datetime, row: RowMapping
) -> Iterator[Difference]:
    """One difference for what only one side has, else one for each column."""

    def difference(kind: str, **fields: str) -> Difference:
        return differences.difference(
            realm_id,
            to_micros(starts_at),
            what=WHAT,
            kind=kind,
            user_key=row["user_key"],
            **fields,
        )

    if row["stored"] is None or row["recomputed"] is None:
        yield difference("missing" if row["stored"] is None else "unfounded")
        return
    for column, stored, recomputed in zip(
        LINE_NUMBERS, row["stored"], row["recomputed"], strict=True
    ):
        if stored != recomputed:
            yield difference(
                "differs",
                column=column,
                booked=str(int(stored)),
                recomputed=str(int(recomputed)),
            )
