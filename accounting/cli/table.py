"""Tables on standard output, for people.

Numbers and times are never shortened. On a terminal the widest texts are, until the table fits.
"""

import shutil
import sys
from collections.abc import Mapping, Sequence
from datetime import datetime
from decimal import Decimal
from typing import Any, Final

from rich.cells import cell_len, set_cell_size

from accounting.cli.output import visible, write

MAX_TEXT_WIDTH: Final = 48
"""Columns of the terminal for one text; usernames have up to 512 bytes."""
MIN_TEXT_WIDTH: Final = 8


def write_table(
    title: str, rows: Sequence[Mapping[str, Any]], columns: Mapping[str, str], *, empty: str
) -> None:
    """Write rows as a table, or ``empty`` without rows. ``columns``: heading by field name."""
    if not rows:
        write(f"{empty}\n")
        return
    numbers = {
        name
        for name in columns
        if any(isinstance(row[name], int | Decimal) and row[name] is not True for row in rows)
    }
    texts = [name for name in columns if any(isinstance(row[name], str) for row in rows)]
    cells = [{name: visible(_cell(row[name])) for name in columns} for row in rows]
    lines = [dict(columns), *cells]
    widths = {name: max(cell_len(line[name]) for line in lines) for name in columns}
    widths |= {name: min(widths[name], MAX_TEXT_WIDTH) for name in texts}
    if sys.stdout.isatty():
        _fit_terminal(widths, {name: max(MIN_TEXT_WIDTH, len(columns[name])) for name in texts})
    if title:
        write(f"{title}\n")
    for line in lines:
        fields = (_pad(line[name], widths[name], name in numbers) for name in columns)
        write("  ".join(fields).rstrip() + "\n")


def _fit_terminal(widths: dict[str, int], min_widths: Mapping[str, int]) -> None:
    """Narrow the widest texts until the table fits, down to their minimum widths."""
    excess = sum(widths.values()) + 2 * (len(widths) - 1) - shutil.get_terminal_size().columns
    while excess > 0:
        widest = max(min_widths, key=lambda name: widths[name] - min_widths[name], default=None)
        if widest is None or widths[widest] <= min_widths[widest]:
            return
        widths[widest] -= 1
        excess -= 1


def _pad(text: str, width: int, is_number: bool) -> str:
    space = width - cell_len(text)
    if space < 0:
        return set_cell_size(text, width - 1) + "\N{HORIZONTAL ELLIPSIS}"
    return " " * space + text if is_number else text + " " * space


def _cell(value: object) -> str:
    match value:
        case None:
            return "-"
        case bool():
            return "yes" if value else "no"
        case int():
            return f"{value:,}"
        case Decimal():
            return f"{value:,.0f}" if value == value.to_integral_value() else f"{value:,.1f}"
        case datetime():
            # As Postgres: the minutes of the offset only where they are not zero.
            return value.isoformat(" ", "seconds").removesuffix(":00" if value.tzinfo else "")
        case _:
            return str(value)
