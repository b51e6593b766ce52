"""What a front knows of its cells now: whether each answers, and what needs attention."""

from typing import Any

from sqlalchemy import Engine

from accounting.db import migrations
from accounting.db.engine import lost_connections
from accounting.errors import AccountingError
from accounting.front import cells


def cell_states(engine: Engine) -> list[dict[str, Any]]:
    """The cells by name. ``state``: ``ok``, or why a cell can't be read."""
    with lost_connections(), engine.connect() as connection:
        cells.require_front(connection)
        known = cells.read_cells(connection)
    return [
        {
            "cell": cell.cell,
            "url": cell.url,
            "state": _state(engine, cell),
            "revision": cell.revision,
            "joined_at": cell.joined_at,
        }
        for cell in known
    ]


def _state(engine: Engine, cell: cells.Cell) -> str:
    try:
        with cells.open_cell(engine, cell) as cell_engine:
            revision = migrations.current_revision(cell_engine)
    except AccountingError as error:
        return str(error)
    return "ok" if revision == cell.revision else f"now at revision {revision}: join it again"
