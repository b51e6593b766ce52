"""What a front knows of its cells now: whether each answers, and what needs attention."""

from collections.abc import Collection, Iterator, Mapping
from datetime import datetime
from typing import Any
from uuid import UUID

from sqlalchemy import Engine

from accounting.db.clock import CLOCK_TOLERANCE_SECONDS
from accounting.db.engine import lost_connections, private_connection
from accounting.domain.text_escaping import escape
from accounting.errors import AccountingError
from accounting.front import cells
from accounting.front.shared.cell_facts import (
    CellFacts,
    RealmFacts,
    ahead_text,
    colliding_sources,
    differing_realms,
    read_facts,
    read_realms,
)
from accounting.front.shared.share import lacking_erasures, read_erasures, sources_of_other_cells
from accounting.plurals import counted
from accounting.reporting.cells import CellState, ask_cells, describe_change


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
            "bill_from": cell.bill_from,
        }
        for cell in known
    ]


def _state(status: CellState | None) -> str:
    if status is None:
        return "has left"
    return status.away or describe_change(status) or "ok"


def cell_problems(engine: Engine, *, without: Collection[str] = ()) -> list[str]:
    """What keeps the cells from being one installation, a line each, which names the cell.

    One that does not answer, or is at another revision; rules of a realm, sources, and erasures
    that are not those of the front; and a clock that is off. ``without``: cells that are not asked.
    """
    with lost_connections(), engine.connect() as connection:
        cells.require_front(connection)
        known = cells.read_cells(connection)
        realms = read_realms(connection)
        erasures = read_erasures(connection)
    problems: list[str] = []
    for cell in known:
        if cell.cell in without:
            continue
        try:
            with cells.open_cell(engine, cell) as cell_engine:
                facts = read_facts(cell_engine, engine)
        except AccountingError as error:
            problems.append(str(error))
            continue
        with lost_connections(), engine.connect() as connection:
            others = sources_of_other_cells(connection, cell.cell)
        problems += [
            f"cell '{cell.cell}': {problem}"
            for problem in _problems(facts, realms, others, erasures)
        ]
    return problems


def _problems(
    facts: CellFacts,
    realms: Mapping[bytes, RealmFacts],
    others: Mapping[str, tuple[str, int]],
    erasures: Mapping[UUID, datetime],
) -> Iterator[str]:
    for realm in differing_realms(realms, facts.realms):
        has = "lacks the rules" if realm not in facts.realms else "has other rules"
        yield f"it {has} of realm {escape(realm)!r} than the front, whose job `share` sets them"
    yield from colliding_sources(facts.sources, others)
    if lacking := lacking_erasures(facts, erasures):
        yield f"{counted(len(lacking), 'erasure')} of the front is not carried out"
    if abs(facts.clock_ahead_seconds) > CLOCK_TOLERANCE_SECONDS:
        yield f"its database's clock is {ahead_text(facts.clock_ahead_seconds)} the front's"
