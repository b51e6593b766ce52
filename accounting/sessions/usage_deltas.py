"""TODO."""

from collections.abc import Iterable, Sequence
from struct import Struct
from typing import Final

from sqlalchemy import Connection

from accounting.db.binary_copy import POSTGRES_EPOCH, binary_cursor, copy_packed, copy_rows
from accounting.db.engine import psycopg_connection
from accounting.domain.counters import COUNTERS
from accounting.domain.session_hours import PeakSlice, UserHour

USAGE_DELTA_COLUMNS: Final = (
    "realm_id",
    "user_key",
    "starts_at",
    *COUNTERS,
    "sessions_started",
    "sessions_ended",
    "session_microseconds",
    "estimated_bytes",
    "sessions_carried",
)


_MARK: Final = Struct("!h ii i16s iq iqiqiqiqiqiqiqiqiqiqiqiqiq".replace(" ", ""))


def queue_usage_deltas(
    connection: Connection, marks: Iterable[tuple[UserHour, Sequence[int]]]
) -> None:
    """Mark hours of users with by how much they changed, in the order of MARK_COLUMNS."""
    with binary_cursor(psycopg_connection(connection)) as cursor:
        copy_packed(
            cursor,
            "accounting.usage_deltas",
            USAGE_DELTA_COLUMNS,
            (_mark(place, change) for place, change in marks),
        )


def _mark(place: UserHour, c: Sequence[int]) -> bytes:
    realm_id, user_key, starts_at = place
    return _MARK.pack(
        16,
        *(4, realm_id, 16, user_key, 8, starts_at - POSTGRES_EPOCH),
        *(8, c[0], 8, c[1], 8, c[2], 8, c[3], 8, c[4], 8, c[5], 8, c[6], 8, c[7]),
        *(8, c[8], 8, c[9], 8, c[10], 8, c[11], 8, c[12]),
    )


def queue_peak_deltas(connection: Connection, slices: Iterable[PeakSlice]) -> None:
    """Mark slices in which sessions began or ended, or do so no more."""
    with binary_cursor(psycopg_connection(connection)) as cursor:
        copy_rows(
            cursor,
            "accounting.peak_deltas",
            (("realm_id", "int4"), ("starts_at", "timestamptz"), ("slice_at", "timestamptz")),
            slices,
        )
