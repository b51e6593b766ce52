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

from accounting.db.binary_copy import POSTGRES_EPOCH
from accounting.db.schema import rejected_messages
from accounting.domain.calendar import from_micros
from accounting.domain.coturn_messages import (
    INTERIM,
    MAX_ADDRESS_CHARACTERS,
    PEER_INTERIM,
    PEER_TOTAL,
    TOTAL,
    Status,
    TrafficKind,
)
from accounting.identities.names import IDENTITY_BYTES

_COPY: Final = (
    "COPY accounting.reports (source_id, epoch, database, time_estimated, position, received_at,"
    " realm_id, username_key, user_key, allocation_id, kind, side, lifetime, transport,"
    " server_address, client_address, received_packets, received_bytes, sent_packets, sent_bytes)"
    " FROM STDIN (FORMAT binary)"
)
_COLUMNS: Final = 20
# A field is its length and its bytes; a length of -1 is null. Packed one by one the twenty fields
# cost twice as much as in pieces, of which most are the same from row to row. A piece ends with the
# length of what comes after it.
_HEAD: Final = Struct("!h ih ii ii i? i".replace(" ", ""))
_TOPIC: Final = Struct("!ih ih iiii i".replace(" ", ""))
_PLACED: Final = f"!{_HEAD.size}s q iq {IDENTITY_BYTES}s q".replace(" ", "")
_TRAFFIC: Final = Struct(_PLACED + f"{_TOPIC.size}s qiqiqiq".replace(" ", ""))
_STATUS: Final = Struct(_PLACED + "ihi")
_LIFETIME: Final = Struct("!ii")
_LENGTH: Final = Struct("!i")
_LENGTHS: Final = [_LENGTH.pack(length) for length in range(MAX_ADDRESS_CHARACTERS + 1)]
_NULL: Final = _LENGTH.pack(-1)
_NO_COUNTERS: Final = Struct("!iqiqiqiq").pack(8, 0, 8, 0, 8, 0, 8, 0)
_NO_ADDRESSES: Final = _NULL * 3 + _NO_COUNTERS
_NO_MORE: Final = _NULL + _NO_ADDRESSES
_TOPICS: Final[dict[TrafficKind, bytes]] = {
    topic: _TOPIC.pack(2, topic.kind, 2, topic.side, -1, -1, -1, -1, 8)
    for topic in (INTERIM, PEER_INTERIM, TOTAL, PEER_TOTAL)
}
_SIGNATURE: Final = b"PGCOPY\n\xff\r\n\0" + bytes(8)
_TRAILER: Final = b"\xff\xff"


class Rejected(NamedTuple):
    """A message that is no event; ``received_at`` in microseconds."""

    epoch: int
    position: int
    received_at: int
    database: int
    channel: bytes
    payload: bytes
    reason: str


def copy_reports(cursor: Cursor[Any], pieces: Iterable[bytes]) -> int:
    """Append rows to the reports, packed as below; returns how many. Partitions must exist."""
    with cursor.copy(_COPY) as copy:
        copy.write(_SIGNATURE)
        for piece in pieces:
            copy.write(piece)
        copy.write(_TRAILER)
    return cursor.rowcount


def pack_head(source_id: int, epoch: int, database: int, *, estimated: bool) -> bytes:
    """What rows begin with."""
    return _HEAD.pack(_COLUMNS, 2, source_id, 4, epoch, 4, database, 1, estimated, 8)


def pack_traffic(
    head: bytes,
    position: int,
    received_at: int,
    identity: bytes,
    allocation_id: int,
    traffic_kind: TrafficKind,
    counters: tuple[int, int, int, int],
) -> bytes:
    """The row of an interim or a total; ``received_at`` in microseconds."""
    received_packets, received_bytes, sent_packets, sent_bytes = counters
    return _TRAFFIC.pack(
        head,
        position,
        8,
        received_at - POSTGRES_EPOCH,
        identity,
        allocation_id,
        _TOPICS[traffic_kind],
        received_packets,
        8,
        received_bytes,
        8,
        sent_packets,
        8,
        sent_bytes,
    )


def pack_status(
    head: bytes,
    position: int,
    received_at: int,
    identity: bytes,
    allocation_id: int,
    status: Status,
) -> bytes:
    """The row of a new, a refreshed or a deleted; ``received_at`` in microseconds."""
    kind, lifetime, transport, server, client = status
    placed = _STATUS.pack(
        head, position, 8, received_at - POSTGRES_EPOCH, identity, allocation_id, 2, kind, -1
    )
    if lifetime is None:
        return placed + _NO_MORE
    if transport is None or server is None or client is None:
        return placed + _LIFETIME.pack(4, lifetime) + _NO_ADDRESSES
    return b"".join(
        (
            placed,
            _LIFETIME.pack(4, lifetime),
            _LENGTHS[len(transport)],
            transport,
            _LENGTHS[len(server)],
            server,
            _LENGTHS[len(client)],
            client,
            _NO_COUNTERS,
        )
    )


def reject(connection: Connection, source_id: int, messages: Iterable[Rejected]) -> None:
    """Keep messages that could not be understood, as they came."""
    rows = [
        message._asdict()
        | {"source_id": source_id, "received_at": from_micros(message.received_at)}
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
