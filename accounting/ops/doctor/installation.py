"""Whether the cells of a front are one installation with it."""

from collections.abc import Iterator
from typing import Final

from accounting.db.engine import Engine
from accounting.front.status import cell_problems
from accounting.ops.doctor.findings import Finding, error, ok
from accounting.ops.monitoring.status_queries import DatabaseStatus

_CELLS: Final = "cells"


def check_installation(engine: Engine, database: DatabaseStatus) -> Iterator[Finding]:
    """Compare the rules of realms, sources, erasures and clocks of cells that can be read.

    With the connections of the jobs, which the other findings on cells do not need.
    """
    others = {
        cell.cell
        for cell in database.cell_states
        if cell.away or cell.revision != cell.joined_revision
    }
    problems = cell_problems(engine, without=others)
    for problem in problems:
        yield error(
            _CELLS,
            "installation",
            problem,
            "check that `turn-accounting schedule` runs on the front, and its job `share`; what it "
            "can't mend is in docs/cells.md",
        )
    if not problems and database.cell_states:
        yield ok(_CELLS, "installation", "all cells that answer have the same rules and sources")
