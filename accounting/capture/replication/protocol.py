r"""The replication protocol as bytes: the reply to PSYNC, the snapshot, the stream of commands.

The stream shows every write to that server, secrets among them: what is not coturn's is skipped,
never copied, and not part of an error.

Offsets count the bytes of the stream; the position of a command is that of its last byte. They are
exact since Redis writes RESP in only one way (``*2\r\n$6\r\nSELECT\r\n$1\r\n0\r\n``).

Every length and count has a bound: what is kept of a command is at most a message of coturn, and
the rest is skipped as it comes in.
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

KEEPALIVE_CHANNEL: Final = b"__XXX__"

MAX_LINE_BYTES: Final = 1 << 12
"""Of a reply to PSYNC and of a snapshot's header, which have about sixty bytes."""

PUBLISH: Final = re.compile(rb"\*3\r\n\$7\r\n[Pp][Uu][Bb][Ll][Ii][Ss][Hh]\r\n\$(\d{1,10})\r\n")
SELECT: Final = re.compile(
    rb"\*2\r\n\$6\r\n[Ss][Ee][Ll][Ee][Cc][Tt]\r\n\$\d{1,2}\r\n(\d{1,10})\r\n"
)
STATUS_KEY_COMMAND: Final = re.compile(
    rb"\*(?:3\r\n\$3\r\n[Ss][Ee][Tt]|2\r\n\$3\r\n([Dd][Ee][Ll]))\r\n\$(\d{1,10})\r\n"
)
"""SET or DEL of one key: coturn sends one of them with each status message."""
COMMAND: Final = re.compile(rb"\*(\d{1,10})\r\n\$(\d{1,10})\r\n")
PUBLISH_WORDS: Final = 3
MAX_PUBLISH_HEADER_BYTES: Final = 40
"""Of what PUBLISH matches."""
MAX_NAME_BYTES: Final = 64
MAX_SELECT_BYTES: Final = 40
MAX_WORDS: Final = (1 << 31) - 1
"""Of one command: Redis counts them in 32 bits."""
MAX_DATABASE: Final = (1 << 31) - 1
MAX_OFFSET: Final = 1 << 62
"""Offsets have 64 bits; half of them are left for the stream that follows."""
MAX_REPLICATION_ID_BYTES: Final = 64
"""Redis' have 40."""
MAX_KEEPALIVES: Final = 100_000
"""Of one batch. Times are then estimated without them, by the bytes alone."""


@dataclass(frozen=True, slots=True)
class Continued:
    """The stream resumes after the requested offset, perhaps under another replication id."""

    replication_id: str | None


@dataclass(frozen=True, slots=True)
class FullResync:
    """The stream begins at ``offset``, after a snapshot: earlier messages may be missing."""

    replication_id: str
    offset: int


@dataclass(frozen=True, slots=True)
class PsyncError:
    """The master's error reply."""

    text: str


