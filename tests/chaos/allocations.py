"""The messages of the coturn servers of a fault run, and the totals that the books must show.

It has no socket and no clock. The payloads come from the simulator's wire module, which shares no
code with the code under test. Every interim has a unique packet count and every status a unique
lifetime, so that the checker finds each message in the reports, and finds duplicates.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from enum import Enum, auto
from random import Random
from typing import Final, NamedTuple

from accounting.domain.text_escaping import escape
from accounting.simulator import wire

Counters = tuple[int, ...]
ZERO_COUNTERS: Final[Counters] = (0,) * 8
WRAP: Final = 1 << 32
PEER_BYTES: Final = (5, 7)
"""The places of the counters whose totals wrap."""
OPEN_ALLOCATIONS: Final = 12
"""Open allocations of a server."""
USERS: Final = (
    b"ann",
    b"1900000000:ben",
    b"cyd:1900000000",
    b"x/allocation/000000000000000009/status",
    b"d\xff\x00 *?[",
    b"eve=, :",
)
REALMS: Final = (b"north.example", b"south.example", b"")


class Fate(Enum):
    """The result of publishing a message."""

    UNSENT = auto()
    REFUSED = auto()
    UNKNOWN = auto()  # sent, but the connection ended before the reply
    PUBLISHED = auto()


class MessageKey(NamedTuple):
    """The columns of a report that identify a message. ``values``: a lifetime, or four counters."""

    database: int
    realm: str
    username: str
    allocation_id: int
    event: str
    side: str
    values: tuple[int, ...]


@dataclass(slots=True, eq=False)
class User:
    """A user of one round; each round has new names, so that a loss affects no other round."""

    realm: bytes
    username: bytes
    user_id: bytes
    sessions: "list[PublishedSession]" = field(default_factory=list)


@dataclass(slots=True, eq=False)
class PublishedSession:
    """One session, or unauthenticated interims under a user's name."""

    user: User
    allocation_id: int
    database: int
    local: str
    ordinal: int
    is_unauthenticated: bool = False
    reuses_key: bool = False  # an earlier session had its key
    sent_counters: Counters = ZERO_COUNTERS
    arrived_counters: Counters = ZERO_COUNTERS
    sent_count: int = 0
    arrived_count: int = 0
    is_confirmed: bool = False
    has_total: bool = False

    @property
    def prefix(self) -> bytes:
        return wire.channel_prefix(self.user.realm, self.user.username, self.allocation_id)

    @property
    def is_complete(self) -> bool:
        """Whether all its messages arrived."""
        return self.arrived_count == self.sent_count


@dataclass(slots=True, eq=False)
class Message:
    """A PUBLISH of an allocation, with the times (microseconds) between which it was sent."""

    index: int
    session: PublishedSession
    key: MessageKey
    counters: Counters
    sent_after: int = 0
    sent_before: int = 0
    fate: Fate = Fate.UNSENT


class Command(NamedTuple):
    """A command for Redis; ``message`` is None where it has no report."""

    name: bytes
    args: tuple[bytes, ...]
    message: Message | None


