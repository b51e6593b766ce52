"""Reads what dropping a day of reports depends on, and drops it.

A writer holds the lock ``retain``. The job decides when a day may go; the database's own function
refuses to drop reports that were not carried over, and those of periods not closed and proved.
"""

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from typing import Any, Final, NamedTuple
from uuid import UUID

from psycopg.errors import IntegrityConstraintViolation, LockNotAvailable
from sqlalchemy import Connection, func, select, text
from sqlalchemy.dialects.postgresql import insert as upsert
from sqlalchemy.exc import IntegrityError, OperationalError

from accounting.db.engine import psycopg_connection
from accounting.db.locks import set_lock_timeout
from accounting.db.queries import Queries
from accounting.db.schema import dropped_positions, dropped_reports, reports
from accounting.domain.calendar import from_micros, micros_or_none, to_micros
from accounting.domain.session_ids import session_id

_QUERIES: Final = Queries("accounting.audit")

_LOCK_SECONDS: Final = 0.2
"""How long each attempt to lock the reports may make a loader wait behind it."""
_LOCK_ATTEMPTS: Final = 5


@dataclass(frozen=True, slots=True, kw_only=True)
class SourceDay:
    """A source on a day: how far it is settled, and its last report of that day.

    Times in microseconds. ``last``: (epoch, position); None without a report on that day.
    ``is_unsettled``: some report of the day is not settled.
    """

    source_id: int
    source: str
    is_retired: bool
    settled_until: int | None
    last: tuple[int, int] | None
    received_at: int | None
    is_unsettled: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class DependentPeriod:
    """A period that a day depends on. ``period`` None: it has no row yet.

    ``differences``: of its last proof, None without one. ``is_fresh``: that proof is recent, and
    later than the close.
    """

    realm: str
    period: date | None
    is_closed: bool
    differences: int | None
    checked_at: datetime | None
    is_fresh: bool


class ArchivesOfSpan(NamedTuple):
    """Where the dropped days of a span are archived, and how many are not, or not whole."""

    places: tuple[str, ...]
    unarchived_days: int


def day_bounds(day: date) -> tuple[int, int]:
    """A day (UTC) from midnight to midnight, in microseconds."""
    midnight = datetime(day.year, day.month, day.day, tzinfo=UTC)
    return to_micros(midnight), to_micros(midnight + timedelta(days=1))


def _day_parameters(day: date) -> dict[str, datetime]:
    since, until = map(from_micros, day_bounds(day))
    return {"since": since, "until": until}


def report_days(connection: Connection) -> list[date]:
    """The days that have a partition of reports, the oldest first."""
    return list(connection.execute(_QUERIES.text("report_days")).scalars())


def retention_clock(connection: Connection) -> datetime | None:
    """The time that the age of reports is counted from; None before anything was captured."""
    clock: datetime | None = connection.execute(_QUERIES.text("retention_clock")).scalar_one()
    return clock


def sources_on(connection: Connection, day: date) -> list[SourceDay]:
    """Every source, and how it stands to that day's reports."""
    return [
        SourceDay(
            source_id=row.source_id,
            source=row.source,
            is_retired=row.is_retired,
            settled_until=micros_or_none(row.settled_until),
            last=None if row.epoch is None else (row.epoch, row.position),
            received_at=micros_or_none(row.received_at),
            is_unsettled=row.is_unsettled,
        )
        for row in connection.execute(_QUERIES.text("day_sources"), _day_parameters(day))
    ]


def count_reports(connection: Connection, day: date) -> dict[tuple[int, int], int]:
    """The number of reports of a day, by realm_id and source_id."""
    since, until = _day_parameters(day).values()
    rows = connection.execute(
        select(reports.c.realm_id, reports.c.source_id, func.count())
        .where(reports.c.received_at >= since, reports.c.received_at < until)
        .group_by(reports.c.realm_id, reports.c.source_id)
    )
    return {(realm_id, source_id): count for realm_id, source_id, count in rows}


def create_day_sessions(
    connection: Connection, day: date, source_days: Collection[SourceDay]
) -> None:
    """Collect the sessions that a day's evidence belongs to, for the two functions below."""
    last = {day.source_id: day.last for day in source_days if day.last is not None}
    connection.execute(
        _QUERIES.text("create_day_sessions"),
        {
            "sources": list(last),
            "epochs": [epoch for epoch, _ in last.values()],
            "positions": [position for _, position in last.values()],
            "last_session_ids": [
                UUID(bytes=session_id(source_id, *place)) for source_id, place in last.items()
            ],
            **_day_parameters(day),
        },
    )
    connection.execute(text("ANALYZE day_sessions"))


