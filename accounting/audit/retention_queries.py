"""Retention, stored: days of reports dropped, and what they leave.

Owns ``carried_sessions``, ``finalized_sessions``, ``dropped_reports`` and ``dropped_positions``.
Who calls anything that writes here holds the lock ``retain``. When a day may go is the job's
decision; the database's own function refuses what would lose money.
"""

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from itertools import chain
from typing import Any, Final
from uuid import UUID

from psycopg.errors import LockNotAvailable
from sqlalchemy import Connection, delete, func, insert, select, text, tuple_
from sqlalchemy.dialects.postgresql import insert as upsert
from sqlalchemy.exc import OperationalError

from accounting.audit import comparison
from accounting.billing.period_queries import PeriodRow
from accounting.db.binary_copy import binary_cursor, copy_rows
from accounting.db.engine import psycopg_connection
from accounting.db.locks import set_lock_timeout
from accounting.db.queries import Queries
from accounting.db.schema import (
    carried_sessions,
    dropped_positions,
    dropped_reports,
    finalized_sessions,
    realms,
    reports,
)
from accounting.domain.calendar import from_micros, to_micros
from accounting.domain.session_fold import AllocationKey, Phase, SessionState, session_id
from accounting.domain.session_hours import SessionHour
from accounting.sessions.session_queries import (
    KEY_COLUMNS,
    SESSION_COLUMNS,
    session_from_row,
    session_row,
)

_QUERIES: Final = Queries("accounting.audit")

LOCK_SECONDS: Final = 0.2
"""How long a loader may have to wait behind us for the reports, at a time."""
LOCK_TRIES: Final = 5


@dataclass(frozen=True, slots=True, kw_only=True)
class SourceDay:
    """A source on a day: how far it is settled, and its last report of that day.

    Times in microseconds. ``last``: (epoch, position); None where the day has none of its reports.
    """

    source_id: int
    source: str
    is_retired: bool
    settled_until: int | None
    last: tuple[int, int] | None
    received_at: int | None
    is_unsettled: bool
    is_out_of_order: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class DependentPeriod:
    """A period that a day's sessions fed; ``period`` None: it is not drawn yet.

    ``differences``: that its last proof found, None without one; ``is_fresh``: made lately, and
    after the period was closed.
    """

    realm: str
    period: date | None
    is_closed: bool
    differences: int | None
    checked_at: datetime | None
    is_fresh: bool


def day_bounds(day: date) -> tuple[int, int]:
    """A day (UTC) from midnight to midnight, in microseconds."""
    begin = datetime(day.year, day.month, day.day, tzinfo=UTC)
    return to_micros(begin), to_micros(begin + timedelta(days=1))


def report_days(connection: Connection) -> list[date]:
    """The days that have a partition of reports, the oldest first."""
    return list(connection.execute(_QUERIES.text("report_days")).scalars())


def period_clock(connection: Connection) -> datetime | None:
    """How far any source is captured; the server's own clock where none is in service."""
    found: datetime | None = connection.execute(select(func.accounting.period_clock())).scalar_one()
    return found


def sources_on(connection: Connection, day: date) -> list[SourceDay]:
    """Every source, as it stands to that day's reports."""
    return [
        SourceDay(
            source_id=row.source_id,
            source=row.source,
            is_retired=row.is_retired,
            settled_until=None if row.settled_until is None else to_micros(row.settled_until),
            last=None if row.epoch is None else (row.epoch, row.position),
            received_at=None if row.received_at is None else to_micros(row.received_at),
            is_unsettled=row.is_unsettled,
            is_out_of_order=row.is_out_of_order,
        )
        for row in connection.execute(_QUERIES.text("day_sources"), _span(day))
    ]


def _span(day: date) -> dict[str, datetime]:
    since, until = day_bounds(day)
    return {"since": from_micros(since), "until": from_micros(until)}


def stage_day_sessions(connection: Connection, day: date, found: Collection[SourceDay]) -> None:
    """Name the sessions that a day's reports speak of, for the two questions below."""
    ends = {one.source_id: one.last for one in found if one.last is not None}
    connection.execute(
        _QUERIES.text("stage_day_lives"),
        {
            "sources": list(ends),
            "upto": [UUID(bytes=session_id(of, *last)) for of, last in ends.items()],
            **_span(day),
        },
    )
    connection.execute(text("ANALYZE day_lives"))


