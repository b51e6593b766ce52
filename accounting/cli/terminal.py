"""What people and programs see: tables and JSON lines on standard output, the rest beside it.

Owns how values are spelled. Usernames are hostile: whatever reaches a terminal has its control
characters made visible.
"""

import io
import json
import os
import shutil
import sys
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any, Final, NoReturn

from rich.cells import cell_len, set_cell_size

from accounting.errors import AccountingError

LONGEST_TEXT: Final = 48
"""Columns that one text takes at the most; usernames have up to 512 bytes."""

SHORTEST_TEXT: Final = 8


def prepare_output() -> None:
    """Let every character be written, whatever the locale: those it lacks are spelled out."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")


def write(text: str) -> None:
    """Text on standard output. Ends the process quietly when its reader wants no more of it."""
    try:
        sys.stdout.write(text)
    except OSError as error:
        _output_failed(error)


def flush_output() -> None:
    """Hand over all that was written: a failure is ours to tell, not the interpreter's."""
    try:
        sys.stdout.flush()
    except OSError as error:
        _output_failed(error)


def _output_failed(error: OSError) -> NoReturn:
    # What is left in the buffer goes nowhere, now and at exit.
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, sys.stdout.fileno())
    os.close(nowhere)
    if isinstance(error, BrokenPipeError):
        sys.exit(0)
    raise AccountingError(f"can't write to standard output: {error.strerror}") from None


def write_json(rows: Iterable[Mapping[str, Any]]) -> None:
    """One object a line. Times in ISO 8601, UTC; numbers exact, however large or fine."""
    for row in rows:
        fields = (f"{json.dumps(name)}: {_json(value)}" for name, value in row.items())
        write("{" + ", ".join(fields) + "}\n")


def _json(value: object) -> str:
    match value:
        case Decimal():
            # format() and not str(): JSON knows 0.000001, and no reader needs 1E-6.
            return format(value, "f")
        case datetime():
            return json.dumps(value.astimezone(UTC).isoformat())
        case bytes() | memoryview():
            return json.dumps(bytes(value).hex())
        case None | bool() | int() | float() | str() | dict() | list():
            return json.dumps(value).replace("\x7f", "\\u007f")
        case _:
            return json.dumps(str(value))


def write_table(
    title: str, rows: Sequence[Mapping[str, Any]], columns: Mapping[str, str], *, empty: str
) -> None:
    """A table on standard output. ``columns``: what to show, and under which heading.

    Numbers and times are never shortened; on a terminal texts are, as far as that makes it fit.
    """
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
    widths |= {name: min(widths[name], LONGEST_TEXT) for name in texts}
    if sys.stdout.isatty():
        _make_fit(widths, {name: max(SHORTEST_TEXT, len(columns[name])) for name in texts})
    if title:
        write(f"{title}\n")
    for line in lines:
        fields = (_field(line[name], widths[name], name in numbers) for name in columns)
        write("  ".join(fields).rstrip() + "\n")


def write_finding(level: str, what: str, seen: str, advice: str) -> None:
    """One finding: what was looked at and seen, and below it what to do. Nothing is shortened."""
    write(f"{level:<7}  {visible(what):<24}  {visible(seen)}\n")
    if advice:
        write(f"{'':<7}  {'':<24}  -> {visible(advice)}\n")


def _make_fit(widths: dict[str, int], least: Mapping[str, int]) -> None:
    """Take from the widest texts what the table has too much for this terminal."""
    excess = sum(widths.values()) + 2 * (len(widths) - 1) - shutil.get_terminal_size().columns
    while excess > 0:
        widest = max(least, key=lambda name: widths[name] - least[name], default=None)
        if widest is None or widths[widest] <= least[widest]:
            return
        widths[widest] -= 1
        excess -= 1


def _field(text: str, width: int, is_number: bool) -> str:
    space = width - cell_len(text)
    if space < 0:
        return set_cell_size(text, width - 1) + "\N{HORIZONTAL ELLIPSIS}"
    return " " * space + text if is_number else text + " " * space


def visible(text: str) -> str:
    """Text with its control characters spelled out, so that no username can draw on a terminal."""
    return "".join(char if char.isprintable() else _spelled(char) for char in text)


def _spelled(char: str) -> str:
    return char.encode("unicode_escape").decode()


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
            # With the minutes of the offset only where there are some, as Postgres writes it.
            return value.isoformat(" ", "seconds").removesuffix(":00" if value.tzinfo else "")
        case _:
            return str(value)


def warn(message: str) -> None:
    """A message on standard error, its control characters spelled out."""
    text = "\n".join(visible(line) for line in message.splitlines())
    sys.stderr.write(f"turn-accounting: {text}\n")
    sys.stderr.flush()
