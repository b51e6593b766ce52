"""Lives: the reports of one allocation key cut into sessions, and each session's usage summed.

coturn's ids are no session keys: they restart with every process and collide between servers
(docs/coturn.md#ids-restart). The stream of each key is therefore cut into *lives*; one life is one
session. Every rule here is a border or a sum over reports in order of position, so neither
batching nor repetition can change the outcome. Owns the rules of docs/session-rules.md; knows no
table, no clock and no calendar. Times are whole microseconds since the Unix epoch.

A :class:`Life` is the one mutable object of the model: it is the accumulator of a fold over
millions of reports, and copying it for each would cost more than the rule.
"""

from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import IntEnum, StrEnum
from typing import Final, NamedTuple

from accounting.domain.coturn_messages import Kind, Side
from accounting.domain.counters import LARGEST_PACKET_BYTES, PEER_MODULUS

SECOND: Final = 1_000_000
ASSUMED_LIFETIME: Final = 3600 * SECOND
"""coturn's longest lifetime by default; for lives of which no status was heard."""
MOST_SERVERS: Final = 2**15 - 1
"""Nobody runs so many servers on one key; whoever may publish can say so, and more does not fit."""

_CLIENT: Final = slice(0, 4)
_PEER: Final = slice(4, 8)


class EndCause(StrEnum):
    """Why a session ended: coturn said so, its lifetime passed in silence, or its id began anew."""

    DELETED = "deleted"
    EXPIRED = "expired"
    SUPERSEDED = "superseded"


class Standing(IntEnum):
    """What a life is to its key. The numbers stand in the table ``sessions``.

    ``CURRENT``: the next report may belong to it. ``LIMBO``: interims heard after the current
    life expired; they join it if it turns out to be alive, and are a stranger's otherwise.
    ``PAST``: nothing can belong to it any more.
    """

    PAST = 0
    CURRENT = 1
    LIMBO = 2


class Report(NamedTuple):
    """One report of one key, as the table ``reports`` has it; counters in wire order."""

    epoch: int
    position: int
    received_at: int
    database: int
    realm_id: int
    username_key: bytes
    user_key: bytes
    allocation_id: int
    kind: int
    side: int | None
    lifetime: int | None
    transport: str | None
    server_address: str | None
    client_address: str | None
    received_packets: int
    received_bytes: int
    sent_packets: int
    sent_bytes: int


class Sighting(NamedTuple):
    """A status key found in Redis by a scan, placed after the report at ``position``.

    The scan began at ``began_at`` and saw the key at ``seen_at``, untouched for ``idle_seconds``.
    """

    epoch: int
    position: int
    sighting: int
    database: int
    realm_id: int
    username_key: bytes
    user_key: bytes
    allocation_id: int
    began_at: int
    seen_at: int
    idle_seconds: int


class Entry(NamedTuple):
    """Usage that stands at one moment: a report's, or the correction that a total brings."""

    at: int
    side: int
    received_packets: int
    received_bytes: int
    sent_packets: int
    sent_bytes: int


class Stored(NamedTuple):
    """What the tables held of a life before this step; ``still`` is what changes seldom.

    ``only_hour``: the start of the hour it lived in; None when it has lived in more than one.
    """

    until: int
    ended: bool
    vouched: bool
    estimated: bool
    only_hour: int | None = None
    still: tuple[object, ...] = ()


