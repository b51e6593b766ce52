"""Cursors and COPY in Postgres' binary format, without datetime and UUID objects.

On these cursors a timestamptz is an integer, whole microseconds since the Unix epoch, and a uuid is
16 bytes. Creating objects for millions of values would take longer than computing them.
"""

import struct
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from typing import Any, Final

from psycopg import Connection, Cursor, ServerCursor
from psycopg.adapt import Buffer, Dumper, Loader
from psycopg.pq import Format

POSTGRES_EPOCH: Final = 946_684_800_000_000
"""Microseconds from the Unix epoch to Postgres' epoch, 2000-01-01 UTC."""

_INT8: Final = struct.Struct("!q")


class _TimestamptzLoader(Loader):
    format = Format.BINARY

    def load(self, data: Buffer) -> int:
        value: int = _INT8.unpack(data)[0]
        return value + POSTGRES_EPOCH


class _UuidLoader(Loader):
    format = Format.BINARY

    def load(self, data: Buffer) -> bytes:
        return bytes(data)


class _TimestamptzDumper(Dumper):
    format = Format.BINARY
    oid = 1184  # timestamptz

    def dump(self, obj: int) -> bytes:
        return _INT8.pack(obj - POSTGRES_EPOCH)


class _UuidDumper(Dumper):
    format = Format.BINARY
    oid = 2950  # uuid

    def dump(self, obj: bytes) -> bytes:
        return obj


def binary_cursor(connection: Connection[Any]) -> Cursor[Any]:
    """A cursor with binary results, whose timestamps are integers and whose uuids are bytes."""
    cursor = connection.cursor(binary=True)
    _register_adapters(cursor)
    return cursor


def binary_server_cursor(
    connection: Connection[Any], name: str, rows_per_fetch: int
) -> ServerCursor[Any]:
    """A server-side :func:`binary_cursor`, which fetches ``rows_per_fetch`` rows at a time."""
    cursor = connection.cursor(name, binary=True)
    cursor.itersize = rows_per_fetch
    _register_adapters(cursor)
    return cursor


def _register_adapters(cursor: Cursor[Any] | ServerCursor[Any]) -> None:
    cursor.adapters.register_loader("timestamptz", _TimestamptzLoader)
    cursor.adapters.register_loader("uuid", _UuidLoader)
    # For COPY, where set_types() looks up a dumper by the column's type.
    cursor.adapters.register_dumper(None, _TimestamptzDumper)
    cursor.adapters.register_dumper(None, _UuidDumper)


def copy_rows(
    cursor: Cursor[Any],
    table: str,
    columns: Sequence[tuple[str, str]],
    rows: Iterable[Sequence[Any]],
) -> None:
    """COPY rows into a table. ``columns``: (name, type).

    The names become part of the SQL: they must not come from user input.
    """
    names = ", ".join(name for name, _ in columns)
    with cursor.copy(f"COPY {table} ({names}) FROM STDIN (FORMAT binary)") as copy:
        copy.set_types([type_ for _, type_ in columns])
        for row in rows:
            copy.write_row(row)


_HEADER: Final = b"PGCOPY\n\xff\r\n\0" + bytes(8)
_TRAILER: Final = b"\xff\xff"
_ROWS_PER_CHUNK: Final = 1_000


def copy_packed_chunks(
    cursor: Cursor[Any], table: str, columns: Iterable[str], chunks: Iterable[bytes]
) -> None:
    """COPY chunks of rows that are packed in Postgres' binary format into a table."""
    with cursor.copy(f"COPY {table} ({', '.join(columns)}) FROM STDIN (FORMAT binary)") as copy:
        copy.write(_HEADER)
        for chunk in chunks:
            copy.write(chunk)
        copy.write(_TRAILER)


def copy_packed_rows(
    cursor: Cursor[Any], table: str, columns: Iterable[str], rows: Iterator[bytes]
) -> None:
    """COPY single packed rows into a table, joined into chunks."""
    chunks = iter(lambda: b"".join(islice(rows, _ROWS_PER_CHUNK)), b"")
    copy_packed_chunks(cursor, table, columns, chunks)
