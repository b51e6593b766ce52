"""Reads coturn's logs as they are kept: compressed, wrapped, newest first, in overlapping copies.

Each file is read twice: first for the order of its lines and for hashes of them, by which lines
that several files have are counted once. What can't be read rightly is refused in one line.
"""

import bz2
import gzip
import lzma
import shutil
import tempfile
import zlib
from array import array
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any, Final, NamedTuple, cast

from accounting.domain.coturn_log import (
    LoggedSession,
    LogLine,
    LogMessage,
    LogReader,
    read_message,
)
from accounting.domain.log_envelope import Unwrapped, unwrap
from accounting.errors import UsageError

MAX_LINE_BYTES: Final = 1 << 20
SEVERAL: Final = 3
"""That few sessions in the other order can be those of an earlier start, whose ids they have."""
_OPENERS: Final[Mapping[bytes, Callable[[IO[bytes]], Any]]] = {
    b"\x1f\x8b": gzip.open,
    b"BZh": bz2.open,
    b"\xfd7zXZ\x00": lzma.open,
}
_REFUSED: Final = {
    b"\x28\xb5\x2f\xfd": "compressed by zstd: unpack it first, with zstd -d",
    b"PK\x03\x04": "a ZIP archive: unpack it first",
    b"LPKSHHRH": "a file of the journal: use the output of journalctl -o json",
    b"\xff\xfe": "UTF-16: convert it to UTF-8 first",
    b"\xfe\xff": "UTF-16: convert it to UTF-8 first",
}


class ReadLogs(NamedTuple):
    """The sessions of logs. ``repeated_lines``: those that several logs had, counted once."""

    sessions: list[LoggedSession]
    repeated_lines: int


@dataclass(slots=True)
class _File:
    """A log, and what the first pass found. ``hashes``: of its lines about sessions, oldest first.

    ``usage_hashes``: of those with usage, without what they are wrapped in. ``distinct_hashes``: of
    those that no other start or server is expected to write just so.
    """

    path: Path
    stream: IO[bytes]
    forms: set[str] = field(default_factory=set)
    is_newest_first: bool | None = None
    hashes: "array[int]" = field(default_factory=lambda: array("q"))
    usage_hashes: set[int] = field(default_factory=set)
    border_hashes: set[int] = field(default_factory=set)
    distinct_hashes: set[int] = field(default_factory=set)


def read_logs(paths: Sequence[Path]) -> ReadLogs:
    """Read logs, in any order. Raises UsageError for one that can't be read or has no session."""
    reader = LogReader()
    files: list[_File] = []
    repeated_lines = 0
    with ExitStack() as opened:
        for path in paths:
            files.append(_File(path, opened.enter_context(_open_seekable(path))))
            _look_through(files[-1])
        for index, file in enumerate(files):
            skipped = _repeated_places(file, files[:index])
            _require_apart(file, files[:index], skipped)
            repeated_lines += len(skipped)
            reader.read(index, _kept_messages(file, skipped))
    return ReadLogs(list(reader.sessions()), repeated_lines)


def _open_seekable(path: Path) -> IO[bytes]:
    """Open a file; what can't be read twice, such as a pipe, is copied."""
    try:
        if path.is_file():
            return path.open("rb")
        copy = tempfile.TemporaryFile()  # noqa: SIM115 - the caller closes it
        with path.open("rb") as pipe:
            shutil.copyfileobj(pipe, copy)
    except OSError as error:
        raise UsageError(f"{path}: can't read it: {error.strerror}") from None
    return cast("IO[bytes]", copy)


@contextmanager
def _unpacked(file: _File) -> Iterator[IO[bytes]]:
    """The content of a file from its start."""
    file.stream.seek(0)
    magic = file.stream.read(8)
    file.stream.seek(0)
    for start, reason in _REFUSED.items():
        if magic.startswith(start):
            raise UsageError(f"{file.path}: {reason}")
    try:
        for start, opener in _OPENERS.items():
            if magic.startswith(start):
                with opener(file.stream) as unpacked:
                    yield cast("IO[bytes]", unpacked)
                return
        yield file.stream
    except (EOFError, OSError, zlib.error, lzma.LZMAError) as error:
        raise UsageError(f"{file.path}: damaged or incomplete: {error}") from None


def _messages(file: _File) -> Iterator[tuple[LogMessage, Unwrapped]]:
    """The lines about sessions as they are in the file."""
    with _unpacked(file) as stream:
        number = 0
        while line := stream.readline(MAX_LINE_BYTES):
            number += 1
            # A message that journald writes as a list of numbers is not legible yet.
            if b"session " not in line and b'":[' not in line and b'": [' not in line:
                continue
            unwrapped = unwrap(line)
            message = read_message(number, unwrapped.server, unwrapped.text)
            if message is not None:
                yield message, unwrapped


