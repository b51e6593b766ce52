"""Rows of the views on standard output: as a table for people, as JSON for programs."""

import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from decimal import Decimal
from itertools import chain
from typing import TYPE_CHECKING, Any, Final
from zoneinfo import ZoneInfo

from accounting.cli.output import write, write_csv, write_json
from accounting.cli.resources import open_reader
from accounting.cli.table import Column, Kind, Row, Total, write_table, write_terminal_table
from accounting.domain.calendar import BucketLength
from accounting.domain.counters import COUNTERS
from accounting.domain.time_zones import time_zone
from accounting.errors import UsageError
from accounting.plurals import counted
from accounting.reporting.completeness import Counted, explain_empty
from accounting.reporting.known_names import check_names
from accounting.reporting.view_queries import database_now
from accounting.reporting.view_query import (
    AS_IT_IS,
    LENGTH,
    RATE,
    TRAFFIC,
    Arrangement,
    Bound,
    ViewQuery,
    sums,
)

if TYPE_CHECKING:
    from accounting.config import Settings

BYTE_COLUMNS: Final = {
    "received_bytes": "received B",
    "sent_bytes": "sent B",
    "peer_received_bytes": "peer received B",
    "peer_sent_bytes": "peer sent B",
}
"""The byte counters and their headings in tables."""
NOW: Final = "now"
"""The field in which ``Listing.fields`` find the database's clock; None where it was not read."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ListForm:
    """How a list was asked for: the options that all lists have."""

    as_json: bool = False
    as_csv: bool = False
    wide: bool = False
    in_bytes: bool = False
    top: int | None = None
    sort: str | None = None
    limit: int | None = None

    @property
    def for_programs(self) -> bool:
        """Whether the columns are those of the view, uncut and without a total."""
        return self.as_json or self.as_csv


@dataclass(frozen=True, slots=True, kw_only=True)
class Listing:
    """What a list shows of the rows of a view.

    ``plain``: headings by column, outside of terminals. ``columns``: on a terminal; their fields
    are those of the view, and ``fields`` and ``sum_fields``, which are computed from a row.
    ``rank``: what ``--top`` goes by. ``summed``: columns with a total, from which ``sum_fields``
    are computed too; without any there is no last row. ``default_limit``: how many rows people get.
    ``counted``: for rows that follow from reports, of which some may not be counted yet.
    ``per``: the length of its buckets. ``aliases``: more names of columns for ``--sort``.
    ``of_rows``: the list for these rows, if it depends on them.
    """

    plain: Mapping[str, str]
    columns: Sequence[Column]
    rank: str
    empty: str
    fields: Mapping[str, Callable[[Row], Any]] = field(default_factory=dict)
    summed: Sequence[str] = ()
    sum_fields: Mapping[str, Callable[[Row], Any]] = field(default_factory=dict)
    noun: str = "row"
    counted: Counted | None = None
    per: BucketLength | None = None
    aliases: Mapping[str, str] = field(default_factory=dict)
    default_limit: int | None = None
    legend: Callable[[Sequence[Row]], str] = lambda _rows: ""
    of_rows: Callable[["Listing", Sequence[Row]], "Listing"] = lambda listing, _rows: listing

    def arrangement(self, form: ListForm) -> Arrangement:
        """The order and the limit that were asked for. Raises UsageError for an unknown column."""
        if form.as_json and form.as_csv:
            raise UsageError("--json goes without --csv")
        if form.top is not None and form.limit is not None:
            raise UsageError("--top goes without --limit: it is one")
        limit = form.top if form.top is not None else form.limit
        if limit is None and not form.for_programs:
            limit = self.default_limit
        if form.sort is None:
            if form.top is None:
                return Arrangement(limit=limit)
            return Arrangement(by=self.rank, descending=True, limit=limit)
        name = form.sort.removeprefix("-")
        name = self.aliases.get(name, name)
        names = self.sort_names()
        if name not in names:
            raise UsageError(f"--sort {form.sort!r}: expected one of {', '.join(names)}")
        by, descending = names[name]
        return Arrangement(by=by, descending=descending != form.sort.startswith("-"), limit=limit)

    def sums_of(self, form: ListForm) -> Sequence[str]:
        """The columns with a total: of those that are shown."""
        if "received_bytes" not in self.summed or not form.wide:
            return self.summed
        ended = ("sessions_ended",) if "sessions_started" in self.summed else ()
        return tuple(dict.fromkeys((*self.summed, *COUNTERS, *ended)))

    def sort_names(self) -> dict[str, tuple[str, bool]]:
        """The columns to sort by under their headings and names; whether the largest come first."""
        names = {
            column.heading.split(" (")[0]: (column.field, column.kind not in {Kind.NAME, Kind.TEXT})
            for column in self.columns
            if column.field in self.plain
        }
        if self.rank == TRAFFIC:
            names["total"] = (TRAFFIC, True)
        if self.rank == LENGTH:
            names["time"] = (LENGTH, True)
        if self.rank == RATE:
            names["total/s"] = (RATE, True)
        numeric = {*COUNTERS, *self.summed}
        return names | {
            field: next(
                (entry for entry in names.values() if entry[0] == field), (field, field in numeric)
            )
            for field in (*self.plain, *(COUNTERS if "received_bytes" in self.summed else ()))
        }


def write_query(
    settings: "Settings",
    query: Callable[[Arrangement], ViewQuery],
    listing: Listing,
    form: ListForm,
    *,
    realm: str | None = None,
    user: str | None = None,
    source: str | None = None,
    since: Bound | None = None,
    until: Bound | None = None,
    leaves_out_cells: bool = True,
) -> None:
    """Write the rows of a query, or why there are none: what was asked for decides.

    ``leaves_out_cells``: as :func:`open_reader` has it.

    Raises UsageError if there are none and ``realm``, ``user`` or ``source`` is unknown.
    """
    arrangement = listing.arrangement(form)
    view_query = query(arrangement)
    with open_reader(settings, leaves_out_cells=leaves_out_cells) as reader:
        now = None
        if not form.for_programs:
            [clock] = reader.read_rows(database_now())
            now = clock["now"]
        if form.top is not None and not form.for_programs and listing.summed:
            wanted = sums(query(AS_IT_IS), listing.sums_of(form))
            with reader.open_rows_and_sums(view_query, wanted) as (all_sums, rows):
                has_rows = write_list(rows, listing, form, arrangement, all_sums=all_sums, now=now)
        else:
            with reader.open_rows(view_query) as rows:
                has_rows = write_list(rows, listing, form, arrangement, now=now)
        if not has_rows:
            check_names(reader, realm=realm, user=user, source=source)
            if not form.for_programs:
                explained = explain_empty(
                    reader, listing.empty, listing.counted, realm, since, until, listing.per
                )
                write(f"{explained}\n")


def write_list(
    rows: Iterable[Row],
    listing: Listing,
    form: ListForm,
    arrangement: Arrangement,
    *,
    all_sums: Row | None = None,
    now: datetime | None = None,
) -> bool:
    """Write rows that are in order already; return whether there are any, else write nothing.

    ``now``: the database's clock.
    """
    rows = iter(rows)
    first = next(rows, None)
    if first is None:
        return False
    rows = chain([first], rows)
    if form.as_json:
        write_json(rows)
    elif form.as_csv:
        write_csv(rows, list(first))
    else:
        shown = [in_own_zone(row) for row in rows]
        _write_for_people(shown, listing, form, arrangement, all_sums, now)
    return True


def _write_for_people(
    rows: Sequence[Row],
    listing: Listing,
    form: ListForm,
    arrangement: Arrangement,
    all_sums: Row | None,
    now: datetime | None,
) -> None:
    listing = listing.of_rows(listing, rows)
    if not sys.stdout.isatty():
        headings = {name: name for name in rows[0]} if form.wide else listing.plain
        write_table("", rows, headings, empty=listing.empty)
        return
    computed = {**listing.fields, **listing.sum_fields}
    described = [
        {**row, **{name: compute({**row, NOW: now}) for name, compute in computed.items()}}
        for row in rows
    ]
    columns = [_wide_column(name, rows) for name in rows[0]] if form.wide else listing.columns
    totals = _totals(described, listing, listing.sums_of(form), arrangement, all_sums)
    write_terminal_table(described, columns, totals=totals, exact=form.in_bytes, fit=not form.wide)
    if legend := listing.legend(rows):
        write(f"\n{legend}\n")


def _totals(
    rows: Sequence[Row],
    listing: Listing,
    summed: Sequence[str],
    arrangement: Arrangement,
    all_sums: Row | None,
) -> list[Total]:
    """The last rows: what ``--top`` leaves out, and the total of everything."""
    if not summed:
        return []

    def total(label: str, sums: Row) -> Total:
        computed = {name: compute(sums) for name, compute in listing.sum_fields.items()}
        return Total(label=label, sums={**sums, **computed})

    shown = {name: sum(row[name] for row in rows) for name in summed}
    if all_sums is None:
        is_cut = len(rows) == arrangement.limit
        return [total(_these(len(rows), listing.noun) if is_cut else "total", shown)]
    others = all_sums["row_count"] - len(rows)
    rest = {name: all_sums[name] - shown[name] for name in summed}
    everything = {name: all_sums[name] for name in summed}
    totals = [total(counted(others, "other"), rest)] if others else []
    return [*totals, total("total", everything)]


def _these(count: int, noun: str) -> str:
    return f"this {noun}" if count == 1 else f"these {counted(count, noun)}"


def _wide_column(name: str, rows: Sequence[Row]) -> Column:
    """A column of the view as it is, in the units of people."""
    value = next((row[name] for row in rows if row[name] is not None), None)
    match value:
        case int() | Decimal() if value is not True and value is not False:
            kind = (
                Kind.BYTES
                if name.endswith("_bytes")
                else Kind.SECONDS
                if name.endswith("_seconds")
                else Kind.COUNT
            )
        case _:
            kind = Kind.NAME if name in {"realm", "user_id", "username", "source"} else Kind.TEXT
    return Column(field=name, heading=name, kind=kind)


def arranged(rows: Iterable[Row], arrangement: Arrangement) -> list[Row]:
    """Rows that no query has put in order."""
    ordered = list(rows)
    if arrangement.by is not None:
        name = arrangement.by
        is_traffic = name == TRAFFIC

        def rank(row: Row) -> Any:
            return row["received_bytes"] + row["sent_bytes"] if is_traffic else row[name]

        known = [row for row in ordered if rank(row) is not None]
        unknown = [row for row in ordered if rank(row) is None]
        known.sort(key=rank, reverse=arrangement.descending)
        ordered = known + unknown
    return ordered[: arrangement.limit]


def sum_rows(rows: Sequence[Row], columns: Iterable[str]) -> Row:
    """The sums that :func:`write_list` takes: of all rows, also of those that are not shown."""
    return {"row_count": len(rows), **{name: sum(row[name] for row in rows) for name in columns}}


def in_own_zone(row: Mapping[str, Any]) -> Mapping[str, Any]:
    """A bucket, period or rule with its times in its own ``time_zone``; other rows as they are."""
    return in_zone(row, time_zone(row["time_zone"])) if "time_zone" in row else row


def in_zone(row: Mapping[str, Any], zone: ZoneInfo) -> Mapping[str, Any]:
    """A row with its times in ``zone``."""
    return {
        name: value.astimezone(zone) if isinstance(value, datetime) else value
        for name, value in row.items()
    }
