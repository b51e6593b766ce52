"""Cursors: where a list goes on, as opaque text that also binds the list and its filters."""

import base64
import hashlib
import json
import zlib
from collections.abc import Callable, Mapping, Sequence
from datetime import date, datetime
from typing import Any, Final
from uuid import UUID

from accounting.errors import UsageError

MOST_CHARACTERS: Final = 3000
_BINDING_BYTES: Final = 12
_BAD: Final = "cursor: expected what `next` said of the same list with the same filters"
_MAX_BIGINT: Final = 2**63 - 1

Key = Sequence[Any]
"""The values of a list's key in its last row: text, integers, days, times and UUIDs."""


def binding(path: str, filters: Mapping[str, str]) -> str:
    """What a cursor is bound to: a list and its filters."""
    text = json.dumps([path, sorted(filters.items())])
    return hashlib.sha256(text.encode()).digest()[:_BINDING_BYTES].hex()


def encode_cursor(bound_to: str, key: Key, as_of: datetime | None = None) -> str:
    """A key as text. ``as_of``: when relative times of the filters were resolved."""
    values = [value if isinstance(value, int | None) else _text(value) for value in key]
    text = json.dumps(
        [bound_to, as_of and _text(as_of), values], separators=(",", ":"), ensure_ascii=False
    )
    # Compressed, so that the longest names, with every byte escaped, fit in an address.
    return base64.urlsafe_b64encode(zlib.compress(text.encode())).decode().rstrip("=")


def _text(value: object) -> str:
    return value.isoformat() if isinstance(value, date) else str(value)


def open_cursor(cursor: str, bound_to: str) -> tuple[Sequence[Any], datetime | None]:
    """What a key is made of, and ``as_of``. Raises UsageError for a text of another list."""
    try:
        raw = base64.b64decode(cursor + "=" * (-len(cursor) % 4), altchars=b"-_", validate=True)
        stream = zlib.decompressobj()
        text = stream.decompress(raw, MOST_CHARACTERS * 8)
        if not stream.eof:  # cut, or far too long
            raise UsageError(_BAD)
        found, as_of, values = json.loads(text.decode())
        if found != bound_to or not isinstance(values, list):
            raise UsageError(_BAD)
        return values, None if as_of is None else _time(as_of)
    except (ValueError, TypeError, AttributeError, RecursionError, zlib.error):
        raise UsageError(_BAD) from None


def decode_cursor(cursor: str, bound_to: str, names: Sequence[str]) -> Key:
    """The key of columns ``names`` in a cursor. Raises UsageError."""
    return parse_key(open_cursor(cursor, bound_to)[0], names)


def parse_key(values: Sequence[Any], names: Sequence[str]) -> Key:
    """The key of columns ``names``. Raises UsageError."""
    try:
        return [_PARSERS[name](value) for name, value in zip(names, values, strict=True)]
    except (ValueError, TypeError, AttributeError):
        raise UsageError(_BAD) from None


def _name(value: Any) -> str:
    if not isinstance(value, str) or "\0" in value:
        raise ValueError("expected a name")
    value.encode()  # a lone surrogate raises
    return value


def _time(value: str) -> datetime:
    time = datetime.fromisoformat(value)
    if time.tzinfo is None:
        raise ValueError("expected an offset")
    return time


def _number(value: Any) -> int:
    if type(value) is not int or not -1 <= value <= _MAX_BIGINT:
        raise ValueError("expected a number")
    return value


def _epoch(value: Any) -> int:
    if _number(value) >= 2**31:
        raise ValueError("expected a smaller number")
    return int(value)


_PARSERS: Final[Mapping[str, Callable[[Any], Any]]] = {
    "started_at": _time,
    "starts_at": _time,
    "posted_at": _time,
    "from_at": _time,
    "to_at": lambda value: None if value is None else _time(value),
    "received_at": _time,
    "period": date.fromisoformat,
    "session_id": UUID,
    "user_key": lambda value: None if value is None else UUID(value),
    "adjustment_id": UUID,
    "realm": _name,
    "user_id": _name,
    "username": _name,
    "source": _name,
    "gap_id": _number,
    "limit_id": _epoch,
    "threshold": _epoch,
    "position": _number,
    "epoch": _epoch,
}
