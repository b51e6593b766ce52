"""What was billed to one user: reads ``statements`` and ``adjustments``; writes nothing."""

from dataclasses import dataclass
from datetime import date
from uuid import UUID

from sqlalchemy import Connection, select

from accounting.db.schema import adjustments, sessions, statements
from accounting.domain.counters import COUNTERS


@dataclass(frozen=True, slots=True, kw_only=True)
class BilledLine:
    """A statement's line, or an adjustment: the eight counters and session microseconds.

    ``adjustment_id`` None for the line; ``manual`` for a correction by a person.
    """

    adjustment_id: UUID | None
    reason: str
    manual: bool
    numbers: tuple[int, ...]


def billed_lines(
    connection: Connection, realm_id: int, period: date, user_key: UUID
) -> list[BilledLine]:
    """The user's line of a period and the adjustments that name it, in order of posting."""
    found: list[BilledLine] = []
    for table in (statements, adjustments):
        query = select(table).where(
            table.c.realm_id == realm_id, table.c.period == period, table.c.user_key == user_key
        )
        if table is adjustments:
            query = query.order_by(table.c.posted_at, table.c.adjustment_id)
        found += [
            BilledLine(
                adjustment_id=row.get("adjustment_id"),
                reason=row.get("reason", "usage"),
                manual=row.get("manual", False),
                numbers=tuple(int(row[name]) for name in (*COUNTERS, "session_microseconds")),
            )
            for row in connection.execute(query).mappings()
        ]
    return found


def adjustment_target(connection: Connection, adjustment_id: UUID) -> tuple[int, date, UUID] | None:
    """(realm_id, period, user_key) that an adjustment names."""
    columns = adjustments.c.realm_id, adjustments.c.period, adjustments.c.user_key
    row = connection.execute(
        select(*columns).where(adjustments.c.adjustment_id == adjustment_id)
    ).one_or_none()
    return None if row is None else (row[0], row[1], row[2])


def username_keys(connection: Connection, user_key: UUID) -> list[bytes]:
    """The keys of the usernames under which the user's sessions were reported."""
    rows = connection.execute(
        select(sessions.c.username_key).where(sessions.c.user_key == user_key).distinct()
    )
    return [key.bytes for key in rows.scalars()]
