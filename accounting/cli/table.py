"""Tables on standard output, for people.

On a terminal a table fits its width: columns are left out, least important first, and a name that
is too long takes a line of its own. Names are never cut. Elsewhere, such as in a pipe, the table
has all its columns at full width.
"""

import shutil
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from decimal import Decimal
from enum import Enum, auto
from typing import Any, Final

from accounting.cli.output import write
from accounting.cli.terminal_text import (
    BOLD,
    Style,
    encodable,
    isolate_direction,
    split_text,
    text_width,
)
from accounting.domain.human_text import (
    exact_text,
    human_bytes,
    human_seconds,
    short_time,
    visible_name,
)

Row = Mapping[str, Any]
GAP: Final = "  "
PREFERRED_NAME_WIDTH: Final = 24
"""No column is left out to give names more than this, or more than nine in ten names need."""
USUAL_NAME_WIDTH: Final = 16
"""A name of up to this width always has its room."""
MAX_NAME_WIDTH: Final = 64
UNLIMITED: Final = 10**9
MIN_WRAP_WIDTH: Final = 24
MIN_NAME_WIDTH: Final = 7
MAX_WORD_WIDTH: Final = 16
"""A longer word is cut in a narrow column of words."""


class Kind(Enum):
    """What a column holds. It decides the units, the alignment, and what gives way."""

    NAME = auto()  # never cut
    TEXT = auto()  # short
    WORDS = auto()  # wrapped; only as the last column
    COUNT = auto()
    BYTES = auto()
    SECONDS = auto()
    TIME = auto()


NUMBERS: Final = frozenset({Kind.COUNT, Kind.BYTES, Kind.SECONDS})


@dataclass(frozen=True, slots=True, kw_only=True)
class Column:
    """A column of a table on a terminal: the ``field`` of a row, and how it is shown.

    ``rank``: columns of higher rank are left out first; those of 0 always stay. ``optional``: left
    out where no row has anything in it.
    """

    field: str
    heading: str
    kind: Kind = Kind.TEXT
    rank: int = 0
    optional: bool = False
    text: Callable[[Any], str] | None = None
    style: Callable[[Row], str] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Total:
    """A last row: a label, and sums by field."""

    label: str
    sums: Row


def write_table(title: str, rows: Sequence[Row], columns: Mapping[str, str], *, empty: str) -> None:
    """Write rows as a table at full width, or ``empty``. ``columns``: heading by field name."""
    if not rows:
        write(f"{empty}\n")
        return
    numbers = {
        name
        for name in columns
        if any(isinstance(row[name], int | Decimal) and row[name] is not True for row in rows)
    }
    encoding = sys.stdout.encoding
    cells = [[encodable(exact_text(row[name]), encoding) for name in columns] for row in rows]
    lines = [list(columns.values()), *cells]
    widths = [max(map(text_width, texts)) for texts in zip(*lines, strict=True)]
    aligned = [name in numbers for name in columns]
    if title:
        write(f"{title}\n")
    write("".join(_plain_lines(lines, widths, aligned)))


def _plain_lines(
    lines: Iterable[Sequence[str]], widths: Sequence[int], aligned: Sequence[bool]
) -> Iterator[str]:
    for line in lines:
        fields = map(_pad, line, widths, aligned)
        yield GAP.join(fields).rstrip() + "\n"


def write_terminal_table(
    rows: Sequence[Row],
    columns: Sequence[Column],
    *,
    totals: Sequence[Total] = (),
    exact: bool = False,
    fit: bool = True,
) -> None:
    """Write rows as a table that fits the terminal.

    ``exact``: numbers with all their digits. ``fit``: false for all columns, however wide.
    """
    width = shutil.get_terminal_size().columns if fit else UNLIMITED
    table = _TerminalTable(rows, columns, totals, exact=exact, width=width)
    write("".join(f"{line}\n" for line in table.lines()))


def terminal_lines(
    rows: Sequence[Row],
    columns: Sequence[Column],
    *,
    width: int,
    totals: Sequence[Total] = (),
    exact: bool = False,
) -> list[str]:
    """The lines of such a table in a terminal of that width."""
    return list(_TerminalTable(rows, columns, totals, exact=exact, width=width).lines())


