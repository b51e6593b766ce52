"""What a front knows of its cells now: whether each answers, and what needs attention."""

from typing import Any

from sqlalchemy import Engine

from accounting.db.engine import lost_connections, private_connection
from accounting.front import cells
from accounting.reporting.cells import CellState, ask_cells, describe_revision


def cell_states(engine: Engine) -> list[dict[str, Any]]:
    """The cells by name. ``state``: ``ok``, or why a cell can't be read."""
    with lost_connections(), engine.connect() as connection:
        cells.require_front(connection)
        known = cells.read_cells(connection)
    statuses = {status.cell: status for status in ask_cells(lambda: private_connection(engine))}
    return [
        {
            "cell": cell.cell,
            "url": cell.url,
            "state": _state(statuses.get(cell.cell)),
            "revision": cell.revision,
            "joined_at": cell.joined_at,
        }
        for cell in known
    ]


def _state(status: CellState | None) -> str:
    if status is None:
        return "has left"
    return status.away or describe_revision(status) or "ok"
