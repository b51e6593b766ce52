"""A closed period: its statement's lines, its adjustments and the capture gaps in it."""

from dataclasses import dataclass
from datetime import date

from sqlalchemy import Engine

from accounting.errors import NotYet, unknown_period
from accounting.reporting import view_queries
from accounting.reporting.known_names import check_names
from accounting.reporting.reader import Row, read_rows


@dataclass(frozen=True, slots=True, kw_only=True)
class Statement:
    """Rows of the views. ``adjustments`` correct this period; ``posted`` are billed with it."""

    period: Row
    lines: list[Row]
    adjustments: list[Row]
    posted: list[Row]
    gaps: list[Row]


def closed_period(engine: Engine, realm: str, period: date, user: str | None = None) -> Row:
    """Return the row of a closed period. Raises NotYet while it is open.

    Raises UsageError for an unknown realm, period or user.
    """
    check_names(engine, realm=realm, user=user)
    periods = read_rows(engine, view_queries.periods(realm))
    row = next((row for row in periods if row["period"] == period), None)
    if row is None:
        raise unknown_period(realm, period, [known["period"] for known in periods])
    if row["state"] != "closed":
        raise NotYet(
            f"period {period} of realm '{realm}' is not closed yet: "
            f"it waits for {row['waits_for'] or 'its turn'}"
        )
    return row


def read_statement(engine: Engine, realm: str, period: date, user: str | None) -> Statement:
    """Read a closed period, of one user or all. Raises as :func:`closed_period`."""
    row = closed_period(engine, realm, period, user)
    return Statement(
        period=row,
        lines=read_rows(engine, view_queries.statements(realm, period, user)),
        adjustments=read_rows(engine, view_queries.adjustments(realm, period, user, by="period")),
        posted=read_rows(engine, view_queries.adjustments(realm, period, user, by="posted_in")),
        gaps=read_rows(engine, view_queries.gaps(row["starts_at"], row["ends_at"])),
    )
