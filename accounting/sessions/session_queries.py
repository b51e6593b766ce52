"""Settling, stored: reports read in order, lives fetched by key and written.

Owns the table ``sessions``, and tells the feed of ends. Their hours are ``session_usage``'s.
The rules are in ``domain.session_fold``; here is only how they get in and out, set-based, a batch
at a
time.
"""

from collections.abc import Iterable, Iterator, Sequence
from struct import Struct
from typing import Any, Final, NamedTuple

from psycopg import Cursor
from sqlalchemy import Connection

from accounting.db.binary_copy import POSTGRES_EPOCH, binary_cursor, copy_packed, copy_rows
from accounting.db.engine import along_keys, psycopg_connection
from accounting.db.queries import Queries
from accounting.domain.calendar import from_micros
from accounting.domain.counters import COUNTERS
from accounting.domain.session_fold import (
    EndCause,
    Phase,
    PriorState,
    Report,
    SessionState,
    StatusKeySighting,
)

_QUERIES: Final = Queries("accounting.sessions")

KEY_COLUMNS: Final = (
    ("source_id", "int2"),
    ("database", "int4"),
    ("username_key", "uuid"),
    ("allocation_id", "int8"),
)
SESSION_COLUMNS: Final = (
    ("session_id", "uuid"),
    ("user_key", "uuid"),
    ("realm_id", "int4"),
    ("started_at", "timestamptz"),
    ("last_seen_at", "timestamptz"),
    ("expires_at", "timestamptz"),
    ("start_known", "bool"),
    ("lifetime_known", "bool"),
    ("ended_at", "timestamptz"),
    ("end_cause", "text"),
    ("phase", "int2"),
    ("confirmed", "bool"),
    ("transport", "text"),
    ("client_address", "text"),
    ("server_address", "text"),
    *((name, "int8") for name in COUNTERS),
    ("new_count", "int2"),
    ("deleted_count", "int2"),
    ("client_total_count", "int2"),
    ("peer_total_count", "int2"),
    ("client_total", "int8[]"),
    ("peer_total", "int8[]"),
    ("estimated", "bool"),
    ("disputed", "bool"),
)


class AllocationKey(NamedTuple):
    """What coturn's reports of one allocation share, for as long as its id is not reused."""

    source_id: int
    database: int
    username_key: bytes
    allocation_id: int


