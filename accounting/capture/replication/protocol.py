r"""The replication protocol, as bytes: what a master says, cut into what is ours and what is not.

Owns the answer to PSYNC, the end of the snapshot, and the stream of commands with its offsets. Must
not touch a socket, a clock or a file, and never copies, keeps or tells what is not coturn's: the
stream shows every write to that server, secrets among them.

Offsets count the bytes of the stream, so a command's position is that of its last byte. Redis
writes RESP in one way only (`*2\r\n$6\r\nSELECT\r\n$1\r\n0\r\n`), which makes them exact.
"""

import re
from dataclasses import dataclass

from accounting.capture.spool.records import Message, largest_message_bytes

keepalive_channel = b"__XXX__"

# An answer to PSYNC, or the head of a snapshot, is a line of some sixty bytes.
longest_line_bytes = 1 << 12

PUBLISH = re.compile(rb"\*3\r\n\$7\r\n[Pp][Uu][Bb][Ll][Ii][Ss][Hh]\r\n\$(\d{1,10})\r\n")
NEXT = re.compile(rb"\r\n\$(\d{1,10})\r\n")
SELECT = re.compile(rb"\*2\r\n\$6\r\n[Ss][Ee][Ll][Ee][Cc][Tt]\r\n\$\d{1,2}\r\n(\d{1,10})\r\n")
# What coturn sends beside each status: SET of a key, or DEL.
BESIDES = re.compile(
    rb"\*(?:3\r\n\$3\r\n[Ss][Ee][Tt]|2\r\n\$3\r\n([Dd][Ee][Ll]))\r\n\$(\d{1,10})\r\n"
)
COMMAND = re.compile(rb"\*(\d{1,10})\r\n\$(\d{1,10})\r\n")
PART = re.compile(rb"\$(\d{1,10})\r\n")
longest_head_bytes = 26  # of COMMAND; of a PART it is less
longest_name_bytes = 64


class StreamError(Exception):
    """What the master sent is not the replication protocol. Holds no byte of it."""


@dataclass(frozen=True, slots=True)
class Continued:
    """The stream goes on after the place that was asked for, perhaps under another id."""

    replication_id: str | None


@dataclass(frozen=True, slots=True)
class Resynced:
    """The stream begins anew at `offset`, after a snapshot: nothing proves what came before."""

    replication_id: str
    offset: int


@dataclass(frozen=True, slots=True)
class Refused:
    """The master's error, in its words."""

    text: str


class Opening:
    """What comes before the stream: an answer and, after Resynced, a snapshot, which is dropped."""

    def __init__(self) -> None:
        self.answer: Continued | Resynced | Refused | None = None
        self.is_over = False
        self._rest = b""
        self._left: int | None = None
        self._mark = b""

    def feed(self, chunk: bytes) -> bytes:
        """Take bytes off the wire; returns those that belong to the stream already."""
        if self._left is None and not self._mark:
            chunk = self._rest + chunk
            self._rest = b""
            while not self.is_over and self._left is None and not self._mark:
                # Bare newlines keep the connection alive while the snapshot is made.
                chunk = chunk.lstrip(b"\n")
                line, end, after = chunk.partition(b"\r\n")
                if not end:
                    if len(chunk) > longest_line_bytes:
                        raise StreamError("a line of the answer to PSYNC has no end")
                    self._rest = chunk
                    return b""
                chunk = after
                self._take_line(line)
        if self._left is not None:
            chunk, self._left = chunk[self._left :], max(0, self._left - len(chunk))
            self.is_over = not self._left
        elif self._mark:
            chunk = self._rest + chunk
            found = chunk.find(self._mark)
            if found < 0:
                self._rest = chunk[-len(self._mark) + 1 :]
                return b""
            self.is_over = True
            chunk = chunk[found + len(self._mark) :]
        return chunk

    def _take_line(self, line: bytes) -> None:
        match line.split():
            case [b"+CONTINUE", *more] if self.answer is None:
                self.answer = Continued(more[0].decode("ascii", "replace") if more else None)
                self.is_over = True
            case [b"+FULLRESYNC", name, offset] if self.answer is None and offset.isdigit():
                self.answer = Resynced(name.decode("ascii", "replace"), int(offset))
            case _ if self.answer is None and line[:1] == b"-":
                self.answer = Refused(line[1:].decode("utf-8", "replace"))
                self.is_over = True
            case [head] if self.answer is not None and head[:5] == b"$EOF:" and len(head) == 45:
                self._mark = head[5:]
            case [head] if self.answer is not None and head[:1] == b"$" and head[1:].isdigit():
                self._left = int(head[1:])
            case _:
                raise StreamError("the answer to PSYNC is not understood")


