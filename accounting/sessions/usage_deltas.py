"""Queues what settling changed, for the roll-up.

``usage_deltas`` gets by how much an hour of a user changed, ``peak_deltas`` the slices in which
sessions started or ended. A row is appended in the transaction of the change, and removed in the
transaction that adds it to the usage, so each counts once. The roll-up is in ``accounting.usage``.
"""

from collections.abc import Iterable, Sequence
from typing import Final

from sqlalchemy import Connection

from accounting.db.binary_copy import binary_cursor, copy_packed_rows, copy_rows
from accounting.db.engine import psycopg_connection
from accounting.db.row_packer import RowPacker, copy_columns
from accounting.db.schema import peak_deltas, usage_deltas
from accounting.domain.session_hours import PeakSlice, UserHour

_PACKER: Final = RowPacker(usage_deltas, usage_deltas.c.keys())
_PEAK_COLUMNS: Final = copy_columns(peak_deltas, peak_deltas.c.keys())


def queue_usage_deltas(
    connection: Connection, deltas: Iterable[tuple[UserHour, Sequence[int]]]
) -> None:
    """Queue by how much hours of users changed; values as ``UsageChanges.deltas`` has them."""
    with binary_cursor(psycopg_connection(connection)) as cursor:
        copy_packed_rows(
            cursor,
            "accounting.usage_deltas",
            _PACKER.columns,
            (_PACKER.pack((*user_hour, *values)) for user_hour, values in deltas),
        )


def queue_peak_deltas(connection: Connection, slices: Iterable[PeakSlice]) -> None:
    """Queue slices whose starts or ends of sessions changed."""
    with binary_cursor(psycopg_connection(connection)) as cursor:
        copy_rows(cursor, "accounting.peak_deltas", _PEAK_COLUMNS, slices)