class _TerminalTable:
    """Cells as texts, their widths, and the lines that they make."""

    def __init__(
        self,
        rows: Sequence[Row],
        columns: Sequence[Column],
        totals: Sequence[Total],
        *,
        exact: bool,
        width: int,
    ) -> None:
        columns = [
            column
            for column in columns
            if not column.optional or any(row[column.field] for row in rows)
        ]
        self._rows = rows
        self._totals = totals
        self._width = width
        self._style = Style()
        self._encoding = sys.stdout.encoding
        is_utf8 = self._encoding.lower().replace("-", "") == "utf8"
        self._isolates = is_utf8 and sys.stdout.isatty()
        self._texts = {
            column.field: [self._cell(column, row[column.field], exact=exact) for row in rows]
            for column in columns
        }
        self._sums = {
            column.field: [
                self._cell(column, total.sums[column.field], exact=exact)
                if column.field in total.sums
                else ""
                for total in totals
            ]
            for column in columns
        }
        self._natural = {
            column.field: max(
                len(column.heading),
                max(map(text_width, self._texts[column.field]), default=0),
                max(map(text_width, self._sums[column.field]), default=0),
            )
            for column in columns
        }
        self._preferred = {column.field: self._preferred_width(column) for column in columns}
        self._columns = self._chosen(columns)
        self._widths = self._fitted()

    def _cell(self, column: Column, value: object, *, exact: bool) -> str:
        text = _cell_text(column, value, exact=exact)
        return text if text.isascii() else encodable(text, self._encoding)

    def _chosen(self, columns: Sequence[Column]) -> list[Column]:
        """The columns that fit beside names of moderate length."""
        chosen = list(columns)
        while self._wanted(chosen) > self._width:
            rank = max(column.rank for column in chosen)
            if rank == 0:
                break
            chosen = [column for column in chosen if column.rank != rank]
        return chosen

    def _wanted(self, columns: Sequence[Column]) -> int:
        widths = sum(self._preferred[column.field] for column in columns)
        return widths + len(GAP) * (len(columns) - 1)

    def _preferred_width(self, column: Column) -> int:
        natural = self._natural[column.field]
        match column.kind:
            case Kind.NAME:
                widths = sorted(map(text_width, self._texts[column.field]))
                usual = max((width for width in widths if width <= USUAL_NAME_WIDTH), default=0)
                most_names = widths[max(0, len(widths) * 9 // 10 - 1)] if widths else 0
                most = max(len(column.heading), usual, most_names)
                return min(natural, most, PREFERRED_NAME_WIDTH)
            case Kind.WORDS:
                return min(natural, max(MIN_WRAP_WIDTH, self._least_width(column)))
            case _:
                return natural

    def _least_width(self, column: Column) -> int:
        """The width below which a flexible column is not shrunk: no usual word is cut."""
        if column.kind is not Kind.WORDS:
            return MIN_NAME_WIDTH
        words = (word for text in self._texts[column.field] for word in text.split(" "))
        longest = max(map(text_width, words), default=0)
        return max(MIN_NAME_WIDTH, min(longest, MAX_WORD_WIDTH))

    def _fitted(self) -> dict[str, int]:
        """The width of each column: names get what the others leave."""
        widths = {column.field: self._preferred[column.field] for column in self._columns}
        flexible = [
            column.field for column in self._columns if column.kind in {Kind.NAME, Kind.WORDS}
        ]
        least = {column.field: self._least_width(column) for column in self._columns}
        spare = self._width - self._wanted(self._columns)
        for column in self._columns:
            if spare < 0 or column.kind not in {Kind.NAME, Kind.WORDS}:
                continue
            wider = self._wider(column, widths[column.field] + spare)
            more = max(0, wider - widths[column.field])
            widths[column.field] += more
            spare -= more
        while spare < 0:
            widest = max(flexible, key=lambda field: widths[field] - least[field], default=None)
            if widest is None or widths[widest] <= least[widest]:
                break
            widths[widest] -= 1
            spare += 1
        for column in self._columns:
            if column.kind is Kind.NAME:
                width = self._widest_name(column.field, widths[column.field])
                widths[column.field] = max(len(column.heading), width)
        return widths

    def _widest_name(self, field: str, limit: int) -> int:
        """The width of the widest cell of a column that is not wider than ``limit``."""
        widths = (width for width in map(text_width, self._texts[field]) if width <= limit)
        return max(widths, default=0)

    def _wider(self, column: Column, limit: int) -> int:
        """How much of that width a column can use."""
        natural = self._natural[column.field]
        if column.kind is Kind.WORDS or self._width == UNLIMITED:
            return min(natural, limit)
        limit = min(limit, MAX_NAME_WIDTH)
        return natural if natural <= limit else self._widest_name(column.field, limit)

    def lines(self) -> Iterator[str]:
        headings = [
            _pad(column.heading, self._widths[column.field], column.kind in NUMBERS)
            for column in self._columns
        ]
        yield self._style(GAP.join(headings).rstrip(), BOLD)
        texts = [self._texts[column.field] for column in self._columns]
        for index, row in enumerate(self._rows):
            yield from self._row_lines(row, [column_texts[index] for column_texts in texts])
        for index, total in enumerate(self._totals):
            yield self._style(self._total_line(index, total), BOLD)

    def _row_lines(self, row: Row, cells: Sequence[str]) -> Iterator[str]:
        """A row: one line, and another one after each name that is too long for its column."""
        line, used = "", 0  # used: columns of the terminal
        start = 0
        for column, cell in zip(self._columns, cells, strict=True):
            width = self._widths[column.field]
            if start > used:
                line += " " * (start - used)
                used = start
            cell_width = text_width(cell)
            if cell_width <= width or column.kind in NUMBERS:
                space = " " * max(0, width - cell_width)
                is_right = column.kind in NUMBERS
                line += f"{space if is_right else ''}{self._shown(column, row, cell)}"
                used = start + (max(width, cell_width) if is_right else cell_width)
            else:
                room = max(
                    MIN_NAME_WIDTH, (width if column.kind is Kind.WORDS else self._width - start)
                )
                pieces = (
                    split_words(cell, room) if column.kind is Kind.WORDS else split_text(cell, room)
                )
                for piece in pieces[:-1]:
                    yield line + self._shown(column, row, piece)
                    line = " " * start
                line += self._shown(column, row, pieces[-1])
                used = start + text_width(pieces[-1])
                if column is not self._columns[-1]:
                    yield line
                    line, used = "", 0
            start += width + len(GAP)
        yield line.rstrip()

    def _shown(self, column: Column, row: Row, text: str) -> str:
        if column.style is not None:
            return self._style(text, column.style(row))
        return isolate_direction(text) if self._isolates else text

    def _total_line(self, index: int, total: Total) -> str:
        """The label over the columns before the first sum, then the sums."""
        summed = next(
            (n for n, column in enumerate(self._columns) if column.field in total.sums),
            len(self._columns),
        )
        before = [self._widths[column.field] for column in self._columns[:summed]]
        label_width = sum(before) + len(GAP) * max(0, len(before) - 1)
        cells = [_pad(total.label, label_width, is_right=False)]
        cells += [
            _pad(self._sums[column.field][index], self._widths[column.field], is_right=True)
            for column in self._columns[summed:]
        ]
        return GAP.join(cells).rstrip()


def _cell_text(column: Column, value: object, *, exact: bool) -> str:
    if value is None:
        return ""
    if column.text is not None:
        return column.text(value)
    match column.kind:
        case Kind.NAME:
            return visible_name(str(value))
        case Kind.BYTES if not exact and isinstance(value, int | Decimal):
            return human_bytes(value)
        case Kind.SECONDS if not exact and isinstance(value, int | Decimal):
            return human_seconds(value)
        case Kind.TIME if isinstance(value, datetime):
            return short_time(value)
        case _:
            return exact_text(value)


def split_words(text: str, width: int) -> list[str]:
    """Wrap words at spaces; a longer word is cut into pieces."""
    lines, line = [], ""
    for word in text.split(" "):
        extended = f"{line} {word}" if line else word
        if text_width(extended) <= width:
            line = extended
            continue
        if line:
            lines.append(line)
        *full, line = split_text(word, width)
        lines += full
    return [*lines, line]


def _pad(text: str, width: int, is_right: bool) -> str:
    space = " " * (width - text_width(text))
    return space + text if is_right else text + space