def count_active_sessions(connection: Connection) -> dict[str, int]:
    """How many of the staged sessions have not ended, by source."""
    return {row.source: row.sessions for row in connection.execute(_QUERIES.text("count_live"))}


def dependent_periods(connection: Connection, proof_holds: timedelta) -> list[DependentPeriod]:
    """The periods that the staged sessions fed. A proof is fresh as long as ``proof_holds``."""
    rows = connection.execute(_QUERIES.text("fed_periods"), {"holds": proof_holds})
    return [DependentPeriod(**row) for row in rows.mappings()]


def count_reports(connection: Connection, day: date) -> dict[tuple[int, int], int]:
    """How many reports a day has, by realm_id and source_id."""
    since, until = _span(day).values()
    rows = connection.execute(
        select(reports.c.realm_id, reports.c.source_id, func.count())
        .where(reports.c.received_at >= since, reports.c.received_at < until)
        .group_by(reports.c.realm_id, reports.c.source_id)
    )
    return {(realm_id, source_id): count for realm_id, source_id, count in rows}


def create_staging_tables(connection: Connection) -> None:
    """Make the scratch tables for what a day leaves, empty."""
    psycopg_connection(connection).execute(_QUERIES.driver("stage_sealing"))


def drop_staging_tables(connection: Connection) -> None:
    """Drop all scratch tables of a day."""
    psycopg_connection(connection).execute(_QUERIES.driver("drop_sealing"))


def add_day_sessions(
    connection: Connection,
    sessions: Sequence[tuple[AllocationKey, SessionState]],
    usage: Iterable[SessionHour],
) -> None:
    """Stage lives as a day's reports leave them; ``usage``: the hours of those that are past."""
    past = [(key, session) for key, session in sessions if session.phase is Phase.CLOSED]
    comparison.add_sessions(connection, past)
    comparison.add_session_hours(connection, usage)
    with binary_cursor(psycopg_connection(connection)) as cursor:
        copy_rows(cursor, "told_keys", KEY_COLUMNS, (key for key, _ in sessions))
        copy_rows(
            cursor,
            "staged_carried",
            (*KEY_COLUMNS, *SESSION_COLUMNS, ("deltas", "int8[]")),
            (
                (*key, *session_row(key, session, 0)[5:], list(chain.from_iterable(session.deltas)))
                for key, session in sessions
                if session.phase is not Phase.CLOSED
            ),
        )


def count_mismatches(connection: Connection) -> int:
    """How many rows of the staged past lives are not booked as they are staged."""
    connection.execute(_QUERIES.text("sealed_by_day"))
    connection.execute(text("ANALYZE proof_sessions, proof_session_usage, sealed"))
    every = list(connection.execute(select(realms.c.realm_id)).scalars())
    staged = comparison.recomputed_table(comparison.DERIVED_TABLES["sessions"])
    return sum(
        1
        for name in ("sessions", "session_usage")
        for _ in comparison.find_mismatches(connection, name, every, sessions=staged)
    )


def finalize_day(connection: Connection) -> None:
    """Keep the digest of the staged past lives, and carry the others on."""
    for (realm_id, day), (sessions, digest) in _digests(connection).items():
        new = upsert(finalized_sessions).values(
            realm_id=realm_id, day=day, sessions=sessions, digest=digest
        )
        connection.execute(
            new.on_conflict_do_update(
                index_elements=["realm_id", "day"],
                set_={
                    "sessions": finalized_sessions.c.sessions + new.excluded.sessions,
                    "digest": finalized_sessions.c.digest + new.excluded.digest,
                },
            )
        )
    key = [carried_sessions.c[name] for name, _ in KEY_COLUMNS]
    told = text("SELECT source_id, database, username_key, allocation_id FROM told_keys")
    connection.execute(delete(carried_sessions).where(tuple_(*key).in_(told)))
    staged = comparison.recomputed_table(carried_sessions, "staged_carried")
    connection.execute(insert(carried_sessions).from_select(list(staged.c.keys()), select(staged)))


