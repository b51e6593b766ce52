"""Peaks over cells: the most sessions of a realm that were open at one moment in all of them.

The same by server and by transport. An hour is counted again when a cell's version of it changes:
from the slices that the cells have of it follows between what its peak lies, and only slices that
may have it are counted, from the sessions of all cells. Nothing is counted where only one cell has
sessions. Where a cell has no slices, of a long past hour, they are made from its sessions.
"""

import json
import sys
from array import array
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from itertools import chain
from typing import Any, Final, NamedTuple

from sqlalchemy import Connection, Engine

from accounting.db.binary_copy import POSTGRES_EPOCH, binary_cursor
from accounting.db.engine import lost_connections, prefer_index_scans, psycopg_connection
from accounting.db.locks import require_lock
from accounting.db.queries import Queries
from accounting.domain.calendar import Bucket, from_micros
from accounting.domain.session_hours import SLICE_SECONDS, slice_end
from accounting.front.cells import errors_of_cell, open_cells, require_front
from accounting.front.peak_bounds import Candidate, peak_bounds
from accounting.usage.slice_counts import SliceSteps, count_slices, counted_by

_QUERIES: Final = Queries("accounting.front")
_HOURS_AT_ONCE: Final = 50
_FIRST_SLICES: Final = 4
"""How many slices of an hour are counted first; then four times as many."""
_MOST_HOURS: Final = 500
"""Counted by one run: a run has an end where a cell with years of hours has joined."""
_CARRIED: Final = POSTGRES_EPOCH - 2**63
"""The start of the slice that counts the sessions which an hour starts with: -infinity."""

_Key = tuple[int, str, str]
"""(number of the hour, dimension, name)."""
_Slices = dict[int, tuple[int, int]]


class RealmHour(NamedTuple):
    """An hour of a realm."""

    realm: str
    starts_at: int


class PeakDifference(NamedTuple):
    """A peak that is not the one that follows from the sessions of the cells; None: none is."""

    realm: str
    starts_at: int
    dimension: str
    name: str
    stored: int | None
    recounted: int | None


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
                with _snapshots(cell_engines) as cells:
                    _store(connection, _count(cells, chunk))
    if len(hours) <= most_hours:
        with lost_connections(), engine.begin() as connection:
            connection.execute(
                _QUERIES.text("peaks_were_read"),
                {"now": to_read["now"], "is_all": to_read["is_all"]},
            )
    return min(len(hours), most_hours)


def recount_peaks(engine: Engine, realm: str | None = None) -> Iterator[PeakDifference]:
    """Count all hours whole from the sessions of the cells, and yield what was stored otherwise.

    Hours that changed since they were counted are left out. Raises as :func:`count_peaks`.
    """
    after: dict[str, Any] = {"after_realm": "", "after_start": "-infinity"}
    with open_cells(engine) as cell_engines:
        while True:
            with lost_connections(), engine.begin() as connection:
                require_lock(connection, "peaks")
                rows = _rows(
                    connection,
                    "counted_peak_hours",
                    {"realm": realm, "most": _HOURS_AT_ONCE, **after},
                )
                if not rows:
                    return
                with _snapshots(cell_engines) as cells:
                    yield from _recount(connection, cells, rows)
            after = {"after_realm": rows[-1][0], "after_start": from_micros(rows[-1][1])}


def _changed_hours(
    engine: Engine, cell_engines: Mapping[str, Engine], since: str, *, is_all: bool
) -> set[RealmHour]:
    """The hours whose versions in the cells are not those that they were counted from."""
    changed = set[RealmHour]()
    for cell, cell_engine in cell_engines.items():
        with errors_of_cell(cell), lost_connections(), cell_engine.connect() as connection:
            rows = _rows(connection, "changed_peak_hours", {"since": since})
        known = {
            "cell": cell,
            "realms": [realm for realm, _, _ in rows],
            "starts": [from_micros(starts_at) for _, starts_at, _ in rows],
            "versions": [version for _, _, version in rows],
        }
        with lost_connections(), engine.connect() as connection:
            for name in ("hours_to_count", *(("vanished_peak_hours",) if is_all else ())):
                changed.update(RealmHour(*row) for row in _rows(connection, name, known))
    return changed


@dataclass(frozen=True, slots=True)
class _Cell:
    """One snapshot of a cell."""

    name: str
    connection: Connection

    def rows(
        self, query: str, parameters: Mapping[str, Any], *, by_index: bool = True
    ) -> list[Any]:
        with errors_of_cell(self.name), lost_connections():
            if not by_index:
                return _rows(self.connection, query, parameters)
            with prefer_index_scans(self.connection):
                return _rows(self.connection, query, parameters)