def read_reports(
    connection: Connection, source_id: int, *, since: int, after: tuple[int, int], limit: int
) -> list[Report]:
    """The next reports of a source after (epoch, position), in order.

    ``since``: no report after that position was received earlier (microseconds); it keeps the
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


def fetch_open_sessions(
    connection: Connection, keys: Iterable[AllocationKey]
) -> Iterator[tuple[AllocationKey, SessionState]]:
    """The lives of these keys that a report may still belong to."""
    connection.execute(_QUERIES.text("stage_keys"))
    with _cursor(connection) as cursor:
        names = [name for name, _ in KEY_COLUMNS]
        copy_packed(cursor, "staged_keys", names, map(_key_row, keys))
        with along_keys(connection):
            cursor.execute(_QUERIES.driver("fetch_lives"))
        yield from map(_stored, cursor.fetchall())


def fetch_due_sessions(
    connection: Connection, source_id: int, until: int, limit: int
) -> Iterator[tuple[AllocationKey, SessionState]]:
    """Lives that may have expired by ``until``: their time to be looked at has come."""
    with _cursor(connection) as cursor:
        cursor.execute(
            _QUERIES.driver("fetch_due"),
            {"source_id": source_id, "until": from_micros(until), "limit": limit},
        )
        yield from map(_stored, cursor.fetchall())


def _stored(row: Sequence[Any]) -> tuple[AllocationKey, SessionState]:
    key, session = session_from_row(row)
    session.prior = PriorState(
        session.active_until,
        session.ended_at is not None,
        session.confirmed,
        session.estimated,
        row[35],
        _still(session),
    )
    return key, session


def session_from_row(row: Sequence[Any]) -> tuple[AllocationKey, SessionState]:
    """A life from KEY_COLUMNS and LIFE_COLUMNS, in binary. A total may be None where none came."""
    end_cause = None if row[13] is None else EndCause(row[13])
    return AllocationKey._make(row[:4]), SessionState(
        session_id=row[4],
        user_key=row[5],
        realm_id=row[6],
        started_at=row[7],
        last_seen_at=row[8],
        expires_at=row[9],
        start_known=row[10],
        lifetime_known=row[11],
        ended_at=row[12],
        end_cause=end_cause,
        phase=_STANDINGS[row[14]],
        confirmed=row[15],
        transport=row[16],
        client_address=row[17],
        server_address=row[18],
        usage=list(row[19:27]),
        new_count=row[27],
        deleted_count=row[28],
        client_total_count=row[29],
        peer_total_count=row[30],
        client_total=row[31] or [0] * 4,
        peer_total=row[32] or [0] * 4,
        estimated=row[33],
        disputed=row[34],
    )


def _still(session: SessionState) -> tuple[object, ...]:
    """What changes seldom of a life: all of its columns but times and counters."""
    return (
        session.lifetime_known,
        session.ended_at,
        session.end_cause,
        session.phase,
        session.confirmed,
        session.transport,
        session.client_address,
        session.server_address,
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
    connection: Connection, sessions: Iterable[tuple[AllocationKey, SessionState, int, int | None]]
) -> None:
    """Write lives as they stand now: (key, life, when to look at it again, its only hour if any).

    Those that ended, or ended otherwise than was told, are told to the feed. Those of which only
    time and counters moved, which are most, take a shorter way.
    """
    whole: list[bytes] = []
    moved: list[bytes] = []
    for key, session, recheck_at, single_hour in sessions:
        stored = session.prior
        if stored is not None and not stored.ended and stored.slow_columns == _still(session):
            moved.append(_move(session, recheck_at))
        else:
            whole.append(_life_row(key, session, recheck_at, single_hour))
    with _cursor(connection) as cursor:
        if whole:
            connection.execute(_QUERIES.text("stage_sessions"))
            copy_packed(cursor, "staged_sessions", _PACKED_COLUMNS, iter(whole))
            with along_keys(connection):
                connection.execute(_QUERIES.text("tell_ends"))
                connection.execute(_QUERIES.text("put_sessions"))
        if moved:
            connection.execute(_QUERIES.text("stage_moves"))
            copy_packed(cursor, "staged_moves", _MOVE_COLUMNS, iter(moved))
            with along_keys(connection):
                connection.execute(_QUERIES.text("move_sessions"))


def session_row(key: AllocationKey, session: SessionState, recheck_at: int) -> tuple[Any, ...]:
    """A life as a row of ``sessions``: KEY_COLUMNS, recheck_at, LIFE_COLUMNS."""
    return (
        *key,
        recheck_at,
        session.session_id,
        session.user_key,
        session.realm_id,
        session.started_at,
        session.last_seen_at,
        session.expires_at,
        session.start_known,
        session.lifetime_known,
        session.ended_at,
        None if session.end_cause is None else session.end_cause.value,
        int(session.phase),
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


def reschedule(connection: Connection, sessions: Sequence[tuple[SessionState, int]]) -> None:
    """Say when lives that were looked at and still live must be looked at again."""
    if not sessions:
        return
    connection.execute(_QUERIES.text("stage_due"))
    with _cursor(connection) as cursor:
        copy_rows(
            cursor,
            "staged_due",
            (("session_id", "uuid"), ("user_key", "uuid"), ("recheck_at", "timestamptz")),
            [
                (session.session_id, session.user_key, recheck_at)
                for session, recheck_at in sessions
            ],
        )
    with along_keys(connection):
        connection.execute(_QUERIES.text("postpone_due"))


# As Postgres' binary COPY has rows: the number of fields, then each with its length before it.
_KEY: Final = Struct("!h ih ii i16s iq".replace(" ", ""))
_MOVE: Final = Struct("!h i16s i16s iq iq iq iqiqiqiq iqiqiqiq".replace(" ", ""))
_MOVE_COLUMNS: Final = (
    "session_id",
    "user_key",
    "last_seen_at",
    "expires_at",
    "recheck_at",
    *COUNTERS,
)
_TOTAL: Final = Struct("!6iiqiqiqiq")  # an array of four: its length, header, and elements
_TOTAL_HEAD: Final = 68, 1, 0, 20, 4, 1  # bytes, dimensions, no nulls, the type int8, size, base
_LIFE: Final = Struct(
    "!h ih ii i16s iq iq i16s i16s ii iq iq iq i? i? ih i? iqiqiqiq iqiqiqiq ih ih ih ih".replace(
        " ", ""
    )
    + "i?i?"
)
_NULLABLE: Final = (
    "ended_at",
    "end_cause",
    "transport",
    "client_address",
    "server_address",
    "client_total",
    "peer_total",
)
_PACKED_COLUMNS: Final = (
    *(name for name, _ in KEY_COLUMNS),
    "recheck_at",
    *(name for name, _ in SESSION_COLUMNS if name not in _NULLABLE),
    *_NULLABLE,
    "single_hour",
)
_NULL: Final = b"\xff\xff\xff\xff"
_TIME: Final = Struct("!iq")
_LENGTH: Final = Struct("!i")
_STANDINGS: Final = {int(standing): standing for standing in Phase}


def _key_row(key: AllocationKey) -> bytes:
    source_id, database, username_key, allocation_id = key
    return _KEY.pack(4, 2, source_id, 4, database, 16, username_key, 8, allocation_id)


def _move(session: SessionState, recheck_at: int) -> bytes:
    u = session.usage
    return _MOVE.pack(
        13,
        *(16, session.session_id, 16, session.user_key),
        *(8, session.last_seen_at - POSTGRES_EPOCH, 8, session.expires_at - POSTGRES_EPOCH),
        *(8, recheck_at - POSTGRES_EPOCH),
        *(8, u[0], 8, u[1], 8, u[2], 8, u[3], 8, u[4], 8, u[5], 8, u[6], 8, u[7]),
    )


def _life_row(
    key: AllocationKey, session: SessionState, recheck_at: int, single_hour: int | None
) -> bytes:
    """A life as a packed row: _PACKED_COLUMNS, those that may be null last."""
    u = session.usage
    fixed = _LIFE.pack(
        len(_PACKED_COLUMNS),
        *(2, key.source_id, 4, key.database, 16, key.username_key, 8, key.allocation_id),
        *(8, recheck_at - POSTGRES_EPOCH),
        *(16, session.session_id, 16, session.user_key, 4, session.realm_id),
        *(8, session.started_at - POSTGRES_EPOCH, 8, session.last_seen_at - POSTGRES_EPOCH),
        *(8, session.expires_at - POSTGRES_EPOCH),
        *(
            1,
            session.start_known,
            1,
            session.lifetime_known,
            2,
            session.phase,
            1,
            session.confirmed,
        ),
        *(8, u[0], 8, u[1], 8, u[2], 8, u[3], 8, u[4], 8, u[5], 8, u[6], 8, u[7]),
        *(
            2,
            session.new_count,
            2,
            session.deleted_count,
            2,
            session.client_total_count,
            2,
            session.peer_total_count,
        ),
        *(1, session.estimated, 1, session.disputed),
    )
    return b"".join(
        (
            fixed,
            _time(session.ended_at),
            _text(session.end_cause),
            _text(session.transport),
            _text(session.client_address),
            _text(session.server_address),
            _total(session.client_total_count, session.client_total),
            _total(session.peer_total_count, session.peer_total),
            _time(single_hour),
        )
    )


def _time(value: int | None) -> bytes:
    return _NULL if value is None else _TIME.pack(8, value - POSTGRES_EPOCH)


def _total(came: int, total: Sequence[int]) -> bytes:
    if not came:
        return _NULL
    a, b, c, d = total
    return _TOTAL.pack(*_TOTAL_HEAD, 8, a, 8, b, 8, c, 8, d)


def _text(value: str | None) -> bytes:
    if value is None:
        return _NULL
    encoded = value.encode()
    return _LENGTH.pack(len(encoded)) + encoded


def _cursor(connection: Connection) -> Cursor[Any]:
    return binary_cursor(psycopg_connection(connection))
