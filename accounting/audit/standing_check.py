"""Checks what the roll-up keeps besides usage: open sessions, slices of peaks, the last hour.

``server_load`` is in ``reporting.rates``; the next peaks are computed from the slices, and the last
hour says when days, months and the feed get it.
"""

from collections.abc import Iterator
from typing import Final

from sqlalchemy import Connection

from accounting.audit.counted_check import ALWAYS
from accounting.audit.differences import Difference, DifferenceFactory
from accounting.db.queries import Queries
from accounting.domain.calendar import from_micros, to_micros
from accounting.domain.session_hours import SLICE_SECONDS

_QUERIES: Final = Queries("accounting.audit")


def check_standing(
    connection: Connection,
    differences: DifferenceFactory,
    realm_id: int,
    bounds: tuple[int, int] | None = None,
) -> Iterator[Difference]:
    """Compare them with what was recomputed.

    ``bounds``: only slices of hours that start within them; what has no time is not compared then.
    """
    yield from _check_slices(connection, differences, realm_id, bounds)
    if bounds is None:
        yield from _check_load(connection, differences, realm_id)
        yield from _check_last_hour(connection, differences, realm_id)


def _check_load(
    connection: Connection, differences: DifferenceFactory, realm_id: int
) -> Iterator[Difference]:
    for row in connection.execute(_QUERIES.text("compare_server_load"), {"realm_id": realm_id}):
        if row.stored is None or row.recomputed is None:
            kind = "missing" if row.stored is None else "unfounded"
        else:
            kind = "differs"
        yield differences.timeless(
            realm_id,
            what="server_load",
            kind=kind,
            column=f"live_sessions of server '{row.server}'",
            booked="" if row.stored is None else str(row.stored),
            recomputed="" if row.recomputed is None else str(row.recomputed),
        )


def _check_slices(
    connection: Connection,
    differences: DifferenceFactory,
    realm_id: int,
    bounds: tuple[int, int] | None,
) -> Iterator[Difference]:
    since, until = ALWAYS if bounds is None else (from_micros(bounds[0]), from_micros(bounds[1]))
    rows = connection.execute(
        _QUERIES.text("compare_peak_slices"),
        {
            "realm_id": realm_id,
            "since": since,
            "until": until,
            "slice_seconds": SLICE_SECONDS,
        },
    )
    for row in rows:
        yield differences.difference(
            realm_id,
            to_micros(row.starts_at),
            what="realm_peak_slices",
            kind="differs",
            column=f"{row.slice_at or 'peak'} of {row.dimension} '{row.name}'",
            booked=str(row.stored),
            recomputed=str(row.recomputed),
        )


def _check_last_hour(
    connection: Connection, differences: DifferenceFactory, realm_id: int
) -> Iterator[Difference]:
    for row in connection.execute(_QUERIES.text("compare_last_hour"), {"realm_id": realm_id}):
        yield differences.timeless(
            realm_id,
            what="fold_watermarks",
            kind="missing" if row.stored is None else "differs",
            column="last_hour_ends_at",
            booked=str(row.stored or ""),
            recomputed=str(row.recomputed),
        )