@contextmanager
def _snapshots(cell_engines: Mapping[str, Engine]) -> Iterator[Sequence[_Cell]]:
    with ExitStack() as stack:
        cells = []
        for name, cell_engine in cell_engines.items():
            with errors_of_cell(name), lost_connections():
                connection = stack.enter_context(
                    cell_engine.connect().execution_options(isolation_level="REPEATABLE READ")
                )
            cells.append(_Cell(name, connection))
        yield cells


def _rows(connection: Connection, query: str, parameters: Mapping[str, Any]) -> list[Any]:
    with binary_cursor(psycopg_connection(connection)) as cursor:
        return cursor.execute(_QUERIES.driver(query), parameters).fetchall()


@dataclass(slots=True)
class _Hour:
    """What the cells have of an hour. ``ends``: by the cells that have usage of it."""

    key: RealmHour
    versions: dict[str, str] = field(default_factory=dict)
    ends: dict[str, int] = field(default_factory=dict)
    sliced: set[str] = field(default_factory=set)
    is_changing: bool = False

    @property
    def bucket(self) -> Bucket:
        return Bucket(
            starts_at=self.key.starts_at, ends_at=next(iter(self.ends.values())), time_zone=""
        )

    @property
    def is_shared(self) -> bool:
        """Whether several cells have it, with the same end: their rules say the same."""
        return len(self.ends) > 1 and len(set(self.ends.values())) == 1


class _Counted(NamedTuple):
    hours: Sequence[_Hour]
    peaks: Mapping[_Key, int]


def _count(cells: Sequence[_Cell], keys: Sequence[RealmHour]) -> _Counted:
    hours = _read_hours(cells, keys)
    by_key: dict[_Key, list[_Slices]] = defaultdict(list)
    for slices_by_key in _read_slices(cells, hours):
        for key, slices in slices_by_key.items():
            by_key[key].append(slices)
    peaks, candidates = dict[_Key, int](), dict[_Key, list[Candidate]]()
    for key, shared in by_key.items():
        if len(shared) > 1:
            peaks[key], candidates[key] = peak_bounds(shared)
    _count_candidates(cells, hours, peaks, candidates)
    return _Counted(hours, peaks)


