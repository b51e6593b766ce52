"""Traces on a front: what it billed, down to the sessions and reports of its cells."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import date
from typing import Final, TypeVar
from uuid import UUID

from sqlalchemy import Engine

from accounting.audit.trace import trace, trace_adjustment
from accounting.audit.trace_results import SessionTrace, Trace
from accounting.audit.trace_session import trace_session
from accounting.billing import period_queries
from accounting.billing.adjustment_queries import adjustment_target
from accounting.billing.period_queries import find_period
from accounting.billing.statement_queries import BilledLine, billed_lines
from accounting.db.engine import lost_connections
from accounting.db.queries import Queries
from accounting.domain.periods import describe_wait
from accounting.domain.session_ids import short_session_id
from accounting.errors import UsageError, not_closed
from accounting.front.cells import Cell, is_front, open_cell, read_cells
from accounting.identities import realm_queries
from accounting.identities.realm_queries import find_realm
from accounting.identities.user_queries import find_user_key, unknown_user_error
from accounting.progress import Progress, no_progress

_QUERIES: Final = Queries("accounting.front")
_Found = TypeVar("_Found")
_NUMBERS: Final = 9


@dataclass(frozen=True, slots=True, kw_only=True)
class FrontTrace:
    """What a front billed for a user's period, and the trace in each cell that has a part of it."""

    realm: str
    period: date
    user_key: UUID
    lines: Sequence[BilledLine]
    cells: Sequence[tuple[str, Trace]]

    @property
    def adds_up(self) -> bool:
        """Whether the cells' bills add up to the front's, and each cell's trace to its bill."""
        billed = [line.numbers for line in self.lines if not line.manual]
        of_cells = [of_cell.billed for _, of_cell in self.cells]
        return _sum(billed) == _sum(of_cells) and all(part.adds_up for _, part in self.cells)


def trace_line(
    engine: Engine,
    realm: str,
    period: date,
    *,
    user: str | None = None,
    key: UUID | None = None,
    progress: Progress = no_progress,
) -> Trace | FrontTrace:
    """As :func:`accounting.audit.trace.trace`, also on a front."""
    cells = _cells(engine)
    if cells is None:
        return trace(engine, realm, period, user=user, key=key, progress=progress)
    with lost_connections(), engine.connect() as connection:
        realm_id = find_realm(connection, realm)
        row = find_period(connection, realm_id, realm, period)
        if row.cutoff is None:
            waits = period_queries.waits_for(connection, realm_id, period, ())
            raise not_closed(
                realm,
                period,
                describe_wait(waits, row.ends_at, row.time_zone),
                "its sessions: `turn-accounting sessions`, then `turn-accounting trace --session`",
            )
        user_key = key or find_user_key(connection, realm_id, user or "")
        if user_key is None:
            raise unknown_user_error(connection, realm, user or "")
        lines = billed_lines(connection, realm_id, period, user_key)
        rows = connection.execute(
            _QUERIES.text("cells_of_period"), {"realm_id": realm_id, "period": period}
        )
        billed = set(rows.scalars())
        cells = [cell for cell in cells if cell.cell in billed]
    parts = list(
        _in_cells(
            engine,
            cells,
            lambda of_cell: trace(of_cell, realm, period, key=user_key, progress=progress),
        )
    )
    if not lines and not parts:
        raise UsageError(f"no user_key {user_key} has usage in period {period} of realm '{realm}'")
    return FrontTrace(realm=realm, period=period, user_key=user_key, lines=lines, cells=parts)


def trace_posted(
    engine: Engine, adjustment_id: UUID, *, progress: Progress = no_progress
) -> Trace | FrontTrace:
    """As :func:`accounting.audit.trace.trace_adjustment`, also on a front."""
    if _cells(engine) is None:
        return trace_adjustment(engine, adjustment_id, progress=progress)
    with lost_connections(), engine.connect() as connection:
        target = adjustment_target(connection, adjustment_id)
        if target is None:
            raise UsageError(f"no adjustment {adjustment_id} is known on this front")
        realm_id, period, user_key = target
        realm = realm_queries.names_by_id(connection)[realm_id]
    return trace_line(engine, realm, period, key=user_key, progress=progress)


def trace_one_session(
    engine: Engine, session_id: UUID, *, progress: Progress = no_progress
) -> SessionTrace:
    """As :func:`accounting.audit.trace.trace_session`, also on a front: in the cell that has it."""
    cells = _cells(engine)
    if cells is None:
        return trace_session(engine, session_id, progress=progress)
    found = _in_cells(
        engine, cells, lambda of_cell: trace_session(of_cell, session_id, progress=progress)
    )
    for _, result in found:
        return result
    raise UsageError(f"no session {short_session_id(session_id)} is known in any cell")


def _cells(engine: Engine) -> list[Cell] | None:
    """The cells of a front; None for a database that is none."""
    with lost_connections(), engine.connect() as connection:
        return read_cells(connection) if is_front(connection) else None


def _in_cells(
    engine: Engine, cells: Sequence[Cell], find: Callable[[Engine], _Found]
) -> Iterator[tuple[str, _Found]]:
    """What each cell finds, of those that know what is looked for."""
    for cell in cells:
        try:
            with open_cell(engine, cell) as cell_engine:
                found = find(cell_engine)
        except UsageError:
            continue
        yield cell.cell, found


def _sum(numbers: Sequence[Sequence[int]]) -> tuple[int, ...]:
    return tuple(map(sum, zip(*numbers, strict=True))) or (0,) * _NUMBERS
