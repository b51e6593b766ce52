r"""What a subscribed connection receives, as bytes: messages, and replies to our commands.

hiredis would keep a message of any size until it is whole, and allocate an array of the length that
the server claims. Here messages larger than coturn's are skipped as they come in, and everything
else must be small.
"""

import re
from dataclasses import dataclass
from typing import Final

from accounting.capture.redis.arguments import (
    MAX_HEADER_BYTES,
    NEXT_ARGUMENT,
    ArgumentSkipper,
    StreamError,
)
from accounting.capture.spool.records import MAX_MESSAGE_BYTES, Message

CHANNEL_PATTERNS: Final = (b"turn/realm/*/user/*/allocation/*", b"turn/user/*/allocation/*")
"""coturn leaves an empty realm out of the channel. The two patterns never match the same one."""

DATABASE: Final = 0
"""Stored with every message: a subscription does not show the publisher's database."""

PMESSAGE: Final = re.compile(
    rb"\*4\r\n\$8\r\npmessage\r\n(?:"
    + b"|".join(b"\\$%d\r\n" % len(text) + re.escape(text) for text in CHANNEL_PATTERNS)
    + rb")\r\n\$(\d{1,10})\r\n"
)
SIMPLE_MESSAGE: Final = re.compile(
    PMESSAGE.pattern + rb"([^\r]*)\r\n\$(\d{1,4})\r\n([^\r]*)\r\n", re.DOTALL
)
"""A whole message without a carriage return within: nearly all. The lengths are to be checked."""
MAX_PMESSAGE_HEADER_BYTES: Final = 64 + max(map(len, CHANNEL_PATTERNS))

ARRAY: Final = re.compile(rb"\*([1-4])\r\n")
LINE: Final = re.compile(rb"([-+:])([^\r\n]*)\r\n")
ELEMENT: Final = re.compile(rb"\$(\d{1,3})\r\n|\$(-1)\r\n|:(-?\d{1,18})\r\n")
MAX_REPLY_BYTES: Final = 1 << 10
"""Of a reply that is no message: at most a pattern or an error of one line."""


@dataclass(frozen=True, slots=True)
class ErrorReply:
    """The server refuses a command."""

    text: str


Reply = ErrorReply | list[bytes | int | None]
"""The reply to a command: an error, or the elements of an array. A single value is one element."""


class SubscriptionParser:
    """Parses what a subscribed connection receives."""

    def __init__(self) -> None:
        self._unparsed = b""
        self._skipper = ArgumentSkipper()

    def feed(self, received_at: int, chunk: bytes, messages: list[Message]) -> list[Reply]:
        """Parse received bytes: append the messages, return the replies.

        Raises StreamError when the bytes are neither.
        """
        data = self._unparsed + chunk if self._unparsed else chunk
        replies: list[Reply] = []
        size, at = len(data), 0
        while at < size:
            if not self._skipper.is_idle:
                at = self._skipper.skip(data, at)
                if not self._skipper.is_idle:
                    break
                continue
            message_end = self._parse_messages(data, at, received_at, messages)
            if message_end != at:
                at = message_end
                continue
            if PMESSAGE.match(data, at) or is_begun_message(data, at):
                break
            reply = parse_reply(data, at)
            if reply is None:
                break
            replies.append(reply[0])
            at = reply[1]
        self._unparsed = data[at:]
        return replies

    def _parse_messages(
        self, data: bytes, at: int, received_at: int, messages: list[Message]
    ) -> int:
        """Parse messages while whole ones follow, and begin to skip one that is too large.

        Returns where they end.
        """
        size, match_message, match_next = len(data), PMESSAGE.match, NEXT_ARGUMENT.match
        match_simple, append = SIMPLE_MESSAGE.match, messages.append
        while True:
            while simple := match_simple(data, at):
                length, channel, payload_size, payload = simple.groups()
                if (
                    len(channel) != int(length)
                    or len(payload) != int(payload_size)
                    or len(channel) + len(payload) > MAX_MESSAGE_BYTES
                ):
                    break
                append((received_at, DATABASE, channel, payload))
                at = simple.end()
            header = match_message(data, at)
            if header is None:
                return at
            channel_begin = header.end()
            channel_length = int(header[1])
            if channel_length > MAX_MESSAGE_BYTES:
                self._skipper.begin(1, channel_length + 2)
                return channel_begin
            channel_end = channel_begin + channel_length
            payload_header = match_next(data, channel_end)
            if payload_header is None:
                if size - channel_end > MAX_HEADER_BYTES:
                    raise StreamError("a message has no payload")
                return at
            payload_begin = payload_header.end()
            payload_length = int(payload_header[1])
            if channel_length + payload_length > MAX_MESSAGE_BYTES:
                self._skipper.begin(0, payload_length + 2)
                return payload_begin
            payload_end = payload_begin + payload_length
            if payload_end + 2 > size:
                return at
            messages.append(
                (
                    received_at,
                    DATABASE,
                    data[channel_begin:channel_end],
                    data[payload_begin:payload_end],
                )
            )
            at = payload_end + 2


def is_begun_message(data: bytes, at: int) -> bool:
    """Whether the bytes from ``at`` may be the beginning of a message's header."""
    begin = b"*4\r\n$8\r\npmessage\r\n"
    piece = data[at : at + len(begin)]
    return begin.startswith(piece) and len(data) - at < MAX_PMESSAGE_HEADER_BYTES


def parse_reply(data: bytes, at: int) -> tuple[Reply, int] | None:
    """The reply at ``at`` and where it ends; None when more bytes must come."""
    if line := LINE.match(data, at, at + MAX_REPLY_BYTES):
        if line[1] == b"-":
            return ErrorReply(line[2].decode("utf-8", "replace")), line.end()
        return [line[2]], line.end()
    array = ARRAY.match(data, at)
    elements: list[bytes | int | None] = []
    end = array.end() if array else at
    while array and len(elements) < int(array[1]):
        header = ELEMENT.match(data, end)
        if header is None:
            break
        length, end = int(header[1] or 0), header.end()
        if header[1] is None:
            elements.append(None if header[2] else int(header[3]))
            continue
        if end + length + 2 > len(data):
            break
        elements.append(data[end : end + length])
        end += length + 2
    else:
        if array:
            return elements, end
    if len(data) - at > MAX_REPLY_BYTES or data[at : at + 1] not in (b"-", b"+", b":", b"*"):
        raise StreamError("bytes that are not RESP")
    return None
