"""Reads evidence in order; reads sessions by key or due time, and writes them back.

Every function works on a whole batch: keys and rows go to scratch tables by COPY, and one statement
joins them along the primary or partial index. The rules are in ``domain.session_fold``.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from operator import itemgetter
from typing import Any, Final

from psycopg import Cursor
from sqlalchemy import Column, Connection, MetaData, Select, Table, insert

from accounting.db.binary_copy import binary_cursor, copy_packed_rows, copy_rows
from accounting.db.engine import prefer_index_scans, psycopg_connection
from accounting.db.queries import Queries
from accounting.db.row_packer import RowPacker, copy_columns
from accounting.db.schema import carried_sessions, sessions
from accounting.domain.calendar import from_micros
from accounting.domain.counters import COUNTERS
from accounting.domain.session_fold import (
    AllocationKey,
    EndCause,
    Phase,
    PriorState,
    Report,
    SessionState,
    StatusKeySighting,
)

_QUERIES: Final = Queries("accounting.sessions")

# The fields of a session are the columns that it is carried over with, in the order of the table;
# settling's own columns (recheck_at, end_events, single_hour) are not among them.
_FIELDS: Final = tuple(
    column.name
    for column in carried_sessions.c
    if column.name != "deltas" and column.name not in AllocationKey._fields
)
KEY_COLUMNS: Final = copy_columns(sessions, AllocationKey._fields)
SESSION_COLUMNS: Final = copy_columns(sessions, _FIELDS)
_PHASES: Final = {int(phase): phase for phase in Phase}
# Columns that never change, and those that every report changes.
_CONSTANT: Final = frozenset({"session_id", "user_key", "realm_id", "started_at", "start_known"})
_FAST: Final = frozenset({"last_seen_at", "expires_at", *COUNTERS})
_slow_columns: Final = itemgetter(
    *(index for index, name in enumerate(_FIELDS) if name not in _CONSTANT | _FAST)
)


@dataclass(slots=True, kw_only=True)
class _StoredState(PriorState):
    """The prior state of a session that was read here; shows whether a narrow update suffices."""

    slow_columns: tuple[object, ...]


def read_reports(
    connection: Connection, source_id: int, *, since: int, after: tuple[int, int], limit: int
) -> list[Report]:
    """The next reports of a source after (epoch, position), in order.

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
        copy_packed_rows(cursor, "staged_keys", _KEY_PACKER.columns, map(_KEY_PACKER.pack, keys))
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
            slow_columns=_slow_columns(_fields(session)),
        )
        yield key, session


def session_from_row(row: Sequence[Any]) -> tuple[AllocationKey, SessionState]:
    """A session from a row of KEY_COLUMNS and SESSION_COLUMNS, read in binary.

    A total may be None where none was reported.
    """
    (
        source_id,
        database,
        username_key,
        allocation_id,
        session_id,
        user_key,
        realm_id,
        started_at,
        last_seen_at,
        expires_at,
        start_known,
        lifetime_known,
        ended_at,
        end_cause,
        phase,
        confirmed,
        transport,
        client_address,
        server_address,
        *usage,
        new_count,
        deleted_count,
        client_total_count,
        peer_total_count,
        client_total,
        peer_total,
        estimated,
        disputed,
    ) = row
    key = AllocationKey(source_id, database, username_key, allocation_id)
    return key, SessionState(
        session_id=session_id,
        user_key=user_key,
        realm_id=realm_id,
        started_at=started_at,
        last_seen_at=last_seen_at,
        expires_at=expires_at,
        start_known=start_known,
        lifetime_known=lifetime_known,
        ended_at=ended_at,
        end_cause=None if end_cause is None else EndCause(end_cause),
        phase=_PHASES[phase],
        confirmed=confirmed,
        transport=transport,
        client_address=client_address,
        server_address=server_address,
        usage=usage,
        new_count=new_count,
        deleted_count=deleted_count,
        client_total_count=client_total_count,
        peer_total_count=peer_total_count,
        client_total=client_total or [0] * 4,
        peer_total=peer_total or [0] * 4,
        estimated=estimated,
        disputed=disputed,
    )


def session_row(key: AllocationKey, session: SessionState, recheck_at: int) -> tuple[Any, ...]:
    """A session as a row of KEY_COLUMNS, recheck_at and SESSION_COLUMNS."""
    return (*key, recheck_at, *_fields(session))


def _fields(session: SessionState) -> tuple[Any, ...]:
    """A session as SESSION_COLUMNS."""
    return (
        session.session_id,
        session.user_key,
        session.realm_id,
        session.started_at,
        session.last_seen_at,
        session.expires_at,
        session.start_known,
        session.lifetime_known,
        session.ended_at,
        session.end_cause,
        session.phase,
        session.confirmed,
        session.transport,
        session.client_address,
        session.server_address,
        *session.usage,
        session.new_count,
        session.deleted_count,
        session.client_total_count,
        session.peer_total_count,
        session.client_total,
        session.peer_total,
        session.estimated,
        session.disputed,
    )


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
        prior, fields = session.prior, _fields(session)
        if (
            isinstance(prior, _StoredState)
            and not prior.ended
            and prior.slow_columns == _slow_columns(fields)
        ):
            refreshed.append(_pack_refresh(session, recheck_at))
        else:
            whole.append(
                _SESSION_PACKER.pack(
                    (*key, recheck_at, *_fixed_columns(fields)),
                    (*_varying_columns(fields), single_hour),
                )
            )
    with _cursor(connection) as cursor:
        if whole:
            connection.execute(_QUERIES.text("create_staged_sessions"))
            copy_packed_rows(cursor, "staged_sessions", _SESSION_PACKER.columns, iter(whole))
            with prefer_index_scans(connection):
                connection.execute(_QUERIES.text("enqueue_session_ended"))
                connection.execute(_QUERIES.text("upsert_sessions"))
        if refreshed:
            connection.execute(_QUERIES.text("create_staged_refreshes"))
            copy_packed_rows(cursor, "staged_refreshes", _REFRESH_PACKER.columns, iter(refreshed))
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


_KEY_PACKER: Final = RowPacker(sessions, AllocationKey._fields)
_REFRESH_PACKER: Final = RowPacker(
    sessions, ("session_id", "user_key", "last_seen_at", "expires_at", "recheck_at", *COUNTERS)
)
_SESSION_PACKER: Final = RowPacker(
    sessions, (*AllocationKey._fields, "recheck_at", *_FIELDS, "single_hour")
)


def _pick(names: Iterable[str]) -> Callable[[Sequence[Any]], tuple[Any, ...]]:
    """Picks those of the names that are SESSION_COLUMNS from a tuple of all."""
    return itemgetter(*(_FIELDS.index(name) for name in names if name in _FIELDS))


_fixed_columns: Final = _pick(_SESSION_PACKER.fixed)
_varying_columns: Final = _pick(_SESSION_PACKER.varying)


def _pack_refresh(session: SessionState, recheck_at: int) -> bytes:
    return _REFRESH_PACKER.pack(
        (
            session.session_id,
            session.user_key,
            session.last_seen_at,
            session.expires_at,
            recheck_at,
            *session.usage,
        )
    )


def _cursor(connection: Connection) -> Cursor[Any]:
    return binary_cursor(psycopg_connection(connection))