class Coturn:
    """One server: its open allocations and its next messages."""

    def __init__(self, database: int, seed: int) -> None:
        self.database = database
        self._random = Random(seed)
        self._local = f"192.0.2.{database + 1}:3478"
        self._users: list[User] = []
        self._open: list[PublishedSession] = []
        self._next_id = 0
        self._sent_count = 0
        self._due_count = 0
        self.all_users: list[User] = []

    def begin_round(self, number: int) -> None:
        """Create the users of the next round."""
        self._users = []
        for index, name in enumerate(USERS):
            stamp, separator, rest = name.partition(b":")
            suffix = b"-%d" % number
            if separator and stamp.isdigit():
                user_id = rest + suffix
                username = stamp + separator + user_id
            elif separator and rest.isdigit():
                user_id = stamp + suffix
                username = user_id + separator + rest
            else:
                user_id = username = name + suffix
            self._users.append(User(REALMS[index % len(REALMS)], username, user_id))
        self.all_users += self._users

    def commands(self, messages: int) -> Iterator[Command]:
        """About so many messages, with the SET and DEL commands of their statuses."""
        self._due_count += messages
        while self._sent_count < self._due_count:
            yield from self._step()

    def keepalive(self) -> Command:
        return Command(b"publish", wire.KEEPALIVE, None)

    # -- what happens

    def _step(self) -> Iterator[Command]:
        if len(self._open) < OPEN_ALLOCATIONS:
            yield from self._begin(self._random.choice(self._users), self._new_id())
            return
        session = self._random.choice(self._open)
        match self._random.random():
            case chance if chance < 0.003:
                yield from self._restart()
            case chance if chance < 0.05:
                yield from self._close(session)
            case chance if chance < 0.10:
                yield from self._status(session, "refreshed")
            case chance if chance < 0.12:
                yield from self._unauthenticated_interim()
            case _:
                yield from self._interim(session)

    def _new_id(self) -> int:
        self._next_id += 1
        return self._random.randrange(1, 4) * 10**15 + self._next_id

    def _begin(self, user: User, allocation_id: int, ordinal: int = 0) -> Iterator[Command]:
        session = PublishedSession(
            user, allocation_id, self.database, self._local, ordinal, reuses_key=ordinal > 0
        )
        user.sessions.append(session)
        self._open.append(session)
        yield from self._status(session, "new")

    def _restart(self) -> Iterator[Command]:
        """Restart the server: it deletes its status keys and uses some ids again."""
        gone, self._open = self._open, []
        yield Command(b"keys", (wire.STATUS_KEYS_PATTERN,), None)
        for session in gone:
            yield Command(b"del", (session.prefix + b"status",), None)
        for session in gone[::3]:
            yield from self._begin(session.user, session.allocation_id, session.ordinal)

    def _unauthenticated_interim(self) -> Iterator[Command]:
        """Interims without a session (docs/coturn.md#unauthenticated-traffic)."""
        user = self._random.choice(self._users)
        session = PublishedSession(
            user, self._new_id(), self.database, self._local, 0, is_unauthenticated=True
        )
        user.sessions.append(session)
        yield from self._interim(session)

    def _interim(self, session: PublishedSession) -> Iterator[Command]:
        session.ordinal += 1
        some = [self._random.randrange(1, 1 << 20) for _ in range(3)]
        client = (session.ordinal, *some)
        large = WRAP // 2 - some[0] if self._random.random() < 0.02 else some[0]
        peer = (session.ordinal, some[1], some[2], large)
        yield self._traffic(session, "interim", client, ())
        yield self._traffic(session, "interim", (), peer)

    def _close(self, session: PublishedSession) -> Iterator[Command]:
        self._open.remove(session)
        yield from self._interim(session)
        key = session.prefix + b"status"
        yield Command(b"del", (key, b""), None)
        yield self._message(session, "deleted", "", (), key, wire.DELETED)
        client = session.sent_counters[:4]
        received, received_bytes, sent, sent_bytes = session.sent_counters[4:]
        peer = (received, received_bytes % WRAP, sent, sent_bytes % WRAP)
        yield self._traffic(session, "total", client, ())
        yield self._traffic(session, "total", (), peer)

    def _status(self, session: PublishedSession, word: str) -> Iterator[Command]:
        session.ordinal += 1
        lifetime = 3600 + session.ordinal
        where = wire.status_addresses("UDP", session.local, "198.51.100.7:50000")
        key, payload = session.prefix + b"status", f"{word} lifetime={lifetime}".encode() + where
        yield Command(b"set", (key, payload), None)
        yield self._message(session, word, "", (lifetime,), key, payload)

    def _traffic(
        self, session: PublishedSession, word: str, client: Sequence[int], peer: Sequence[int]
    ) -> Command:
        side, four = ("client", tuple(client)) if client else ("peer", tuple(peer))
        eight = (*four, 0, 0, 0, 0) if client else (0, 0, 0, 0, *four)
        channel = session.prefix + {"interim": b"traffic", "total": b"total_traffic"}[word]
        if side == "peer":
            channel += b"/peer"
        if word == "interim":
            session.sent_counters = add_counters(session.sent_counters, eight)
        else:
            eight = ZERO_COUNTERS
        return self._message(session, word, side, four, channel, wire.traffic_payload(*four), eight)

    def _message(
        self,
        session: PublishedSession,
        word: str,
        side: str,
        values: tuple[int, ...],
        channel: bytes,
        payload: bytes,
        eight: Counters = ZERO_COUNTERS,
    ) -> Command:
        self._sent_count += 1
        session.sent_count += 1
        identity = MessageKey(
            session.database,
            escape(session.user.realm),
            escape(session.user.username),
            session.allocation_id,
            word,
            side,
            values,
        )
        message = Message(self._sent_count, session, identity, eight)
        return Command(b"publish", (channel, payload), message)


