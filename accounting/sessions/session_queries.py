"""Reads evidence in order; reads sessions by key or due time, and writes them back.

Every function works on a whole batch: keys and rows go to scratch tables by COPY, and one statement
joins them along the primary or partial index. The rules are in ``domain.session_fold``.
"""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing
from typing import Any, Final

from psycopg import Cursor
from sqlalchemy import Column, Connection, MetaData, Select, Table, insert

from accounting.db.binary_copy import (
    binary_cursor,
    binary_server_cursor,
    copy_packed_rows,
    copy_rows,
)
from accounting.db.engine import prefer_index_scans, psycopg_connection
from accounting.db.queries import Queries
from accounting.db.row_packer import copy_columns
from accounting.db.schema import sessions
from accounting.domain.calendar import from_micros
from accounting.domain.session_fold import (
    AllocationKey,
    Report,
    SessionState,
    StatusKeySighting,
)
from accounting.feed import session_ended
from accounting.sessions.session_changes import (
    SessionChanges,
    end_of,
    stored_state,
)
from accounting.sessions.session_rows import (
    ID_COLUMNS,
    KEY_PACKER,
    PACKED_COLUMNS,
    REFRESH_COLUMNS,
    session_from_row,
    slow_columns,
)

_QUERIES: Final = Queries("accounting.sessions")
_KEYS_PER_FETCH: Final = 10_000


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


def read_open_keys(connection: Connection, source_id: int) -> Iterator[AllocationKey]:
    """The keys of a source's open sessions, in no order; some twice. Reads a part at a time."""
    driver = psycopg_connection(connection)
    with closing(binary_server_cursor(driver, "open_keys", _KEYS_PER_FETCH)) as cursor:
        cursor.execute(_QUERIES.driver("read_open_keys"), {"source_id": source_id})
        yield from map(AllocationKey._make, cursor)


def read_latest_sessions(
    connection: Connection, source_id: int, limit: int
) -> Iterator[tuple[AllocationKey, SessionState]]:
    """The open sessions of the ``limit`` keys of a source that had the latest reports."""
    connection.execute(_QUERIES.text("create_staged_keys"))
    connection.execute(_QUERIES.text("stage_latest_keys"), {"source_id": source_id, "limit": limit})
    return _sessions_of_staged_keys(connection)


def read_due_keys(
    connection: Connection, source_id: int, until: int, limit: int
) -> list[AllocationKey]:
    """The keys of sessions that may have expired by ``until``, those with the lowest recheck_at."""
    with _cursor(connection) as cursor:
        cursor.execute(
            _QUERIES.driver("read_due_keys"),
            {"source_id": source_id, "until": from_micros(until), "limit": limit},
        )
        return list(map(AllocationKey._make, cursor))


def _sessions_of_staged_keys(
    connection: Connection,
) -> Iterator[tuple[AllocationKey, SessionState]]:
    """Each session with its stored state."""
    with prefer_index_scans(connection), _cursor(connection) as cursor:
        rows = cursor.execute(_QUERIES.driver("read_open_sessions")).fetchall()
        cursor.execute(_QUERIES.driver("empty_staged_keys"))
    for *row, recheck_at, end_events, single_hour in rows:
        key, session = session_from_row(row)
        session.prior = stored_state(
            session,
            slow_columns(session),
            single_hour=single_hour,
            recheck_at=recheck_at,
            end_events=end_events,
            announced_end=end_of(session) if end_events else None,
        )
        yield key, session


def write_sessions(connection: Connection, changes: SessionChanges) -> None:
    """Write sessions as they are now, and enqueue a feed event for each end to announce."""
    with _cursor(connection) as cursor, prefer_index_scans(connection):
        if changes.removed:
            connection.execute(_QUERIES.text("create_staged_removals"))
            _copy(cursor, "staged_removals", ID_COLUMNS, changes.removed)
            connection.execute(_QUERIES.text("remove_open_sessions"))
        if changes.refreshed:
            connection.execute(_QUERIES.text("create_staged_refreshes"))
            _copy(cursor, "staged_refreshes", REFRESH_COLUMNS, changes.refreshed)
            connection.execute(_QUERIES.text("refresh_sessions"))
        if changes.opened:
            _copy(cursor, "accounting.sessions_open", PACKED_COLUMNS, changes.opened)
        if changes.closed:
            _copy(cursor, "accounting.sessions_closed", PACKED_COLUMNS, changes.closed)
        if changes.ended:
            session_ended.enqueue(cursor, changes.ended)


def _copy(cursor: Cursor[Any], table: str, names: Iterable[str], rows: Sequence[bytes]) -> None:
    copy_packed_rows(cursor, table, names, iter(rows))


def stage_sessions(connection: Connection, rows: Select[Any]) -> Table:
    """Stage rows of ``sessions`` for the caller to write, and enqueue their feed events.

    Returns the scratch table.
    """
    connection.execute(_QUERIES.text("create_staged_sessions"))
    columns = (Column(column.name, column.type) for column in sessions.c)
    staged = Table("staged_sessions", MetaData(), *columns)
    connection.execute(insert(staged).from_select(rows.selected_columns.keys(), rows))
    with _cursor(connection) as cursor:
        ended = cursor.execute(_QUERIES.driver("number_replaced_ends")).fetchall()
        events = [session_ended.pack_event(*session_from_row(row)) for row in ended]
        session_ended.enqueue(cursor, events)
    return staged


def reschedule(connection: Connection, rows: Sequence[tuple[bytes, bytes, int]]) -> None:
    """Store when to check sessions again that were due and did not expire.

    ``rows``: (session id, user key, recheck_at).
    """
    if not rows:
        return
    connection.execute(_QUERIES.text("create_staged_rechecks"))
    with _cursor(connection) as cursor:
        copy_rows(
            cursor,
            "staged_rechecks",
            copy_columns(sessions, ("session_id", "user_key", "recheck_at")),
            rows,
        )
    with prefer_index_scans(connection):
        connection.execute(_QUERIES.text("reschedule_sessions"))


def _cursor(connection: Connection) -> Cursor[Any]:
    return binary_cursor(psycopg_connection(connection))
