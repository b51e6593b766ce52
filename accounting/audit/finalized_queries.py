"""Writes and checks what a dropped day of reports leaves: carried and finalized sessions.

A session that a later report may still belong to is *carried*: kept as it stood after the day, so
that recomputing can go on from there. All others are *finalized*: no report is left to recompute
them from, so a digest of their rows and hours is kept, by realm and day (UTC) that they began.
A writer holds the lock ``retain``.
"""

from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import date, datetime
from decimal import Decimal
from typing import Final
from uuid import UUID

from sqlalchemy import Connection, delete, exists, insert, select, text, tuple_, update
from sqlalchemy.dialects.postgresql import insert as upsert

from accounting.audit import comparison, recomputed_tables
from accounting.audit.recomputed_tables import recomputed_table
from accounting.db.binary_copy import binary_cursor, copy_rows
from accounting.db.engine import psycopg_connection
from accounting.db.queries import Queries
from accounting.db.schema import (
    carried_sessions,
    dropped_positions,
    finalized_sessions,
    realms,
    sessions,
)
from accounting.domain.session_fold import AllocationKey, Phase, SessionState
from accounting.domain.session_hours import SessionHour
from accounting.sessions.session_rows import (
    KEY_COLUMNS,
    SESSION_COLUMNS,
    session_from_row,
    session_row,
)

_QUERIES: Final = Queries("accounting.audit")


def create_tables(connection: Connection) -> None:
    """Create the scratch tables for what a day leaves, empty."""
    recomputed_tables.create_session_tables(connection)
    psycopg_connection(connection).execute(_QUERIES.driver("create_recomputed_carried"))


def add_sessions(
    connection: Connection,
    day_sessions: Sequence[tuple[AllocationKey, SessionState]],
    hours: Iterable[SessionHour],
) -> None:
    """Add sessions as the day's reports leave them, and the hours of the closed ones."""
    closed = [(key, session) for key, session in day_sessions if session.phase is Phase.CLOSED]
    recomputed_tables.add_sessions(connection, closed)
    recomputed_tables.add_session_hours(connection, hours)
    with binary_cursor(psycopg_connection(connection)) as cursor:
        copy_rows(cursor, "recomputed_keys", KEY_COLUMNS, (key for key, _ in day_sessions))
        copy_rows(
            cursor,
            "recomputed_carried_sessions",
            (*KEY_COLUMNS, *SESSION_COLUMNS, ("hourly_usage", "int8[]")),
            (
                (
                    *key,
                    *session_row(key, session, 0)[5:],
                    [
                        number
                        for hour, counters in session.hourly_usage.items()
                        for number in (hour, *counters)
                    ],
                )
                for key, session in day_sessions
                if session.phase is not Phase.CLOSED
            ),
        )


def count_mismatches(connection: Connection) -> int:
    """Count the rows of the day's closed sessions that are not stored as they were recomputed."""
    connection.execute(_QUERIES.text("create_finalized_from_recomputed"))
    connection.execute(text("ANALYZE recomputed_sessions, recomputed_session_usage, finalized"))
    realm_ids = list(connection.execute(select(realms.c.realm_id)).scalars())
    recomputed = recomputed_table(sessions)
    return sum(
        1
        for name in ("sessions", "session_usage")
        for _ in comparison.find_mismatches(connection, name, realm_ids, sessions=recomputed)
    )


def finalize_day(connection: Connection) -> None:
    """Add the day's closed sessions to the digests, and replace the carried ones of its keys."""
    for (realm_id, day), (count, digest) in _digests(connection).items():
        new = upsert(finalized_sessions).values(
            realm_id=realm_id, day=day, sessions=count, digest=digest
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
    keys = text("SELECT source_id, database, username_key, allocation_id FROM recomputed_keys")
    connection.execute(delete(carried_sessions).where(tuple_(*key).in_(keys)))
    recomputed = recomputed_table(carried_sessions)
    connection.execute(
        insert(carried_sessions).from_select(list(recomputed.c.keys()), select(recomputed))
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class FinalizedMismatch:
    """Finalized sessions that began on a day and whose rows do not match their digest."""

    realm_id: int
    day: date
    finalized_count: int
    stored_count: int


def copy_finalized(connection: Connection, realm_ids: Collection[int]) -> list[FinalizedMismatch]:
    """Copy the finalized sessions of realms into the recomputed tables, and check their digests."""
    if not connection.execute(select(exists(select(dropped_positions)))).scalar_one():
        return []
    connection.execute(_QUERIES.text("create_finalized_from_stored"), {"realms": list(realm_ids)})
    connection.execute(_QUERIES.text("copy_finalized"))
    finalized = {
        (row.realm_id, row.day): (row.sessions, row.digest)
        for row in connection.execute(
            select(finalized_sessions).where(finalized_sessions.c.realm_id.in_(realm_ids))
        )
    }
    stored = _digests(connection)
    return [
        FinalizedMismatch(
            realm_id=realm_id,
            day=day,
            finalized_count=finalized.get((realm_id, day), (0, None))[0],
            stored_count=stored.get((realm_id, day), (0, None))[0],
        )
        for realm_id, day in sorted({*finalized, *stored})
        if finalized.get((realm_id, day)) != stored.get((realm_id, day))
    ]


def subtract_pruned(connection: Connection) -> None:
    """Take the sessions in the scratch table ``finalized``, which are about to go, off the digests.

    A digest is a sum over sessions, so that of the others is left.
    """
    table = finalized_sessions.c
    for (realm_id, day), (count, digest) in _digests(connection).items():
        of_day = table.realm_id == realm_id, table.day == day
        connection.execute(
            update(finalized_sessions)
            .where(*of_day)
            .values(sessions=table.sessions - count, digest=table.digest - digest)
        )
        connection.execute(delete(finalized_sessions).where(*of_day, table.sessions == 0))


def _digests(connection: Connection) -> dict[tuple[int, date], tuple[int, Decimal]]:
    """(number, digest) of the sessions in the scratch table ``finalized``, by realm_id and day."""
    return {
        (row.realm_id, row.day): (row.sessions, row.digest)
        for row in connection.execute(_QUERIES.text("finalized_digests"))
    }


def finalized_of_user(
    connection: Connection,
    realm_id: int,
    user_key: UUID,
    span: tuple[datetime, datetime],
    *,
    session_id: UUID | None = None,
) -> Iterator[tuple[AllocationKey, SessionState, tuple[int, ...]]]:
    """A user's finalized sessions, or one of them, with usage in a half-open span.

    With the eight counters and the session microseconds that they have there.
    """
    with binary_cursor(psycopg_connection(connection)) as cursor:
        cursor.execute(
            _QUERIES.driver("finalized_of_user"),
            {
                "realm_id": realm_id,
                "user_key": user_key,
                "starts_at": span[0],
                "ends_at": span[1],
                "session_id": session_id,
            },
        )
        for *fields, numbers in cursor:
            key, session = session_from_row(fields)
            yield key, session, tuple(int(number) for number in numbers)
