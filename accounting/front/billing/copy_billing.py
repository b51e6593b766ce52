"""The statements of a front: of every period that all its cells have closed.

They are copied, and then never change, whatever becomes of a cell. A line is the sum of those that
the cells have of the user; a cell's later adjustments are copied one by one.
"""

from collections.abc import Mapping
from typing import Any, Final

from sqlalchemy import Connection, Engine

from accounting.billing import statement_queries
from accounting.billing.adjust import enqueue_posted
from accounting.billing.close_period import CloseResult, enqueue_period_closed
from accounting.billing.period_queries import find_period
from accounting.db.locks import lock
from accounting.db.queries import Queries
from accounting.domain.statements import StatementCutoff, cutoff_over_cells
from accounting.front.cells import reading_cells

_QUERIES: Final = Queries("accounting.front.billing")


def copy_billing(engine: Engine) -> int:
    """Copy the periods that all cells have closed, and new adjustments; returns how many of both.

    Raises ConnectionLost where a cell does not answer: then nothing is known to be complete.
    """
    with reading_cells(engine) as connection:
        lock(connection, "rollup")
        for name in (
            "delete_stale_periods",
            "take_up_periods",
        ):
            connection.execute(_QUERIES.text(name))
        copied = _copy_adjustments(connection, None, None)
        copied += _bill_closed_anew(connection)
    while closed := _close_ready_periods(engine):
        copied += closed
    return copied


def _close_ready_periods(engine: Engine) -> int:
    """Close the periods that are ready now, each in a transaction; the next of a realm follows.

    They are listed once, since that asks every cell. Returns how many records were written.
    """
    with reading_cells(engine) as connection:
        listed = connection.execute(_QUERIES.text("ready_periods")).mappings().all()
    written = 0
    for ready in map(dict, listed):
        with reading_cells(engine) as connection:
            lock(connection, "rollup")
            if connection.execute(_QUERIES.text("is_ready"), ready).scalar_one():
                _close(connection, ready)
                written += 1 + _copy_adjustments(connection, ready["realm_id"], ready["period"])
    return written


def _close(connection: Connection, ready: Mapping[str, Any]) -> None:
    """Write the statement of a period, and its event."""
    period = {name: ready[name] for name in ("realm_id", "period")}
    row = find_period(connection, ready["realm_id"], ready["realm"], ready["period"])
    connection.execute(_QUERIES.text("create_lines_of_cells"))
    connection.execute(_QUERIES.text("read_lines_of_cells"), ready)
    cutoffs = connection.execute(_QUERIES.text("cutoffs_of_cells"), ready).all()
    cutoff = cutoff_over_cells({row.cell: row.cutoff for row in cutoffs})
    connection.execute(_QUERIES.text("add_users_of_lines"))
    line_count = connection.execute(
        _QUERIES.text("write_statement_over_cells"), {"realm_id": ready["realm_id"]}
    ).rowcount
    connection.execute(_QUERIES.text("mark_period_closed"), {**period, "cutoff": cutoff})
    connection.execute(_QUERIES.text("record_billed_closings"), ready)
    result = CloseResult(
        realm=ready["realm"],
        period=ready["period"],
        line_count=line_count,
        excluded_sources=tuple(StatementCutoff.from_text(cutoff).excluded_sources),
        sums=statement_queries.statement_sums(connection, **period),
    )
    figures = statement_queries.statement_figures(connection, **period)
    enqueue_period_closed(connection, row, result, figures)


def _copy_adjustments(connection: Connection, realm_id: int | None, period: Any) -> int:
    """Copy the adjustments of a closed period, or the new ones of all."""
    ids = (
        connection.execute(
            _QUERIES.text("copy_adjustments"), {"realm_id": realm_id, "period": period}
        )
        .scalars()
        .all()
    )
    enqueue_posted(connection, ids)
    # A cell that was restored may post what it had posted, in other portions.
    periods = connection.execute(_QUERIES.text("periods_of_adjustments"), {"ids": list(ids)})
    posted = [_post_difference(connection, row._asdict()) for row in periods.all()]
    return len(ids) + sum(posted)


def _bill_closed_anew(connection: Connection) -> int:
    """Post what cells have billed otherwise than the front, in closings that it has not seen yet.

    Of cells that were restored and have closed a period again, and of those that had no usage of it
    when the front closed it. Returns how many adjustments.
    """
    posted = 0
    rows = connection.execute(_QUERIES.text("closed_anew")).all()
    for row in [{**row._asdict(), "user_keys": None} for row in rows]:
        if not connection.execute(_QUERIES.text("is_comparable"), row).scalar_one():
            continue
        connection.execute(_QUERIES.text("create_lines_of_cells"))
        connection.execute(_QUERIES.text("read_lines_of_cells"), row)
        connection.execute(_QUERIES.text("add_users_of_lines"))
        posted += _post_difference(connection, row)
        connection.execute(_QUERIES.text("record_billed_closings"), row)
    return posted


def _post_difference(connection: Connection, period: Mapping[str, Any]) -> int:
    """Post what the cells have of a closed period and the front has not; returns how many."""
    if not connection.execute(_QUERIES.text("is_comparable"), period).scalar_one():
        return 0
    ids = connection.execute(_QUERIES.text("post_difference"), period).scalars().all()
    enqueue_posted(connection, ids)
    return len(ids)
