"""Postgres' binary wire formats as plain numbers: the hot paths' way in and out.

On these cursors a timestamptz is whole microseconds since the Unix epoch, and a uuid 16 bytes.
Making datetimes and UUID objects of millions of values would cost more than settling them.
"""

import struct
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from typing import Any, Final

from psycopg import Connection, Cursor, ServerCursor
from psycopg.adapt import Buffer, Dumper, Loader
from psycopg.pq import Format

POSTGRES_EPOCH: Final = 946_684_800_000_000
"""Microseconds from the Unix epoch to Postgres', 2000-01-01 UTC."""

_INT8: Final = struct.Struct("!q")


class _TimeLoader(Loader):
    format = Format.BINARY

    def load(self, data: Buffer) -> int:
        value: int = _INT8.unpack(data)[0]
        return value + POSTGRES_EPOCH


class _KeyLoader(Loader):
    format = Format.BINARY

    def load(self, data: Buffer) -> bytes:
        return bytes(data)


class _TimeDumper(Dumper):
    format = Format.BINARY
    oid = 1184  # timestamptz

    def dump(self, obj: int) -> bytes:
        return _INT8.pack(obj - POSTGRES_EPOCH)


class _KeyDumper(Dumper):
    format = Format.BINARY
    oid = 2950  # uuid

    def dump(self, obj: bytes) -> bytes:
        return obj


def binary_cursor(connection: Connection[Any]) -> Cursor[Any]:
    """A cursor on which results are binary, times are integers and keys are bytes."""
    cursor = connection.cursor(binary=True)
    _adapt(cursor)
    return cursor


def binary_stream(connection: Connection[Any], name: str, rows_at_once: int) -> ServerCursor[Any]:
    """The same, kept by the server under that name: rows come a batch at a time."""
    cursor = connection.cursor(name, binary=True)
    cursor.itersize = rows_at_once
    _adapt(cursor)
    return cursor


def _adapt(cursor: Cursor[Any] | ServerCursor[Any]) -> None:
    cursor.adapters.register_loader("timestamptz", _TimeLoader)
    cursor.adapters.register_loader("uuid", _KeyLoader)
    # For COPY, where set_types() looks a dumper up by the column's type.
    cursor.adapters.register_dumper(None, _TimeDumper)
    cursor.adapters.register_dumper(None, _KeyDumper)


def copy_rows(
    cursor: Cursor[Any],
    table: str,
    columns: Sequence[tuple[str, str]],
    rows: Iterable[Sequence[Any]],
) -> None:
    """COPY rows into a table. ``columns``: (name, type); names are the program's own."""
    names = ", ".join(name for name, _ in columns)
    with cursor.copy(f"COPY {table} ({names}) FROM STDIN (FORMAT binary)") as copy:
        copy.set_types([type_ for _, type_ in columns])
        for row in rows:
            copy.write_row(row)


_SIGNATURE: Final = b"PGCOPY\n\xff\r\n\0" + bytes(8)
_TRAILER: Final = b"\xff\xff"
_ROWS_AT_ONCE: Final = 1_000


def copy_packed(
    cursor: Cursor[Any], table: str, columns: Iterable[str], rows: Iterator[bytes]
) -> None:
    """COPY rows that are packed already, as Postgres' binary format has them, into a table."""
    with cursor.copy(f"COPY {table} ({', '.join(columns)}) FROM STDIN (FORMAT binary)") as copy:
        copy.write(_SIGNATURE)
        for some in iter(lambda: b"".join(islice(rows, _ROWS_AT_ONCE)), b""):
            copy.write(some)
        copy.write(_TRAILER)
