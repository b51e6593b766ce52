"""coturn's own log as a second witness: the usage lines that it writes when it publishes.

Owns the form of those lines, of 4.6 (`533: : session ...`) and of 4.17 (time and level first), and
the sums of each session. Knows no books.
"""

import re
from collections.abc import Iterable
from typing import Final, NamedTuple

# Realm and username are clients' bytes, and may look like the line around them: the id is found
# at the first, the figures at the last place that has their form.
_SESSION: Final = re.compile(
    rb"\A[^<>]*?\bsession (\d{1,18}): (new, |peer usage: |usage: |delete: )"
)
_FIGURES: Final = re.compile(rb">, rp=(\d+), rb=(\d+), sp=(\d+), sb=(\d+)\s*\Z")
_LIFETIME: Final = re.compile(rb">, lifetime=\d+\s*\Z")
_REALM: Final = b"realm=<"
_USERNAME: Final = b">, username=<"


class LogLine(NamedTuple):
    """One line that counts. ``what``: new, usage, peer usage or delete; four counters, or none."""

    allocation_id: int
    event: str
    realm: bytes
    username: bytes
    counters: tuple[int, ...]


class LoggedSession:
    """The sums of one session's lines; ``began`` when its begin was logged too."""

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
        """Whether it only carried requests that nobody authenticated: nobody is billed for it."""
        return not (self.start_logged or self.deleted)


def read_line(line: bytes) -> LogLine | None:
    """What a line of the log counts; None for the many that count nothing."""
    if b"session " not in line:
        return None
    head = _SESSION.match(line)
    if head is None:
        return None
    what = head[2].decode().rstrip(":, ")
    rest = line[head.end() :]
    counters: tuple[int, ...] = ()
    if what in {"usage", "peer usage"}:
        figures = _FIGURES.search(rest)
        if figures is None:
            return None
        counters = tuple(int(number) for number in figures.groups())
        names = rest[: figures.start()]
    elif what == "new":
        lifetime = _LIFETIME.search(rest)
        if lifetime is None:
            return None
        names = rest[: lifetime.start()]
    else:
        names = rest.rstrip().removesuffix(b">")
    realm, found, username = names.removeprefix(_REALM).partition(_USERNAME)
    if not names.startswith(_REALM) or not found:
        return None
    return LogLine(int(head[1]), what, realm, username, counters)


class LogReader:
    """The sessions of logs, strangers among them; files of one server come in order of time.

    An id that begins anew, after a restart of the server or on another one, is another session.
    Lines after its `delete` still belong to it, within that file.
    """

    def __init__(self) -> None:
        self.sessions: list[LoggedSession] = []
        self._latest: dict[tuple[bytes, bytes, int], LoggedSession] = {}

    def read(self, log: str, lines: Iterable[bytes]) -> int:
        """Read one file, ``log`` by name; returns how many of its lines counted."""
        self._latest = {key: one for key, one in self._latest.items() if not one.deleted}
        count = 0
        for number, raw in enumerate(lines, start=1):
            line = read_line(raw)
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
            for place, count in enumerate(line.counters, start=first):
                session.counters[place] += count
