"""Queues what settling changed, for the roll-up.

``usage_deltas`` gets by how much an hour of a user changed, ``server_deltas`` the same by server
and transport, ``peak_deltas`` the slices in which sessions started or ended. A row is appended in
the transaction of the change, and removed in the transaction that adds it to the usage, so each
counts once. The roll-up is in ``accounting.usage``.
"""

from collections.abc import Iterable, Mapping, Sequence
from struct import Struct
from typing import Final

from sqlalchemy import Connection

from accounting.db.binary_copy import (
    POSTGRES_EPOCH,
    binary_cursor,
    copy_packed_rows,
    copy_rows,
)
from accounting.db.engine import psycopg_connection
from accounting.db.row_packer import copy_columns
from accounting.db.schema import peak_deltas, server_deltas, usage_deltas
from accounting.domain.server_host import server_host
from accounting.domain.session_hours import PeakSlice, ServerHour, UserHour

_COLUMNS: Final = tuple(usage_deltas.c.keys())
_ROW: Final = Struct(f"!h ii i16s iq {'iq' * 12}")
_SERVER_COLUMNS: Final = copy_columns(server_deltas, server_deltas.c.keys())
_PEAK_COLUMNS: Final = copy_columns(peak_deltas, peak_deltas.c.keys())


def queue_usage_deltas(
    connection: Connection, deltas: Iterable[tuple[UserHour, Sequence[int]]]
) -> None:
    """Queue by how much hours of users changed; values as ``UsageChanges.deltas`` has them."""
    with binary_cursor(psycopg_connection(connection)) as cursor:
        copy_packed_rows(
            cursor,
            "accounting.usage_deltas",
            _COLUMNS,
            (_pack(user_hour, values) for user_hour, values in deltas),
        )


def _pack(user_hour: UserHour, values: Sequence[int]) -> bytes:
    realm_id, user_key, starts_at = user_hour
    a, b, c, d, e, f, g, h, started, ended, micros, estimated = values
    return _ROW.pack(
        len(_COLUMNS), 4, realm_id, 16, user_key, 8, starts_at - POSTGRES_EPOCH,
        8, a, 8, b, 8, c, 8, d, 8, e, 8, f, 8, g, 8, h,
        8, started, 8, ended, 8, micros, 8, estimated,
    )  # fmt: skip


def queue_server_deltas(
    connection: Connection,
    deltas: Mapping[ServerHour, Sequence[int]],
    received: tuple[int | None, int | None] = (None, None),
) -> None:
    """Queue by how much hours of servers changed: a few rows, as a batch has few servers.

    ``received``: from when until when their reports were received, from which rates are computed;
    without it they are in no rate.
    """
    received_from, received_until = received
    if received_from is None:
        received_from = received_until
    rows = [
        (
            realm_id,
            starts_at,
            server_host(server_address),
            transport or "",
            *change,
            received_from,
            received_until,
        )
        for (realm_id, starts_at, server_address, transport), change in deltas.items()
        if any(change)
    ]
    if not rows:
        return
    with binary_cursor(psycopg_connection(connection)) as cursor:
        copy_rows(cursor, "accounting.server_deltas", _SERVER_COLUMNS, rows)


def queue_peak_deltas(connection: Connection, slices: Iterable[PeakSlice]) -> None:
    """Queue slices whose starts or ends of sessions changed."""
    with binary_cursor(psycopg_connection(connection)) as cursor:
        copy_rows(cursor, "accounting.peak_deltas", _PEAK_COLUMNS, slices)
