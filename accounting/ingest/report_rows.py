"""Rows of the reports, packed in Postgres' binary COPY format.

Field by field here, and not by psycopg: at tens of thousands of rows a second, packing is much of
the loader's work.
"""

from struct import Struct
from typing import Final

from accounting.db.binary_copy import POSTGRES_EPOCH
from accounting.domain.coturn_messages import (
    INTERIM,
    MAX_ADDRESS_CHARACTERS,
    PEER_INTERIM,
    PEER_TOTAL,
    TOTAL,
    Status,
    TrafficKind,
)
from accounting.identities.identity_resolver import IDENTITY_BYTES

COLUMNS: Final = (
    "source_id",
    "epoch",
    "database",
    "time_estimated",
    "position",
    "received_at",
    "realm_id",
    "username_key",
    "user_key",
    "allocation_id",
    "kind",
    "side",
    "lifetime",
    "transport",
    "server_address",
    "client_address",
    "received_packets",
    "received_bytes",
    "sent_packets",
    "sent_bytes",
)
# A field is its length and its bytes; a length of -1 is null. Packing the twenty fields one by one
# costs twice as much as packing them in parts, most of which are the same from row to row. A part
# ends with the length of the field that follows it.
_HEADER: Final = Struct(
    "!h"  # the number of fields
    "ih"  # source_id
    "ii"  # epoch
    "ii"  # database
    "i?"  # time_estimated
    "i"  # the length of position
)
_KIND_AND_SIDE: Final = Struct(
    "!ih"  # kind
    "ih"  # side
    "iiii"  # null: lifetime, transport and both addresses
    "i"  # the length of the first counter
)
_OWNER: Final = Struct(f"!{IDENTITY_BYTES}sq")  # identity, allocation_id
_UP_TO_OWNER: Final = (
    f"!{_HEADER.size}s"
    "q"  # position
    "iq"  # received_at
    f"{_OWNER.size}s"
)
_TRAFFIC: Final = Struct(f"{_UP_TO_OWNER}{_KIND_AND_SIDE.size}sqiqiqiq")
_STATUS: Final = Struct(_UP_TO_OWNER)
_STATUS_KIND: Final = Struct(
    "!ih"  # kind
    "i"  # null: side
)
_LIFETIME: Final = Struct("!ii")
_LENGTH: Final = Struct("!i")
_LENGTHS: Final = [_LENGTH.pack(length) for length in range(MAX_ADDRESS_CHARACTERS + 1)]
_NULL: Final = _LENGTH.pack(-1)
_ZERO_COUNTERS: Final = Struct("!iqiqiqiq").pack(8, 0, 8, 0, 8, 0, 8, 0)
_NO_ADDRESSES: Final = _NULL * 3 + _ZERO_COUNTERS
_NO_LIFETIME: Final = _NULL + _NO_ADDRESSES
_TRAFFIC_KINDS: Final[dict[TrafficKind, bytes]] = {
    kind: _KIND_AND_SIDE.pack(2, kind.kind, 2, kind.side, -1, -1, -1, -1, 8)
    for kind in (INTERIM, PEER_INTERIM, TOTAL, PEER_TOTAL)
}


def pack_header(source_id: int, epoch: int, database: int, *, estimated: bool) -> bytes:
    """The first fields of a row, which many rows share."""
    return _HEADER.pack(len(COLUMNS), 2, source_id, 4, epoch, 4, database, 1, estimated, 8)


def pack_owner(identity: bytes, allocation_id: int) -> bytes:
    """The fields that the rows of an allocation have in common."""
    return _OWNER.pack(identity, allocation_id)


def pack_traffic(
    header: bytes,
    position: int,
    received_at: int,
    owner: bytes,
    traffic_kind: TrafficKind,
    counters: tuple[int, int, int, int],
) -> bytes:
    """The row of an interim or a total; ``received_at`` in microseconds."""
    received_packets, received_bytes, sent_packets, sent_bytes = counters
    return _TRAFFIC.pack(
        header,
        position,
        8,
        received_at - POSTGRES_EPOCH,
        owner,
        _TRAFFIC_KINDS[traffic_kind],
        received_packets,
        8,
        received_bytes,
        8,
        sent_packets,
        8,
        sent_bytes,
    )


class StatusFields:
    """What many statuses have in common, and the fields of their rows."""

    __slots__ = ("_fields", "_has_addresses", "kind", "lifetime", "server_address", "transport")

    def __init__(self, status: Status) -> None:
        kind, lifetime, transport, server, _ = status
        self.kind = kind
        self.lifetime = lifetime
        self.transport = None if transport is None else transport.decode()
        self.server_address = None if server is None else server.decode()
        self._has_addresses = False
        fields = _STATUS_KIND.pack(2, kind, -1)
        if lifetime is None:
            fields += _NO_LIFETIME
        elif transport is None or server is None:
            fields += _LIFETIME.pack(4, lifetime) + _NO_ADDRESSES
        else:
            self._has_addresses = True
            fields += b"".join(
                (
                    _LIFETIME.pack(4, lifetime),
                    _LENGTHS[len(transport)],
                    transport,
                    _LENGTHS[len(server)],
                    server,
                )
            )
        self._fields = fields

    def pack(
        self, header: bytes, position: int, received_at: int, owner: bytes, client: bytes | None
    ) -> bytes:
        """The row of a status; ``received_at`` in microseconds, ``client``: its address."""
        start = _STATUS.pack(header, position, 8, received_at - POSTGRES_EPOCH, owner)
        if not self._has_addresses:
            return start + self._fields
        if client is None:
            return b"".join((start, self._fields, _NULL, _ZERO_COUNTERS))
        return b"".join((start, self._fields, _LENGTHS[len(client)], client, _ZERO_COUNTERS))
