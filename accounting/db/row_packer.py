"""Rows for Postgres' binary COPY, packed here a row at a time.

psycopg dumps a row value by value, which costs more than computing it. One struct for all columns
of a fixed width costs a third. The columns, their types and which may be null come from the tables
in ``db.schema``.
"""

from collections.abc import Callable, Iterable, Sequence
from operator import call
from struct import Struct
from typing import Any, Final

from sqlalchemy import (
    ARRAY,
    BigInteger,
    Boolean,
    Column,
    DateTime,
    Integer,
    SmallInteger,
    Table,
    Text,
    Uuid,
)

from accounting.db.binary_copy import POSTGRES_EPOCH

_TYPE_NAMES: Final[dict[type[Any], str]] = {
    SmallInteger: "int2",
    Integer: "int4",
    BigInteger: "int8",
    Boolean: "bool",
    DateTime: "timestamptz",
    Uuid: "uuid",
    Text: "text",
    ARRAY: "int8[]",
}
_FIXED: Final = {
    "int2": "h",
    "int4": "i",
    "int8": "q",
    "bool": "?",
    "timestamptz": "q",
    "uuid": "16s",
}
_NULL: Final = b"\xff\xff\xff\xff"
_LENGTH: Final = Struct("!i")
_TIME: Final = Struct("!iq")
_INT8_OID: Final = 20


def copy_columns(table: Table, names: Iterable[str]) -> tuple[tuple[str, str], ...]:
    """(name, Postgres type) of columns of a table, as ``binary_copy.copy_rows`` takes them."""
    return tuple((name, _type_name(table.c[name])) for name in names)


def _type_name(column: Column[Any]) -> str:
    return _TYPE_NAMES[type(column.type)]


class RowPacker:
    """Packs rows of some columns of a table.

    ``columns`` has the names in the order of a packed row: first those of a fixed width, then those
    that may be null or vary in width. Times are microseconds since the Unix epoch, uuids 16 bytes.
    """

    def __init__(self, table: Table, names: Sequence[str]) -> None:
        types = dict(copy_columns(table, names))
        self.fixed = tuple(
            name for name in names if types[name] in _FIXED and not table.c[name].nullable
        )
        self.varying = tuple(name for name in names if name not in self.fixed)
        self.columns = (*self.fixed, *self.varying)
        formats = [_FIXED[types[name]] for name in self.fixed]
        self._struct = Struct("!h" + "".join(f"i{format_}" for format_ in formats))
        # The number of columns, then the length and the place of each value.
        self._row: list[Any] = [len(self.columns)]
        for format_ in formats:
            self._row += [Struct(f"!{format_}").size, None]
        self._times = [
            2 * index + 2 for index, name in enumerate(self.fixed) if types[name] == "timestamptz"
        ]
        self._packers = [_PACKERS[types[name]] for name in self.varying]

    def pack(self, fixed: Iterable[Any], varying: Iterable[Any] = ()) -> bytes:
        """One row, from the values of ``self.fixed`` and ``self.varying``."""
        row = self._row.copy()
        row[2::2] = fixed
        for index in self._times:
            row[index] -= POSTGRES_EPOCH
        packed = self._struct.pack(*row)
        if not self._packers:
            return packed
        return b"".join((packed, *map(call, self._packers, varying)))


def pack_time(value: int | None) -> bytes:
    """A nullable time with its length, in microseconds since the Unix epoch."""
    return _NULL if value is None else _TIME.pack(8, value - POSTGRES_EPOCH)


def pack_text(value: str | None) -> bytes:
    """A nullable text with its length."""
    if value is None:
        return _NULL
    encoded = value.encode()
    return _LENGTH.pack(len(encoded)) + encoded


def pack_four(value: Sequence[int]) -> bytes:
    """An array of four numbers with its length, an empty one for four zeros.

    The sessions' totals are the only arrays, and most have none.
    """
    a, b, c, d = value
    return _FOUR.pack(*_FOUR_HEADER, 8, a, 8, b, 8, c, 8, d) if a or b or c or d else _NO_NUMBERS


_FOUR: Final = Struct("!6i" + "iq" * 4)
# Bytes that follow, dimensions, whether there are nulls, type, size, lower bound.
_FOUR_HEADER: Final = (20 + 4 * 12, 1, 0, _INT8_OID, 4, 1)
_NO_NUMBERS: Final = Struct("!4i").pack(12, 0, 0, _INT8_OID)
_PACKERS: Final[dict[str, Callable[[Any], bytes]]] = {
    "timestamptz": pack_time,
    "text": pack_text,
    "int8[]": pack_four,
}
