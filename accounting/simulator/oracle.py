"""What the books must show after a run. Owns the exact totals; never reads a message.

The ledger is told what each life truly relayed and which of its reports were published, and
applies docs/session-rules.md to that; the books come to the same from the messages alone.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Final

from accounting.domain.counters import COUNTERS
from accounting.domain.text_escaping import escape
from accounting.simulator.population import Identity

Eight = tuple[int, int, int, int, int, int, int, int]
"""The eight counters in the order of :data:`COUNTERS`."""

ZERO: Final[Eight] = (0, 0, 0, 0, 0, 0, 0, 0)
KINDS: Final = (
    "new",
    "refreshed",
    "deleted",
    "traffic",
    "traffic/peer",
    "total_traffic",
    "total_traffic/peer",
)


def plus(left: Sequence[int], right: Sequence[int]) -> Eight:
    """Add counter by counter."""
    a, b, c, d, e, f, g, h = (x + y for x, y in zip(left, right, strict=True))
    return (a, b, c, d, e, f, g, h)


@dataclass(frozen=True, slots=True, kw_only=True)
class UserExpected:
    """What one username of one realm must come to."""

    realm: bytes
    username: bytes
    user_id: bytes
    """Whom to bill (docs/session-rules.md#user-id), under the rule where none was set."""
    sessions: int = 0
    """Lives that a status or a total vouches for."""
    usage: Eight = ZERO
    """Billed, in the order of :data:`COUNTERS`; packets and bytes."""
    sessions_estimated: int = 0
    estimated_bytes: int = 0
    """Received and sent bytes of the estimated sessions."""
    sessions_disputed: int = 0
    unattributed: Eight = ZERO
    """Published under this name, and never confirmed for."""

    def as_dict(self) -> dict[str, object]:
        """JSON-able, names spelled as the database spells them."""
        return {
            "realm": escape(self.realm),
            "username": escape(self.username),
            "user_id": escape(self.user_id),
            "sessions": self.sessions,
            **dict(zip(COUNTERS, self.usage, strict=True)),
            "sessions_estimated": self.sessions_estimated,
            "estimated_bytes": self.estimated_bytes,
            "sessions_disputed": self.sessions_disputed,
            "unattributed": dict(zip(COUNTERS, self.unattributed, strict=True)),
        }

    def __add__(self, other: "UserExpected") -> "UserExpected":
        return replace(
            self,
            sessions=self.sessions + other.sessions,
            usage=plus(self.usage, other.usage),
            sessions_estimated=self.sessions_estimated + other.sessions_estimated,
            estimated_bytes=self.estimated_bytes + other.estimated_bytes,
            sessions_disputed=self.sessions_disputed + other.sessions_disputed,
            unattributed=plus(self.unattributed, other.unattributed),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Expected:
    """What a run published and what the books must come to, exactly."""

    messages: dict[str, int]
    """Published messages of allocations by kind, of :data:`KINDS`."""
    keepalives: int
    users: tuple[UserExpected, ...]
    """One for each realm and username on the wire, sorted."""
    never_published: Eight
    """Relayed, but lost with a killed server or with messages that nothing made good."""

    @property
    def published(self) -> int:
        """Messages that both channel patterns of capture match together."""
        return sum(self.messages.values())

    @property
    def total(self) -> UserExpected:
        """The sum over all users, under empty names."""
        return sum(self.users, start=UserExpected(realm=b"", username=b"", user_id=b""))

    def by_user_id(self) -> dict[tuple[bytes, bytes], UserExpected]:
        """By (realm, user_id): the usernames of TURN REST put together under the user."""
        people: dict[tuple[bytes, bytes], UserExpected] = {}
        for user in self.users:
            key = (user.realm, user.user_id)
            nobody = UserExpected(realm=user.realm, username=user.user_id, user_id=user.user_id)
            people[key] = people.get(key, nobody) + user
        return people

    def by_realm(self) -> dict[bytes, UserExpected]:
        """By realm, under empty usernames."""
        realms: dict[bytes, UserExpected] = {}
        for user in self.users:
            empty = UserExpected(realm=user.realm, username=b"", user_id=b"")
            realms[user.realm] = realms.get(user.realm, empty) + user
        return realms

    def as_dict(self) -> dict[str, object]:
        """JSON-able."""
        total = self.total.as_dict()
        for name in ("realm", "username", "user_id"):
            del total[name]
        return {
            "published": self.published,
            "messages": dict(self.messages),
            "keepalives": self.keepalives,
            **total,
            "never_published": dict(zip(COUNTERS, self.never_published, strict=True)),
            "users": [user.as_dict() for user in self.users],
        }


@dataclass(slots=True)
class _Line:
    """A user's figures while the run goes on."""

    sessions: int = 0
    usage: list[int] = field(default_factory=lambda: [0] * 8)
    sessions_estimated: int = 0
    estimated_bytes: int = 0
    sessions_disputed: int = 0
    unattributed: list[int] = field(default_factory=lambda: [0] * 8)


class Ledger:
    """Collects what was published and what each life is worth."""

    def __init__(self) -> None:
        self.messages = dict.fromkeys(KINDS, 0)
        self.keepalives = 0
        self.sessions_started = 0
        self._lines: dict[Identity, _Line] = {}
        self._never_published = [0] * 8

    @property
    def published(self) -> int:
        return sum(self.messages.values())

    def settle(
        self,
        identity: Identity,
        relayed: Sequence[int],
        reported: Sequence[int],
        *,
        totalled: bool,
        session: bool = True,
    ) -> None:
        """Enter a life that is over: what it relayed, what its interims said, whether totals came.

        Client side: the total where it came, else the interims. Peer side: the interims, and the
        total only where interims were seen to be missing. ``session`` is false for the second
        half of a life that two servers share.
        """
        line = self._line(identity)
        missed = totalled and any(relayed[place] > reported[place] for place in range(4))
        for place in range(8):
            billed = relayed[place] if missed or (totalled and place < 4) else reported[place]
            line.usage[place] += billed
            self._never_published[place] += relayed[place] - billed
        if missed:
            line.sessions_estimated += 1
            line.estimated_bytes += relayed[1] + relayed[3]
        if session:
            line.sessions += 1

    def dispute(self, identity: Identity) -> None:
        """Two servers were seen on one key of this user."""
        self._line(identity).sessions_disputed += 1

    def stray(self, identity: Identity, reported: Sequence[int]) -> None:
        """Enter traffic that nothing vouches for."""
        line = self._line(identity)
        for place in range(8):
            line.unattributed[place] += reported[place]

    def expected(self) -> Expected:
        return Expected(
            messages=dict(self.messages),
            keepalives=self.keepalives,
            users=tuple(self._users()),
            never_published=plus(self._never_published, ZERO),
        )

    def _line(self, identity: Identity) -> _Line:
        line = self._lines.get(identity)
        if line is None:
            line = self._lines[identity] = _Line()
        return line

    def _users(self) -> Iterator[UserExpected]:
        for identity, line in sorted(self._lines.items()):
            yield UserExpected(
                realm=identity.realm,
                username=identity.username,
                user_id=identity.user_id,
                sessions=line.sessions,
                usage=plus(line.usage, ZERO),
                sessions_estimated=line.sessions_estimated,
                estimated_bytes=line.estimated_bytes,
                sessions_disputed=line.sessions_disputed,
                unattributed=plus(line.unattributed, ZERO),
            )
