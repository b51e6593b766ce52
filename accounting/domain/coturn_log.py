"""Reads coturn's own log: the lines of usage that it writes when it publishes.

Parses the lines of 4.6 (`533: : session ...`) and of 4.17 (time and level first), and sums them by
session (docs/coturn.md#reconcile-log-lines).
"""

import re
from collections import defaultdict
from collections.abc import Iterable, Iterator
from typing import Final, NamedTuple

from accounting.domain.thread_silence import IDS_PER_THREAD

# Clients choose realm and username, which may look like the rest of the line. So the id is matched
# from the left, and the counters from the right.
_HEAD: Final = re.compile(rb"\bsession (\d{1,18}): (new, |peer usage: |usage: |delete: )")
_PREFIX: Final = re.compile(rb"(?:[^<>]|<[\w.]{1,20}>)*")
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


class LogMessage(NamedTuple):
    """A line about a session, by its number in the file. ``line`` is None if it is cut off or left
    out, so that the session is not complete.

    ``server``: which one wrote it, as far as the log says so.
    """

    number: int
    server: bytes
    allocation_id: int
    line: LogLine | None


class LoggedSession:
    """The sums of one session's lines, or of several that the log doesn't keep apart.

    ``file`` and ``line``: where the first line is. ``starts`` and ``deletes`` count its `new` and
    `delete`. ``start_is_covered``: whether the log has what came before its first line, so that it
    would have its `new`. ``is_partial``: whether lines of it may be missing or of another session.
    ``is_cut_short``: whether it is usage beside a whole session, so that no file goes on with it.
    """

    __slots__ = (
        "counters",
        "deletes",
        "file",
        "first",
        "is_cut_short",
        "is_partial",
        "line",
        "start_is_covered",
        "starts",
    )

    def __init__(self, first: LogLine, file: int, line: int, *, start_is_covered: bool) -> None:
        self.first = first
        self.file = file
        self.line = line
        self.start_is_covered = start_is_covered
        self.is_cut_short = False
        self.is_partial = False
        self.starts = 0
        self.deletes = 0
        self.counters = [0] * 8

    @property
    def never_authenticated(self) -> bool:
        """Whether all of its requests were unauthenticated: nobody is billed for it."""
        return not (self.starts or self.deletes)

    @property
    def has_only_usage(self) -> bool:
        """Whether there is usage, and no `new` or `delete`."""
        return self.never_authenticated and any(self.counters)

    @property
    def count(self) -> int:
        """How many sessions these are at least."""
        return max(self.starts, self.deletes, 1)

    @property
    def is_over(self) -> bool:
        """Whether each of them was deleted: another `new` is another session."""
        return self.deletes >= max(self.starts, 1)

    @property
    def is_complete(self) -> bool:
        """Whether the log has the whole session, so that its sums are exact."""
        return self.starts == self.deletes == 1 and not self.is_partial

    def merge(self, other: "LoggedSession") -> None:
        """Add another part; how the parts belong together is not known."""
        self.starts += other.starts
        self.deletes += other.deletes
        self.start_is_covered |= other.start_is_covered
        self.is_partial = True
        self.counters = [a + b for a, b in zip(self.counters, other.counters, strict=True)]


def read_message(number: int, server: bytes, text: bytes) -> LogMessage | None:
    """Read a line of the log; None for any other line than those of LogLine."""
    head = _match_head(text)
    if head is None:
        return None
    return LogMessage(number, server, int(head[1]), _parse_rest(text, head))


def parse_line(line: bytes) -> LogLine | None:
    """Parse a line of the log; None for any other line than those of LogLine."""
    head = _match_head(line)
    return None if head is None else _parse_rest(line, head)


def _match_head(line: bytes) -> re.Match[bytes] | None:
    """The start of coturn's text. What comes before it may not have names, which clients choose."""
    head = _HEAD.search(line)
    return None if head is None or not _PREFIX.fullmatch(line, 0, head.start()) else head


def _parse_rest(line: bytes, head: re.Match[bytes]) -> LogLine | None:
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
        names = rest.rstrip()
        if not names.endswith(b">"):
            return None
        names = names[:-1]
    realm, separator, username = names.removeprefix(_REALM).partition(_USERNAME)
    if not names.startswith(_REALM) or not separator:
        return None
    return LogLine(int(head[1]), event, realm, username, counters)


class LogReader:
    """Collects the sessions of logs, also unauthenticated ones.

    The lines of a file come in order of time, the files in any order. An id with another `new`
    after its `delete` is another session; without the `delete` it may be that of another server,
    and the two are kept as one. What several files have of a session is put together, as a lower
    bound: a file between them may be missing.
    """

    def __init__(self) -> None:
        self._parts = defaultdict[tuple[bytes, bytes, bytes, int], list[LoggedSession]](list)

    def read(self, file: int, messages: Iterable[LogMessage]) -> None:
        """Read the lines of a file."""
        latest: dict[tuple[bytes, bytes, bytes, int], LoggedSession] = {}
        lowest_new: dict[tuple[bytes, int], int] = {}
        cut: set[tuple[bytes, int]] = set()
        begun: list[tuple[bytes, LoggedSession]] = []
        for message in messages:
            line = message.line
            if line is None:
                cut.add((message.server, message.allocation_id))
                continue
            key = message.server, line.realm, line.username, line.allocation_id
            thread = message.server, line.allocation_id // IDS_PER_THREAD
            session = latest.get(key)
            if session is None or _begins_another(session, line):
                # A relay thread counts its ids up: this one was given out after that `new`.
                covered = lowest_new.get(thread, line.allocation_id) < line.allocation_id
                following = LoggedSession(line, file, message.number, start_is_covered=covered)
                if session is not None:
                    _separate(session, following)
                session = latest[key] = following
                self._parts[key].append(session)
                begun.append((message.server, session))
            _add_line(session, line)
            if line.event == "new":
                lowest_new[thread] = min(
                    lowest_new.get(thread, line.allocation_id), line.allocation_id
                )
        for server, session in begun:
            session.is_partial |= (server, session.first.allocation_id) in cut

    def sessions(self) -> Iterator[LoggedSession]:
        """All sessions, those of several files put together."""
        for parts in self._parts.values():
            whole: LoggedSession | None = None
            for part in parts:
                if part.is_complete or (
                    part.never_authenticated and (part.start_is_covered or part.is_cut_short)
                ):
                    yield part
                elif whole is None:
                    whole = part
                else:
                    whole.merge(part)
            if whole is not None:
                yield whole


def _begins_another(session: LoggedSession, line: LogLine) -> bool:
    if line.event == "new":
        return session.is_over or session.has_only_usage
    return session.is_over and line.event != "delete"


def _separate(session: LoggedSession, following: LoggedSession) -> None:
    """Keep usage before a `new`, or after the `delete`, apart from the session itself.

    It may be of that session, which is then a lower bound, or of another start of the server, which
    gave out the same id.
    """
    if session.has_only_usage:
        session.is_cut_short = following.is_partial = True
    elif following.first.counters:
        following.is_cut_short = session.is_partial = True


def _add_line(session: LoggedSession, line: LogLine) -> None:
    if line.event == "new":
        session.starts += 1
    elif line.event == "delete":
        session.deletes += 1
    else:
        first = 4 if line.event == "peer usage" else 0
        for index, count in enumerate(line.counters, start=first):
            session.counters[index] += count
