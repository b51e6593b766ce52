"""Billing periods, stored: drawn by the rules, closed with their statements, adjusted afterwards.

Owns ``periods``, ``statements``, ``adjustments`` and ``periods_to_adjust``. The borders are
``domain.periods``'. Who calls anything that writes here holds the lock ``rollup``.
"""

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import date, datetime
from typing import Any, Final
from uuid import UUID, uuid4

from sqlalchemy import Connection, delete, func, insert, select, text, update

from accounting.db import schema
from accounting.db.queries import Queries
from accounting.domain.calendar import from_micros, to_micros
from accounting.domain.counters import COUNTERS
from accounting.domain.periods import PeriodBounds, periods
from accounting.domain.realm_rules import RealmRules
from accounting.domain.statements import SourceCutoff, StatementCutoff
from accounting.identities.realm_queries import all_rules

_QUERIES: Final = Queries("accounting.billing")

LINE_NUMBERS: Final = (
    *COUNTERS,
    "sessions_started",
    "sessions_ended",
    "session_microseconds",
    "estimated_bytes",
)
"""The numbers of a statement's line, in the order of its digest."""
_ADJUSTED: Final = (*COUNTERS, "session_microseconds")
LATE_USAGE_AUTHOR: Final = "turn-accounting"
"""Who posts late usage; no person is called so."""
_PERIOD: Final = schema.periods.c
_LINE: Final = schema.statements.c


@dataclass(frozen=True, slots=True, kw_only=True)
class PeriodRow:
    """A period as it stands in the database; ``closed_at`` None while it is not closed."""

    realm_id: int
    period: date
    starts_at: datetime
    ends_at: datetime
    due_at: datetime
    time_zone: str
    closed_at: datetime | None
    cutoff: str | None


def realm_periods(connection: Connection, realm_id: int) -> list[PeriodRow]:
    """All periods of a realm that are drawn, the oldest first."""
    rows = connection.execute(
        select(
            _PERIOD.realm_id,
            _PERIOD.period,
            _PERIOD.starts_at,
            _PERIOD.ends_at,
            _PERIOD.due_at,
            _PERIOD.time_zone,
            _PERIOD.closed_at,
            _PERIOD.cutoff,
        )
        .where(_PERIOD.realm_id == realm_id)
        .order_by(_PERIOD.starts_at)
    )
    return [PeriodRow(**row) for row in rows.mappings()]


def draw(connection: Connection) -> None:
    """Draw every realm's periods by its rules: from its first usage to the clock of capture.

    What is closed stays; what is open is redrawn where rules have changed.
    """
    clock = connection.execute(select(func.accounting.period_clock())).scalar_one()
    if clock is None:
        return
    rules = all_rules(connection)
    for realm_id, starts_at in connection.execute(_QUERIES.text("first_usage")).all():
        _draw_realm(connection, realm_id, rules[realm_id], starts_at, clock)


def _draw_realm(
    connection: Connection, realm_id: int, rules: RealmRules, first: datetime, clock: datetime
) -> None:
    held = {row.period: row for row in realm_periods(connection, realm_id)}
    closed = [row for row in held.values() if row.closed_at is not None]
    # There always is a period to post in, after the last that is closed.
    until = max([first, clock, *(row.ends_at for row in closed)])
    wanted = {
        one.first_day: _row(realm_id, one)
        for one in periods(rules, to_micros(first), to_micros(until))
    }
    stale = [row.period for row in held.values() if row.closed_at is None and _differs(row, wanted)]
    if stale:
        connection.execute(
            delete(schema.periods).where(
                _PERIOD.realm_id == realm_id,
                _PERIOD.period.in_(stale),
                _PERIOD.closed_at.is_(None),
            )
        )
    missing = [row for day, row in wanted.items() if day not in held or day in stale]
    if missing:
        connection.execute(insert(schema.periods), missing)


def _row(realm_id: int, period: PeriodBounds) -> dict[str, Any]:
    return {
        "realm_id": realm_id,
        "period": period.first_day,
        "starts_at": from_micros(period.starts_at),
        "ends_at": from_micros(period.ends_at),
        "due_at": from_micros(period.due_at),
        "time_zone": period.time_zone,
    }


def _differs(row: PeriodRow, wanted: Mapping[date, Mapping[str, Any]]) -> bool:
    drawn = wanted.get(row.period)
    return drawn is None or any(getattr(row, name) != value for name, value in drawn.items())


def ready(connection: Connection) -> list[tuple[int, date]]:
    """(realm_id, period) of those that wait for nothing, the oldest first."""
    return [
        (row.realm_id, row.period) for row in connection.execute(_QUERIES.text("ready_periods"))
    ]


