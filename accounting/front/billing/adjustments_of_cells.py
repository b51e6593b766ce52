"""What cells have billed beyond the statements of a front: their adjustments, and differences.

Of each cell by itself: what it has now (its statement and late usage), less what was billed of it
(its parts of statements, and adjustments). So a cell that was restored, or joined late or again, is
billed exactly once, whatever the others do.
"""

from collections.abc import Mapping
from datetime import date
from typing import Any, Final

from sqlalchemy import Connection

from accounting.billing.adjust import enqueue_posted
from accounting.db.queries import Queries

_QUERIES: Final = Queries("accounting.front.billing")


def take_up_periods(connection: Connection, cell: str | None, realm: str | None) -> int:
    """Add the periods that cells have; returns how many."""
    return connection.execute(
        _QUERIES.text("take_up_periods"), {"cell": cell, "realm": realm}
    ).rowcount


def copy_adjustments(
    connection: Connection, cell: str | None, realm: str | None, period: date | None = None
) -> int:
    """Copy the adjustments of a closed period, or the new ones; returns how many were posted."""
    parameters = {"cell": cell, "realm": realm, "period": period}
    copied = connection.execute(_QUERIES.text("copy_adjustments"), parameters).all()
    new = [row.adjustment_id for row in copied if row.is_new]
    enqueue_posted(connection, new)
    # A cell that was restored may post what it had posted, in other portions or after it was billed
    # without it.
    ids = [row.adjustment_id for row in copied]
    rows = connection.execute(_QUERIES.text("periods_of_adjustments"), {"ids": ids}).all()
    return len(new) + sum(_post_difference(connection, row._asdict()) for row in rows)


def bill_closed_anew(connection: Connection, cell: str | None, realm: str | None) -> int:
    """Post what cells have billed otherwise than was billed of them, in closings that are new.

    Of cells that were restored and have closed a period again, of those that had no usage of it
    when the front closed it, and of those that were not waited for. Returns how many adjustments.
    """
    rows = connection.execute(_QUERIES.text("closed_anew"), {"cell": cell, "realm": realm}).all()
    posted = 0
    for row in rows:
        closing = row._asdict()
        read_lines(connection, closing, row.cell)
        connection.execute(_QUERIES.text("add_users_of_lines"))
        posted += _post_difference(connection, {**closing, "user_keys": None})
        connection.execute(_QUERIES.text("record_billed_closings"), closing)
    return posted


def read_lines(connection: Connection, period: Mapping[str, Any], cell: str | None = None) -> None:
    """Read the lines that all cells, or one, have of a period, into ``lines_of_cells``."""
    connection.execute(_QUERIES.text("create_lines_of_cells"))
    connection.execute(_QUERIES.text("read_lines_of_cells"), {**period, "cell": cell})


def _post_difference(connection: Connection, period: Mapping[str, Any]) -> int:
    ids = connection.execute(_QUERIES.text("post_difference"), period).scalars().all()
    enqueue_posted(connection, ids)
    return len(ids)
