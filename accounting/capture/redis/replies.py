"""Replies of bounded size: the parser of redis-py, with a limit to what it keeps.

hiredis allocates an array of the length that the server claims, before any element is there.
"""

from typing import Any, Final

from redis._parsers.resp2 import _RESP2Parser
from redis._parsers.socket import SocketBuffer
from redis.exceptions import InvalidResponse

MAX_REPLY_BYTES: Final = 8 << 20
"""The largest reply is one page of SCAN: 500 keys, of at most 8 kB each where they are coturn's."""


class ReplyTooLarge(InvalidResponse):
    """A reply is larger than any that a command of ours has."""

    def __init__(self) -> None:
        super().__init__(f"a reply exceeds {MAX_REPLY_BYTES >> 20} MB")


class BoundedBuffer(SocketBuffer):
    """The buffer of one reply; raises ReplyTooLarge instead of growing without limit."""

    def _read_from_socket(self, *arguments: Any, **options: Any) -> bool:
        if self._buffer.getbuffer().nbytes > MAX_REPLY_BYTES:
            raise ReplyTooLarge
        return super()._read_from_socket(*arguments, **options)

    def read(self, length: int, *arguments: Any, **options: Any) -> bytes:
        if not 0 <= length <= MAX_REPLY_BYTES:
            raise ReplyTooLarge
        return super().read(length, *arguments, **options)


class BoundedParser(_RESP2Parser):
    """Parses replies of RESP2. Raises InvalidResponse for any bytes that are none."""

    def on_connect(self, connection: Any) -> None:
        super().on_connect(connection)  # type: ignore[no-untyped-call]
        assert self._sock is not None
        self._buffer = BoundedBuffer(self._sock, self.socket_read_size, connection.socket_timeout)

    def read_response(self, *arguments: Any, **options: Any) -> Any:
        try:
            return super().read_response(*arguments, **options)
        except (ValueError, RecursionError):
            # A length that is no number, and arrays within arrays.
            raise InvalidResponse("the server sent bytes that are not RESP") from None
