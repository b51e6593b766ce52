"""Settling, stored: reports read in order, lives fetched by key, lives and their hours written.

Owns the tables ``sessions``, ``session_usage`` and ``touched_hours``, and tells the feed of ends.
The rules are in ``model.lives``; here is only how they get in and out, set-based, a batch at a
time.
"""

from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Final, NamedTuple

from psycopg import Cursor
from sqlalchemy import Connection

from accounting.model.buckets import moment
from accounting.model.counters import COUNTERS
from accounting.model.lives import EndCause, Life, Report, Sighting, Standing, Stored
from accounting.store.binary import binary_cursor, copy_rows
from accounting.store.database import driver_statement, psycopg_connection, statement

KEY_COLUMNS: Final = (
    ("source_id", "int2"),
    ("database", "int4"),
    ("username_key", "uuid"),
    ("allocation_id", "int8"),
)
LIFE_COLUMNS: Final = (
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
    ("standing", "int2"),
    ("vouched", "bool"),
    ("transport", "text"),
    ("client_address", "text"),
    ("server_address", "text"),
    *((name, "int8") for name in COUNTERS),
    ("news", "int2"),
    ("deletes", "int2"),
    ("client_totals", "int2"),
    ("peer_totals", "int2"),
    ("client_total", "int8[]"),
    ("peer_total", "int8[]"),
    ("estimated", "bool"),
    ("disputed", "bool"),
)
USAGE_COLUMNS: Final = (
    ("session_id", "uuid"),
    ("starts_at", "timestamptz"),
    ("user_key", "uuid"),
    ("realm_id", "int4"),
    ("vouched", "bool"),
    ("estimated", "bool"),
    ("started", "bool"),
    ("ended", "bool"),
    ("active_from", "timestamptz"),
    ("active_to", "timestamptz"),
    *((name, "int8") for name in COUNTERS),
)


class Key(NamedTuple):
    """What coturn's reports of one allocation share, for as long as its id is not reused."""

    source_id: int
    database: int
    username_key: bytes
    allocation_id: int


class UsageRow(NamedTuple):
    """What one step adds to one hour of a session, and how the session stands in that hour.

    The flags and the active span replace what stood there; ``counters`` are added.
    """

    session_id: bytes
    starts_at: int
    user_key: bytes
    realm_id: int
    vouched: bool
    estimated: bool
    started: bool
    ended: bool
    active_from: int
    active_to: int
    counters: Sequence[int]


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
            driver_statement("read_reports"),
            {
                "source_id": source_id,
                "since": moment(since),
                "epoch": epoch,
                "position": position,
                "limit": limit,
            },
        )
        return [Report._make(row) for row in cursor]


def read_sightings(
    connection: Connection,
    source_id: int,
    *,
    after: tuple[int, int, int],
    upto: tuple[int, int],
) -> list[Sighting]:
    """The key sightings after one, up to a position of the reports, in order."""
    with _cursor(connection) as cursor:
        cursor.execute(
            driver_statement("read_sightings"),
            {
                "source_id": source_id,
                "epoch": after[0],
                "position": after[1],
                "sighting": after[2],
                "upto_epoch": upto[0],
                "upto_position": upto[1],
            },
        )
        return [Sighting._make(row) for row in cursor]


def fetch_lives(connection: Connection, keys: Iterable[Key]) -> Iterator[tuple[Key, Life]]:
    """The lives of these keys that a report may still belong to."""
    with _cursor(connection) as cursor:
        connection.execute(statement("stage_keys"))
        copy_rows(cursor, "staged_keys", KEY_COLUMNS, keys)
        cursor.execute("ANALYZE staged_keys")
        cursor.execute(driver_statement("fetch_lives"))
        yield from _lives(cursor)


def fetch_due(
    connection: Connection, source_id: int, until: int, limit: int
) -> Iterator[tuple[Key, Life]]:
    """Lives that may have expired by ``until``: their time to be looked at has come."""
    with _cursor(connection) as cursor:
        cursor.execute(
            driver_statement("fetch_due"),
            {"source_id": source_id, "until": moment(until), "limit": limit},
        )
        yield from _lives(cursor)


def _lives(cursor: Cursor[Any]) -> Iterator[tuple[Key, Life]]:
    for row in cursor:
        key, life = life_of_row(row)
        life.stored = Stored(life.until, life.ended_at is not None, life.vouched, life.estimated)
        yield key, life


