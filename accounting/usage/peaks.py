"""Peaks: the maximum of concurrent sessions of a realm, in all and by server and transport.

They are counted from slices of the realm's hours.

A slice is recounted from the sessions that start and end in it, so the cost of a roll-up is that
of the slices that changed. An hour without slices (after a rebuild, or long past) is counted whole.
"""

from collections.abc import Iterable, Sequence
from typing import Final

from sqlalchemy import Connection

from accounting.db.binary_copy import binary_cursor, copy_rows
from accounting.db.engine import prefer_index_scans, psycopg_connection
from accounting.db.queries import Queries
from accounting.db.row_packer import copy_columns
from accounting.db.schema import realm_peak_slices
from accounting.domain.calendar import Bucket, from_micros
from accounting.domain.session_hours import SLICE_SECONDS, PeakSlice, slice_end
from accounting.usage.rollup_queries import set_dimension_peaks
from accounting.usage.slice_counts import count_slices

_QUERIES: Final = Queries("accounting.usage")
_DAY: Final = {
    "usage": "realm_usage_daily",
    "parts": "realm_usage_hourly",
    "starts_at": "day_starts_at",
    "ends_at": "day_ends_at",
}
_MONTH: Final = {
    "usage": "realm_usage_monthly",
    "parts": "realm_usage_daily",
    "starts_at": "month_starts_at",
    "ends_at": "month_ends_at",
}

_SLICE_COLUMNS: Final = copy_columns(realm_peak_slices, realm_peak_slices.c.keys())
KEPT_SECONDS: Final = 3 * 86_400
"""How long slices are kept; sessions seldom change so far back."""


def dequeue_slices(connection: Connection) -> list[PeakSlice]:
    """Take the queued slices, each once."""
    with binary_cursor(psycopg_connection(connection)) as cursor:
        return cursor.execute(_QUERIES.driver("dequeue_peak_deltas")).fetchall()


def recount(
    connection: Connection, hours: Iterable[tuple[int, Bucket]], slices: Iterable[PeakSlice]
) -> None:
    """Recount slices, and set the peaks of the staged hours, their days and months.

    ``hours``: the staged ones as (realm_id, hour).
    """
    hour_by_key = {(realm_id, hour.starts_at): hour for realm_id, hour in hours}
    connection.execute(_QUERIES.text("add_carried_sessions"))
    with binary_cursor(psycopg_connection(connection)) as cursor:
        with prefer_index_scans(connection):
            whole = set(cursor.execute(_QUERIES.driver("count_carried_sessions")).fetchall())
        spans = [(*key, hour_by_key[key].starts_at, hour_by_key[key].ends_at) for key in whole]
        for realm_id, starts_at, start in slices:
            if (realm_id, starts_at) not in whole:
                end = slice_end(hour_by_key[realm_id, starts_at], start)
                spans.append((realm_id, starts_at, start, end))
        connection.execute(_QUERIES.text("create_staged_slices"))
        copy_rows(
            cursor,
            "staged_slices",
            (
                ("realm_id", "int4"),
                *((name, "timestamptz") for name in ("starts_at", "from_at", "to_at")),
            ),
            spans,
        )
    with prefer_index_scans(connection):
        connection.execute(_QUERIES.text("delete_staged_slices"))
        with binary_cursor(psycopg_connection(connection)) as cursor:
            steps = cursor.execute(
                _QUERIES.driver("read_slice_steps"), {"slice_seconds": SLICE_SECONDS}
            ).fetchall()
            copy_rows(cursor, "accounting.realm_peak_slices", _SLICE_COLUMNS, count_slices(steps))
        connection.execute(_QUERIES.text("set_peak_versions"))
        connection.execute(_QUERIES.text("set_hour_peaks"))
        for length in (_DAY, _MONTH):
            connection.execute(_QUERIES.text("set_bucket_peaks", **length))
    set_dimension_peaks(connection)
    if whole:
        _delete_old(connection, sorted(whole))


def _delete_old(connection: Connection, hours: Sequence[tuple[int, int]]) -> None:
    connection.execute(
        _QUERIES.text("delete_old_slices"),
        [
            {
                "realm_id": realm_id,
                "starts_at": from_micros(starts_at),
                "kept_seconds": KEPT_SECONDS,
            }
            for realm_id, starts_at in hours
        ],
    )
