"""Usage from coturn's own log, to compare the books with.

With ``-v`` coturn logs the counters of a session whenever it publishes them. The prefix of a line
differs by version (``533: : session`` in 4.6, time and level in 4.17); the rest is the same. This
module shares no code with the package that it checks.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Final, NamedTuple

# A username may contain the end of such a line, so the counters are matched at the end.
_USAGE: Final = re.compile(
    rb"(?:^|\s)session (?P<id>\d+): (?P<peer>peer )?usage: realm=<(?P<realm>.*?)>, "
    rb"username=<(?P<username>.*)>, rp=(\d+), rb=(\d+), sp=(\d+), sb=(\d+)\s*$",
    re.DOTALL,
)
_BEGINNING: Final = re.compile(
    rb"(?:^|\s)session (?P<id>\d+): new, realm=<(?P<realm>.*?)>, "
    rb"username=<(?P<username>.*)>, lifetime=\d+",
    re.DOTALL,
)
_DELETION: Final = re.compile(
    rb"(?:^|\s)session (?P<id>\d+): delete: realm=<(?P<realm>.*?)>, username=<(?P<username>.*)>",
    re.DOTALL,
)


class LoggedKey(NamedTuple):
    """Identifies a session of one server process, as its channel does on the wire."""

    realm: bytes
    username: bytes
    allocation_id: str


@dataclass(slots=True, kw_only=True)
class LoggedUsage:
    """The sums of a session's log lines; ``began`` and ``deleted`` count its lines of that kind.

    A session with ``began`` = 0 never authenticated.
    """

    received_packets: int = 0
    received_bytes: int = 0
    sent_packets: int = 0
    sent_bytes: int = 0
    peer_received_packets: int = 0
    peer_received_bytes: int = 0
    peer_sent_packets: int = 0
    peer_sent_bytes: int = 0
    began: int = 0
    deleted: int = 0

    def counters(self) -> tuple[int, ...]:
        """The eight counters in the order of their fields."""
        return tuple(getattr(self, field.name) for field in fields(self)[:8])


def coturn_log_usage(text: bytes | str) -> dict[LoggedKey, LoggedUsage]:
    """The usage of every session in the log of one server process, unauthenticated ones too."""
    log = text.encode("utf-8", "surrogateescape") if isinstance(text, str) else text
    usage: dict[LoggedKey, LoggedUsage] = {}

    def session(match: re.Match[bytes]) -> LoggedUsage:
        key = LoggedKey(match["realm"], match["username"], match["id"].decode())
        return usage.setdefault(key, LoggedUsage())

    for line in log.split(b"\n"):
        if match := _USAGE.search(line):
            _add(session(match), match)
        elif match := _BEGINNING.search(line):
            session(match).began += 1
        elif match := _DELETION.search(line):
            session(match).deleted += 1
    return usage


def _add(usage: LoggedUsage, match: re.Match[bytes]) -> None:
    packets_in, bytes_in, packets_out, bytes_out = (int(n) for n in match.groups()[-4:])
    if match["peer"]:
        usage.peer_received_packets += packets_in
        usage.peer_received_bytes += bytes_in
        usage.peer_sent_packets += packets_out
        usage.peer_sent_bytes += bytes_out
    else:
        usage.received_packets += packets_in
        usage.received_bytes += bytes_in
        usage.sent_packets += packets_out
        usage.sent_bytes += bytes_out


def usage_per_user(
    usage: Mapping[LoggedKey, LoggedUsage],
) -> dict[tuple[bytes, bytes], tuple[int, ...]]:
    """The eight counters by realm and username, over the sessions that began."""
    sums: dict[tuple[bytes, bytes], tuple[int, ...]] = {}
    for key, session in usage.items():
        if session.began:
            before = sums.get((key.realm, key.username), (0,) * 8)
            after = tuple(a + b for a, b in zip(before, session.counters(), strict=True))
            sums[key.realm, key.username] = after
    return sums