def count_active_sessions(connection: Connection) -> dict[str, int]:
    """How many of the day's sessions have not ended, by source."""
    rows = connection.execute(_QUERIES.text("count_active_day_sessions"))
    return {row.source: row.sessions for row in rows}


def dependent_periods(
    connection: Connection, day: date, realm_ids: Collection[int], max_age: timedelta
) -> list[DependentPeriod]:
    """The periods in which the day's sessions have usage, and those of its realms that overlap it.

    ``realm_ids``: the realms with reports on that day; ``max_age``: of a fresh proof.
    """
    rows = connection.execute(
        _QUERIES.text("dependent_periods"),
        {"day": day, "realms": list(realm_ids), "max_age": max_age, **_day_parameters(day)},
    )
    return [DependentPeriod(**row) for row in rows.mappings()]


def drop_day_tables(connection: Connection) -> None:
    """Drop all scratch tables of a day."""
    psycopg_connection(connection).execute(_QUERIES.driver("drop_day_tables"))


def record_dropped(
    connection: Connection,
    day: date,
    source_days: Collection[SourceDay],
    counts: Mapping[tuple[int, int], int],
) -> None:
    """Record how many reports of a day are dropped, and the last one of each source."""
    for (realm_id, source_id), count in counts.items():
        new = upsert(dropped_reports).values(
            day=day, realm_id=realm_id, source_id=source_id, reports=count
        )
        connection.execute(
            new.on_conflict_do_update(
                index_elements=["day", "realm_id", "source_id"],
                set_={
                    "reports": dropped_reports.c.reports + new.excluded.reports,
                    "dropped_at": func.now(),
                },
            )
        )
    for source_day in source_days:
        if source_day.last is None or source_day.received_at is None:
            continue
        last_report: dict[str, Any] = {
            "epoch": source_day.last[0],
            "position": source_day.last[1],
            "received_at": from_micros(source_day.received_at),
            "last_session_id": UUID(bytes=session_id(source_day.source_id, *source_day.last)),
        }
        connection.execute(
            upsert(dropped_positions)
            .values(source_id=source_day.source_id, **last_report)
            .on_conflict_do_update(index_elements=["source_id"], set_=last_report)
        )


def drop_day(connection: Connection, day: date) -> str | None:
    """Drop the partition of a day; returns why the reports stay, None when they are dropped.

    They stay while they are being read, and where the database refuses: reports may have arrived,
    or a period's proof may have changed, after the day was evaluated.
    """
    query = text("SELECT accounting.drop_report_partition(:day)")
    set_lock_timeout(connection, _LOCK_SECONDS)
    for _ in range(_LOCK_ATTEMPTS):
        try:
            with connection.begin_nested():
                connection.execute(query, {"day": day})
        except OperationalError as error:
            if not isinstance(error.orig, LockNotAvailable):
                raise
        except IntegrityError as error:
            if not isinstance(error.orig, IntegrityConstraintViolation):
                raise
            return str(error.orig.diag.message_primary)
        else:
            return None
    return "its reports are being read now"


def first_complete_days(connection: Connection) -> dict[int, date]:
    """For each realm with dropped reports, the first day of which none were dropped."""
    rows = connection.execute(
        select(dropped_reports.c.realm_id, func.max(dropped_reports.c.day)).group_by(
            dropped_reports.c.realm_id
        )
    )
    return {realm_id: day + timedelta(days=1) for realm_id, day in rows}


def dropped_positions_by_source(connection: Connection) -> dict[int, tuple[int, int]]:
    """The (epoch, position) of the last dropped report of each source."""
    rows = connection.execute(
        select(
            dropped_positions.c.source_id, dropped_positions.c.epoch, dropped_positions.c.position
        )
    )
    return {source_id: (epoch, position) for source_id, epoch, position in rows}


def archives_of_span(
    connection: Connection, realm_id: int, since: datetime, until: datetime
) -> ArchivesOfSpan:
    """What became of the reports of a realm that were dropped of a span."""
    row = connection.execute(
        _QUERIES.text("archives_of_span"), {"realm_id": realm_id, "since": since, "until": until}
    ).one()
    return ArchivesOfSpan(tuple(row.places), row.unarchived_days)
