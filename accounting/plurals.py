"""Counts with their nouns, and lists, for messages."""

from collections.abc import Iterable


def counted(count: int, noun: str, plural: str = "") -> str:
    """Such as ``1 row`` and ``1,234 rows``. ``plural``: if it is not the noun with an s."""
    return f"{count:,} {noun if count == 1 else plural or f'{noun}s'}"


def listed(choices: Iterable[str]) -> str:
    """Such as ``hour, day or month``."""
    *first, last = choices
    return f"{', '.join(first)} or {last}" if first else last