def waits(
    connection: Connection, realm_id: int, period: date, without: Collection[str]
) -> str | None:
    """What a period that is not closed waits for, in words; None: for nothing."""
    found: str | None = connection.execute(
        text("SELECT accounting.period_waits(:realm_id, :period, CAST(:without AS text[]))"),
        {"realm_id": realm_id, "period": period, "without": list(without)},
    ).scalar_one()
    return found


def cutoff(
    connection: Connection, realm_id: int, period: date, without: Collection[str]
) -> StatementCutoff:
    """How far every source is settled now. ``without``: those not waited for, if behind."""
    passed = connection.execute(
        _QUERIES.text("passed_sources"),
        {"realm_id": realm_id, "period": period, "without": list(without)},
    ).scalars()
    return replace(current_cutoff(connection), excluded_sources=tuple(passed))


def current_cutoff(connection: Connection) -> StatementCutoff:
    """How far every source is settled now."""
    sources, settling = schema.sources.c, schema.settle_watermarks.c
    rows = connection.execute(
        select(sources.source, schema.settle_watermarks).join(
            schema.settle_watermarks, settling.source_id == sources.source_id
        )
    )
    return StatementCutoff(
        gap=connection.execute(
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
    )


def close(connection: Connection, realm_id: int, period: date, at: StatementCutoff) -> int:
    """Write a period's statement and close it; returns the number of lines."""
    written = connection.execute(
        _QUERIES.text("write_statements"),
        {"realm_id": realm_id, "period": period, "cutoff": at.to_text()},
    )
    closed = connection.execute(
        update(schema.periods)
        .where(_PERIOD.realm_id == realm_id, _PERIOD.period == period, _PERIOD.closed_at.is_(None))
        .values(closed_at=func.now(), cutoff=at.to_text())
    )
    assert closed.rowcount == 1, "the lock of the roll-up does not hold"
    return written.rowcount


def statement_sums(connection: Connection, realm_id: int, period: date) -> dict[str, int]:
    """The sums of a statement's numbers over all its lines."""
    rows = connection.execute(
        select(
            *(func.coalesce(func.sum(_LINE[name]), 0).label(name) for name in LINE_NUMBERS)
        ).where(_LINE.realm_id == realm_id, _LINE.period == period)
    ).mappings()
    return {name: int(value) for name, value in rows.one().items()}


def take_touched(connection: Connection, limit: int) -> int:
    """Take marks off ``periods_to_adjust``; returns how many users' periods they name."""
    connection.execute(_QUERIES.text("stage_touched_periods"))
    return connection.execute(_QUERIES.text("take_touched_periods"), {"limit": limit}).rowcount


def post_late_usage(connection: Connection) -> list[UUID]:
    """Post what the taken users' periods lack; returns the ids of the adjustments."""
    return list(connection.execute(_QUERIES.text("post_adjustments")).scalars())


def post_by_hand(
    connection: Connection,
    realm_id: int,
    period: date,
    posted_in: date,
    user_key: UUID,
    numbers: Mapping[str, int],
    reason: str,
    author: str,
) -> UUID:
    """Post one correction of a person. ``numbers``: counters, session_microseconds; signed."""
    made = uuid4()
    connection.execute(
        insert(schema.adjustments).values(
            adjustment_id=made,
            user_key=user_key,
            realm_id=realm_id,
            period=period,
            posted_in=posted_in,
            reason=reason,
            author=author,
            manual=True,
            **{name: numbers.get(name, 0) for name in _ADJUSTED},
        )
    )
    return made


def posted_by_hand(
    connection: Connection,
    realm_id: int,
    period: date,
    user_key: UUID,
    numbers: Mapping[str, int],
    reason: str,
    author: str,
) -> UUID | None:
    """The correction of a person that is the same in all of this, if one was posted."""
    table = schema.adjustments.c
    found: UUID | None = connection.execute(
        select(table.adjustment_id).where(
            table.realm_id == realm_id,
            table.period == period,
            table.user_key == user_key,
            table.manual,
            table.reason == reason,
            table.author == author,
            *(table[name] == numbers.get(name, 0) for name in _ADJUSTED),
        )
    ).scalar()
    return found


def adjustments(connection: Connection, ids: Iterable[UUID]) -> Sequence[Any]:
    """Rows of adjustments by id."""
    table = schema.adjustments
    return connection.execute(
        select(table).where(table.c.adjustment_id.in_(list(ids))).order_by(table.c.adjustment_id)
    ).all()


def find_user_key(connection: Connection, realm_id: int, user_id: str) -> UUID | None:
    """The key of a user by name; None when nobody has it."""
    found: UUID | None = connection.execute(
        select(schema.users.c.user_key).where(
            schema.users.c.realm_id == realm_id, schema.users.c.user_id == user_id
        )
    ).scalar()
    return found
