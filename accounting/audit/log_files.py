"""Reads coturn's logs as they are kept: compressed, wrapped, newest first, in overlapping copies.

Each file is read twice: first for the order of its lines and for the lines that other files have
too, which are counted once. What can't be read rightly is refused in one line.
"""

import bz2
import gzip
import lzma
import shutil
import tempfile
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from os import SEEK_END
from pathlib import Path
from typing import IO, Any, Final, NamedTuple, cast

from accounting.audit.log_overlaps import (
    LineHashes,
    has_lines_of,
    is_in_another_form,
    repeated_places,
)
from accounting.domain.coturn_log import (
    LoggedSession,
    LogMessage,
    LogReader,
    read_message,
)
from accounting.domain.log_envelope import Unwrapped, unwrap
from accounting.errors import UsageError
from accounting.progress import Progress, no_progress

MAX_LINE_BYTES: Final = 1 << 20
LINES_PER_REPORT: Final = 10_000
"""Of progress."""
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


class _File(NamedTuple):
    """A log, and what the first pass found."""

    path: Path
    stream: IO[bytes]
    hashes: LineHashes
    on_read: Callable[[int], None]
    """Called from time to time with the position in the stream."""


def read_logs(paths: Sequence[Path], progress: Progress = no_progress) -> ReadLogs:
    """Read logs, in any order. Raises UsageError for one that can't be read or has no session."""
    reader = LogReader()
    files: list[_File] = []
    repeated_lines = 0
    with ExitStack() as opened:
        streams = [opened.enter_context(_open_seekable(path)) for path in paths]
        shown = _ReadProgress([stream.seek(0, SEEK_END) for stream in streams], progress)
        for path, stream in zip(paths, streams, strict=True):
            file = _File(path, stream, LineHashes(), shown.start(path))
            _look_through(file)
            files.append(file)
        for index, first_pass in enumerate(files):
            file = first_pass._replace(on_read=shown.start(first_pass.path))
            skipped = repeated_places(file.hashes, [other.hashes for other in files[:index]])
            _require_apart(file, files[:index], skipped)
            repeated_lines += len(skipped)
            reader.read(index, _kept_messages(file, skipped))
    return ReadLogs(list(reader.sessions()), repeated_lines)


class _ReadProgress:
    """Reports how much of the files is read; every one is read twice."""

    def __init__(self, sizes: Sequence[int], progress: Progress) -> None:
        self._sizes = [0, *sizes, *sizes]
        self._total_kilobytes = max(1, 2 * sum(sizes) // 1000)
        self._progress = progress
        self._before = 0

    def start(self, path: Path) -> Callable[[int], None]:
        """The callback for the next file, which takes a position in it."""
        self._before = before = self._before + self._sizes.pop(0)

        def report(position: int) -> None:
            self._progress(
                (before + position) / 1000,
                self._total_kilobytes,
                doing="reading kilobytes of logs",
                detail=path.name,
            )

        report(0)
        return report


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
            if number % LINES_PER_REPORT == 0:
                file.on_read(file.stream.tell())
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
        file.hashes.add(message.server, message.line, unwrapped)
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
    if unreadable > len(file.hashes.lines):
        raise UsageError(f"{file.path}: {unreadable:,} of its lines about sessions are cut off")
    if not file.hashes.lines:
        raise UsageError(f"{file.path}: holds no session's usage: expected a log of coturn with -v")
    if sessions.is_mixed or (
        times.direction * sessions.direction < 0 and sessions.count >= SEVERAL
    ):
        raise UsageError(f"{file.path}: its lines are not in one order of time")
    # A single step back may be another start.
    direction = times.direction if times.count > 1 else 0
    direction = direction or sessions.direction
    file.hashes.set_order(is_newest_first=direction < 0 if direction else None)
    if file.hashes.is_repeated:
        raise UsageError(f"{file.path}: repeats itself: expected each line once")


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


def _require_apart(file: _File, earlier: Sequence[_File], skipped: set[int]) -> None:
    """Refuse what has lines of an earlier file, but is neither its continuation nor a copy."""
    for other in earlier:
        if has_lines_of(file.hashes, other.hashes, skipped):
            raise UsageError(
                f"{file.path}: has lines of {other.path}, and neither goes on where the other "
                "ends: expected whole logs"
            )
        if is_in_another_form(file.hashes, other.hashes):
            raise UsageError(
                f"{file.path}: has the lines of {other.path} in another form: expected each log "
                "once"
            )


def _kept_messages(file: _File, skipped: set[int]) -> Iterator[LogMessage]:
    """The second pass: the lines oldest first, without text where an earlier file has them."""
    oldest_first = (message for message, _ in _messages(file))
    place = 0
    for message in [*oldest_first][::-1] if file.hashes.is_newest_first else oldest_first:
        yield message._replace(line=None) if place in skipped else message
        place += message.line is not None
