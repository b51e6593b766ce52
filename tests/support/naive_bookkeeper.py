"""A second, naive implementation of docs/session-rules.md, to compare the simulator with.

It parses published messages with its own regular expressions, holds the whole stream in memory,
and shares no code with the simulator or the service. It leaves out expiry, which changes no counter
of a simulated session.
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Final

from accounting.simulator import Command, Expected

CHANNEL: Final = re.compile(
    rb"turn/(?:realm/(?P<realm>.*?)/)?user/(?P<user>.*)/allocation/(?P<id>\d{18})"
    rb"/(?P<suffix>status|traffic|traffic/peer|total_traffic|total_traffic/peer)",
    re.DOTALL,
)
COUNTS: Final = re.compile(rb"rcvp=(\d+), rcvb=(\d+), sentp=(\d+), sentb=(\d+)")
LOCAL: Final = re.compile(rb", local=([^,]+)")


@dataclass
class NaiveSession:
    """One session of one key."""

    local: bytes | None = None
    new_count: int = 0
    deleted_count: int = 0
    confirmed: bool = False
    interims: list[int] = field(default_factory=lambda: [0] * 8)
    total: list[int] | None = None
    peer_total: list[int] | None = None
    interim_packets: list[int] = field(default_factory=list)

    def usage(self) -> list[int]:
        if self.total is None:
            return self.interims
        if self.total == self.interims[:4]:
            return self.interims
        assert all(t >= i for t, i in zip(self.total, self.interims, strict=False))
        peer = self.interims[4:]
        if self.peer_total is not None:
            pairs = zip(peer, self.peer_total, strict=True)
            peer = [had + (total - had) % 2**32 for had, total in pairs]
        return self.total + peer

    @property
    def estimated(self) -> bool:
        return self.total is not None and self.total != self.interims[:4]


Key = tuple[int, bytes, bytes, bytes]


def naive_sessions(commands: Iterable[Command]) -> dict[Key, list[NaiveSession]]:
    """All sessions by (database, realm, username, allocation id)."""
    sessions: dict[Key, list[NaiveSession]] = {}
    for command in commands:
        if command.name != b"publish" or command.args[0] == b"__XXX__":
            continue
        channel, payload = command.args
        match = CHANNEL.fullmatch(channel)
        assert match is not None, channel
        key = (command.database, match["realm"] or b"", match["user"], match["id"])
        _apply_message(sessions.setdefault(key, []), match["suffix"], payload)
    return sessions


def _apply_message(sessions: list[NaiveSession], suffix: bytes, payload: bytes) -> None:
    session = sessions[-1] if sessions else None
    if suffix == b"status" and payload.startswith(b"new "):
        local = LOCAL.search(payload)
        address = local[1] if local else None
        shared = (
            session is not None
            and session.new_count > session.deleted_count
            and session.local != address
        )
        if session is None or not shared:
            session = NaiveSession(local=address)
            sessions.append(session)
        session.new_count += 1
        session.confirmed = True
    elif suffix == b"status":
        assert session is not None
        session.confirmed = True
        session.deleted_count += payload == b"deleted"
    else:
        match = COUNTS.fullmatch(payload)
        assert match is not None, payload
        _apply_traffic(sessions, session, suffix, [int(count) for count in match.groups()])


def _apply_traffic(
    sessions: list[NaiveSession], session: NaiveSession | None, suffix: bytes, counts: list[int]
) -> None:
    total = suffix.startswith(b"total_")
    if session is None or (not total and session.deleted_count >= max(session.new_count, 1)):
        session = NaiveSession()
        sessions.append(session)
    if not total:
        first = 4 if suffix.endswith(b"/peer") else 0
        for index, count in enumerate(counts, start=first):
            session.interims[index] += count
        packets = counts[0] + counts[2]
        if first and session.interim_packets:
            session.interim_packets[-1] += packets
        else:
            session.interim_packets.append(packets)
        return
    session.confirmed = True
    if suffix.endswith(b"/peer"):
        session.peer_total = [
            a + b for a, b in zip(session.peer_total or [0] * 4, counts, strict=True)
        ]
    else:
        session.total = [a + b for a, b in zip(session.total or [0] * 4, counts, strict=True)]


def expected_figures(expected: Expected) -> dict[tuple[bytes, bytes], list[int]]:
    """The oracle's figures by (realm, username).

    Sessions, those estimated, their bytes, those disputed, eight counters, eight unattributed.
    """
    return {
        (user.realm, user.username): [
            user.sessions,
            user.sessions_estimated,
            user.estimated_bytes,
            user.sessions_disputed,
            *user.usage,
            *user.unattributed,
        ]
        for user in expected.users
    }


def naive_figures(commands: list[Command]) -> dict[tuple[bytes, bytes], list[int]]:
    """The same figures, computed from the published messages."""
    figures: dict[tuple[bytes, bytes], list[int]] = {}
    for (_, realm, username, _), sessions in naive_sessions(commands).items():
        sums = figures.setdefault((realm, username), [0] * 20)
        for session in sessions:
            _add_session(sums, session)
    return figures


def _add_session(sums: list[int], session: NaiveSession) -> None:
    usage = session.usage()
    if not session.confirmed:
        sums[12:] = [a + b for a, b in zip(sums[12:], usage, strict=True)]
        return
    sums[0] += 1
    sums[1] += session.estimated
    sums[2] += (usage[1] + usage[3]) if session.estimated else 0
    sums[3] += session.new_count > 1
    sums[4:12] = [a + b for a, b in zip(sums[4:12], usage, strict=True)]
