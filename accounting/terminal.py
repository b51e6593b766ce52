"""What people and programs see on standard output: tables for the one, JSON lines for the other.

Owns how values are spelled. Usernames are hostile: whatever reaches a terminal has its control
characters made visible.
"""

import json
import sys
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from decimal import Decimal
from typing import IO, Any

from rich.console import Console
from rich.table import Table
from rich.text import Text


def write_json(rows: Iterable[Mapping[str, Any]], out: IO[str] | None = None) -> None:
    """One object a line. Times in ISO 8601, UTC; numbers exact, however large or fine."""
    out = sys.stdout if out is None else out
    for row in rows:
        fields = (f"{json.dumps(name)}: {_json(value)}" for name, value in row.items())
        out.write("{" + ", ".join(fields) + "}\n")


def _json(value: object) -> str:
    match value:
        case Decimal():
            # format() and not str(): JSON knows 0.000001, and no reader needs 1E-6.
            return format(value, "f")
        case datetime():
            return json.dumps(value.astimezone(UTC).isoformat())
        case bytes() | memoryview():
            return json.dumps(bytes(value).hex())
        case None | bool() | int() | float() | str():
            return json.dumps(value)
        case _:
            return json.dumps(str(value))


def write_table(
    title: str, rows: Sequence[Mapping[str, Any]], columns: Mapping[str, str], *, empty: str
) -> None:
    """A table on standard output. ``columns``: what to show, and under which heading."""
    console = Console(file=sys.stdout, highlight=False)
    if not console.is_terminal:
        console = Console(file=sys.stdout, highlight=False, width=240)
    if not rows:
        console.print(Text(empty))
        return
    table = Table(title=title or None, title_justify="left", pad_edge=False, box=None)
    numbers = {
        name
        for name in columns
        if any(isinstance(row[name], int | Decimal) and row[name] is not True for row in rows)
    }
    for name, heading in columns.items():
        table.add_column(
            heading,
            justify="right" if name in numbers else "left",
            no_wrap=True,
            overflow="ellipsis",
        )
    for row in rows:
        table.add_row(*(Text(visible(_cell(row[name]))) for name in columns))
    console.print(table)


def visible(text: str) -> str:
    """Text with its control characters spelled out, so that no username can draw on a terminal."""
    return "".join(char if char.isprintable() else _spelled(char) for char in text)


def _spelled(char: str) -> str:
    return char.encode("unicode_escape").decode() if char != "\\" else char


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
            return value.strftime("%Y-%m-%d %H:%M:%S%z")[:-2]
        case _:
            return str(value)


def warn(message: str) -> None:
    """One line on standard error."""
    sys.stderr.write(f"turn-accounting: {message}\n")
    sys.stderr.flush()