def _look_through(file: _File) -> None:
    """The first pass."""
    times, sessions = _Order(), _Order()
    last_time: dict[str, bytes] = {}
    events: dict[int, tuple[str, str]] = {}
    unreadable = 0
    for message, unwrapped in _messages(file):
        if message.line is None:
            unreadable += 1
            continue
        _add_hashes(file, message.server, message.line, unwrapped)
        if unwrapped.time:
            before = last_time.get(unwrapped.form, unwrapped.time)
            times.add((before < unwrapped.time) - (before > unwrapped.time))
            last_time[unwrapped.form] = unwrapped.time
        event = message.line.event
        if event in {"new", "delete"}:
            key = hash((message.server, *message.line._replace(event="", counters=())))
            events[key] = events.get(key, (event, ""))[0], event
    for first, last in events.values():
        sessions.add((last == "delete") - (first == "delete"))
    if unreadable > len(file.hashes):
        raise UsageError(f"{file.path}: {unreadable:,} of its lines about sessions are cut off")
    if not file.hashes:
        raise UsageError(f"{file.path}: holds no session's usage: expected a log of coturn with -v")
    if sessions.is_mixed or (
        times.direction * sessions.direction < 0 and sessions.count >= SEVERAL
    ):
        raise UsageError(f"{file.path}: its lines are not in one order of time")
    # A single step back may be another start.
    direction = times.direction if times.count > 1 else 0
    direction = direction or sessions.direction
    file.is_newest_first = direction < 0 if direction else None
    if file.is_newest_first:
        file.hashes.reverse()
    _require_once(file)


def _add_hashes(file: _File, server: bytes, line: LogLine, unwrapped: Unwrapped) -> None:
    file.forms.add(unwrapped.form)
    file.hashes.append(hash((server, unwrapped.time, unwrapped.text)))
    if any(line.counters):
        file.usage_hashes.add(hash(line))
    if line.event in {"new", "delete"}:
        file.border_hashes.add(file.hashes[-1])
    # Seconds since the start may be the same after another start, then with other usage.
    if unwrapped.form not in {"bare", "uptime"} or any(line.counters):
        file.distinct_hashes.add(file.hashes[-1])


class _Order:
    """Counts which way a file goes."""

    def __init__(self) -> None:
        self._up = self._down = 0

    def add(self, step: int) -> None:
        """Count a step: positive upwards, negative downwards."""
        self._up += step > 0
        self._down += step < 0

    @property
    def count(self) -> int:
        """How many went one way or the other."""
        return self._up + self._down

    @property
    def direction(self) -> int:
        """1 for oldest first, -1 for newest first, 0 if that can't be seen."""
        return (self._up > self._down) - (self._up < self._down)

    @property
    def is_mixed(self) -> bool:
        """Whether it goes both ways, by more than a few."""
        low, high = sorted((self._up, self._down))
        return low >= SEVERAL and low * 3 > high


def _require_once(file: _File) -> None:
    """Refuse a file that is a log twice."""
    hashes, length = file.hashes, len(file.hashes)
    for start in _places_of(hashes[0], hashes[: length // 2 + 1]):
        if (
            start
            and hashes[start:] == hashes[: length - start]
            and not file.border_hashes.isdisjoint(hashes[:start])
        ):
            raise UsageError(f"{file.path}: repeats itself: expected each line once")


def _repeated_places(file: _File, earlier: Sequence[_File]) -> set[int]:
    """The places of lines that earlier files have too, at one end or as a whole.

    Where neither times nor sessions show which way a file goes, both ways are tried.
    """
    skipped: set[int] = set()
    for other in earlier:
        places = _shared_places(file, file.hashes, other.hashes)
        if None in (file.is_newest_first, other.is_newest_first):
            backwards = _shared_places(file, file.hashes, other.hashes[::-1])
            places = max(places, backwards, key=len)
        skipped |= places
    return skipped


def _shared_places(file: _File, ours: "array[int]", theirs: "array[int]") -> set[int]:
    shared: set[int] = set()
    for start in _places_of(ours[0], theirs):
        length = min(len(ours), len(theirs) - start)
        if theirs[start : start + length] == ours[:length]:
            shared.update(_credible(file, 0, length))
    for start in _places_of(theirs[0], ours):
        length = min(len(theirs), len(ours) - start)
        if ours[start : start + length] == theirs[:length]:
            shared.update(_credible(file, start, length))
    return shared


def _credible(file: _File, start: int, length: int) -> range:
    """Those places, unless they are lines without a time that may be alike by chance."""
    if file.forms == {"bare"} and length < len(file.hashes):
        return range(0)
    return range(start, start + length)


def _places_of(hash_: int, hashes: "array[int]") -> Iterator[int]:
    return (place for place, other in enumerate(hashes) if other == hash_)


def _require_apart(file: _File, earlier: Sequence[_File], skipped: set[int]) -> None:
    """Refuse what has lines of an earlier file, but is neither its continuation nor a copy."""
    kept = {hash_ for place, hash_ in enumerate(file.hashes) if place not in skipped}
    for other in earlier:
        if not kept.isdisjoint(other.distinct_hashes):
            raise UsageError(
                f"{file.path}: has lines of {other.path}, and neither goes on where the other "
                "ends: expected whole logs"
            )
        smaller, larger = sorted((file.usage_hashes, other.usage_hashes), key=len)
        if file.forms != other.forms and len(smaller & larger) * 2 > len(smaller):
            raise UsageError(
                f"{file.path}: has the lines of {other.path} in another form: expected each log "
                "once"
            )


def _kept_messages(file: _File, skipped: set[int]) -> Iterator[LogMessage]:
    """The second pass: the lines oldest first, without text where an earlier file has them."""
    oldest_first = (message for message, _ in _messages(file))
    place = 0
    for message in [*oldest_first][::-1] if file.is_newest_first else oldest_first:
        yield message._replace(line=None) if place in skipped else message
        place += message.line is not None