@dataclass(slots=True, kw_only=True)
class Life:
    """One session under way or ended, with all that later reports may need of it.

    ``usage`` is the sum so far in the order of COUNTERS; ``entries`` are what this step added to
    it. ``news`` and ``deletes`` count what was heard: they differ from one only where two servers
    share a key. ``client_total`` and ``peer_total`` add up the totals heard.
    """

    session_id: bytes
    user_key: bytes
    realm_id: int
    started_at: int
    last_seen_at: int
    expires_at: int
    start_known: bool = False
    lifetime_known: bool = False
    ended_at: int | None = None
    end_cause: EndCause | None = None
    standing: Standing = Standing.CURRENT
    vouched: bool = False
    transport: str | None = None
    client_address: str | None = None
    server_address: str | None = None
    usage: list[int] = field(default_factory=lambda: [0] * 8)
    news: int = 0
    deletes: int = 0
    client_totals: int = 0
    peer_totals: int = 0
    client_total: list[int] = field(default_factory=lambda: [0] * 4)
    peer_total: list[int] = field(default_factory=lambda: [0] * 4)
    estimated: bool = False
    disputed: bool = False
    entries: list[Entry] = field(default_factory=list)
    stored: Stored | None = None

    @property
    def until(self) -> int:
        """To where its seconds count: its end, or its last sign of life while it lives."""
        return self.last_seen_at if self.ended_at is None else self.ended_at

    @property
    def _servers(self) -> int:
        """How many ``deleted`` and totals this life awaits on each side."""
        return max(self.news, 1)

    @property
    def _totalled(self) -> bool:
        """Whether its totals came: coturn sends them last, so the allocation is gone."""
        return self.client_totals >= self._servers

    @property
    def _complete(self) -> bool:
        return self._totalled and self.peer_totals >= self._servers


@dataclass(slots=True)
class Track:
    """One key's lives that a report can still touch, and those that this step touched.

    ``absorbed`` are the session ids of stored limbo lives, each with the life that took it over.
    """

    current: Life | None = None
    limbo: Life | None = None
    touched: list[Life] = field(default_factory=list)
    absorbed: list[tuple[bytes, Life]] = field(default_factory=list)


def session_id(source_id: int, epoch: int, position: int) -> bytes:
    """The id of the life that begins with that report: 16 bytes, a version-8 UUID.

    Made of the position, so that settling the same reports again gives the same ids. 16 bits of
    source, 32 of epoch, 62 of position.
    """
    value = source_id << 112 | epoch << 80 | 0x8 << 76 | 0b10 << 62 | position
    return value.to_bytes(16)


def first_position(session_id: bytes) -> tuple[int, int]:
    """The (epoch, position) of the report that a session began with."""
    value = int.from_bytes(session_id)
    return value >> 80 & 0xFFFF_FFFF, value & 0x3FFF_FFFF_FFFF_FFFF


def settle(
    track: Track,
    report: Report,
    *,
    source_id: int,
    grace: int,
    breaks: Sequence[tuple[int, int]] = (),
) -> None:
    """Take one more report of a key, in order of position.

    ``grace`` in microseconds. ``breaks``: the (epoch, position), in order, after which each of the
    source's capture gaps lies: an interim of a life around it may have been lost.
    """
    now = report.received_at
    life = track.current
    if life is not None and expire(life, now, grace):
        _touch(track, life)
        if life.standing is Standing.PAST:
            life = track.current = None
    kind = report.kind
    if kind == Kind.INTERIM:
        _interim(track, life, report, source_id)
        return
    if kind == Kind.NEW:
        life = _new(track, life, report, source_id)
    elif life is None or not _belongs(life, report):
        life = _begin_after(track, life, report, source_id, start_known=False)
    else:
        if life.end_cause is EndCause.EXPIRED:
            _reopen(track, life)
        _touch(track, life)
    life.vouched = True
    if kind == Kind.DELETED:
        _deleted(life, now)
    elif kind == Kind.TOTAL:
        _total(life, report, breaks)
    else:
        _status(life, report)
    if life.end_cause is EndCause.DELETED and life._complete:
        life.standing = Standing.PAST
        track.current = None


def sight(track: Track, sighting: Sighting, *, grace: int) -> bool:
    """Let a key that a scan found speak for the life that its key last had, if it can.

    coturn sets the key at every status and deletes it at the end, so it vouches for a life of
    which no status was heard, and keeps one alive whose refreshes were lost. It opens nothing, and
    says nothing when the life was heard of since the scan began, or when the key is older than any
    lifetime: a server that crashed leaves its keys behind (docs/coturn.md#no-publish-on-stop).
    True when it counted.
    """
    life = track.current
    set_at = sighting.seen_at - sighting.idle_seconds * SECOND
    if (
        life is None
        or life.end_cause is EndCause.DELETED
        or life._totalled
        or life.last_seen_at >= sighting.began_at
        or sighting.seen_at - set_at > ASSUMED_LIFETIME + grace
    ):
        return False
    refreshed = set_at > life.last_seen_at
    if expire(life, sighting.seen_at, grace) and life.standing is Standing.PAST:
        track.current = None
        _touch(track, life)
        return False
    if life.end_cause is EndCause.EXPIRED:
        if not refreshed:
            return False
        _reopen(track, life)
    _touch(track, life)
    life.vouched = True
    if refreshed:
        life.last_seen_at = set_at
        life.expires_at = max(life.expires_at, set_at + ASSUMED_LIFETIME)
    return True


