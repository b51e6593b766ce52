"""Write to standard output and standard error.

Standard output carries data: text, JSON lines, or the bytes of an export. When its reader closes
the pipe the process exits quietly with 0; any other write error is an AccountingError. Standard
error carries messages, with control characters escaped: usernames are hostile.
"""

import io
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Final

from accounting.domain.human_text import visible
from accounting.errors import AccountingError, without_cells_text
from accounting.reporting.row_text import csv_line, json_object

_STDOUT: Final = 1
_STDERR: Final = 2


def prepare_output() -> None:
    """Give a closed descriptor a file, and escape characters that the locale can't encode.

    Otherwise the next file or connection would take the place of standard output.
    """
    for descriptor in range(3):
        try:
            os.fstat(descriptor)
        except OSError:
            # Closed: the lowest free descriptor. A write to standard output then fails with an
            # error, as if it were still closed; messages are dropped.
            mode = os.O_WRONLY if descriptor == _STDERR else os.O_RDONLY
            os.set_inheritable(os.open(os.devnull, mode), True)
    if sys.stdout is None:
        sys.stdout = open(_STDOUT, "w", closefd=False)  # noqa: SIM115  # for the rest of the process
    if sys.stderr is None:
        sys.stderr = open(_STDERR, "w", closefd=False)  # noqa: SIM115  # for the rest of the process
    if isinstance(sys.stdout, io.TextIOWrapper):
        # With LC_ALL=C Python writes UTF-8 anyway. A pipe gets that, but a terminal can't show it.
        is_ascii = sys.stdout.isatty() and os.environ.get("LC_ALL") in {"C", "POSIX"}
        sys.stdout.reconfigure(encoding="ascii" if is_ascii else None, errors="backslashreplace")


_make_way: list[Callable[[], None]] = []


@contextmanager
def making_way(hide: Callable[[], None]) -> Iterator[None]:
    """Call ``hide`` before each output within the block: it removes what is on the terminal."""
    _make_way.append(hide)
    try:
        yield
    finally:
        _make_way.remove(hide)


def write(text: str) -> None:
    """Write text to standard output."""
    for hide in _make_way:
        hide()
    with _output_errors():
        sys.stdout.write(text)


def flush_output() -> None:
    """Flush standard output, so that a write error is reported here and not by the interpreter."""
    with _output_errors():
        sys.stdout.flush()


class BinaryOutput:
    """Standard output as a stream of bytes, without a buffer."""

    def write(self, data: bytes) -> int:
        with _output_errors():
            sys.stdout.buffer.write(data)
            sys.stdout.buffer.flush()
        return len(data)

    def flush(self) -> None:
        """Nothing is buffered."""


@contextmanager
def _output_errors() -> Iterator[None]:
    try:
        yield
    except OSError as error:
        # What is left in the buffer is discarded, now and when the interpreter exits.
        devnull = os.open(os.devnull, os.O_WRONLY)
        os.dup2(devnull, sys.stdout.fileno())
        os.close(devnull)
        if isinstance(error, BrokenPipeError):
            sys.exit(0)
        raise AccountingError(f"can't write to standard output: {error.strerror}") from None


def write_json(rows: Iterable[Mapping[str, Any]]) -> None:
    """Write one object per line: times in ISO 8601 and UTC, numbers with all their digits."""
    for row in rows:
        write(json_object(row) + "\n")


def write_csv(rows: Iterable[Mapping[str, Any]], columns: Sequence[str]) -> None:
    """Write CSV with a heading, as ``export`` does; times as in JSON.

    Formulas are escaped, and on a terminal control characters too.
    """
    shown = visible if sys.stdout.isatty() else str
    write(",".join(columns) + "\n")
    for row in rows:
        write(csv_line(row, columns, shown) + "\n")


def write_record(label: str, fields: Mapping[str, Any], *, as_json: bool) -> None:
    """Write one record at once: as JSON, or as ``label: name=value ...`` without empty fields."""
    if as_json:
        write_json([fields])
    else:
        shown = " ".join(
            f"{name}={visible(str(value))}"
            for name, value in fields.items()
            if value not in (None, "", False)
        )
        write(f"{label}: {shown}\n")
    flush_output()


_without_cells: Final[list[str]] = []


def note_without_cells(cells: Iterable[str]) -> None:
    """Say that cells of a front are left out of what is written, once for each."""
    for cell in cells:
        if cell not in _without_cells:
            _without_cells.append(cell)
            write_message(f"incomplete: {without_cells_text([cell])}")


def is_incomplete() -> bool:
    """Whether a cell was left out of what was written."""
    return bool(_without_cells)


def write_message(message: str) -> None:
    """Write a message to standard error."""
    for hide in _make_way:
        hide()
    text = "\n".join(visible(line) for line in message.splitlines())
    sys.stderr.write(f"turn-accounting: {text}\n")
    sys.stderr.flush()
