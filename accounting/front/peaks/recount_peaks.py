"""Counts the peaks of a front another way, for `verify`: whole hours from the cells' sessions."""

import json
from collections import defaultdict
from collections.abc import Iterator, Sequence
from typing import Any, Final, NamedTuple

from sqlalchemy import Connection, Engine

from accounting.db.engine import lost_connections
from accounting.db.locks import require_lock
from accounting.domain.calendar import from_micros
from accounting.front.cells import open_cells
from accounting.front.peaks.cell_hours import (
    CellSnapshot,
    PeakKey,
    RealmHour,
    SlicesByStart,
    fetch_rows,
    hour_parameters,
    make_slices,
    read_hours,
    snapshots,
)

_HOURS_AT_ONCE: Final = 50


class PeakDifference(NamedTuple):
    """A peak that is not the one that follows from the sessions of the cells; None: none is."""

    realm: str
    starts_at: int
    dimension: str
    name: str
    stored: int | None
    recounted: int | None


def recount_peaks(engine: Engine, realm: str | None = None) -> Iterator[PeakDifference]:
    """Count all hours whole from the sessions of the cells, and yield what was stored otherwise.

    Hours that changed since they were counted are left out. Raises as :func:`count_peaks`.
    """
    after: dict[str, Any] = {"after_realm": "", "after_start": "-infinity"}
    with open_cells(engine) as cell_engines:
        while True:
            with lost_connections(), engine.begin() as connection:
                require_lock(connection, "peaks")
                rows = fetch_rows(
                    connection,
                    "counted_peak_hours",
                    {"realm": realm, "most": _HOURS_AT_ONCE, **after},
                )
                if not rows:
                    return
                with snapshots(cell_engines) as cells:
                    yield from _recount(connection, cells, rows)
            after = {"after_realm": rows[-1][0], "after_start": from_micros(rows[-1][1])}


def _recount(
    connection: Connection, cells: Sequence[CellSnapshot], rows: Sequence[tuple[str, int, str]]
) -> Iterator[PeakDifference]:
    hours = read_hours(cells, [RealmHour(realm, starts_at) for realm, starts_at, _ in rows])
    numbers = [
        number
        for number, (hour, (_, _, counted_from)) in enumerate(zip(hours, rows, strict=True))
        if hour.versions == json.loads(counted_from) and not hour.is_changing
    ]
    shared = [number for number in numbers if hours[number].is_shared]
    cells_by_key: dict[PeakKey, int] = defaultdict(int)
    for cell in cells:
        for key in make_slices([cell], hours, shared):
            cells_by_key[key] += 1
    recounted = {
        key: _highest(slices)
        for key, slices in make_slices(cells, hours, shared).items()
        if cells_by_key[key] > 1
    }
    stored = {
        (number, dimension, name): peak
        for number, dimension, name, peak in fetch_rows(
            connection, "stored_peaks", hour_parameters(hours, numbers)
        )
    }
    for key in sorted(stored.keys() | recounted.keys()):
        if stored.get(key) != recounted.get(key):
            number, dimension, name = key
            yield PeakDifference(
                *hours[number].key, dimension, name, stored.get(key), recounted.get(key)
            )


def _highest(slices: SlicesByStart) -> int:
    highest = before = 0
    for _, (delta, peak) in sorted(slices.items()):
        highest = max(highest, before + peak)
        before += delta
    return highest
