"""Text on a terminal: hostile names made visible, their width, units for people, and colour."""

import os
import re
import sys
import unicodedata
from collections.abc import Callable
from datetime import date, datetime
from decimal import Decimal
from typing import Final

_UNITS: Final = ("kB", "MB", "GB", "TB", "PB", "EB", "ZB", "YB")
_RIGHT_TO_LEFT: Final = re.compile("[\u0590-\u08ff\ufb1d-\ufdff\ufe70-\ufefc\U00010800-\U0001efff]")
_FIRST_STRONG_ISOLATE: Final = "\u2068"
_POP_ISOLATE: Final = "\u2069"
_HANGUL_JAMO: Final = range(0x1160, 0x1200)
"""Vowels and finals, which a terminal draws into the cell of the letter before them."""


class _CharWidths(dict[str, int]):
    """The number of terminal columns of a printable character, computed once."""

    def __missing__(self, char: str) -> int:
        if unicodedata.category(char) in {"Mn", "Me", "Cf"} or ord(char) in _HANGUL_JAMO:
            width = 0
        else:
            width = 2 if unicodedata.east_asian_width(char) in {"W", "F"} else 1
        self[char] = width
        return width


_CHAR_WIDTHS: Final = _CharWidths()


def visible(text: str) -> str:
    """Escape control characters, so that a username can't control the terminal.

    Formatting characters count as such: those that change the direction of text are among them.
    """
    if text.isprintable():
        return text
    return "".join(
        [char if char.isprintable() else char.encode("unicode_escape").decode() for char in text]
    )


def visible_name(name: str) -> str:
    """A name for a terminal: also the empty name, and spaces at its ends, can be seen."""
    if not name:
        return "''"
    text = visible(name)
    if text[0] == " " or text[-1] == " ":
        inner = text.strip(" ")
        before = len(text) - len(text.lstrip(" "))
        text = r"\x20" * before + inner + r"\x20" * (len(text) - before - len(inner))
    return text


def text_width(text: str) -> int:
    """The number of terminal columns of printable text."""
    if text.isascii():
        return len(text)
    return sum(map(_CHAR_WIDTHS.__getitem__, text))


def split_text(text: str, width: int) -> list[str]:
    """Cut text into pieces of at most ``width`` columns; nothing is lost."""
    pieces, piece, used = [], "", 0
    for char in text:
        char_width = _CHAR_WIDTHS[char]
        if used + char_width > width and piece:
            pieces.append(piece)
            piece, used = "", 0
        piece += char
        used += char_width
    return [*pieces, piece]


def isolate_direction(text: str) -> str:
    """Keep letters that are read from right to left from reordering the rest of their line."""
    if text.isascii() or not _RIGHT_TO_LEFT.search(text):
        return text
    return f"{_FIRST_STRONG_ISOLATE}{text}{_POP_ISOLATE}"


def encodable(text: str, encoding: str) -> str:
    """Escape what the output's encoding lacks, as writing it would do."""
    if text.isascii():
        return text
    return text.encode(encoding, "backslashreplace").decode(encoding)


def can_encode(text: str) -> bool:
    """Whether standard output's encoding has all these characters."""
    try:
        text.encode(sys.stdout.encoding or "ascii")
    except UnicodeEncodeError:
        return False
    return True


def human_bytes(count: int | Decimal) -> str:
    """Bytes in decimal units, such as ``27.2 GB``."""
    size = abs(int(count))
    sign = "-" if count < 0 else ""
    if size < 1000:
        return f"{sign}{size} B"
    tenths = size
    for unit in _UNITS:
        # Rounded in integers, half up: a counter may have more digits than a float.
        tenths, divisor = (size * 10 + 500) // 1000, 1000
        if tenths < 10_000 or unit == _UNITS[-1]:
            return f"{sign}{tenths // 10:,}.{tenths % 10} {unit}"
        size = size // divisor
    raise AssertionError(tenths)


def human_seconds(seconds: int | Decimal) -> str:
    """A duration in its two largest units, such as ``2h 05m``."""
    sign = "-" if seconds < 0 else ""
    exact = abs(Decimal(seconds))
    whole = round(exact)
    if whole < 60:
        short = f"{exact:.1f}".removesuffix(".0") if whole < 10 else f"{whole}"
        return f"{sign}{short}s"
    if whole < 3600:
        return f"{sign}{whole // 60}m {whole % 60:02}s"
    minutes = round(exact / 60)
    if minutes < 24 * 60:
        return f"{sign}{minutes // 60}h {minutes % 60:02}m"
    hours = round(exact / 3600)
    return f"{sign}{hours // 24:,}d {hours % 24:02}h"


def short_time(time: datetime) -> str:
    """A time as its day where it is midnight, else to the minute and with the offset from UTC."""
    if (time.hour, time.minute, time.second) == (0, 0, 0):
        return f"{time:%Y-%m-%d}"
    return f"{time:%Y-%m-%d %H:%M}{_offset(time)}"


def minute(time: datetime) -> str:
    """A time to the minute, without the offset: the heading names the zone."""
    return f"{time:%Y-%m-%d %H:%M}"


def second(time: datetime) -> str:
    """A time to the second, without the offset: the heading names the zone."""
    return f"{time:%Y-%m-%d %H:%M:%S}"


def bucket_start(length: str) -> Callable[[datetime], str]:
    """How to write when a bucket of that length begins: a month as ``2026-11``."""

    def text(time: datetime) -> str:
        if length == "month" and time.day == 1 and short_time(time) == f"{time:%Y-%m-%d}":
            return f"{time:%Y-%m}"
        if length == "hour":
            return f"{time:%Y-%m-%d %H:%M}{_offset(time)}"
        return short_time(time)

    return text


def _offset(time: datetime) -> str:
    # As Postgres: the minutes of the offset only where they are not zero.
    return f"{time:%z}".removesuffix("00")


def exact_text(value: object) -> str:
    """A value with all its digits, as tables outside of terminals show it."""
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
            return value.isoformat(" ", "seconds").removesuffix(":00" if value.tzinfo else "")
        case date():
            return value.isoformat()
        case _:
            return visible(str(value))


class Style:
    """Colour and weight of text on standard output; nothing where they are not wanted."""

    def __init__(self) -> None:
        self._is_on = (
            sys.stdout.isatty()
            and not os.environ.get("NO_COLOR")
            and os.environ.get("TERM", "dumb") not in {"", "dumb"}
        )

    def __call__(self, text: str, style: str) -> str:
        """``style``: parameters of the escape sequence, such as ``1`` for bold; may be empty."""
        return f"\x1b[{style}m{text}\x1b[0m" if self._is_on and style and text else text


BOLD: Final = "1"
DIM: Final = "2"
RED: Final = "31"
GREEN: Final = "32"
YELLOW: Final = "33"
