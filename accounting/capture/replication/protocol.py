r"""The replication protocol, as bytes: what a master says, cut into what is ours and what is not.

Owns the answer to PSYNC, the end of the snapshot, and the stream of commands with its offsets. Must
not touch a socket, a clock or a file, and never copies, keeps or tells what is not coturn's: the
stream shows every write to that server, secrets among them.

Offsets count the bytes of the stream, so a command's position is that of its last byte. Redis
writes RESP in one way only (`*2\r\n$6\r\nSELECT\r\n$1\r\n0\r\n`), which makes them exact.
"""

import re
from dataclasses import dataclass

from accounting.capture.spool.records import MAX_MESSAGE_BYTES, Message

KEEPALIVE_CHANNEL = b"__XXX__"

# An answer to PSYNC, or the head of a snapshot, is a line of some sixty bytes.
MAX_LINE_BYTES = 1 << 12

PUBLISH = re.compile(rb"\*3\r\n\$7\r\n[Pp][Uu][Bb][Ll][Ii][Ss][Hh]\r\n\$(\d{1,10})\r\n")
NEXT_ARGUMENT = re.compile(rb"\r\n\$(\d{1,10})\r\n")
SELECT = re.compile(rb"\*2\r\n\$6\r\n[Ss][Ee][Ll][Ee][Cc][Tt]\r\n\$\d{1,2}\r\n(\d{1,10})\r\n")
# What coturn sends beside each status: SET of a key, or DEL.
STATUS_KEY_COMMAND = re.compile(
    rb"\*(?:3\r\n\$3\r\n[Ss][Ee][Tt]|2\r\n\$3\r\n([Dd][Ee][Ll]))\r\n\$(\d{1,10})\r\n"
)
COMMAND = re.compile(rb"\*(\d{1,10})\r\n\$(\d{1,10})\r\n")
ARGUMENT = re.compile(rb"\$(\d{1,10})\r\n")
MAX_HEADER_BYTES = 26  # of COMMAND; of a PART it is less
MAX_NAME_BYTES = 64


class StreamError(Exception):
    """What the master sent is not the replication protocol. Holds no byte of it."""


@dataclass(frozen=True, slots=True)
class Continued:
    """The stream goes on after the place that was asked for, perhaps under another id."""

    replication_id: str | None


@dataclass(frozen=True, slots=True)
class FullResync:
    """The stream begins anew at `offset`, after a snapshot: nothing proves what came before."""

    replication_id: str
    offset: int


@dataclass(frozen=True, slots=True)
class PsyncError:
    """The master's error, in its words."""

    text: str


class PsyncReply:
    """What comes before the stream: an answer and, after Resynced, a snapshot, which is dropped."""

    def __init__(self) -> None:
        self.outcome: Continued | FullResync | PsyncError | None = None
        self.is_complete = False
        self._unparsed = b""
        self._snapshot_bytes_left: int | None = None
        self._eof_marker = b""

    def feed(self, chunk: bytes) -> bytes:
        """Take bytes off the wire; returns those that belong to the stream already."""
        if self._snapshot_bytes_left is None and not self._eof_marker:
            chunk = self._unparsed + chunk
            self._unparsed = b""
            while (
                not self.is_complete and self._snapshot_bytes_left is None and not self._eof_marker
            ):
                # Bare newlines keep the connection alive while the snapshot is made.
                chunk = chunk.lstrip(b"\n")
                line, end, after = chunk.partition(b"\r\n")
                if not end:
                    if len(chunk) > MAX_LINE_BYTES:
                        raise StreamError("a line of the answer to PSYNC has no end")
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
            found = chunk.find(self._eof_marker)
            if found < 0:
                self._unparsed = chunk[-len(self._eof_marker) + 1 :]
                return b""
            self.is_complete = True
            chunk = chunk[found + len(self._eof_marker) :]
        return chunk

    def _parse_line(self, line: bytes) -> None:
        match line.split():
            case [b"+CONTINUE", *more] if self.outcome is None:
                self.outcome = Continued(more[0].decode("ascii", "replace") if more else None)
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
                raise StreamError("the answer to PSYNC is not understood")


