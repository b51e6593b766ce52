"""Counts with their nouns, for messages."""


def counted(count: int, noun: str, plural: str = "") -> str:
    """Such as ``1 row`` and ``1,234 rows``. ``plural``: if it is not the noun with an s."""
    return f"{count:,} {noun if count == 1 else plural or f'{noun}s'}"