def expire(life: Life, now: int, grace: int) -> bool:
    """End a life of which nothing was heard until past its expiry and ``grace`` (microseconds).

    It ended at its last sign of life. One that nothing vouched for is a stranger's, and no later
    report may adopt it (docs/coturn.md#unauthenticated-traffic). True when this call ended it.
    """
    if life.ended_at is not None or now <= life.expires_at + grace:
        return False
    life.ended_at = life.last_seen_at
    life.end_cause = EndCause.EXPIRED
    if not life.vouched:
        life.standing = Standing.PAST
    return True


def _interim(track: Track, life: Life | None, report: Report, source_id: int) -> None:
    if life is None or life.end_cause is EndCause.DELETED or life._totalled:
        life = _begin_after(track, life, report, source_id, start_known=False)
    elif life.end_cause is EndCause.EXPIRED:
        if track.limbo is None:
            track.limbo = _begin(track, report, source_id)
            track.limbo.standing = Standing.LIMBO
        life = track.limbo
        _touch(track, life)
    else:
        _touch(track, life)
    _sign(life, report.received_at)
    _add(life, Entry(report.received_at, report.side or Side.CLIENT, *report[-4:]))


def _belongs(life: Life, report: Report) -> bool:
    """Whether a ``refreshed``, ``deleted`` or total is of the life that its key last had."""
    if report.kind == Kind.TOTAL:
        came = life.client_totals if report.side == Side.CLIENT else life.peer_totals
        return came < life._servers
    return life.end_cause is not EndCause.DELETED and (
        not life._totalled or report.kind == Kind.DELETED
    )


def _new(track: Track, life: Life | None, report: Report, source_id: int) -> Life:
    if (
        life is not None
        and life.ended_at is None
        and not life._totalled
        and life.server_address is not None
        and report.server_address is not None
        and life.server_address != report.server_address
    ):
        # Another server on the same key at the same time (docs/coturn.md#shared-key): one life.
        life.news = min(life._servers + 1, MOST_SERVERS)
        life.disputed = True
        _touch(track, life)
        return life
    life = _begin_after(track, life, report, source_id, start_known=True)
    life.news = 1
    return life


def _begin_after(
    track: Track, before: Life | None, report: Report, source_id: int, *, start_known: bool
) -> Life:
    """Begin another life; what came before adopts nothing of it and ends at its last sign."""
    if before is not None:
        if before.ended_at is None:
            before.ended_at = before.last_seen_at
            before.end_cause = EndCause.SUPERSEDED if report.kind == Kind.NEW else EndCause.EXPIRED
        before.standing = Standing.PAST
        _touch(track, before)
    if track.limbo is not None:
        track.limbo.standing = Standing.PAST
        _touch(track, track.limbo)
        track.limbo = None
    track.current = _begin(track, report, source_id)
    track.current.start_known = start_known
    return track.current


def _begin(track: Track, report: Report, source_id: int) -> Life:
    now = report.received_at
    life = Life(
        session_id=session_id(source_id, report.epoch, report.position),
        user_key=report.user_key,
        realm_id=report.realm_id,
        started_at=now,
        last_seen_at=now,
        expires_at=now + ASSUMED_LIFETIME,
    )
    track.touched.append(life)
    return life


def _reopen(track: Track, life: Life) -> None:
    life.ended_at = life.end_cause = None
    limbo = track.limbo
    if limbo is None:
        return
    # What was heard since its supposed end was its own after all.
    life.usage = [mine + its for mine, its in zip(life.usage, limbo.usage, strict=True)]
    life.entries.extend(limbo.entries)
    if limbo.stored is not None:
        track.absorbed.append((limbo.session_id, life))
    track.touched = [touched for touched in track.touched if touched is not limbo]
    track.limbo = None