def _count_candidates(
    cells: Sequence[_Cell],
    hours: Sequence[_Hour],
    peaks: dict[_Key, int],
    candidates: dict[_Key, list[Candidate]],
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
        parameters = _spans(
            hours,
            (
                (number, slice_at, slice_end(hours[number].bucket, slice_at))
                for number, slice_at in wanted
            ),
        )
        steps = chain.from_iterable(_read_steps(cell, parameters) for cell in cells)
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


def _read_hours(cells: Sequence[_Cell], keys: Sequence[RealmHour]) -> list[_Hour]:
    hours = [_Hour(key) for key in keys]
    for cell in cells:
        for number, version, ends_at, has_slices, is_changing in cell.rows(
            "peak_hours_of_cell", _named(hours, range(len(hours)))
        ):
            hour = hours[number]
            hour.versions[cell.name] = version
            hour.is_changing |= is_changing
            if ends_at is not None:
                hour.ends[cell.name] = ends_at
            if has_slices:
                hour.sliced.add(cell.name)
    return hours


def _read_slices(
    cells: Sequence[_Cell], hours: Sequence[_Hour]
) -> Iterator[Mapping[_Key, _Slices]]:
    """The slices of each cell in the hours that cells share, of what they share in them."""
    numbers = [number for number, hour in enumerate(hours) if hour.is_shared]
    made = {}
    names: dict[str, set[_Key]] = {}
    for cell in cells:
        here = [number for number in numbers if cell.name in hours[number].ends]
        whole = [number for number in here if cell.name not in hours[number].sliced]
        sliced = [number for number in here if cell.name in hours[number].sliced]
        made[cell.name] = _make_slices([cell], hours, whole) if whole else {}
        names[cell.name] = set()
        if sliced:
            rows = cell.rows("peak_names_of_cell", _named(hours, sliced), by_index=False)
            names[cell.name].update((number, dimension, name) for number, dimension, name in rows)
    counts: dict[_Key, int] = defaultdict(int)
    for cell in cells:
        for key in chain(made[cell.name], names[cell.name]):
            counts[key] += 1
    for cell in cells:
        wanted = [key for key in names[cell.name] if counts[key] > 1]
        slices = {key: of_key for key, of_key in made[cell.name].items() if counts[key] > 1}
        if wanted:
            slices |= _stored_slices(cell, hours, wanted)
        yield slices


def _stored_slices(
    cell: _Cell, hours: Sequence[_Hour], keys: Sequence[_Key]
) -> dict[_Key, _Slices]:
    rows = cell.rows(
        "peak_slices_of_cell",
        {
            **_named(hours, [number for number, _, _ in keys]),
            "dimensions": [dimension for _, dimension, _ in keys],
            "names": [name for _, _, name in keys],
        },
        by_index=False,
    )
    return {
        (number, dimension, name): _unpacked(packed) for number, dimension, name, packed in rows
    }


def _unpacked(packed: bytes) -> _Slices:
    numbers = array("q", packed)
    if sys.byteorder == "little":
        numbers.byteswap()
    rows = zip(numbers[::3], numbers[1::3], numbers[2::3], strict=True)
    return {slice_at + POSTGRES_EPOCH: (delta, peak) for slice_at, delta, peak in rows}


def _make_slices(
    cells: Sequence[_Cell], hours: Sequence[_Hour], numbers: Sequence[int]
) -> dict[_Key, _Slices]:
    """The slices of whole hours, from the sessions of these cells together."""
    slices: dict[_Key, _Slices] = defaultdict(dict)
    parameters = _spans(
        hours,
        (
            (number, hours[number].bucket.starts_at, hours[number].bucket.ends_at)
            for number in numbers
        ),
    )
    steps = chain.from_iterable(_read_steps(cell, parameters) for cell in cells)
    for number, _, slice_at, dimension, name, delta, peak in count_slices(steps):
        slices[number, dimension, name][slice_at] = delta, peak
    for cell in cells:
        for number, server_address, transport, sessions in cell.rows(
            "carried_in_cell", _named(hours, numbers)
        ):
            for dimension, name in counted_by(server_address, transport):
                of_key = slices[number, dimension, name]
                carried = of_key.get(_CARRIED, (0, 0))[0] + sessions
                of_key[_CARRIED] = carried, carried
    return dict(slices)


def _read_steps(cell: _Cell, parameters: Mapping[str, Any]) -> Iterable[SliceSteps]:
    return cell.rows("peak_steps_of_cell", {**parameters, "slice_seconds": SLICE_SECONDS})


def _named(hours: Sequence[_Hour], numbers: Iterable[int]) -> dict[str, Any]:
    """Hours as parameters."""
    numbers = list(numbers)
    return {
        "numbers": numbers,
        "realms": [hours[number].key.realm for number in numbers],
        "starts": [from_micros(hours[number].key.starts_at) for number in numbers],
    }


def _spans(hours: Sequence[_Hour], spans: Iterable[tuple[int, int, int]]) -> dict[str, Any]:
    """Spans of hours as parameters: (number, from, until)."""
    rows = list(spans)
    return {
        **_named(hours, [number for number, _, _ in rows]),
        "froms": [from_micros(since) for _, since, _ in rows],
        "untils": [from_micros(until) for _, _, until in rows],
    }


def _store(connection: Connection, counted: _Counted) -> None:
    hours = counted.hours
    of_hours = {
        **_named(hours, range(len(hours))),
        "counted_from": [json.dumps(hour.versions) for hour in hours],
    }
    peaks = [(key, peak) for key, peak in counted.peaks.items() if peak]
    of_peaks = {
        **_named(hours, [number for (number, _, _), _ in peaks]),
        "dimensions": [dimension for (_, dimension, _), _ in peaks],
        "names": [name for (_, _, name), _ in peaks],
        "peaks": [peak for _, peak in peaks],
    }
    with binary_cursor(psycopg_connection(connection)) as cursor:
        cursor.execute(_QUERIES.driver("delete_peaks"), of_hours)
        cursor.execute(_QUERIES.driver("insert_peak_hours"), of_hours)
        cursor.execute(_QUERIES.driver("insert_peaks"), of_peaks)


def _recount(
    connection: Connection, cells: Sequence[_Cell], rows: Sequence[tuple[str, int, str]]
) -> Iterator[PeakDifference]:
    hours = _read_hours(cells, [RealmHour(realm, starts_at) for realm, starts_at, _ in rows])
    numbers = [
        number
        for number, (hour, (_, _, counted_from)) in enumerate(zip(hours, rows, strict=True))
        if hour.versions == json.loads(counted_from) and not hour.is_changing
    ]
    shared = [number for number in numbers if hours[number].is_shared]
    cells_by_key: dict[_Key, int] = defaultdict(int)
    for cell in cells:
        for key in _make_slices([cell], hours, shared):
            cells_by_key[key] += 1
    recounted = {
        key: _highest(slices)
        for key, slices in _make_slices(cells, hours, shared).items()
        if cells_by_key[key] > 1
    }
    stored = {
        (number, dimension, name): peak
        for number, dimension, name, peak in _rows(
            connection, "stored_peaks", _named(hours, numbers)
        )
    }
    for key in sorted(stored.keys() | recounted.keys()):
        if stored.get(key) != recounted.get(key):
            number, dimension, name = key
            yield PeakDifference(
                *hours[number].key, dimension, name, stored.get(key), recounted.get(key)
            )


def _highest(slices: _Slices) -> int:
    highest = before = 0
    for _, (delta, peak) in sorted(slices.items()):
        highest = max(highest, before + peak)
        before += delta
    return highest
