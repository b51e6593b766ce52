r"""The replication protocol as bytes: the reply to PSYNC, the snapshot, the stream of commands.

The stream shows every write to that server, secrets among them: what is not coturn's is skipped,
never copied, and not part of an error.

Offsets count the bytes of the stream; the position of a command is that of its last byte. They are
exact since Redis writes RESP in only one way (``*2\r\n$6\r\nSELECT\r\n$1\r\n0\r\n``).
"""

import re
from dataclasses import dataclass
from typing import Final

from accounting.capture.spool.records import MAX_MESSAGE_BYTES, Message

KEEPALIVE_CHANNEL: Final = b"__XXX__"

MAX_LINE_BYTES: Final = 1 << 12
"""Of a reply to PSYNC and of a snapshot's header, which have about sixty bytes."""

PUBLISH: Final = re.compile(rb"\*3\r\n\$7\r\n[Pp][Uu][Bb][Ll][Ii][Ss][Hh]\r\n\$(\d{1,10})\r\n")
NEXT_ARGUMENT: Final = re.compile(rb"\r\n\$(\d{1,10})\r\n")
SELECT: Final = re.compile(
    rb"\*2\r\n\$6\r\n[Ss][Ee][Ll][Ee][Cc][Tt]\r\n\$\d{1,2}\r\n(\d{1,10})\r\n"
)
STATUS_KEY_COMMAND: Final = re.compile(
    rb"\*(?:3\r\n\$3\r\n[Ss][Ee][Tt]|2\r\n\$3\r\n([Dd][Ee][Ll]))\r\n\$(\d{1,10})\r\n"
)
"""SET or DEL of one key: coturn sends one of them with each status message."""
COMMAND: Final = re.compile(rb"\*(\d{1,10})\r\n\$(\d{1,10})\r\n")
ARGUMENT: Final = re.compile(rb"\$(\d{1,10})\r\n")
MAX_HEADER_BYTES: Final = 26
"""Of what COMMAND matches; ARGUMENT matches less."""
MAX_NAME_BYTES: Final = 64


class StreamError(Exception):
    """The master did not send the replication protocol. The text contains none of its bytes."""


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
                if not line_end:
                    if len(chunk) > MAX_LINE_BYTES:
                        raise StreamError("a line of the reply to PSYNC is too long")
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
            case [b"+CONTINUE", *words] if self.outcome is None:
                self.outcome = Continued(words[0].decode("ascii", "replace") if words else None)
                self.is_complete = True
            case [b"+FULLRESYNC", name, offset] if self.outcome is None and offset.isdigit():
                self.outcome = FullResync(name.decode("ascii", "replace"), int(offset))
            case _ if self.outcome is None and line[:1] == b"-":
                self.outcome = PsyncError(line[1:].decode("utf-8", "replace"))
                self.is_complete = True
            case [head] if self.outcome is not None and head[:5] == b"$EOF:" and len(head) == 45:
                self._eof_marker = head[5:]
            case [head] if self.outcome is not None and head[:1] == b"$" and head[1:].isdigit():
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
        # What is still to come of a command that is skipped: arguments, and bytes of the one that
        # has begun.
        self._arguments_left = 0
        self._bytes_left = 0

    def feed(
        self, received_at: int, chunk: bytes, messages: list[Message], positions: list[int]
    ) -> None:
        """Parse received bytes; append coturn's messages, and the position of each.

        Raises StreamError when the bytes are not commands; ``offset`` is then meaningless.
        """
        data = self._unparsed + chunk if self._unparsed else chunk
        size, at = len(data), 0
        while at < size:
            if not self._arguments_left and not self._bytes_left:
                at = self._parse_publishes(data, at, received_at, messages, positions)
                if at == size or (name_end := self._parse_command_name(data, at)) == at:
                    break
                self.offset, at = self._parsed_offset + at, name_end
            at = self._skip(data, at)
            if self._arguments_left and not self._bytes_left:
                break
        self._unparsed = data[at:]
        self._parsed_offset += at
        if not self._arguments_left and not self._bytes_left:
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
            elif data[channel_begin:channel_end] == KEEPALIVE_CHANNEL:
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
        if name_length > MAX_NAME_BYTES:
            self._arguments_left, self._bytes_left = word_count - 1, name_length + 2
            return name_begin
        name_end = name_begin + name_length
        if name_end + 2 > len(data):
            return at
        match data[name_begin:name_end].upper():
            case b"PUBLISH" if may_be_coturn(data, at):
                return at
            case b"SELECT":
                select = SELECT.match(data, at)
                if select is None:
                    return at
                self.database = int(select[1])
                return select.end()
            case b"REPLCONF":  # a master sends only REPLCONF GETACK
                self.ack_requested = True
        self._arguments_left = word_count - 1
        return name_end + 2

    def _skip(self, data: bytes, at: int) -> int:
        """Skip what is here of the command's arguments."""
        size = len(data)
        while self._arguments_left or self._bytes_left:
            if self._bytes_left:
                step = min(self._bytes_left, size - at)
                self._bytes_left -= step
                at += step
                if self._bytes_left:
                    return at
            elif header := ARGUMENT.match(data, at):
                at = header.end()
                self._arguments_left -= 1
                self._bytes_left = int(header[1]) + 2
            elif data[at : at + 1] not in (b"", b"$") or size - at > MAX_HEADER_BYTES:
                raise StreamError("an argument of a command begins with unexpected bytes")
            else:
                return at
        return at


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
        return True
    channel_end = header.end() + int(header[1])
    if int(header[1]) > MAX_MESSAGE_BYTES:
        return False
    payload_header = NEXT_ARGUMENT.match(data, channel_end)
    if payload_header is None and len(data) - channel_end > MAX_HEADER_BYTES:
        raise StreamError("a PUBLISH of the stream has no payload")
    return payload_header is None or int(payload_header[1]) <= MAX_MESSAGE_BYTES