class PsyncReply:
    """What precedes the stream: the reply and, after FullResync, a snapshot, which is skipped."""

    def __init__(self) -> None:
        self.outcome: Continued | FullResync | PsyncError | None = None
        self.is_complete = False
        self._unparsed = b""
        self._snapshot_bytes_left: int | None = None
        self._eof_marker = b""

    def feed(self, chunk: bytes) -> bytes:
        """Parse received bytes; returns those after the reply, which belong to the stream."""
        if self._snapshot_bytes_left is None and not self._eof_marker:
            chunk = self._unparsed + chunk
            self._unparsed = b""
            while (
                not self.is_complete and self._snapshot_bytes_left is None and not self._eof_marker
            ):
                # Bare newlines keep the connection alive while the snapshot is made.
                chunk = chunk.lstrip(b"\n")
                line, line_end, after = chunk.partition(b"\r\n")
                if len(line) > MAX_LINE_BYTES:
                    raise StreamError("a line of the reply to PSYNC is too long")
                if not line_end:
                    self._unparsed = chunk
                    return b""
                chunk = after
                self._parse_line(line)
        if self._snapshot_bytes_left is not None:
            chunk, self._snapshot_bytes_left = (
                chunk[self._snapshot_bytes_left :],
                max(0, self._snapshot_bytes_left - len(chunk)),
            )
            self.is_complete = not self._snapshot_bytes_left
        elif self._eof_marker:
            chunk = self._unparsed + chunk
            marker_at = chunk.find(self._eof_marker)
            if marker_at < 0:
                self._unparsed = chunk[-len(self._eof_marker) + 1 :]
                return b""
            self.is_complete = True
            chunk = chunk[marker_at + len(self._eof_marker) :]
        return chunk

    def _parse_line(self, line: bytes) -> None:
        match line.split():
            case [b"+CONTINUE"] if self.outcome is None:
                self.outcome = Continued(None)
                self.is_complete = True
            case [b"+CONTINUE", name, *_] if self.outcome is None and is_replication_id(name):
                self.outcome = Continued(name.decode("ascii"))
                self.is_complete = True
            case [b"+FULLRESYNC", name, offset] if (
                self.outcome is None
                and is_replication_id(name)
                and offset.isdigit()
                and int(offset) <= MAX_OFFSET
            ):
                self.outcome = FullResync(name.decode("ascii"), int(offset))
            case _ if self.outcome is None and line[:1] == b"-":
                self.outcome = PsyncError(line[1:].decode("utf-8", "replace"))
                self.is_complete = True
            case [head] if self.outcome is not None and head[:5] == b"$EOF:" and len(head) == 45:
                self._eof_marker = head[5:]
            case [head] if (
                self.outcome is not None
                and head[:1] == b"$"
                and head[1:].isdigit()
                and int(head[1:]) <= MAX_OFFSET
            ):
                self._snapshot_bytes_left = int(head[1:])
            case _:
                raise StreamError("the reply to PSYNC is not understood")


