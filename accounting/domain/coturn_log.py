"""Reads coturn's own log: the lines of usage that it writes when it publishes.

Parses the lines of 4.6 (`533: : session ...`) and of 4.17 (time and level first), and sums them by
session.
"""

import re
from collections.abc import Iterable
from typing import Final, NamedTuple

# Clients choose realm and username, which may look like the rest of the line. So the id is matched
# from the left, and the counters from the right.
_LINE_START: Final = re.compile(
    rb"\A[^<>]*?\bsession (\d{1,18}): (new, |peer usage: |usage: |delete: )"
)
_COUNTERS: Final = re.compile(rb">, rp=(\d+), rb=(\d+), sp=(\d+), sb=(\d+)\s*\Z")
_LIFETIME: Final = re.compile(rb">, lifetime=\d+\s*\Z")
_REALM: Final = b"realm=<"
_USERNAME: Final = b">, username=<"


class LogLine(NamedTuple):
    """A line about a session. ``event``: new, usage, peer usage or delete.

    ``counters``: four for usage and peer usage, else none.
    """

    allocation_id: int
    event: str
    realm: bytes
    username: bytes
    counters: tuple[int, ...]


class LoggedSession:
    """The sums of one session's lines. ``start_logged``: whether they include its `new`."""

    __slots__ = (
        "allocation_id",
        "counters",
        "deleted",
        "line",
        "log",
        "realm",
        "start_logged",
        "username",
    )

    def __init__(self, first: LogLine, log: str, line: int) -> None:
        self.allocation_id = first.allocation_id
        self.realm = first.realm
        self.username = first.username
        self.log = log
        self.line = line
        self.start_logged = False
        self.deleted = False
        self.counters = [0] * 8

    @property
    def never_authenticated(self) -> bool:
        """Whether all of its requests were unauthenticated: nobody is billed for it."""
        return not (self.start_logged or self.deleted)


def parse_line(line: bytes) -> LogLine | None:
    """Parse a line of the log; None for any other line than those of LogLine."""
    if b"session " not in line:
        return None
    head = _LINE_START.match(line)
    if head is None:
        return None
    event = head[2].decode().rstrip(":, ")
    rest = line[head.end() :]
    counters: tuple[int, ...] = ()
    if event in {"usage", "peer usage"}:
        counters_match = _COUNTERS.search(rest)
        if counters_match is None:
            return None
        counters = tuple(int(number) for number in counters_match.groups())
        names = rest[: counters_match.start()]
    elif event == "new":
        lifetime = _LIFETIME.search(rest)
        if lifetime is None:
            return None
        names = rest[: lifetime.start()]
    else:
        names = rest.rstrip().removesuffix(b">")
    realm, separator, username = names.removeprefix(_REALM).partition(_USERNAME)
    if not names.startswith(_REALM) or not separator:
        return None
    return LogLine(int(head[1]), event, realm, username, counters)


class LogReader:
    """Collects the sessions of logs, also unauthenticated ones.

    The files of one server come in order of time. An id with another `new`, after a restart of the
    server or on another server, is another session. Lines after its `delete` still belong to it,
    within that file.
    """

    def __init__(self) -> None:
        self.sessions: list[LoggedSession] = []
        self._latest: dict[tuple[bytes, bytes, int], LoggedSession] = {}

    def read(self, log: str, lines: Iterable[bytes]) -> int:
        """Read the lines of the file named ``log``; returns how many were about a session."""
        self._latest = {
            key: session for key, session in self._latest.items() if not session.deleted
        }
        count = 0
        for number, raw in enumerate(lines, start=1):
            line = parse_line(raw)
            if line is not None:
                count += 1
                self._add_line(log, number, line)
        return count

    def _add_line(self, log: str, number: int, line: LogLine) -> None:
        key = line.realm, line.username, line.allocation_id
        session = self._latest.get(key)
        if session is None or (line.event == "new" and (session.start_logged or session.deleted)):
            session = self._latest[key] = LoggedSession(line, log, number)
            self.sessions.append(session)
        if line.event == "new":
            session.start_logged = True
        elif line.event == "delete":
            session.deleted = True
        else:
            first = 4 if line.event == "peer usage" else 0
            for index, count in enumerate(line.counters, start=first):
                session.counters[index] += count
