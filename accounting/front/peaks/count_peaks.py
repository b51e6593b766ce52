"""Peaks over cells: the most sessions of a realm that were open at one moment in all of them.

The same by server and by transport. An hour is counted again when a cell's version of it changes:
from the slices that the cells have of it follows between what its peak lies, and only slices that
may have it are counted, from the sessions of all cells. Nothing is counted where only one cell has
sessions. Where a cell has no slices, of a long past hour, they are made from its sessions.
"""

import json
from collections import defaultdict
from collections.abc import Mapping, Sequence
from itertools import chain
from typing import Final, NamedTuple

from sqlalchemy import Connection, Engine

from accounting.db.binary_copy import binary_cursor
from accounting.db.engine import lost_connections, psycopg_connection
from accounting.db.locks import require_lock
from accounting.db.queries import Queries
from accounting.domain.calendar import from_micros
from accounting.domain.session_hours import slice_end
from accounting.front.cells import errors_of_cell, open_cells, require_front
from accounting.front.peaks.cell_hours import (
    CellSnapshot,
    PeakKey,
    RealmHour,
    SharedHour,
    SlicesByStart,
    fetch_rows,
    hour_parameters,
    read_hours,
    read_slices,
    read_steps,
    snapshots,
    span_parameters,
)
from accounting.front.peaks.peak_bounds import Candidate, peak_bounds
from accounting.usage.slice_counts import count_slices

_QUERIES: Final = Queries("accounting.front.peaks")
_HOURS_AT_ONCE: Final = 50
_FIRST_SLICES: Final = 4
"""How many slices of an hour are counted first; then four times as many."""
_MOST_HOURS: Final = 500
"""Counted by one run: a run has an end where a cell with years of hours has joined."""


def count_peaks(engine: Engine, *, most_hours: int = _MOST_HOURS) -> int:
    """Count the peaks of hours that changed in a cell; returns how many. The newest come first.

    Raises ConnectionLost for a cell that does not answer, and LockHeld.
    """
    with lost_connections(), engine.begin() as connection:
        require_front(connection)
        to_read = connection.execute(_QUERIES.text("peaks_to_read")).mappings().one()
    with open_cells(engine) as cell_engines:
        changed = _changed_hours(engine, cell_engines, to_read["since"], is_all=to_read["is_all"])
        hours = sorted(changed, key=lambda hour: hour.starts_at, reverse=True)
        for index in range(0, min(len(hours), most_hours), _HOURS_AT_ONCE):
            chunk = hours[index : min(index + _HOURS_AT_ONCE, most_hours)]
            with lost_connections(), engine.begin() as connection:
                require_lock(connection, "peaks")
                with snapshots(cell_engines) as cells:
                    _store(connection, _count(cells, chunk))
    if len(hours) <= most_hours:
        with lost_connections(), engine.begin() as connection:
            connection.execute(
                _QUERIES.text("peaks_were_read"),
                {"now": to_read["now"], "is_all": to_read["is_all"]},
            )
    return min(len(hours), most_hours)


def _changed_hours(
    engine: Engine, cell_engines: Mapping[str, Engine], since: str, *, is_all: bool
) -> set[RealmHour]:
    """The hours whose versions in the cells are not those that they were counted from."""
    changed = set[RealmHour]()
    for cell, cell_engine in cell_engines.items():
        with errors_of_cell(cell), lost_connections(), cell_engine.connect() as connection:
            rows = fetch_rows(connection, "changed_peak_hours", {"since": since})
        known = {
            "cell": cell,
            "realms": [realm for realm, _, _ in rows],
            "starts": [from_micros(starts_at) for _, starts_at, _ in rows],
            "versions": [version for _, _, version in rows],
        }
        with lost_connections(), engine.connect() as connection:
            for name in ("hours_to_count", *(("vanished_peak_hours",) if is_all else ())):
                changed.update(RealmHour(*row) for row in fetch_rows(connection, name, known))
    return changed


class _Counted(NamedTuple):
    hours: Sequence[SharedHour]
    peaks: Mapping[PeakKey, int]


def _count(cells: Sequence[CellSnapshot], keys: Sequence[RealmHour]) -> _Counted:
    hours = read_hours(cells, keys)
    by_key: dict[PeakKey, list[SlicesByStart]] = defaultdict(list)
    for slices_by_key in read_slices(cells, hours):
        for key, slices in slices_by_key.items():
            by_key[key].append(slices)
    peaks, candidates = dict[PeakKey, int](), dict[PeakKey, list[Candidate]]()
    for key, shared in by_key.items():
        if len(shared) > 1:
            peaks[key], candidates[key] = peak_bounds(shared)
    _count_candidates(cells, hours, peaks, candidates)
    return _Counted(hours, peaks)


def _count_candidates(
    cells: Sequence[CellSnapshot],
    hours: Sequence[SharedHour],
    peaks: dict[PeakKey, int],
    candidates: dict[PeakKey, list[Candidate]],
) -> None:
    """Count the slices that may have more than the known peaks, and raise these."""
    at_once = _FIRST_SLICES
    while True:
        chosen = {
            key: [slice_ for slice_ in slices[:at_once] if slice_.most > peaks[key]]
            for key, slices in candidates.items()
        }
        wanted = {(key[0], slice_.slice_at) for key, slices in chosen.items() for slice_ in slices}
        if not wanted:
            return
        parameters = span_parameters(
            hours,
            (
                (number, slice_at, slice_end(hours[number].bucket, slice_at))
                for number, slice_at in wanted
            ),
        )
        steps = chain.from_iterable(read_steps(cell, parameters) for cell in cells)
        most = {
            (number, dimension, name, slice_at): peak
            for number, _, slice_at, dimension, name, _, peak in count_slices(steps)
        }
        for key, slices in chosen.items():
            for slice_ in slices:
                peak = slice_.before + most.get((*key, slice_.slice_at), 0)
                peaks[key] = max(peaks[key], peak)
        for key, slices in candidates.items():
            candidates[key] = [slice_ for slice_ in slices[at_once:] if slice_.most > peaks[key]]
        at_once *= 4


def _store(connection: Connection, counted: _Counted) -> None:
    hours = counted.hours
    of_hours = {
        **hour_parameters(hours, range(len(hours))),
        "counted_from": [json.dumps(hour.versions) for hour in hours],
    }
    peaks = [(key, peak) for key, peak in counted.peaks.items() if peak]
    of_peaks = {
        **hour_parameters(hours, [number for (number, _, _), _ in peaks]),
        "dimensions": [dimension for (_, dimension, _), _ in peaks],
        "names": [name for (_, _, name), _ in peaks],
        "peaks": [peak for _, peak in peaks],
    }
    with binary_cursor(psycopg_connection(connection)) as cursor:
        cursor.execute(_QUERIES.driver("delete_peaks"), of_hours)
        cursor.execute(_QUERIES.driver("insert_peak_hours"), of_hours)
        cursor.execute(_QUERIES.driver("insert_peaks"), of_peaks)
