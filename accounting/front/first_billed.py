"""What a front has to know of a cell that joins, so that nothing is invoiced twice.

A cell may have closed periods, and invoiced them itself. And it may be the successor of a database
that left, with usage that the front has billed of that one. Only the operator knows which is the
first period that the front shall bill of it.
"""

from collections.abc import Iterator
from datetime import date
from typing import Final
from uuid import UUID

from sqlalchemy import Connection

from accounting.db.queries import Queries
from accounting.errors import UsageError
from accounting.plurals import counted

_QUERIES: Final = Queries("accounting.front")


def check_first_billed(
    connection: Connection, front_connection: Connection, name: str, database_id: UUID
) -> None:
    """Raise UsageError for a database of which it must be said what the front shall bill."""
    reasons = [
        *_closed_by_itself(connection, front_connection, database_id),
        *_billed_of_predecessor(connection, front_connection, name, database_id),
    ]
    if reasons:
        raise UsageError(
            f"{'; and '.join(reasons)}: say which is the first period that the front bills of it, "
            "`--bill-from PERIOD`; what it has of earlier ones stays out of the front's bills, and "
            "what it has of one that the front has closed becomes late usage"
        )


def check_begins_a_period(connection: Connection, day: date) -> None:
    """Raise UsageError for a day within a period of the cell, which nobody would bill then."""
    row = connection.execute(_QUERIES.text("cut_period"), {"day": day}).one_or_none()
    if row is not None:
        raise UsageError(
            f"no period begins {day}: realm '{row.realm}' has one from {row.period} to "
            f"{row.ends_on}, which the front would not bill: give the first day of a period"
        )


def _closed_by_itself(
    connection: Connection, front_connection: Connection, database_id: UUID
) -> Iterator[str]:
    rows = front_connection.execute(
        _QUERIES.text("billed_of_database"), {"database_id": database_id}
    )
    billed = {(row.realm, row.period) for row in rows}
    closed = connection.execute(_QUERIES.text("closed_in_cell")).all()
    periods = sorted(row.period for row in closed if (row.realm, row.period) not in billed)
    if periods:
        # Realms may have other billing days: a period that goes on may have begun before another
        # one ended.
        first_open = connection.execute(_QUERIES.text("first_open_in_cell")).scalar()
        next_one = f"the next one begins {max(row.ends_on for row in closed)}"
        if first_open is not None and first_open > periods[-1]:
            next_one = f"the first that it has not closed begins {first_open}"
        elif first_open is not None:
            next_one += f"; one that it has not closed begins {first_open}"
        yield (
            f"has closed {counted(len(periods), 'period')} with usage that this front has not "
            f"billed, {_span(periods[0], periods[-1])}, and which may be invoiced already "
            f"({next_one})"
        )


def _billed_of_predecessor(
    connection: Connection, front_connection: Connection, name: str, database_id: UUID
) -> Iterator[str]:
    sources = connection.execute(_QUERIES.text("source_names")).scalars().all()
    rows = front_connection.execute(
        _QUERIES.text("billed_of_former_databases"),
        {"cell": name, "database_id": database_id, "sources": list(sources)},
    )
    for row in rows:
        yield (
            f"takes the place of another database, which left as cell '{row.cell}' and of which "
            f"the front has billed {_span(row.first, row.last)}: what this one has of the same "
            "usage would be billed twice"
        )


def _span(first: date, last: date) -> str:
    return f"period {first}" if first == last else f"periods {first} to {last}"
