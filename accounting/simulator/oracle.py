"""Computes what the books must show after a run, without reading the messages.

The ledger gets what each allocation relayed and which of its reports were published, and applies
docs/session-rules.md to them. The books must compute the same totals from the messages alone.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from operator import add
from typing import Final

from accounting.domain.counters import COUNTERS
from accounting.domain.text_escaping import escape
from accounting.simulator.population import SimulatedUser

Counters = tuple[int, int, int, int, int, int, int, int]
"""The eight counters in the order of :data:`COUNTERS`."""

ZERO_COUNTERS: Final[Counters] = (0, 0, 0, 0, 0, 0, 0, 0)
MESSAGE_KINDS: Final = (
    "new",
    "refreshed",
    "deleted",
    "traffic",
    "traffic/peer",
    "total_traffic",
    "total_traffic/peer",
)


def add_counters(left: Sequence[int], right: Sequence[int]) -> Counters:
    """Add counter by counter."""
    a, b, c, d, e, f, g, h = map(add, left, right)
    return (a, b, c, d, e, f, g, h)


@dataclass(frozen=True, slots=True, kw_only=True)
class ExpectedUser:
    """The totals that the books must show for one username of one realm."""

    realm: bytes
    username: bytes
    user_id: bytes
    """The user to bill by the default rule (docs/session-rules.md#user-id)."""
    sessions: int = 0
    """Confirmed sessions: those with a status or a total."""
    usage: Counters = ZERO_COUNTERS
    """The billed traffic, in the order of :data:`COUNTERS`."""
    sessions_estimated: int = 0
    estimated_bytes: int = 0
    """Received and sent bytes of the estimated sessions."""
    sessions_disputed: int = 0
    unattributed: Counters = ZERO_COUNTERS
    """The traffic published under this username and never confirmed."""

    def as_dict(self) -> dict[str, object]:
        """As a JSON object, with the names as they are in the database."""
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

    def __add__(self, other: "ExpectedUser") -> "ExpectedUser":
        return replace(
            self,
            sessions=self.sessions + other.sessions,
            usage=add_counters(self.usage, other.usage),
            sessions_estimated=self.sessions_estimated + other.sessions_estimated,
            estimated_bytes=self.estimated_bytes + other.estimated_bytes,
            sessions_disputed=self.sessions_disputed + other.sessions_disputed,
            unattributed=add_counters(self.unattributed, other.unattributed),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Expected:
    """What a run published, and the exact totals that the books must show."""

    messages: dict[str, int]
    """Published messages of allocations by kind, of :data:`MESSAGE_KINDS`."""
    keepalives: int
    users: tuple[ExpectedUser, ...]
    """One for each realm and username on the wire, sorted."""
    never_published: Counters
    """Relayed, but lost with a killed server or with lost messages, and not in any total."""

    @property
    def published(self) -> int:
        """The number of messages that the two channel patterns of capture match."""
        return sum(self.messages.values())

    @property
    def total(self) -> ExpectedUser:
        """The sum over all users, under empty names."""
        return sum(self.users, start=ExpectedUser(realm=b"", username=b"", user_id=b""))

    def by_user_id(self) -> dict[tuple[bytes, bytes], ExpectedUser]:
        """By (realm, user_id): the usernames of TURN REST are added up."""
        by_user: dict[tuple[bytes, bytes], ExpectedUser] = {}
        for user in self.users:
            key = (user.realm, user.user_id)
            empty = ExpectedUser(realm=user.realm, username=user.user_id, user_id=user.user_id)
            by_user[key] = by_user.get(key, empty) + user
        return by_user

    def by_realm(self) -> dict[bytes, ExpectedUser]:
        """By realm, under empty usernames."""
        by_realm: dict[bytes, ExpectedUser] = {}
        for user in self.users:
            empty = ExpectedUser(realm=user.realm, username=b"", user_id=b"")
            by_realm[user.realm] = by_realm.get(user.realm, empty) + user
        return by_realm

    def as_dict(self) -> dict[str, object]:
        """As a JSON object."""
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
class _UserSums:
    """A user's sums so far."""

    sessions: int = 0
    usage: list[int] = field(default_factory=lambda: [0] * 8)
    sessions_estimated: int = 0
    estimated_bytes: int = 0
    sessions_disputed: int = 0
    unattributed: list[int] = field(default_factory=lambda: [0] * 8)


class OracleLedger:
    """Adds up what was published, and what each allocation is billed."""

    def __init__(self) -> None:
        self.messages = dict.fromkeys(MESSAGE_KINDS, 0)
        self.keepalives = 0
        self.sessions_started = 0
        self._sums: dict[SimulatedUser, _UserSums] = {}
        self._never_published = [0] * 8

    @property
    def published(self) -> int:
        return sum(self.messages.values())

    def add_session(
        self,
        identity: SimulatedUser,
        relayed: Sequence[int],
        reported: Sequence[int],
        *,
        has_totals: bool,
        is_first_on_key: bool = True,
    ) -> None:
        """Add an allocation that has ended.

        Billed on the client side: the total if it was published, else the interims. On the peer
        side: the interims, and the total only if it shows that interims are missing. With
        ``is_first_on_key`` False it belongs to a session that was added already.
        """
        sums = self._sums_of(identity)
        is_estimated = has_totals and any(relayed[place] > reported[place] for place in range(4))
        for place in range(8):
            billed = (
                relayed[place] if is_estimated or (has_totals and place < 4) else reported[place]
            )
            sums.usage[place] += billed
            self._never_published[place] += relayed[place] - billed
        if is_estimated:
            sums.sessions_estimated += 1
            sums.estimated_bytes += relayed[1] + relayed[3]
        if is_first_on_key:
            sums.sessions += 1

    def add_dispute(self, identity: SimulatedUser) -> None:
        """Add a session that is disputed, because two servers use its key."""
        self._sums_of(identity).sessions_disputed += 1

    def add_unauthenticated(self, identity: SimulatedUser, reported: Sequence[int]) -> None:
        """Add traffic that no status and no total confirms."""
        sums = self._sums_of(identity)
        for place in range(8):
            sums.unattributed[place] += reported[place]

    def expected(self) -> Expected:
        return Expected(
            messages=dict(self.messages),
            keepalives=self.keepalives,
            users=tuple(self._users()),
            never_published=add_counters(self._never_published, ZERO_COUNTERS),
        )

    def _sums_of(self, identity: SimulatedUser) -> _UserSums:
        sums = self._sums.get(identity)
        if sums is None:
            sums = self._sums[identity] = _UserSums()
        return sums

    def _users(self) -> Iterator[ExpectedUser]:
        for identity, sums in sorted(self._sums.items()):
            yield ExpectedUser(
                realm=identity.realm,
                username=identity.username,
                user_id=identity.user_id,
                sessions=sums.sessions,
                usage=add_counters(sums.usage, ZERO_COUNTERS),
                sessions_estimated=sums.sessions_estimated,
                estimated_bytes=sums.estimated_bytes,
                sessions_disputed=sums.sessions_disputed,
                unattributed=add_counters(sums.unattributed, ZERO_COUNTERS),
            )
