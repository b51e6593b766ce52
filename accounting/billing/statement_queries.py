"""SQL for statements: written once when their period closes, then only read."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date
from typing import Final
from uuid import UUID

from sqlalchemy import Connection, func, select

from accounting.db import schema
from accounting.db.queries import Queries
from accounting.db.schema import adjustments, statements
from accounting.domain.calendar import to_micros
from accounting.domain.counters import COUNTERS
from accounting.domain.statements import SourceCutoff, StatementCutoff

_QUERIES: Final = Queries("accounting.billing")

LINE_NUMBERS: Final = (
    *COUNTERS,
    "sessions_started",
    "sessions_ended",
    "session_microseconds",
    "estimated_bytes",
)
"""The numeric columns of a statement line, in the order of its digest."""


@dataclass(frozen=True, slots=True, kw_only=True)
class BilledLine:
    """A statement line or an adjustment: the eight counters and session microseconds.

    ``adjustment_id`` is None for a statement line. ``manual``: posted by a person.
    """

    adjustment_id: UUID | None
    reason: str
    manual: bool
    numbers: tuple[int, ...]


def current_cutoff(connection: Connection, excluded_sources: Sequence[str] = ()) -> StatementCutoff:
    """How far every source is settled now, and the last gap. ``excluded_sources``: as recorded."""
    watermarks = schema.settle_watermarks
    rows = connection.execute(
        select(schema.sources.c.source, watermarks).join(
            watermarks, watermarks.c.source_id == schema.sources.c.source_id
        )
    )
    return StatementCutoff(
        highest_gap_id=connection.execute(
            select(func.coalesce(func.max(schema.capture_gaps.c.gap_id), 0))
        ).scalar_one(),
        sources={
            row.source: SourceCutoff(
                epoch=row.epoch,
                position=row.position,
                settled_until=None if row.settled_until is None else to_micros(row.settled_until),
                last_sighting=(
                    row.last_sighting_epoch,
                    row.last_sighting_position,
                    row.last_sighting,
                ),
            )
            for row in rows
        },
        excluded_sources=tuple(excluded_sources),
    )


def write_statement(
    connection: Connection, realm_id: int, period: date, cutoff: StatementCutoff
) -> int:
    """Write the lines of a period's statement; returns how many."""
    return connection.execute(
        _QUERIES.text("write_statement"),
        {"realm_id": realm_id, "period": period, "cutoff": cutoff.to_text()},
    ).rowcount


def statement_figures(connection: Connection, realm_id: int, period: date) -> str:
    """SHA-256, in hexadecimal, of a statement's figures: equal ones are equal bills."""
    figures: str = connection.execute(
        _QUERIES.text("statement_figures"), {"realm_id": realm_id, "period": period}
    ).scalar_one()
    return figures


def statement_sums(connection: Connection, realm_id: int, period: date) -> dict[str, int]:
    """The sums of a statement's numbers over all its lines."""
    columns = statements.c
    sums = connection.execute(
        select(
            *(func.coalesce(func.sum(columns[name]), 0).label(name) for name in LINE_NUMBERS)
        ).where(columns.realm_id == realm_id, columns.period == period)
    ).mappings()
    return {name: int(value) for name, value in sums.one().items()}


def billed_lines(
    connection: Connection, realm_id: int, period: date, user_key: UUID
) -> list[BilledLine]:
    """A user's statement line of a period, then its adjustments in order of posting."""
    lines: list[BilledLine] = []
    for table in (statements, adjustments):
        query = select(table).where(
            table.c.realm_id == realm_id, table.c.period == period, table.c.user_key == user_key
        )
        if table is adjustments:
            query = query.order_by(table.c.posted_at, table.c.adjustment_id)
        lines += [
            BilledLine(
                adjustment_id=row.get("adjustment_id"),
                reason=row.get("reason", "usage"),
                manual=row.get("manual", False),
                numbers=tuple(int(row[name]) for name in (*COUNTERS, "session_microseconds")),
            )
            for row in connection.execute(query).mappings()
        ]
    return lines
