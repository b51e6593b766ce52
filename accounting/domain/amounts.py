"""Amounts as people write them: ``100GB``, ``1.5TiB``, ``20000``."""

import re
from decimal import Decimal
from typing import Final

MAX_AMOUNT: Final = 2**63 - 1
_AMOUNT: Final = re.compile(r"([0-9]{1,30}(?:\.[0-9]{1,30})?) ?([kKMGTPE]?)(i?)[bB]?", re.ASCII)
_POWERS: Final = "KMGTPE"


def parse_bytes(text: str) -> int | None:
    """A number of bytes, with a decimal (kB, MB, ...) or binary (KiB, MiB, ...) unit, or none.

    None for another text, for zero, for a part of a byte, and for more than a counter holds.
    """
    match = _AMOUNT.fullmatch(text)
    if match is None:
        return None
    number, prefix, binary = match.groups()
    if binary and not prefix:
        return None
    power = _POWERS.index(prefix.upper()) + 1 if prefix else 0
    amount = Decimal(number) * (1024 if binary else 1000) ** power
    return int(amount) if 0 < amount <= MAX_AMOUNT and amount == int(amount) else None