class CommandStream:
    """The commands after the opening. `offset` is the end of the last one that is taken in whole.

    There, between two commands, a stream can go on.
    """

    def __init__(self, offset: int, database: int | None) -> None:
        self.offset = self._taken = offset
        self.database = database
        self.keepalives: list[int] = []
        self.is_asked_for_ack = False
        self._rest = b""
        # In the middle of a command that is not ours: so many parts of it, and bytes of the part
        # that has begun, are still to come.
        self._parts_left = 0
        self._bytes_left = 0

    def feed(
        self, received_at: int, chunk: bytes, messages: list[Message], positions: list[int]
    ) -> None:
        """Take in bytes; append the messages that are ours, and the offset after each.

        Raises StreamError when the bytes are no commands; `offset` is then of no use.
        """
        data = self._rest + chunk if self._rest else chunk
        size, at = len(data), 0
        while at < size:
            if not self._parts_left and not self._bytes_left:
                at = self._take_publishes(data, at, received_at, messages, positions)
                if at == size or (begun := self._begin(data, at)) == at:
                    break
                self.offset, at = self._taken + at, begun
            at = self._skip(data, at)
            if self._parts_left and not self._bytes_left:
                break
        self._rest = data[at:]
        self._taken += at
        if not self._parts_left and not self._bytes_left:
            self.offset = self._taken

    def _take_publishes(
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
        base, size, database = self._taken, len(data), self.database or 0
        publish, following = PUBLISH.match, NEXT.match
        while True:
            head = publish(data, at)
            if head is None:
                beyond = beyond_key(data, at)
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
                small = stop - begin <= largest_message_bytes
                if small and data.find(b"/allocation/", begin, end) >= 0:
                    messages.append((received_at, database, data[begin:end], data[start:stop]))
                    positions.append(base + at)
            elif data[begin:end] == keepalive_channel:
                self.keepalives.append(base + at)

    def _begin(self, data: bytes, at: int) -> int:
        """Begin to skip the command at `at`, after its name; returns `at` when more must come."""
        head = COMMAND.match(data, at)
        if head is None:
            if data[at : at + 1] != b"*" or len(data) - at > longest_head_bytes:
                raise StreamError("a command of the stream does not begin like one")
            return at
        begin, parts, length = head.end(), int(head[1]), int(head[2])
        if length > longest_name_bytes:
            self._parts_left, self._bytes_left = parts - 1, length + 2
            return begin
        end = begin + length + 2
        if end > len(data):
            return at
        match data[begin : end - 2].upper():
            case b"PUBLISH" if is_worth_waiting_for(data, at):
                return at
            case b"SELECT":
                select = SELECT.match(data, at)
                if select is None:
                    return at
                self.database = int(select[1])
                return select.end()
            case b"REPLCONF":  # GETACK: the one thing of that name that a master sends
                self.is_asked_for_ack = True
        self._parts_left = parts - 1
        return end

    def _skip(self, data: bytes, at: int) -> int:
        """Step over what is here of a command that is not ours."""
        size = len(data)
        while self._parts_left or self._bytes_left:
            if self._bytes_left:
                step = min(self._bytes_left, size - at)
                self._bytes_left -= step
                at += step
                if self._bytes_left:
                    return at
            elif head := PART.match(data, at):
                at = head.end()
                self._parts_left -= 1
                self._bytes_left = int(head[1]) + 2
            elif data[at : at + 1] not in (b"", b"$") or size - at > longest_head_bytes:
                raise StreamError("a part of a command in the stream does not begin like one")
            else:
                return at
        return at


def beyond_key(data: bytes, at: int) -> int:
    """The end of the SET or DEL at `at`; `at` itself where there is none, or not all of it yet."""
    head = BESIDES.match(data, at)
    if head is None:
        return at
    end = head.end() + int(head[2])
    if not head[1]:
        tail = NEXT.match(data, end)
        if tail is None:
            return at
        end = tail.end() + int(tail[1])
    return end + 2 if end + 2 <= len(data) else at


def is_worth_waiting_for(data: bytes, at: int) -> bool:
    """Whether the PUBLISH at `at`, of which something is still to come, may be ours."""
    head = PUBLISH.match(data, at)
    if head is None:
        return True
    end = head.end() + int(head[1])
    if int(head[1]) > largest_message_bytes:
        return False
    tail = NEXT.match(data, end)
    if tail is None and len(data) - end > longest_head_bytes:
        raise StreamError("a PUBLISH of the stream has no second part")
    return tail is None or int(tail[1]) <= largest_message_bytes
