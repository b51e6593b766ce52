"""Peaks, stored: how many sessions of a realm were alive at once, counted along slices of hours.

Owns ``peak_deltas``, ``realm_peak_slices`` and the peaks in ``realm_usage_*``. A slice is counted
anew from the sessions that begin and end in it, so that the cost of a roll-up is that of the
slices that changed, not of the hour. An hour whose slices are unknown is counted whole, once.
"""

from collections.abc import Iterable, Sequence
from typing import Final

from sqlalchemy import Connection

from accounting.db.binary_copy import binary_cursor, copy_rows
from accounting.db.engine import prefer_index_scans, psycopg_connection
from accounting.db.queries import Queries
from accounting.domain.calendar import Bucket, from_micros
from accounting.domain.session_hours import SLICE_SECONDS, PeakSlice, slice_end

_QUERIES: Final = Queries("accounting.usage")

KEPT_SECONDS: Final = 3 * 86_400
"""How long before a new hour slices are kept; sessions seldom end so far back."""


def dequeue_slices(connection: Connection) -> list[PeakSlice]:
    """Take the marks of touched slices, each once."""
    with binary_cursor(psycopg_connection(connection)) as cursor:
        return cursor.execute(_QUERIES.driver("take_slices")).fetchall()


def recount(
    connection: Connection, hours: Iterable[tuple[int, Bucket]], slices: Iterable[PeakSlice]
) -> None:
    """Count those slices, and set the peaks of all hours that are staged for this roll-up.

    ``hours`` are the staged ones: (realm_id, hour).
    """
    known = {(realm_id, hour.starts_at): hour for realm_id, hour in hours}
    connection.execute(_QUERIES.text("carry_sessions"))
    with binary_cursor(psycopg_connection(connection)) as cursor:
        with prefer_index_scans(connection):
            begun = set(cursor.execute(_QUERIES.driver("begin_hours")).fetchall())
        spans = [(*key, known[key].starts_at, known[key].ends_at) for key in begun]
        for realm_id, starts_at, start in slices:
            if (realm_id, starts_at) not in begun:
                end = slice_end(known[realm_id, starts_at], start)
                spans.append((realm_id, starts_at, start, end))
        connection.execute(_QUERIES.text("stage_slices"))
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
        connection.execute(_QUERIES.text("empty_slices"))
        connection.execute(_QUERIES.text("count_slices"), {"slice_seconds": SLICE_SECONDS})
        for name in ("peak_hours", "peak_days", "peak_months"):
            connection.execute(_QUERIES.text(name))
    if begun:
        _drop_old(connection, sorted(begun))


def _drop_old(connection: Connection, begun: Sequence[tuple[int, int]]) -> None:
    connection.execute(
        _QUERIES.text("drop_slices"),
        [
            {
                "realm_id": realm_id,
                "starts_at": from_micros(starts_at),
                "kept_seconds": KEPT_SECONDS,
            }
            for realm_id, starts_at in begun
        ],
    )
