"""Session ids: a UUID made of source, epoch and position; ``37a9-1-5`` for people."""

import re
from typing import Final
from uuid import UUID

_SHORT: Final = re.compile(r"([0-9a-f]{4})-([0-9]{1,10})-([0-9]{1,19})")
_MAX_EPOCH: Final = 0xFFFF_FFFF
_MAX_POSITION: Final = 0x3FFF_FFFF_FFFF_FFFF


def session_id(source_id: int, epoch: int, position: int) -> bytes:
    """The id of the session that begins with that report: 16 bytes, a version-8 UUID.

    Contains the position, so that settling the same reports again gives the same ids: 16 bits of
    source, 32 of epoch, 62 of position.
    """
    value = source_id << 112 | epoch << 80 | 0x8 << 76 | 0b10 << 62 | position
    return value.to_bytes(16)


def first_position(session_id: bytes) -> tuple[int, int]:
    """The (epoch, position) of the report that a session began with."""
    value = int.from_bytes(session_id)
    return value >> 80 & _MAX_EPOCH, value & _MAX_POSITION


def short_session_id(full: UUID) -> str:
    """The id as people read and type it; a UUID that is no session's as it is."""
    epoch, position = first_position(full.bytes)
    is_ours = session_id(int(full.hex[:4], 16), epoch, position) == full.bytes
    return f"{full.hex[:4]}-{epoch}-{position}" if is_ours else str(full)


def parse_session_id(text: str) -> UUID | None:
    """The id that a short one, or a UUID, stands for; None for any other text."""
    if match := _SHORT.fullmatch(text.lower()):
        source, epoch, position = int(match[1], 16), int(match[2]), int(match[3])
        if epoch > _MAX_EPOCH or position > _MAX_POSITION:
            return None
        return UUID(bytes=session_id(source, epoch, position))
    try:
        return UUID(text)
    except ValueError:
        return None
