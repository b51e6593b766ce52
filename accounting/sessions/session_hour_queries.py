"""Writes the hours of sessions, and queues what that changes in the usage of users.

A session that was active within one hour only has no row in ``session_usage``:
``sessions.single_hour`` names that hour, and the view ``session_hours`` shows both. Whatever
changes what the view shows queues a usage delta in the same transaction, which the roll-up adds.
"""

from collections.abc import Iterable, Sequence
from typing import Final

from sqlalchemy import Connection

from accounting.db.binary_copy import binary_cursor, copy_packed_rows, copy_rows
from accounting.db.engine import prefer_index_scans, psycopg_connection
from accounting.db.queries import Queries
from accounting.db.row_packer import RowPacker, copy_columns
from accounting.db.schema import session_usage
from accounting.domain.session_hours import FlagChange, SessionHour

_QUERIES: Final = Queries("accounting.sessions")

SESSION_HOUR_COLUMNS: Final = copy_columns(session_usage, session_usage.c.keys())
_PACKER: Final = RowPacker(session_usage, session_usage.c.keys())


def merge_pending(
    connection: Connection, merged: Sequence[tuple[bytes, bytes, bytes, str, str]]
) -> None:
    """Move the rows of pending sessions' hours to the sessions that they were merged into.

    ``merged``: (pending id, session id, user key, server, transport), the last three of the session
    as it is stored.
    """
    if not merged:
        return
    connection.execute(_QUERIES.text("create_staged_merges"))
    with binary_cursor(psycopg_connection(connection)) as cursor:
        copy_rows(
            cursor,
            "staged_merges",
            (
                ("pending_id", "uuid"),
                ("session_id", "uuid"),
                ("user_key", "uuid"),
                ("server", "text"),
                ("transport", "text"),
            ),
            merged,
        )
    with prefer_index_scans(connection):
        connection.execute(_QUERIES.text("merge_pending_hours"))


def update_flags(connection: Connection, flags: Sequence[FlagChange]) -> None:
    """Set ``confirmed`` and ``estimated`` in the rows of sessions' hours; queue what that changes.

    Moves them between servers as well. Called before this step's usage is added.
    """
    if not flags:
        return
    connection.execute(_QUERIES.text("create_staged_flags"))
    with binary_cursor(psycopg_connection(connection)) as cursor:
        copy_rows(
            cursor,
            "staged_flags",
            (
                ("session_id", "uuid"),
                ("confirmed", "bool"),
                ("estimated", "bool"),
                ("server_before", "text"),
                ("transport_before", "text"),
                ("server", "text"),
                ("transport", "text"),
            ),
            set(flags),
        )
    with prefer_index_scans(connection):
        connection.execute(_QUERIES.text("update_flags"))


def add_hours(connection: Connection, rows: Iterable[SessionHour]) -> None:
    """Add to the hours of sessions. The caller queues what that changes in the usage of users."""
    packed = [_PACKER.pack((*row[:-1], *row.counters)) for row in rows]
    if not packed:
        return
    connection.execute(_QUERIES.text("create_staged_session_hours"))
    with binary_cursor(psycopg_connection(connection)) as cursor:
        copy_packed_rows(cursor, "staged_session_hours", _PACKER.columns, iter(packed))
    connection.execute(_QUERIES.text("add_session_hours"))