def _touch(track: Track, life: Life) -> None:
    touched = track.touched
    if not touched or (touched[-1] is not life and all(one is not life for one in touched)):
        touched.append(life)


def _sign(life: Life, now: int) -> None:
    if life.ended_at is None:
        life.last_seen_at = max(life.last_seen_at, now)
        if not life.lifetime_known:
            life.expires_at = now + ASSUMED_LIFETIME


def _status(life: Life, report: Report) -> None:
    now = report.received_at
    if report.lifetime:
        expires_at = now + report.lifetime * SECOND
        # Two servers: the longer of their lifetimes.
        life.expires_at = (
            max(life.expires_at, expires_at)
            if life.news > 1 and life.lifetime_known
            else expires_at
        )
        life.lifetime_known = True
    # lifetime=0 is only a sign of life: with two address families the other may live on.
    _sign(life, now)
    if life.server_address is None:
        life.transport = report.transport
        life.server_address = report.server_address
        life.client_address = report.client_address


def _deleted(life: Life, now: int) -> None:
    _sign(life, now)
    life.deletes += 1
    if life.deletes >= life._servers:
        life.ended_at = now
        life.end_cause = EndCause.DELETED


def _total(life: Life, report: Report, breaks: Sequence[tuple[int, int]]) -> None:
    now = report.received_at
    counts = report[-4:]
    _sign(life, now)
    if report.side == Side.CLIENT:
        life.client_totals += 1
        life.client_total = [a + b for a, b in zip(life.client_total, counts, strict=True)]
        missing = [a - b for a, b in zip(life.client_total, life.usage[_CLIENT], strict=True)]
        if not life._totalled:
            # The other server's total is still to come: until then this is a lower bound.
            missing = [max(0, count) for count in missing]
        life.estimated |= any(count > 0 for count in missing)
        life.disputed |= any(count < 0 for count in missing)
        _correct(life, now, Side.CLIENT, missing)
        if life._totalled and life.ended_at is None:
            # Totals are sent when an allocation is deleted: nothing is left of its lifetime.
            life.expires_at = now
            life.lifetime_known = True
    else:
        life.peer_totals += 1
        life.peer_total = [a + b for a, b in zip(life.peer_total, counts, strict=True)]
        if life.peer_totals >= life._servers:
            _peer_total(life, report, breaks)


def _peer_total(life: Life, report: Report, breaks: Sequence[tuple[int, int]]) -> None:
    """The peer side's total wraps, so it proves the interims right, or bounds what they lack."""
    missing = [
        (total - sum_) % PEER_MODULUS
        for total, sum_ in zip(life.peer_total, life.usage[_PEER], strict=True)
    ]
    if not any(missing):
        return
    interims_missed = (
        life.estimated
        or not life.start_known
        or _lies_between(breaks, first_position(life.session_id), report[:2])
    )
    if interims_missed and _could_be_traffic(*missing[:2]) and _could_be_traffic(*missing[2:]):
        life.estimated = True
        _correct(life, report.received_at, Side.PEER, missing)
    else:
        life.disputed = True


def _lies_between(
    breaks: Sequence[tuple[int, int]], first: tuple[int, int], last: tuple[int, int]
) -> bool:
    """Whether the stream broke after ``first`` and before ``last``."""
    at = bisect_left(breaks, first)
    return at < len(breaks) and breaks[at] < last


def _could_be_traffic(packets: int, bytes_: int) -> bool:
    """Whether a difference modulo 2^32 can be a lack of interims, and not a surplus of them."""
    return packets < PEER_MODULUS // 2 and bytes_ <= packets * LARGEST_PACKET_BYTES


def _correct(life: Life, now: int, side: Side, missing: Sequence[int]) -> None:
    if any(missing):
        _add(life, Entry(now, side, *missing))


def _add(life: Life, entry: Entry) -> None:
    life.entries.append(entry)
    at = 0 if entry.side == Side.CLIENT else 4
    usage = life.usage
    usage[at] += entry.received_packets
    usage[at + 1] += entry.received_bytes
    usage[at + 2] += entry.sent_packets
    usage[at + 3] += entry.sent_bytes