def record_dropped(
    connection: Connection,
    day: date,
    found: Collection[SourceDay],
    counts: Mapping[tuple[int, int], int],
) -> None:
    """Keep how many reports of that day go, and up to where those of each source went."""
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
    for one in found:
        if one.last is None or one.received_at is None:
            continue
        place: dict[str, Any] = {
            "epoch": one.last[0],
            "position": one.last[1],
            "received_at": from_micros(one.received_at),
            "last_session_id": UUID(bytes=session_id(one.source_id, *one.last)),
        }
        connection.execute(
            upsert(dropped_positions)
            .values(source_id=one.source_id, **place)
            .on_conflict_do_update(index_elements=["source_id"], set_=place)
        )


def drop_day(connection: Connection, day: date) -> bool:
    """Drop the partition of a day; False where somebody reads the reports all the while."""
    query = text("SELECT accounting.drop_report_partition(:day)")
    set_lock_timeout(connection, LOCK_SECONDS)
    for _ in range(LOCK_TRIES):
        try:
            with connection.begin_nested():
                connection.execute(query, {"day": day})
        except OperationalError as error:
            if not isinstance(error.orig, LockNotAvailable):
                raise
        else:
            return True
    return False


def first_complete_days(connection: Connection) -> dict[int, date]:
    """For each realm of which reports were dropped, the first day that may have all of them."""
    rows = connection.execute(
        select(dropped_reports.c.realm_id, func.max(dropped_reports.c.day)).group_by(
            dropped_reports.c.realm_id
        )
    )
    return {realm_id: day + timedelta(days=1) for realm_id, day in rows}


def dropped_positions_by_source(connection: Connection) -> dict[int, tuple[int, int]]:
    """The (epoch, position) of the last report of each source that was dropped."""
    rows = connection.execute(
        select(
            dropped_positions.c.source_id, dropped_positions.c.epoch, dropped_positions.c.position
        )
    )
    return {source_id: (epoch, position) for source_id, epoch, position in rows}


@dataclass(frozen=True, slots=True, kw_only=True)
class FinalizedMismatch:
    """Sessions begun on a day whose rows are not those that were sealed."""

    realm_id: int
    day: date
    finalized_count: int
    stored_count: int


def copy_finalized(connection: Connection, realm_ids: Collection[int]) -> list[FinalizedMismatch]:
    """Stage what ended with the dropped reports as it is booked; returns where it was changed."""
    if not dropped_positions_by_source(connection):
        return []
    connection.execute(_QUERIES.text("sealed_in_books"), {"realms": list(realm_ids)})
    connection.execute(_QUERIES.text("stage_sealed"))
    kept = {
        (row.realm_id, row.day): (row.sessions, row.digest)
        for row in connection.execute(
            select(finalized_sessions).where(finalized_sessions.c.realm_id.in_(realm_ids))
        )
    }
    found = _digests(connection)
    return [
        FinalizedMismatch(
            realm_id=realm_id,
            day=day,
            finalized_count=kept.get((realm_id, day), (0, None))[0],
            stored_count=found.get((realm_id, day), (0, None))[0],
        )
        for realm_id, day in sorted({*kept, *found})
        if kept.get((realm_id, day)) != found.get((realm_id, day))
    ]


def _digests(connection: Connection) -> dict[tuple[int, date], tuple[int, Decimal]]:
    return {
        (row.realm_id, row.day): (row.sessions, row.digest)
        for row in connection.execute(_QUERIES.text("sealed_digests"))
    }


def finalized_of_user(
    connection: Connection, period: PeriodRow, user_key: UUID
) -> Iterator[tuple[AllocationKey, SessionState, tuple[int, ...]]]:
    """A user's sessions that ended with the dropped reports, and have usage in a period.

    With their eight counters and microseconds there.
    """
    with binary_cursor(psycopg_connection(connection)) as cursor:
        cursor.execute(
            _QUERIES.driver("sealed_of_user"),
            {
                "realm_id": period.realm_id,
                "user_key": user_key,
                "starts_at": period.starts_at,
                "ends_at": period.ends_at,
            },
        )
        for *row, numbers in cursor:
            key, session = session_from_row(row)
            yield key, session, tuple(int(number) for number in numbers)
