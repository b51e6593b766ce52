"""The table ``reports``, written: append only, by binary COPY.

The rows are packed here rather than by psycopg, column by column as Postgres' binary COPY format
has it: at tens of thousands a second that is most of what the loader does.
"""

from collections.abc import Iterable
from datetime import date
from struct import Struct
from typing import Any, Final, NamedTuple

from psycopg import Cursor
from sqlalchemy import Connection, insert, text

from accounting.model.buckets import moment
from accounting.model.wire import Event, Kind
from accounting.store.binary import POSTGRES_EPOCH
from accounting.store.identities import Identity
from accounting.store.schema import rejected_messages

_COPY: Final = (
    "COPY accounting.reports (source_id, epoch, position, received_at, time_estimated, database,"
    " realm_id, username_key, user_key, allocation_id, kind, side, lifetime, transport,"
    " server_address, client_address, received_packets, received_bytes, sent_packets, sent_bytes)"
    " FROM STDIN (FORMAT binary)"
)
# A field is its length and its bytes; a length of -1 is null. What both shapes begin with:
_HEAD: Final = "!h ih ii iq iq i? ii ii i16s i16s iq ih".replace(" ", "")
_TRAFFIC: Final = Struct(_HEAD + "ih" + "iiii" + "iqiqiqiq")
_STATUS: Final = Struct(_HEAD + "i")
_LIFETIME: Final = Struct("!ii")
_LENGTH: Final = Struct("!i")
_NULL: Final = _LENGTH.pack(-1)
_NO_COUNTERS: Final = Struct("!iqiqiqiq").pack(8, 0, 8, 0, 8, 0, 8, 0)
_SIGNATURE: Final = b"PGCOPY\n\xff\r\n\0" + bytes(8)
_TRAILER: Final = b"\xff\xff"
_COLUMNS: Final = 20


class Placed(NamedTuple):
    """An event with its place in the source's order; ``received_at`` in microseconds."""

    epoch: int
    position: int
    received_at: int
    estimated: bool
    database: int
    identity: Identity
    event: Event


class Rejected(NamedTuple):
    """A message that is no event; ``received_at`` in microseconds."""

    epoch: int
    position: int
    received_at: int
    database: int
    channel: bytes
    payload: bytes
    reason: str


def copy_reports(cursor: Cursor[Any], source_id: int, events: Iterable[Placed]) -> None:
    """Append events to the reports. Their days' partitions must exist."""
    with cursor.copy(_COPY) as copy:
        copy.write(_SIGNATURE)
        rows: list[bytes] = []
        for placed in events:
            rows.append(_row(source_id, placed))
            if len(rows) == 1000:
                copy.write(b"".join(rows))
                rows.clear()
        copy.write(b"".join(rows))
        copy.write(_TRAILER)


def _row(source_id: int, placed: Placed) -> bytes:
    epoch, position, received_at, estimated, database, identity, event = placed
    head = (
        _COLUMNS,
        *(2, source_id),
        *(4, epoch),
        *(8, position),
        *(8, received_at - POSTGRES_EPOCH),
        *(1, estimated),
        *(4, database),
        *(4, identity.realm_id),
        *(16, identity.username_key),
        *(16, identity.user_key),
        *(8, event.allocation_id),
        *(2, event.kind),
    )
    if event.kind >= Kind.INTERIM:
        return _TRAFFIC.pack(
            *head,
            *(2, event.side),
            *(-1, -1, -1, -1),
            *(8, event.received_packets, 8, event.received_bytes),
            *(8, event.sent_packets, 8, event.sent_bytes),
        )
    lifetime = _NULL if event.lifetime is None else _LIFETIME.pack(4, event.lifetime)
    return b"".join(
        (
            _STATUS.pack(*head, -1),
            lifetime,
            _text(event.transport),
            _text(event.server_address),
            _text(event.client_address),
            _NO_COUNTERS,
        )
    )


def _text(value: str | None) -> bytes:
    if value is None:
        return _NULL
    encoded = value.encode()
    return _LENGTH.pack(len(encoded)) + encoded


def reject(connection: Connection, source_id: int, messages: Iterable[Rejected]) -> None:
    """Keep messages that could not be understood, as they came."""
    rows = [
        message._asdict() | {"source_id": source_id, "received_at": moment(message.received_at)}
        for message in messages
    ]
    if rows:
        connection.execute(insert(rejected_messages), rows)


def ensure_partition(connection: Connection, day: date) -> bool:
    """Make the partition of a day (UTC) where it is missing. True when it was made."""
    made: bool = connection.execute(
        text("SELECT accounting.ensure_report_partition(:day)"), {"day": day}
    ).scalar_one()
    return made
