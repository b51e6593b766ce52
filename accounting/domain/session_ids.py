"""Session ids for people: ``37a9-1-5`` is source, epoch and position in a session's UUID."""

import re
from typing import Final
from uuid import UUID

from accounting.domain.session_fold import first_position, session_id

_SHORT: Final = re.compile(r"([0-9a-f]{4})-([0-9]{1,9})-([0-9]{1,18})")


def short_session_id(full: UUID) -> str:
    """The id as people read and type it."""
    epoch, position = first_position(full.bytes)
    return f"{full.hex[:4]}-{epoch}-{position}"


def parse_session_id(text: str) -> UUID | None:
    """The id that a short one, or a UUID, stands for; None for any other text."""
    if match := _SHORT.fullmatch(text.lower()):
        source, epoch, position = match.groups()
        return UUID(bytes=session_id(int(source, 16), int(epoch), int(position)))
    try:
        return UUID(text)
    except ValueError:
        return None
