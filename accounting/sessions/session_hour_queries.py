"""The hours of sessions, stored, and marks of by how much they change the usage of users.

Owns the tables ``session_usage`` and ``usage_deltas``. A session that lives within one hour has no
row in the first: ``sessions.single_hour`` says which, and the view ``session_hours`` has all.
Whoever changes what the view says marks it in the second, in the same transaction: the roll-up adds what it
finds there.
"""

from collections.abc import Iterable, Sequence
from struct import Struct
from typing import Final

from sqlalchemy import Connection

from accounting.db.binary_copy import POSTGRES_EPOCH, binary_cursor, copy_packed, copy_rows
from accounting.db.engine import along_keys, psycopg_connection
from accounting.db.queries import Queries
from accounting.domain.counters import COUNTERS
from accounting.domain.session_fold import SessionState
from accounting.domain.session_hours import SessionHour

_QUERIES: Final = Queries("accounting.sessions")

SESSION_HOUR_COLUMNS: Final = (
    ("session_id", "uuid"),
    ("starts_at", "timestamptz"),
    ("user_key", "uuid"),
    ("realm_id", "int4"),
    ("confirmed", "bool"),
    ("estimated", "bool"),
    ("started", "bool"),
    ("ended", "bool"),
    ("active_from", "timestamptz"),
    ("active_to", "timestamptz"),
    *((name, "int8") for name in COUNTERS),
)
# As Postgres' binary COPY has a row: the number of fields, then each with its length before it.
_USAGE_ROW: Final = Struct(
    "!h i16s iq i16s ii i? i? i? i? iq iq iqiqiqiq iqiqiqiq".replace(" ", "")
)


def materialize_hours(connection: Connection, session_ids: Iterable[bytes]) -> None:
    """Give sessions rows for the only hour that they had so far, as far as they had only one.

    Before anything else is written of them.
    """
    ids = [(session_id,) for session_id in session_ids]
    if not ids:
        return
    connection.execute(_QUERIES.text("stage_spread"))
    with binary_cursor(psycopg_connection(connection)) as cursor:
        copy_rows(cursor, "staged_spread", (("session_id", "uuid"),), ids)
    with along_keys(connection):
        connection.execute(_QUERIES.text("spread_sessions"))


def merge_pending(connection: Connection, pairs: Sequence[tuple[bytes, SessionState]]) -> None:
    """Move the stored hours of limbo lives to the lives that turned out to be theirs."""
    if not pairs:
        return
    connection.execute(_QUERIES.text("stage_absorbed"))
    with binary_cursor(psycopg_connection(connection)) as cursor:
        copy_rows(
            cursor,
            "staged_absorbed",
            (("absorbed_id", "uuid"), ("session_id", "uuid"), ("user_key", "uuid")),
            [(absorbed, session.session_id, session.user_key) for absorbed, session in pairs],
        )
    with along_keys(connection):
        connection.execute(_QUERIES.text("absorb_usage"))
        connection.execute(_QUERIES.text("absorb_sessions"))


def update_flags(connection: Connection, sessions: Sequence[SessionState]) -> None:
    """Carry a session's confirmed and estimated to all hours that it has, and mark what changes.

    Before the sessions are written, and what this step adds to their hours.
    """
    if not sessions:
        return
    connection.execute(_QUERIES.text("stage_flags"))
    with binary_cursor(psycopg_connection(connection)) as cursor:
        copy_rows(
            cursor,
            "staged_flags",
            (("session_id", "uuid"), ("confirmed", "bool"), ("estimated", "bool")),
            {(session.session_id, session.confirmed, session.estimated) for session in sessions},
        )
    with along_keys(connection):
        connection.execute(_QUERIES.text("reflag_usage"))


def add_hours(connection: Connection, rows: Iterable[SessionHour]) -> None:
    """Add to the hours of sessions. What that changes for users is the caller's to mark."""
    packed = [_usage_row(row) for row in rows]
    if not packed:
        return
    connection.execute(_QUERIES.text("stage_usage"))
    with binary_cursor(psycopg_connection(connection)) as cursor:
        names = [name for name, _ in SESSION_HOUR_COLUMNS]
        copy_packed(cursor, "staged_usage", names, iter(packed))
    connection.execute(_QUERIES.text("put_usage"))


def _usage_row(row: SessionHour) -> bytes:
    (
        session_id,
        starts_at,
        user_key,
        realm_id,
        confirmed,
        estimated,
        started,
        ended,
        since,
        to,
        c,
    ) = row
    return _USAGE_ROW.pack(
        18,
        *(16, session_id, 8, starts_at - POSTGRES_EPOCH, 16, user_key, 4, realm_id),
        *(1, confirmed, 1, estimated, 1, started, 1, ended),
        *(8, since - POSTGRES_EPOCH, 8, to - POSTGRES_EPOCH),
        *(8, c[0], 8, c[1], 8, c[2], 8, c[3], 8, c[4], 8, c[5], 8, c[6], 8, c[7]),
    )
