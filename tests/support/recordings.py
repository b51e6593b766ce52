r"""Reads ``tests/data/recordings/*.monitor``: the output of MONITOR while real coturn servers ran.

Each line has one command with its time, database and connection; its arguments have the escapes of
Redis' ``sdscatrepr`` (\\, \", \n, \r, \t, \a, \b, \xNN).
"""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Final, NamedTuple

from tests.support.books import Books

DIRECTORY: Final = Path(__file__).parents[1] / "data" / "recordings"

_LINE: Final = re.compile(rb'(\d+)\.(\d{6}) \[(\d+) ([^]]+)\] (".*")', re.DOTALL)
_ARGUMENT: Final = re.compile(rb'"((?:[^"\\]|\\.)*)"(?: |$)', re.DOTALL)
_ESCAPE: Final = re.compile(rb"\\(x[0-9a-f]{2}|.)", re.DOTALL)
_SHORT: Final = {
    b"\\": b"\\",
    b'"': b'"',
    b"n": b"\n",
    b"r": b"\r",
    b"t": b"\t",
    b"a": b"\a",
    b"b": b"\b",
}
_OTHER_OUTPUT: Final = (b"OK", b"Error: Server closed the connection")
"""Lines of redis-cli that are not commands."""


class RecordedCommand(NamedTuple):
    """One command that the server received; ``command`` is in lower case."""

    time_us: int
    connection: str
    database: int
    command: str
    args: tuple[bytes, ...]


def recorded_commands(name: str) -> list[RecordedCommand]:
    """The commands of one recording, such as `lifecycle-4.6.1`, in order."""
    return list(parse_monitor((DIRECTORY / f"{name}.monitor").read_bytes()))


def recording_names() -> list[str]:
    """The names of all recordings; there must be some."""
    names = sorted(path.stem for path in DIRECTORY.glob("*.monitor"))
    assert names, f"{DIRECTORY} has no recordings"
    return names


def parse_monitor(text: bytes) -> Iterator[RecordedCommand]:
    """Read what `redis-cli monitor` printed; ValueError at any other line."""
    for number, line in enumerate(text.split(b"\n"), start=1):
        if not line.strip() or line.strip() in _OTHER_OUTPUT:
            continue
        match = _LINE.fullmatch(line)
        if match is None:
            raise ValueError(f"line {number} is not a command: {line!r}")
        seconds, micros, database, connection, words = match.groups()
        command, *args = parse_arguments(words)
        yield RecordedCommand(
            int(seconds) * 1_000_000 + int(micros),
            connection.decode(),
            int(database),
            command.decode().lower(),
            tuple(args),
        )


def parse_arguments(words: bytes) -> list[bytes]:
    """Quoted arguments, unescaped; ValueError for anything else between them."""
    parsed, end = [], 0
    while end < len(words):
        argument = _ARGUMENT.match(words, end)
        if argument is None:
            raise ValueError(f"not a quoted argument: {words[end:]!r}")
        parsed.append(_ESCAPE.sub(_unescape, argument[1]))
        end = argument.end()
    return parsed


def _unescape(escape: re.Match[bytes]) -> bytes:
    code = escape[1]
    if len(code) == 3:
        return bytes([int(code[1:], 16)])
    if code not in _SHORT:
        raise ValueError(f"Redis prints no escape {escape[0]!r}")
    return _SHORT[code]


def allocation_messages(name: str) -> list[RecordedCommand]:
    """The commands that published a message of an allocation."""
    return [
        line
        for line in recorded_commands(name)
        if line.command == "publish" and line.args[0].startswith(b"turn/")
    ]


def receive_recording(books: Books, name: str) -> int:
    """Receive all messages of a recording and run the jobs; returns their number."""
    messages = [(line.time_us, 0, line.args[0], line.args[1]) for line in allocation_messages(name)]
    books.receive_all(messages)
    books.spool().checkpoint(messages[-1][0] + 1)
    books.run_jobs()
    return len(messages)
