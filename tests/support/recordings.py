r"""What MONITOR printed while real coturn servers ran, read back to the exact bytes.

Owns the reading of `tests/data/recordings/*.monitor`: one command a line, with its time, database
and connection; arguments in Redis' escapes (`sdscatrepr`: \\, \", \n, \r, \t, \a, \b, \xNN).
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
_CHATTER: Final = (b"OK", b"Error: Server closed the connection")
"""What redis-cli printed around the commands."""


class Recorded(NamedTuple):
    """One command as the server saw it; `command` in lower case, as coturn's are but for SELECT."""

    time_us: int
    connection: str
    database: int
    command: str
    args: tuple[bytes, ...]


def recorded(name: str) -> list[Recorded]:
    """The commands of one recording, such as `lifecycle-4.6.1`, in order."""
    return list(read((DIRECTORY / f"{name}.monitor").read_bytes()))


def recordings() -> list[str]:
    """The names of all recordings."""
    return sorted(path.stem for path in DIRECTORY.glob("*.monitor"))


def read(text: bytes) -> Iterator[Recorded]:
    """Read what `redis-cli monitor` printed; ValueError at a line that it would not print."""
    for number, line in enumerate(text.split(b"\n"), start=1):
        if not line.strip() or line.strip() in _CHATTER:
            continue
        found = _LINE.fullmatch(line)
        if found is None:
            raise ValueError(f"line {number} is not a command: {line!r}")
        seconds, micros, database, connection, words = found.groups()
        command, *args = arguments(words)
        yield Recorded(
            int(seconds) * 1_000_000 + int(micros),
            connection.decode(),
            int(database),
            command.decode().lower(),
            tuple(args),
        )


def arguments(words: bytes) -> list[bytes]:
    """Quoted arguments, unescaped; ValueError when anything else stands between them."""
    found, end = [], 0
    while end < len(words):
        argument = _ARGUMENT.match(words, end)
        if argument is None:
            raise ValueError(f"not a quoted argument: {words[end:]!r}")
        found.append(_ESCAPE.sub(_unescape, argument[1]))
        end = argument.end()
    return found


def _unescape(escape: re.Match[bytes]) -> bytes:
    code = escape[1]
    if len(code) == 3:
        return bytes([int(code[1:], 16)])
    if code not in _SHORT:
        raise ValueError(f"Redis prints no escape {escape[0]!r}")
    return _SHORT[code]


def allocation_messages(name: str) -> list[Recorded]:
    """The messages that a subscriber to allocations would have got."""
    return [
        line
        for line in recorded(name)
        if line.command == "publish" and line.args[0].startswith(b"turn/")
    ]


def receive_recording(books: Books, name: str) -> int:
    """Put all messages of a recording through the path; returns how many."""
    messages = [(line.time_us, 0, line.args[0], line.args[1]) for line in allocation_messages(name)]
    books.receive_all(messages)
    books.spool().checkpoint(messages[-1][0] + 1)
    books.run_jobs()
    return len(messages)