class CommandStream:
    """The commands after the reply. ``offset`` is the end of the last whole command.

    A stream can resume only there, between two commands.
    """

    def __init__(self, offset: int, database: int | None) -> None:
        self.offset = self._parsed_offset = offset
        self.database = database
        self.keepalives: list[int] = []
        self.ack_requested = False
        self._unparsed = b""
        self._skipper = ArgumentSkipper()

    def feed(
        self, received_at: int, chunk: bytes, messages: list[Message], positions: list[int]
    ) -> None:
        """Parse received bytes; append coturn's messages, and the position of each.

        Raises StreamError when the bytes are not commands; ``offset`` is then meaningless.
        """
        data = self._unparsed + chunk if self._unparsed else chunk
        size, at = len(data), 0
        while at < size:
            if self._skipper.is_idle:
                at = self._parse_publishes(data, at, received_at, messages, positions)
                if at == size or (name_end := self._parse_command_name(data, at)) == at:
                    break
                self.offset, at = self._parsed_offset + at, name_end
            at = self._skipper.skip(data, at)
            if not self._skipper.is_idle and at < size:
                break
        self._unparsed = data[at:]
        self._parsed_offset += at
        if self._skipper.is_idle:
            self.offset = self._parsed_offset

    def _parse_publishes(
        self,
        data: bytes,
        at: int,
        received_at: int,
        messages: list[Message],
        positions: list[int],
    ) -> int:
        """Parse PUBLISH commands and skip those of status keys, while whole ones follow.

        This is the fast path; returns where another or an incomplete command begins.
        """
        base, size, database = self._parsed_offset, len(data), self.database or 0
        match_publish, match_next = PUBLISH.match, NEXT_ARGUMENT.match
        while True:
            header = match_publish(data, at)
            if header is None:
                key_command_end = end_of_key_command(data, at)
                if key_command_end == at:
                    return at
                at = key_command_end
                continue
            channel_begin = header.end()
            channel_end = channel_begin + int(header[1])
            payload_header = match_next(data, channel_end)
            if payload_header is None:
                return at
            payload_begin = payload_header.end()
            payload_end = payload_begin + int(payload_header[1])
            if payload_end + 2 > size:
                return at
            at = payload_end + 2
            if data.startswith(b"turn/", channel_begin):
                if (
                    payload_end - channel_begin <= MAX_MESSAGE_BYTES
                    and data.find(b"/allocation/", channel_begin, channel_end) >= 0
                ):
                    channel = data[channel_begin:channel_end]
                    payload = data[payload_begin:payload_end]
                    messages.append((received_at, database, channel, payload))
                    positions.append(base + at)
            elif (
                data[channel_begin:channel_end] == KEEPALIVE_CHANNEL
                and len(self.keepalives) < MAX_KEEPALIVES
            ):
                self.keepalives.append(base + at)

    def _parse_command_name(self, data: bytes, at: int) -> int:
        """Parse the header and the name of the command at ``at``, and begin to skip the rest.

        Returns where the name ends; ``at`` itself when more bytes must come.
        """
        header = COMMAND.match(data, at)
        if header is None:
            if data[at : at + 1] != b"*" or len(data) - at > MAX_HEADER_BYTES:
                raise StreamError("a command of the stream begins with unexpected bytes")
            return at
        name_begin, word_count, name_length = header.end(), int(header[1]), int(header[2])
        if not 0 < word_count <= MAX_WORDS:
            raise StreamError("a command of the stream has an impossible number of arguments")
        if name_length > MAX_NAME_BYTES:
            self._skipper.begin(word_count - 1, name_length + 2)
            return name_begin
        name_end = name_begin + name_length
        if name_end + 2 > len(data):
            return at
        match data[name_begin:name_end].upper():
            case b"PUBLISH" if word_count == PUBLISH_WORDS and may_be_coturn(data, at):
                return at
            case b"SELECT":
                return self._parse_select(data, at)
            case b"REPLCONF":  # a master sends only REPLCONF GETACK
                self.ack_requested = True
        self._skipper.begin(word_count - 1)
        return name_end + 2

    def _parse_select(self, data: bytes, at: int) -> int:
        """Parse the SELECT at ``at``; returns its end, or ``at`` when more bytes must come."""
        select = SELECT.match(data, at)
        if select is None:
            if len(data) - at > MAX_SELECT_BYTES:
                raise StreamError("a SELECT of the stream has an unexpected form")
            return at
        if int(select[1]) > MAX_DATABASE:
            raise StreamError("a SELECT of the stream names an impossible database")
        self.database = int(select[1])
        return select.end()


def is_replication_id(name: bytes) -> bool:
    """Whether it can be one: letters and digits, not many."""
    return name.isalnum() and len(name) <= MAX_REPLICATION_ID_BYTES


def end_of_key_command(data: bytes, at: int) -> int:
    """The end of the SET or DEL at ``at``; ``at`` when it is another or incomplete command."""
    header = STATUS_KEY_COMMAND.match(data, at)
    if header is None:
        return at
    end = header.end() + int(header[2])
    is_set = not header[1]
    if is_set:
        value_header = NEXT_ARGUMENT.match(data, end)
        if value_header is None:
            return at
        end = value_header.end() + int(value_header[1])
    return end + 2 if end + 2 <= len(data) else at


def may_be_coturn(data: bytes, at: int) -> bool:
    """Whether the incomplete PUBLISH at ``at`` may be coturn's, so that the rest is waited for."""
    header = PUBLISH.match(data, at)
    if header is None:
        if len(data) - at > MAX_PUBLISH_HEADER_BYTES:
            raise StreamError("a PUBLISH of the stream has an unexpected form")
        return True
    channel_end = header.end() + int(header[1])
    if int(header[1]) > MAX_MESSAGE_BYTES:
        return False
    payload_header = NEXT_ARGUMENT.match(data, channel_end)
    if payload_header is None and len(data) - channel_end > MAX_HEADER_BYTES:
        raise StreamError("a PUBLISH of the stream has no payload")
    return payload_header is None or int(payload_header[1]) <= MAX_MESSAGE_BYTES
