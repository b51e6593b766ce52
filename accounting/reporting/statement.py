"""A period: its statement's lines, its adjustments and the capture gaps in it.

The lines of a period that is not closed are a preview: as they would be if it closed now.
"""

from dataclasses import dataclass
from datetime import date, datetime
from typing import TYPE_CHECKING

from accounting.domain.periods import describe_wait
from accounting.errors import not_closed, preview_command, unknown_period
from accounting.reporting import billing_queries, view_queries
from accounting.reporting.known_names import check_names
from accounting.reporting.view_query import AS_IT_IS, Arrangement, Row, ViewQuery

if TYPE_CHECKING:
    from accounting.reporting.reader import DatabaseReader


@dataclass(frozen=True, slots=True, kw_only=True)
class Statement:
    """Rows of the views. ``adjustments`` correct this period; ``posted`` are billed with it.

    ``closed_at`` of the period is None where the lines are a preview. They are read at ``now``, by
    the database's clock.
    """

    now: datetime
    period: Row
    lines: list[Row]
    adjustments: list[Row]
    posted: list[Row]
    gaps: list[Row]


def find_period(
    reader: "DatabaseReader",
    realm: str,
    period: date,
    user: str | None = None,
    *,
    preview: bool = False,
) -> Row:
    """Return the row of a period, which must be closed unless this is for a preview.

    Raises NotYet, and UsageError for an unknown realm, period or user.
    """
    check_names(reader, realm=realm, user=user)
    periods = reader.read_rows(billing_queries.periods(realm))
    row = next((row for row in periods if row["period"] == period), None)
    if row is None:
        raise unknown_period(realm, period, [known["period"] for known in periods])
    if row["state"] != "closed" and not preview:
        waits = describe_wait(row["waits_for"], row["ends_at"], row["time_zone"])
        raise not_closed(realm, period, waits, f"as it is now: `{preview_command(realm, period)}`")
    return row


def lines_query(
    row: Row, user: str | None = None, arrangement: Arrangement = AS_IT_IS
) -> ViewQuery:
    """The query for the lines of a period that :func:`find_period` returned."""
    return billing_queries.statements(
        row["realm"],
        row["period"],
        user,
        preview=row["closed_at"] is None,
        arrangement=arrangement,
    )


def read_statement(
    reader: "DatabaseReader", realm: str, period: date, user: str | None, *, preview: bool = False
) -> Statement:
    """Read a period, of one user or all. Raises as :func:`find_period`."""
    row = find_period(reader, realm, period, user, preview=preview)
    [clock] = reader.read_rows(view_queries.database_now())
    return Statement(
        now=clock["now"],
        period=row,
        lines=reader.read_rows(lines_query(row, user)),
        adjustments=reader.read_rows(billing_queries.adjustments(realm, period, user, by="period")),
        posted=reader.read_rows(billing_queries.adjustments(realm, period, user, by="posted_in")),
        gaps=reader.read_rows(
            view_queries.gaps(
                since=row["starts_at"],
                until=row["ends_at"],
                arrangement=Arrangement(by="from_at"),
            ),
        ),
    )