class CommandStream:
    """The commands after the opening. `offset` is the end of the last one that is taken in whole.

    There, between two commands, a stream can go on.
    """

    def __init__(self, offset: int, database: int | None) -> None:
        self.offset = self._parsed_offset = offset
        self.database = database
        self.keepalives: list[int] = []
        self.ack_requested = False
        self._unparsed = b""
        # In the middle of a command that is not ours: so many parts of it, and bytes of the part
        # that has begun, are still to come.
        self._arguments_left = 0
        self._bytes_left = 0

    def feed(
        self, received_at: int, chunk: bytes, messages: list[Message], positions: list[int]
    ) -> None:
        """Take in bytes; append the messages that are ours, and the offset after each.

        Raises StreamError when the bytes are no commands; `offset` is then of no use.
        """
        data = self._unparsed + chunk if self._unparsed else chunk
        size, at = len(data), 0
        while at < size:
            if not self._arguments_left and not self._bytes_left:
                at = self._parse_publishes(data, at, received_at, messages, positions)
                if at == size or (begun := self._parse_command_name(data, at)) == at:
                    break
                self.offset, at = self._parsed_offset + at, begun
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
        """Take in one PUBLISH after the other, as long as whole ones follow.

        And step over what coturn sends beside them.
        """
        base, size, database = self._parsed_offset, len(data), self.database or 0
        publish, following = PUBLISH.match, NEXT_ARGUMENT.match
        while True:
            head = publish(data, at)
            if head is None:
                beyond = end_of_key_command(data, at)
                if beyond == at:
                    return at
                at = beyond
                continue
            begin = head.end()
            end = begin + int(head[1])
            tail = following(data, end)
            if tail is None:
                return at
            start = tail.end()
            stop = start + int(tail[1])
            if stop + 2 > size:
                return at
            at = stop + 2
            if data.startswith(b"turn/", begin):
                small = stop - begin <= MAX_MESSAGE_BYTES
                if small and data.find(b"/allocation/", begin, end) >= 0:
                    messages.append((received_at, database, data[begin:end], data[start:stop]))
                    positions.append(base + at)
            elif data[begin:end] == KEEPALIVE_CHANNEL:
                self.keepalives.append(base + at)

    def _parse_command_name(self, data: bytes, at: int) -> int:
        """Begin to skip the command at `at`, after its name; returns `at` when more must come."""
        head = COMMAND.match(data, at)
        if head is None:
            if data[at : at + 1] != b"*" or len(data) - at > MAX_HEADER_BYTES:
                raise StreamError("a command of the stream does not begin like one")
            return at
        begin, parts, length = head.end(), int(head[1]), int(head[2])
        if length > MAX_NAME_BYTES:
            self._arguments_left, self._bytes_left = parts - 1, length + 2
            return begin
        end = begin + length + 2
        if end > len(data):
            return at
        match data[begin : end - 2].upper():
            case b"PUBLISH" if may_be_coturn(data, at):
                return at
            case b"SELECT":
                select = SELECT.match(data, at)
                if select is None:
                    return at
                self.database = int(select[1])
                return select.end()
            case b"REPLCONF":  # GETACK: the one thing of that name that a master sends
                self.ack_requested = True
        self._arguments_left = parts - 1
        return end

    def _skip(self, data: bytes, at: int) -> int:
        """Step over what is here of a command that is not ours."""
        size = len(data)
        while self._arguments_left or self._bytes_left:
            if self._bytes_left:
                step = min(self._bytes_left, size - at)
                self._bytes_left -= step
                at += step
                if self._bytes_left:
                    return at
            elif head := ARGUMENT.match(data, at):
                at = head.end()
                self._arguments_left -= 1
                self._bytes_left = int(head[1]) + 2
            elif data[at : at + 1] not in (b"", b"$") or size - at > MAX_HEADER_BYTES:
                raise StreamError("a part of a command in the stream does not begin like one")
            else:
                return at
        return at


def end_of_key_command(data: bytes, at: int) -> int:
    """The end of the SET or DEL at `at`; `at` itself where there is none, or not all of it yet."""
    head = STATUS_KEY_COMMAND.match(data, at)
    if head is None:
        return at
    end = head.end() + int(head[2])
    if not head[1]:
        tail = NEXT_ARGUMENT.match(data, end)
        if tail is None:
            return at
        end = tail.end() + int(tail[1])
    return end + 2 if end + 2 <= len(data) else at


def may_be_coturn(data: bytes, at: int) -> bool:
    """Whether the PUBLISH at `at`, of which something is still to come, may be ours."""
    head = PUBLISH.match(data, at)
    if head is None:
        return True
    end = head.end() + int(head[1])
    if int(head[1]) > MAX_MESSAGE_BYTES:
        return False
    tail = NEXT_ARGUMENT.match(data, end)
    if tail is None and len(data) - end > MAX_HEADER_BYTES:
        raise StreamError("a PUBLISH of the stream has no second part")
    return tail is None or int(tail[1]) <= MAX_MESSAGE_BYTES