def life_of_row(row: Sequence[Any]) -> tuple[Key, Life]:
    """A life from KEY_COLUMNS and LIFE_COLUMNS, in binary."""
    key, fields = Key._make(row[:4]), list(row[4:])
    usage, rest = fields[15:23], fields[23:]
    return key, Life(
        session_id=fields[0],
        user_key=fields[1],
        realm_id=fields[2],
        started_at=fields[3],
        last_seen_at=fields[4],
        expires_at=fields[5],
        start_known=fields[6],
        lifetime_known=fields[7],
        ended_at=fields[8],
        end_cause=None if fields[9] is None else EndCause(fields[9]),
        standing=Standing(fields[10]),
        vouched=fields[11],
        transport=fields[12],
        client_address=fields[13],
        server_address=fields[14],
        usage=usage,
        news=rest[0],
        deletes=rest[1],
        client_totals=rest[2],
        peer_totals=rest[3],
        client_total=rest[4],
        peer_total=rest[5],
        estimated=rest[6],
        disputed=rest[7],
    )


def absorb(connection: Connection, pairs: Sequence[tuple[bytes, Life]]) -> None:
    """Move the stored hours of limbo lives to the lives that turned out to be theirs."""
    if not pairs:
        return
    with _cursor(connection) as cursor:
        connection.execute(statement("stage_absorbed"))
        copy_rows(
            cursor,
            "staged_absorbed",
            (("absorbed_id", "uuid"), ("session_id", "uuid"), ("user_key", "uuid")),
            [(absorbed, life.session_id, life.user_key) for absorbed, life in pairs],
        )
        connection.execute(statement("absorb_usage"))
        connection.execute(statement("absorb_sessions"))


def write_lives(connection: Connection, lives: Iterable[tuple[Key, Life, int]]) -> None:
    """Write lives as they stand now: (key, life, when it must be looked at again).

    Those that ended, or ended otherwise than was told, are told to the feed.
    """
    with _cursor(connection) as cursor:
        connection.execute(statement("stage_sessions"))
        copy_rows(
            cursor,
            "staged_sessions",
            (*KEY_COLUMNS, ("due_at", "timestamptz"), *LIFE_COLUMNS),
            (life_row(key, life, due_at) for key, life, due_at in lives),
        )
        connection.execute(statement("tell_ends"))
        connection.execute(statement("put_sessions"))


def life_row(key: Key, life: Life, due_at: int) -> tuple[Any, ...]:
    """A life as a row of ``sessions``: KEY_COLUMNS, due_at, LIFE_COLUMNS."""
    return (
        *key,
        due_at,
        life.session_id,
        life.user_key,
        life.realm_id,
        life.started_at,
        life.last_seen_at,
        life.expires_at,
        life.start_known,
        life.lifetime_known,
        life.ended_at,
        None if life.end_cause is None else life.end_cause.value,
        int(life.standing),
        life.vouched,
        life.transport,
        life.client_address,
        life.server_address,
        *life.usage,
        life.news,
        life.deletes,
        life.client_totals,
        life.peer_totals,
        life.client_total,
        life.peer_total,
        life.estimated,
        life.disputed,
    )


def write_usage(connection: Connection, rows: Iterable[UsageRow]) -> None:
    """Add to the hours of sessions, and mark them for the roll-up."""
    with _cursor(connection) as cursor:
        connection.execute(statement("stage_usage"))
        copy_rows(
            cursor, "staged_usage", USAGE_COLUMNS, ((*row[:10], *row.counters) for row in rows)
        )
        connection.execute(statement("put_usage"))
        connection.execute(statement("touch_staged_hours"))


def reflag(connection: Connection, lives: Sequence[Life]) -> None:
    """Carry a session's vouched and estimated to all its hours, and mark those for the roll-up."""
    if lives:
        connection.execute(
            statement("reflag_usage"), [{"session_id": life.session_id.hex()} for life in lives]
        )


def postpone(connection: Connection, waiting: Sequence[tuple[Life, int]]) -> None:
    """Say when lives that were looked at and still live must be looked at again."""
    if waiting:
        connection.execute(
            statement("postpone_due"),
            [
                {
                    "session_id": life.session_id.hex(),
                    "user_key": life.user_key.hex(),
                    "due_at": moment(due_at),
                }
                for life, due_at in waiting
            ],
        )


def _cursor(connection: Connection) -> Cursor[Any]:
    return binary_cursor(psycopg_connection(connection))
