"""The messages that all benchmarks use, in the mix that coturn would publish.

A constant number of sessions is open. One after the other ends and a session of the next user
replaces it. A session has eight messages (new, refreshed, refreshed lifetime=0, traffic and
traffic/peer, deleted, total_traffic and total_traffic/peer); for three messages of sessions there
is one interim of an open session, client and peer side in turn.

The same arguments give the same messages. All reports of a side have the same counters, so that
the number of reports gives the sums.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Final

REALMS: Final = (b"example.org", b"example.net", b"example.com")
CLIENT: Final = (2100, 1_890_017, 1996, 1_756_481)
PEER: Final = (1997, 1_740_513, 2099, 1_873_217)
"""Received packets and bytes, sent packets and bytes of each traffic report."""
MESSAGES_PER_SESSION: Final = 8
GROUP_SESSIONS: Final = 3
GROUP_INTERIMS: Final = 4  # pairs: client and peer
GROUP_MESSAGES: Final = GROUP_SESSIONS * MESSAGES_PER_SESSION + 2 * GROUP_INTERIMS
RELAY_THREADS: Final = 16
TRANSPORTS: Final = (b"UDP", b"TCP", b"TLS")
STRIDE: Final = 7919  # prime: interims visit the open sessions in another order than their start

Message = tuple[bytes, bytes]


def traffic_payload(once: Sequence[int], times: int) -> bytes:
    return b"rcvp=%d, rcvb=%d, sentp=%d, sentb=%d" % tuple(count * times for count in once)


@dataclass(slots=True)
class Workload:
    """Endless messages in groups, with the counts so far.

    ``lifetime_seconds``: of each new and refreshed; it must be longer than half a session lasts at
    the rate of publishing. ``servers``: of several, the next one has the next transport.
    """

    open_sessions: int
    users: int
    realms: Sequence[bytes] = REALMS
    lifetime_seconds: int = 600
    servers: int = 1
    started: int = 0
    ended: int = 0
    reports: int = 0
    messages: int = 0
    _next: int = 0
    _interim: int = 0
    _prefixes: list[bytes] = field(init=False, repr=False)
    _heads: list[bytes] = field(init=False, repr=False)
    _pairs: list[int] = field(init=False, repr=False)
    _new: list[bytes] = field(init=False, repr=False)
    _refreshed: list[bytes] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        self._prefixes = [
            b"turn/realm/%b/user/%d:user%06d/allocation/"
            % (self.realms[user % len(self.realms)], 1_999_999_999, user)
            for user in range(self.users)
        ]
        self._heads = [b""] * self.open_sessions  # the channel prefix of each open session
        self._pairs = [0] * self.open_sessions
        statuses = [
            b" lifetime=%d, type=%b, local=192.0.2.%d:3478, remote=198.51.100.7:50000, ssl=NONE,"
            b" cipher=NONE" % (self.lifetime_seconds, TRANSPORTS[number % 3], 1 + number)
            for number in range(self.servers)
        ]
        self._new = [b"new%b" % status for status in statuses]
        self._refreshed = [b"refreshed%b" % status for status in statuses]

    def describe(self) -> str:
        return (
            f"{self.open_sessions:,} open sessions of {self.users:,} users in"
            f" {len(self.realms)} realms; whole sessions (new, refresh, refresh 0, traffic x2,"
            " deleted, total x2) and interims of open sessions, three to one"
        )

    def open(self) -> Iterator[list[Message]]:
        """Start all sessions that are to be open."""
        for first in range(0, self.open_sessions, GROUP_MESSAGES):
            group = [
                self._begin(slot)
                for slot in range(first, min(first + GROUP_MESSAGES, self.open_sessions))
            ]
            self.messages += len(group)
            yield group

    def churn(self) -> Iterator[list[Message]]:
        """Replace sessions, with interims between: endless groups of GROUP_MESSAGES."""
        size, half = self.open_sessions, self.open_sessions // 2
        while True:
            group: list[Message] = []
            for _ in range(GROUP_SESSIONS):
                slot = self._next
                self._next = (slot + 1) % size
                group += self._end(slot)
                group.append(self._begin(slot))
                middle = (slot + half) % size
                group.append(
                    (self._heads[middle] + b"status", self._refreshed[middle % self.servers])
                )
            for _ in range(GROUP_INTERIMS):
                slot = self._interim
                self._interim = (slot + STRIDE) % size
                group += self._traffic(slot)
            self.messages += GROUP_MESSAGES
            yield group

    def close(self) -> Iterator[list[Message]]:
        """End all open sessions."""
        for slot in range(self.open_sessions):
            group = self._end(slot)
            self.messages += len(group)
            yield group

    @property
    def open_now(self) -> int:
        return self.started - self.ended

    def expected(self) -> dict[str, int]:
        """The sums that the books must have: eight counters, sessions started and ended."""
        names = ("packets", "bytes")
        sums = {
            f"{side}{way}_{name}": once[2 * place + index] * self.reports
            for side, once in (("", CLIENT), ("peer_", PEER))
            for place, way in enumerate(("received", "sent"))
            for index, name in enumerate(names)
        }
        return {**sums, "sessions_started": self.started, "sessions_ended": self.ended}

    def _begin(self, slot: int) -> Message:
        prefix = self._prefixes[self.started % self.users]
        self.started += 1
        number = slot % RELAY_THREADS * 10**15 + self.started
        head = self._heads[slot] = b"%b%018d/" % (prefix, number)
        self._pairs[slot] = 0
        return head + b"status", self._new[slot % self.servers]

    def _traffic(self, slot: int) -> list[Message]:
        self.reports += 1
        self._pairs[slot] += 1
        head = self._heads[slot]
        return [(head + b"traffic", _CLIENT_ONCE), (head + b"traffic/peer", _PEER_ONCE)]

    def _end(self, slot: int) -> list[Message]:
        self.ended += 1
        head = self._heads[slot]
        traffic = self._traffic(slot)
        pairs = self._pairs[slot]
        return [
            (head + b"status", b"refreshed lifetime=0"),
            *traffic,
            (head + b"status", b"deleted"),
            (head + b"total_traffic", traffic_payload(CLIENT, pairs)),
            (head + b"total_traffic/peer", traffic_payload(PEER, pairs)),
        ]


_CLIENT_ONCE: Final = traffic_payload(CLIENT, 1)
_PEER_ONCE: Final = traffic_payload(PEER, 1)
