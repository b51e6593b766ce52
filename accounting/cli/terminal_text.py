"""Text on a terminal: hostile names made visible, their width, units for people, and colour."""

import os
import re
import sys
import unicodedata
from typing import Final

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
