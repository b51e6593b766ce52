"""Close a period of a front: one statement for what all its cells have billed of it.

The lines of the cells are kept as its parts, so that what was billed of each cell stays known.
"""

from collections.abc import Collection, Mapping
from datetime import date
from typing import Any, Final

from sqlalchemy import Connection, Engine
from sqlalchemy.exc import DBAPIError

from accounting.billing import period_queries, statement_queries
from accounting.billing.close_period import (
    CloseResult,
    close_period,
    closed_already,
    enqueue_period_closed,
    not_ready,
)
from accounting.db.engine import lost_connections
from accounting.db.locks import lock
from accounting.db.queries import Queries
from accounting.domain.statements import StatementCutoff, cutoff_over_cells
from accounting.errors import unknown_name
from accounting.front.billing.adjustments_of_cells import copy_adjustments, read_lines
from accounting.front.cells import is_front, read_cells, reading_cells
from accounting.identities.realm_queries import find_realm

_QUERIES: Final = Queries("accounting.front.billing")


def close_installation_period(
    engine: Engine,
    realm: str,
    period: date,
    *,
    excluded: Collection[str] = (),
    dry_run: bool = False,
) -> CloseResult:
    """As accounting.billing.close_period.close_period, on a front of all its cells.

    ``excluded``: sources, or cells of a front. What such a cell has closed under the period's first
    day is in the statement, whatever its rules are; what it closes later becomes late usage.
    """
    with lost_connections(), engine.connect() as connection:
        over_cells = is_front(connection)
    if not over_cells:
        return close_period(engine, realm, period, excluded_sources=excluded, dry_run=dry_run)
    with reading_cells(engine) as connection:
        lock(connection, "rollup")
        known = [cell.cell for cell in read_cells(connection)]
        for name in excluded:
            if name not in known:
                raise unknown_name("cell", name, known)
        realm_id = find_realm(connection, realm)
        row = period_queries.find_period(connection, realm_id, realm, period)
        if row.closed_at is not None:
            raise closed_already(row, realm)
        waits_for = period_queries.waits_for(connection, realm_id, period, excluded)
        if waits_for is not None:
            raise not_ready(row, realm, waits_for, "--without CELL does not wait for a cell")
        key = {"realm_id": realm_id, "realm": realm, "period": period}
        attempt = connection.begin_nested()
        result = close_over_cells(connection, key, excluded)
        if dry_run:
            attempt.rollback()
        else:
            attempt.commit()
        return result


def close_over_cells(
    connection: Connection,
    period: Mapping[str, Any],
    excluded: Collection[str] = (),
    *,
    cell: str | None = None,
) -> CloseResult:
    """Write the statement of a period (``realm_id``, ``realm``, ``period``), and its event.

    The transaction has the lock ``rollup``, and the period waits for nothing. The adjustments that
    cells have posted of it are copied too. ``cell``: as if there were no other.
    """
    key = {name: period[name] for name in ("realm_id", "period")}
    row = period_queries.find_period(connection, key["realm_id"], period["realm"], key["period"])
    cutoffs = {
        closing.cell: closing.cutoff
        for closing in connection.execute(_QUERIES.text("cutoffs_of_cells"), period)
    }
    cutoff = cutoff_over_cells(cutoffs, [name for name in excluded if name not in cutoffs])
    read_lines(connection, period, cell)
    connection.execute(_QUERIES.text("add_users_of_lines"))
    line_count = connection.execute(
        _QUERIES.text("write_statement_over_cells"), {"realm_id": key["realm_id"]}
    ).rowcount
    connection.execute(_QUERIES.text("write_statement_parts"), {"realm_id": key["realm_id"]})
    connection.execute(_QUERIES.text("mark_period_closed"), {**key, "cutoff": cutoff})
    connection.execute(_QUERIES.text("record_billed_closings"), {**period, "cell": cell})
    result = CloseResult(
        realm=period["realm"],
        period=period["period"],
        line_count=line_count,
        excluded_sources=tuple(StatementCutoff.from_text(cutoff).excluded_sources),
        sums=statement_queries.statement_sums(connection, **key),
    )
    figures = statement_queries.statement_figures(connection, **key)
    enqueue_period_closed(connection, row, result, figures)
    copy_adjustments(connection, cell, period["realm"], period["period"])
    return result


def failing_cells(engine: Engine, period: Mapping[str, Any]) -> list[str]:
    """The cells of which a period could not be closed if they were alone; it stays as it is.

    None if only the sum of them can't be stored.
    """
    failing = []
    with reading_cells(engine) as connection:
        for cell in read_cells(connection):
            attempt = connection.begin_nested()
            try:
                close_over_cells(connection, period, cell=cell.cell)
            except DBAPIError:
                failing.append(cell.cell)
            finally:
                attempt.rollback()
    return failing
