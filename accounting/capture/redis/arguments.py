r"""Arguments of RESP as bytes: skips those of no interest, however long, without keeping them.

Lengths and counts are the sender's, and any of them may be wrong on purpose. What a parser keeps
has a limit of its own, and what has none is skipped here.
"""

import re
from typing import Final

ARGUMENT: Final = re.compile(rb"\$(\d{1,10})\r\n")
NEXT_ARGUMENT: Final = re.compile(rb"\r\n\$(\d{1,10})\r\n")
"""The end of one argument and the header of the next."""
MAX_HEADER_BYTES: Final = 26
"""Of a command's header, ``*<count>\\r\\n$<length>\\r\\n``; the others are shorter."""


class StreamError(Exception):
    """The server did not send the protocol. The text contains none of its bytes."""


class ArgumentSkipper:
    """Skips the rest of a command: ``arguments_left``, after ``bytes_left`` of the current one."""

    def __init__(self) -> None:
        self.arguments_left = 0
        self.bytes_left = 0

    @property
    def is_idle(self) -> bool:
        """Whether nothing is left to skip."""
        return not self.arguments_left and not self.bytes_left

    def begin(self, arguments_left: int, bytes_left: int = 0) -> None:
        """Skip so many bytes, and then so many arguments."""
        self.arguments_left, self.bytes_left = arguments_left, bytes_left

    def skip(self, data: bytes, at: int) -> int:
        """Skip what is here; returns where it ends. Raises StreamError."""
        size = len(data)
        while self.arguments_left or self.bytes_left:
            if self.bytes_left:
                step = min(self.bytes_left, size - at)
                self.bytes_left -= step
                at += step
                if self.bytes_left:
                    return at
            elif header := ARGUMENT.match(data, at):
                at = header.end()
                self.arguments_left -= 1
                self.bytes_left = int(header[1]) + 2
            elif data[at : at + 1] not in (b"", b"$") or size - at > MAX_HEADER_BYTES:
                raise StreamError("an argument of a command begins with unexpected bytes")
            else:
                return at
        return at