def record_arrival(message: Message) -> None:
    """Add a message that the reports have."""
    session, word = message.session, message.key.event
    session.arrived_count += 1
    session.arrived_counters = add_counters(session.arrived_counters, message.counters)
    session.is_confirmed |= word != "interim"
    session.has_total |= word == "total" and message.key.side == "client"


def add_counters(one: Counters, other: Counters) -> Counters:
    return tuple(a + b for a, b in zip(one, other, strict=True))


class Bounds(NamedTuple):
    """The inclusive bounds of a sum; equal where the sum is known."""

    low: Counters
    high: Counters

    def plus(self, other: "Bounds") -> "Bounds":
        return Bounds(add_counters(self.low, other.low), add_counters(self.high, other.high))

    def contain(self, found: Counters) -> bool:
        return all(a <= b <= c for a, b, c in zip(self.low, found, self.high, strict=True))


ZERO_BOUNDS: Final = Bounds(ZERO_COUNTERS, ZERO_COUNTERS)


def expected(user: User) -> tuple[Bounds, Bounds]:
    """The bounds of a user's usage, and of the unattributed usage under the user's name.

    They are exact where every message arrived. Otherwise a total that arrived makes the client side
    exact, and the other sums lie between what arrived and what was sent.
    """
    usage = unattributed = ZERO_BOUNDS
    reused = {session.allocation_id for session in user.sessions if session.reuses_key}
    for session in user.sessions:
        arrived = Bounds(session.arrived_counters, session.arrived_counters)
        if session.is_unauthenticated:
            unattributed = unattributed.plus(arrived)
        elif session.is_complete and all(
            other.is_complete
            for other in user.sessions
            if other.allocation_id == session.allocation_id
        ):
            usage = usage.plus(arrived)
        elif session.allocation_id in reused:
            # Without the messages between two sessions their usage cannot be separated. The peer
            # total of the second is compared with the bytes of both modulo 2^32.
            most = tuple(
                8 * count + (WRAP if index in PEER_BYTES else 0)
                for index, count in enumerate(session.sent_counters)
            )
            everything = Bounds(ZERO_COUNTERS, most)
            usage, unattributed = usage.plus(everything), unattributed.plus(everything)
        elif session.has_total:
            client, peer = session.sent_counters[:4], session.arrived_counters[4:]
            usage = usage.plus(Bounds((*client, *peer), session.sent_counters))
        elif session.is_confirmed:
            usage = usage.plus(arrived)
        else:  # a key sighting may confirm it
            usage = usage.plus(Bounds(ZERO_COUNTERS, session.arrived_counters))
            unattributed = unattributed.plus(Bounds(ZERO_COUNTERS, session.arrived_counters))
    return usage, unattributed
