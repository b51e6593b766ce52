"""Reads evidence in order; reads sessions by key or due time, and writes them back.

Every function works on a whole batch: keys and rows go to scratch tables by COPY, and one statement
joins them along the primary or partial index. The rules are in ``domain.session_fold``.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final

from psycopg import Cursor
from sqlalchemy import Column, Connection, MetaData, Select, Table, insert

from accounting.db.binary_copy import binary_cursor, copy_packed_rows, copy_rows
from accounting.db.engine import prefer_index_scans, psycopg_connection
from accounting.db.queries import Queries
from accounting.db.row_packer import copy_columns
from accounting.db.schema import sessions
from accounting.domain.calendar import from_micros
from accounting.domain.session_fold import (
    AllocationKey,
    PriorState,
    Report,
    SessionState,
    StatusKeySighting,
)
from accounting.sessions.session_rows import (
    KEY_PACKER,
    REFRESH_PACKER,
    SESSION_PACKER,
    pack_refresh,
    pack_session,
    session_fields,
    session_from_row,
    slow_columns,
)

_QUERIES: Final = Queries("accounting.sessions")


@dataclass(slots=True, kw_only=True)
class _StoredState(PriorState):
    """The prior state of a session that was read here; shows whether a narrow update suffices."""

    slow_columns: tuple[object, ...]


def read_reports(
    connection: Connection,
    source_id: int,
    *,
    since: int,
    after: tuple[int, int],
    upto: tuple[int, int],
    limit: int,
) -> list[Report]:
    """The next reports of a source after (epoch, position) and up to another, in order.

    ``since``: no report after that position was received earlier (microseconds); it limits the
    query to the partitions of the last days.
    """
    epoch, position = after
    with _cursor(connection) as cursor:
        cursor.execute(
            _QUERIES.driver("read_reports"),
            {
                "source_id": source_id,
                "since": from_micros(since),
                "epoch": epoch,
                "position": position,
                "upto_epoch": upto[0],
                "upto_position": upto[1],
                "limit": limit,
            },
        )
        return list(map(Report._make, cursor.fetchall()))


def read_sightings(
    connection: Connection,
    source_id: int,
    *,
    after: tuple[int, int, int],
    upto: tuple[int, int],
) -> list[StatusKeySighting]:
    """The key sightings after one, up to a position of the reports, in order."""
    with _cursor(connection) as cursor:
        cursor.execute(
            _QUERIES.driver("read_sightings"),
            {
                "source_id": source_id,
                "epoch": after[0],
                "position": after[1],
                "sighting": after[2],
                "upto_epoch": upto[0],
                "upto_position": upto[1],
            },
        )
        return [StatusKeySighting._make(row) for row in cursor]


def read_open_sessions(
    connection: Connection, keys: Iterable[AllocationKey]
) -> Iterator[tuple[AllocationKey, SessionState]]:
    """The sessions of these keys that a report may still belong to."""
    connection.execute(_QUERIES.text("create_staged_keys"))
    with _cursor(connection) as cursor:
        copy_packed_rows(cursor, "staged_keys", KEY_PACKER.columns, map(KEY_PACKER.pack, keys))
    return _sessions_of_staged_keys(connection)


def read_due_sessions(
    connection: Connection, source_id: int, until: int, limit: int
) -> Iterator[tuple[AllocationKey, SessionState]]:
    """Active sessions that may have expired by ``until``, those with the lowest ``recheck_at``."""
    connection.execute(_QUERIES.text("create_staged_keys"))
    connection.execute(
        _QUERIES.text("stage_due_keys"),
        {"source_id": source_id, "until": from_micros(until), "limit": limit},
    )
    return _sessions_of_staged_keys(connection)


def _sessions_of_staged_keys(
    connection: Connection,
) -> Iterator[tuple[AllocationKey, SessionState]]:
    """Each session with its prior state."""
    with prefer_index_scans(connection), _cursor(connection) as cursor:
        rows = cursor.execute(_QUERIES.driver("read_open_sessions")).fetchall()
    for *row, single_hour in rows:
        key, session = session_from_row(row)
        session.prior = _StoredState(
            active_until=session.active_until,
            ended=session.ended_at is not None,
            confirmed=session.confirmed,
            estimated=session.estimated,
            single_hour=single_hour,
            slow_columns=slow_columns(session_fields(session)),
        )
        yield key, session


def upsert_sessions(
    connection: Connection,
    rows: Iterable[tuple[AllocationKey, SessionState, int, int | None]],
) -> None:
    """Write sessions as they are now: (key, session, recheck_at, single_hour).

    Enqueues a feed event for each that ended, or whose end differs from the last event. Most
    sessions got only new counters and times: those take a narrow update.
    """
    whole: list[bytes] = []
    refreshed: list[bytes] = []
    for key, session, recheck_at, single_hour in rows:
        prior, fields = session.prior, session_fields(session)
        if (
            isinstance(prior, _StoredState)
            and not prior.ended
            and prior.slow_columns == slow_columns(fields)
        ):
            refreshed.append(pack_refresh(session, recheck_at))
        else:
            whole.append(pack_session(key, fields, recheck_at, single_hour))
    with _cursor(connection) as cursor:
        if whole:
            connection.execute(_QUERIES.text("create_staged_sessions"))
            copy_packed_rows(cursor, "staged_sessions", SESSION_PACKER.columns, iter(whole))
            with prefer_index_scans(connection):
                connection.execute(_QUERIES.text("enqueue_session_ended"))
                connection.execute(_QUERIES.text("upsert_sessions"))
        if refreshed:
            connection.execute(_QUERIES.text("create_staged_refreshes"))
            copy_packed_rows(cursor, "staged_refreshes", REFRESH_PACKER.columns, iter(refreshed))
            with prefer_index_scans(connection):
                connection.execute(_QUERIES.text("refresh_sessions"))


def stage_sessions(connection: Connection, rows: Select[Any]) -> Table:
    """Stage rows of ``sessions`` for the caller to write, and enqueue their feed events.

    Returns the scratch table. ``upsert_sessions`` keeps what it never changes of a session; a
    rebuild replaces whole rows, so it writes them itself.
    """
    connection.execute(_QUERIES.text("create_staged_sessions"))
    columns = (Column(column.name, column.type) for column in sessions.c)
    staged = Table("staged_sessions", MetaData(), *columns)
    connection.execute(insert(staged).from_select(rows.selected_columns.keys(), rows))
    connection.execute(_QUERIES.text("enqueue_session_ended"))
    return staged


def reschedule(connection: Connection, rechecks: Sequence[tuple[SessionState, int]]) -> None:
    """Set when to check sessions again that were due and did not expire."""
    if not rechecks:
        return
    connection.execute(_QUERIES.text("create_staged_rechecks"))
    with _cursor(connection) as cursor:
        copy_rows(
            cursor,
            "staged_rechecks",
            copy_columns(sessions, ("session_id", "user_key", "recheck_at")),
            [
                (session.session_id, session.user_key, recheck_at)
                for session, recheck_at in rechecks
            ],
        )
    with prefer_index_scans(connection):
        connection.execute(_QUERIES.text("reschedule_sessions"))


def _cursor(connection: Connection) -> Cursor[Any]:
    return binary_cursor(psycopg_connection(connection))
