"""What log collectors wrap around coturn's lines: JSON, syslog prefixes, colours.

A line is unwrapped to coturn's own text and the server that wrote it, as far as the wrapping names
one: two servers in one file may use the same allocation ids.
"""

import json
import re
from typing import Any, Final, NamedTuple

_LINE_START: Final = re.compile(rb"\A[\x1e\s]*(?:\xef\xbb\xbf)?")
_SYSLOG_PRIORITY: Final = re.compile(rb"\A<\d{1,3}>")
# rsyslog writes the escape character as #033.
_LINE_END: Final = re.compile(rb"(?:\s|(?:\x1b|#033)\[[0-9;]*[mK]|#015)+\Z")
# "host program[pid]: ", "host program pid - - " of RFC 5424, "container-1  | "
_SERVER: Final = re.compile(rb"(\S+) [^\s<>\[]+(?:\[(\d+)\]:| (\d+) \S+ -)(?: |\Z)|\A(\S+) +\| ")
_SERVER_SIGN: Final = re.compile(rb"\]: | - | \| ")
_CLOCK_TIME: Final = re.compile(rb"\d\d:\d\d:\d\d(?:[.,]\d+)?")
_UPTIME: Final = re.compile(rb"(?:\A| )(\d{1,10}): ")
_TEXT_FIELDS: Final = ("MESSAGE", "log", "message", "msg", "line", "textPayload")
_TIME_FIELDS: Final = ("__REALTIME_TIMESTAMP", "time", "timestamp", "@timestamp")
_TAIL_BYTES: Final = 100
_PREFIX_BYTES: Final = 300


class Unwrapped(NamedTuple):
    """A line of coturn. ``form``: what it was wrapped in, or its own prefix.

    ``time``: a text that grows with time, except at midnight or at a restart; empty if there is
    none. With form ``uptime`` it may be the same after another start.
    """

    server: bytes
    text: bytes
    form: str
    time: bytes


def unwrap(line: bytes) -> Unwrapped:
    """Unwrap a line of a log; one of an unknown form is returned as it is."""
    start = _LINE_START.match(line)
    line = line[start.end() if start else 0 :]
    if line.startswith(b"{"):
        unwrapped = _unwrap_json(line)
        if unwrapped is not None:
            return unwrapped
    text = _strip_end(_SYSLOG_PRIORITY.sub(b"", line))
    prefix = text[:_PREFIX_BYTES].partition(b"session ")[0]
    match = _SERVER.search(prefix) if _SERVER_SIGN.search(prefix) else None
    server = b"" if match is None else b" ".join(filter(None, match.groups()))
    clock, uptime = _CLOCK_TIME.search(prefix), _UPTIME.search(prefix)
    if clock is not None:
        return Unwrapped(server, text, "syslog" if server else "time", clock[0])
    if uptime is not None:
        return Unwrapped(server, text, "uptime", uptime[1].rjust(10, b"0"))
    return Unwrapped(server, text, "bare", b"")


def _unwrap_json(line: bytes) -> Unwrapped | None:
    try:
        fields: Any = json.loads(line)
    except (ValueError, RecursionError):
        return None
    if not isinstance(fields, dict):
        return None
    texts = ((name, _field_bytes(fields.get(name))) for name in _TEXT_FIELDS)
    name, text = next((field for field in texts if field[1] is not None), ("", None))
    if text is None:
        return None
    inner = unwrap(text) if not text.startswith(b"{") else Unwrapped(b"", text, "", b"")
    names = (_field_bytes(fields.get(name)) for name in ("_HOSTNAME", "_BOOT_ID", "_PID"))
    server = b" ".join(filter(None, names))
    times = (_field_bytes(fields.get(name)) for name in _TIME_FIELDS)
    time = next(filter(None, times), b"")
    form = f"json {name}" if time else inner.form
    return Unwrapped(server or inner.server, inner.text, form, time or inner.time)


def _field_bytes(value: Any) -> bytes | None:
    """A field's bytes: journald writes a message that isn't text as a list of numbers."""
    if isinstance(value, str):
        return value.encode("utf-8", "surrogatepass")
    if isinstance(value, list) and all(
        isinstance(number, int) and 0 <= number < 256 for number in value
    ):
        return bytes(value)
    return None


def _strip_end(text: bytes) -> bytes:
    """Remove line ends and colour codes from the end, without searching the whole text."""
    text = text.rstrip()
    if not text.endswith((b"m", b"K", b"#015")):
        return text
    tail = text[-_TAIL_BYTES:]
    match = _LINE_END.search(tail)
    return text if match is None else text[: len(text) - len(tail) + match.start()]
