"""SQL for billing periods, table ``periods``.

A writer holds the lock ``rollup``.
"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from datetime import date, datetime
from typing import Any, Final

from sqlalchemy import Connection, delete, func, insert, select, text, update

from accounting.db import schema
from accounting.db.clock import database_now
from accounting.db.queries import Queries
from accounting.domain.calendar import from_micros, to_micros
from accounting.domain.periods import PeriodBounds, periods
from accounting.domain.realm_rules import RealmRules
from accounting.domain.statements import StatementCutoff
from accounting.errors import unknown_period
from accounting.identities.realm_queries import all_rules

_QUERIES: Final = Queries("accounting.billing")
_PERIOD: Final = schema.periods.c


@dataclass(frozen=True, slots=True, kw_only=True)
class PeriodRow:
    """A row of ``periods``. ``closed_at`` and ``cutoff`` are None until it is closed."""

    realm_id: int
    period: date
    starts_at: datetime
    ends_at: datetime
    due_at: datetime
    time_zone: str
    closed_at: datetime | None
    cutoff: str | None


def realm_periods(connection: Connection, realm_id: int) -> list[PeriodRow]:
    """All periods of a realm, the oldest first."""
    rows = connection.execute(
        select(schema.periods).where(_PERIOD.realm_id == realm_id).order_by(_PERIOD.starts_at)
    )
    return [PeriodRow(**row) for row in rows.mappings()]


def find_period(connection: Connection, realm_id: int, realm: str, period: date) -> PeriodRow:
    """A period by its first day. Raises UsageError."""
    rows = realm_periods(connection, realm_id)
    for row in rows:
        if row.period == period:
            return row
    raise unknown_period(realm, period, [row.period for row in rows])


def refresh_periods(connection: Connection) -> None:
    """Derive every realm's periods from its rules, from its first usage to the database's now.

    Open periods are replaced where the rules have changed; closed ones stay.
    """
    now = database_now(connection)
    rules = all_rules(connection)
    for realm_id, first_usage in connection.execute(_QUERIES.text("first_usage")).all():
        _refresh_realm(connection, realm_id, rules[realm_id], first_usage, now)


def _refresh_realm(
    connection: Connection, realm_id: int, rules: RealmRules, first_usage: datetime, now: datetime
) -> None:
    stored = {row.period: row for row in realm_periods(connection, realm_id)}
    closed_ends = [row.ends_at for row in stored.values() if row.closed_at is not None]
    # Up to the last closed end, which begins an open period: adjustments need one to be posted in.
    until = max([first_usage, now, *closed_ends])
    derived = {
        bounds.first_day: _period_values(realm_id, bounds)
        for bounds in periods(rules, to_micros(first_usage), to_micros(until))
    }
    stale = [
        day
        for day, row in stored.items()
        if row.closed_at is None and _differs(row, derived.get(day))
    ]
    if stale:
        connection.execute(
            delete(schema.periods).where(
                _PERIOD.realm_id == realm_id,
                _PERIOD.period.in_(stale),
                _PERIOD.closed_at.is_(None),
            )
        )
    missing = [values for day, values in derived.items() if day not in stored or day in stale]
    if missing:
        connection.execute(insert(schema.periods), missing)


def _period_values(realm_id: int, bounds: PeriodBounds) -> dict[str, Any]:
    return {
        "realm_id": realm_id,
        "period": bounds.first_day,
        "starts_at": from_micros(bounds.starts_at),
        "ends_at": from_micros(bounds.ends_at),
        "due_at": from_micros(bounds.due_at),
        "time_zone": bounds.time_zone,
    }


def _differs(row: PeriodRow, values: dict[str, Any] | None) -> bool:
    return values is None or any(getattr(row, name) != value for name, value in values.items())


def ready_periods(connection: Connection) -> list[tuple[int, date]]:
    """(realm_id, period) of the periods that wait for nothing, the oldest first."""
    return [
        (row.realm_id, row.period) for row in connection.execute(_QUERIES.text("ready_periods"))
    ]


def waits_for(
    connection: Connection, realm_id: int, period: date, excluded_sources: Collection[str]
) -> str | None:
    """What an open period waits for, as a message; None when it can close."""
    message: str | None = connection.execute(
        text("SELECT accounting.period_waits(:realm_id, :period, CAST(:excluded AS text[]))"),
        {"realm_id": realm_id, "period": period, "excluded": list(excluded_sources)},
    ).scalar_one()
    return message


def sources_behind(
    connection: Connection, realm_id: int, period: date, excluded_sources: Collection[str]
) -> Sequence[str]:
    """The excluded and the retired sources that are not settled up to the period's due time."""
    return (
        connection.execute(
            _QUERIES.text("sources_behind"),
            {"realm_id": realm_id, "period": period, "excluded": list(excluded_sources)},
        )
        .scalars()
        .all()
    )


def mark_closed(
    connection: Connection, realm_id: int, period: date, cutoff: StatementCutoff
) -> None:
    """Close a period whose statement is written."""
    closed = connection.execute(
        update(schema.periods)
        .where(_PERIOD.realm_id == realm_id, _PERIOD.period == period, _PERIOD.closed_at.is_(None))
        .values(closed_at=func.clock_timestamp(), cutoff=cutoff.to_text())
    )
    assert closed.rowcount == 1, "the period changed although the caller holds the lock"
