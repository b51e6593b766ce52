"""The job ``bill``: copies what all cells of a front have billed, as one.

A statement never changes, whatever becomes of a cell. What a cell bills later is copied, or posted
as a difference.
"""

from collections.abc import Mapping
from typing import Any, Final

from sqlalchemy import Engine
from sqlalchemy.exc import DBAPIError

from accounting.db.locks import lock
from accounting.db.queries import Queries
from accounting.front.billing.adjustments_of_cells import (
    bill_closed_anew,
    copy_adjustments,
    take_up_periods,
)
from accounting.front.billing.close_over_cells import close_over_cells, failing_cells
from accounting.front.billing.isolation import Failures
from accounting.front.cells import reading_cells

_QUERIES: Final = Queries("accounting.front.billing")


def copy_billing(engine: Engine) -> int:
    """Copy the periods that all cells have closed, and new adjustments; returns how many of both.

    Raises ConnectionLost where a cell does not answer: then nothing is known to be complete. Raises
    AccountingError for what can't be copied, with the names of cell, realm and period, after all
    else was.
    """
    failures = Failures()
    with reading_cells(engine) as connection:
        lock(connection, "rollup")
        connection.execute(_QUERIES.text("delete_stale_periods"))
        failures.run(connection, take_up_periods)
        copied = failures.run(connection, copy_adjustments)
        copied += failures.run(connection, bill_closed_anew)
    failed: set[tuple[int, Any]] = set()
    while closed := _close_ready_periods(engine, failures, failed):
        copied += closed
    failures.raise_any()
    return copied


def _close_ready_periods(engine: Engine, failures: Failures, failed: set[tuple[int, Any]]) -> int:
    """Close the periods that are ready now, each in a transaction; the next of a realm follows.

    They are listed once, since that asks every cell. Returns how many were closed.
    """
    with reading_cells(engine) as connection:
        listed = connection.execute(_QUERIES.text("ready_periods")).mappings().all()
    closed = 0
    for ready in map(dict, listed):
        key = ready["realm_id"], ready["period"]
        if key in failed:
            continue
        try:
            with reading_cells(engine) as connection:
                lock(connection, "rollup")
                if connection.execute(_QUERIES.text("is_ready"), ready).scalar_one():
                    close_over_cells(connection, ready)
                    closed += 1
        except DBAPIError as error:
            failed.add(key)
            failures.add(_describe(engine, ready), error)
    return closed


def _describe(engine: Engine, period: Mapping[str, Any]) -> str:
    """Which period can't be closed, and because of which cells."""
    of_realm = f"period {period['period']} of realm '{period['realm']}'"
    cells = failing_cells(engine, period)
    return ", ".join([*(f"cell '{cell}'" for cell in cells), of_realm])
