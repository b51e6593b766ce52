"""What the cells have of an hour of a realm: its version, slices, and sessions."""

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
from accounting.db.queries import Queries
from accounting.domain.calendar import Bucket, from_micros
from accounting.domain.session_hours import SLICE_SECONDS
from accounting.front.cells import errors_of_cell
from accounting.usage.slice_counts import SliceSteps, count_slices, counted_by

_QUERIES: Final = Queries("accounting.front.peaks")
_CARRIED: Final = POSTGRES_EPOCH - 2**63
"""The start of the slice that counts the sessions which an hour starts with: -infinity."""

PeakKey = tuple[int, str, str]
"""(number of the hour, dimension, name)."""
SlicesByStart = dict[int, tuple[int, int]]


class RealmHour(NamedTuple):
    """An hour of a realm."""

    realm: str
    starts_at: int


@dataclass(frozen=True, slots=True)
class CellSnapshot:
    """One snapshot of a cell."""

    name: str
    connection: Connection

    def rows(
        self, query: str, parameters: Mapping[str, Any], *, by_index: bool = True
    ) -> list[Any]:
        with errors_of_cell(self.name), lost_connections():
            if not by_index:
                return fetch_rows(self.connection, query, parameters)
            with prefer_index_scans(self.connection):
                return fetch_rows(self.connection, query, parameters)


@contextmanager
def snapshots(cell_engines: Mapping[str, Engine]) -> Iterator[Sequence[CellSnapshot]]:
    """A snapshot of each cell, all of about the same moment."""
    with ExitStack() as stack:
        cells = []
        for name, cell_engine in cell_engines.items():
            with errors_of_cell(name), lost_connections():
                connection = stack.enter_context(
                    cell_engine.connect().execution_options(isolation_level="REPEATABLE READ")
                )
            cells.append(CellSnapshot(name, connection))
        yield cells


def fetch_rows(connection: Connection, query: str, parameters: Mapping[str, Any]) -> list[Any]:
    """The rows of a query, in the binary format: times as microseconds."""
    with binary_cursor(psycopg_connection(connection)) as cursor:
        return cursor.execute(_QUERIES.driver(query), parameters).fetchall()


@dataclass(slots=True)
class SharedHour:
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


def read_hours(cells: Sequence[CellSnapshot], keys: Sequence[RealmHour]) -> list[SharedHour]:
    """What the cells have of these hours."""
    hours = [SharedHour(key) for key in keys]
    for cell in cells:
        for number, version, ends_at, has_slices, is_changing in cell.rows(
            "peak_hours_of_cell", hour_parameters(hours, range(len(hours)))
        ):
            hour = hours[number]
            hour.versions[cell.name] = version
            hour.is_changing |= is_changing
            if ends_at is not None:
                hour.ends[cell.name] = ends_at
            if has_slices:
                hour.sliced.add(cell.name)
    return hours


def read_slices(
    cells: Sequence[CellSnapshot], hours: Sequence[SharedHour]
) -> Iterator[Mapping[PeakKey, SlicesByStart]]:
    """The slices of each cell in the hours that cells share, of what they share in them."""
    numbers = [number for number, hour in enumerate(hours) if hour.is_shared]
    made = {}
    names: dict[str, set[PeakKey]] = {}
    for cell in cells:
        here = [number for number in numbers if cell.name in hours[number].ends]
        whole = [number for number in here if cell.name not in hours[number].sliced]
        sliced = [number for number in here if cell.name in hours[number].sliced]
        made[cell.name] = make_slices([cell], hours, whole) if whole else {}
        names[cell.name] = set()
        if sliced:
            rows = cell.rows("peak_names_of_cell", hour_parameters(hours, sliced), by_index=False)
            names[cell.name].update((number, dimension, name) for number, dimension, name in rows)
    counts: dict[PeakKey, int] = defaultdict(int)
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
    cell: CellSnapshot, hours: Sequence[SharedHour], keys: Sequence[PeakKey]
) -> dict[PeakKey, SlicesByStart]:
    rows = cell.rows(
        "peak_slices_of_cell",
        {
            **hour_parameters(hours, [number for number, _, _ in keys]),
            "dimensions": [dimension for _, dimension, _ in keys],
            "names": [name for _, _, name in keys],
        },
        by_index=False,
    )
    return {
        (number, dimension, name): _unpacked(packed) for number, dimension, name, packed in rows
    }


def _unpacked(packed: bytes) -> SlicesByStart:
    numbers = array("q", packed)
    if sys.byteorder == "little":
        numbers.byteswap()
    rows = zip(numbers[::3], numbers[1::3], numbers[2::3], strict=True)
    return {slice_at + POSTGRES_EPOCH: (delta, peak) for slice_at, delta, peak in rows}


def make_slices(
    cells: Sequence[CellSnapshot], hours: Sequence[SharedHour], numbers: Sequence[int]
) -> dict[PeakKey, SlicesByStart]:
    """The slices of whole hours, from the sessions of these cells together."""
    slices: dict[PeakKey, SlicesByStart] = defaultdict(dict)
    parameters = span_parameters(
        hours,
        (
            (number, hours[number].bucket.starts_at, hours[number].bucket.ends_at)
            for number in numbers
        ),
    )
    steps = chain.from_iterable(read_steps(cell, parameters) for cell in cells)
    for number, _, slice_at, dimension, name, delta, peak in count_slices(steps):
        slices[number, dimension, name][slice_at] = delta, peak
    for cell in cells:
        for number, server_address, transport, sessions in cell.rows(
            "carried_in_cell", hour_parameters(hours, numbers)
        ):
            for dimension, name in counted_by(server_address, transport):
                of_key = slices[number, dimension, name]
                carried = of_key.get(_CARRIED, (0, 0))[0] + sessions
                of_key[_CARRIED] = carried, carried
    return dict(slices)


def read_steps(cell: CellSnapshot, parameters: Mapping[str, Any]) -> Iterable[SliceSteps]:
    """The starts and ends of a cell's sessions in these spans."""
    return cell.rows("peak_steps_of_cell", {**parameters, "slice_seconds": SLICE_SECONDS})


def hour_parameters(hours: Sequence[SharedHour], numbers: Iterable[int]) -> dict[str, Any]:
    """Hours as parameters."""
    numbers = list(numbers)
    return {
        "numbers": numbers,
        "realms": [hours[number].key.realm for number in numbers],
        "starts": [from_micros(hours[number].key.starts_at) for number in numbers],
    }


def span_parameters(
    hours: Sequence[SharedHour], spans: Iterable[tuple[int, int, int]]
) -> dict[str, Any]:
    """Spans of hours as parameters: (number, from, until)."""
    rows = list(spans)
    return {
        **hour_parameters(hours, [number for number, _, _ in rows]),
        "froms": [from_micros(since) for _, since, _ in rows],
        "untils": [from_micros(until) for _, _, until in rows],
    }
