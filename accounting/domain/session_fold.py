"""The session fold: cuts the reports of one allocation key into sessions, and sums their usage.

coturn's ids do not identify sessions: they restart with every server process, and collide between
servers (docs/coturn.md#ids-restart). Every rule depends only on the reports of a key in order of
position, so neither batching nor repetition can change the result. docs/session-rules.md describes
the rules. Times are whole microseconds since the Unix epoch.

A :class:`SessionState` is mutable: it accumulates millions of reports, and copying it for each
would cost more than the rules.
"""

from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import IntEnum, StrEnum
from typing import Final, NamedTuple

from accounting.domain.coturn_messages import ReportKind, Side
from accounting.domain.counters import LARGEST_PACKET_BYTES, PEER_MODULUS

SECOND: Final = 1_000_000
ASSUMED_LIFETIME: Final = 3600 * SECOND
"""The lifetime of a session without a status: coturn's default maximum."""
MAX_SERVERS: Final = 2**15 - 1
"""The limit of ``new_count``, a column of 16 bits: any publisher can send any number of ``new``."""

NO_TOTAL: Final = [0, 0, 0, 0]
"""Shared by all sessions without a total: a total replaces it, nothing changes it."""
_CLIENT: Final = slice(0, 4)
_PEER: Final = slice(4, 8)


class EndCause(StrEnum):
    """Why a session ended: coturn deleted it, it expired, or its allocation id started again."""

    DELETED = "deleted"
    EXPIRED = "expired"
    SUPERSEDED = "superseded"


class Phase(IntEnum):
    """What a session is to its key. The numbers are stored in ``sessions``.

    ``ACTIVE``: the next report may belong to it. ``PENDING``: interims received after the active
    session expired; they join it if a later report reopens it, and are unattributed otherwise.
    ``CLOSED``: no report can belong to it any more.
    """

    CLOSED = 0
    ACTIVE = 1
    PENDING = 2


class AllocationKey(NamedTuple):
    """Identifies an allocation in the reports, until coturn reuses its id."""

    source_id: int
    database: int
    username_key: bytes
    allocation_id: int


class Report(NamedTuple):
    """A row of the table ``reports``; the counters are in the order of the wire."""

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


class StatusKeySighting(NamedTuple):
    """A status key found in Redis by a scan, placed after the report at ``position``.

    The scan began at ``scan_started_at`` and saw the key at ``seen_at``, when it had been idle for
    ``idle_seconds``.
    """

    epoch: int
    position: int
    number: int
    database: int
    realm_id: int
    username_key: bytes
    user_key: bytes
    allocation_id: int
    scan_started_at: int
    seen_at: int
    idle_seconds: int


@dataclass(slots=True, kw_only=True)
class PriorState:
    """A stored session as it was before the current step.

    Not frozen, which would more than double the cost of making one for each session of a batch.
    ``single_hour``: the start of the only hour that the session was active in; None when it was
    active in several.
    """

    active_until: int
    ended: bool
    confirmed: bool
    estimated: bool
    usage: Sequence[int]
    single_hour: int | None = None


@dataclass(slots=True, kw_only=True)
class SessionState:
    """A session, with all that later reports may need of it.

    ``usage`` is the sum so far, in the order of COUNTERS; ``hourly_usage`` is what this step added
    to it, by the start of the hour. ``new_count`` and ``deleted_count`` count those reports: they
    exceed one only where two servers share a key. ``client_total`` and ``peer_total`` are the sums
    of the received totals.
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
    phase: Phase = Phase.ACTIVE
    confirmed: bool = False
    transport: str | None = None
    client_address: str | None = None
    server_address: str | None = None
    usage: list[int] = field(default_factory=lambda: [0] * 8)
    new_count: int = 0
    deleted_count: int = 0
    client_total_count: int = 0
    peer_total_count: int = 0
    client_total: list[int] = field(default_factory=lambda: NO_TOTAL)
    peer_total: list[int] = field(default_factory=lambda: NO_TOTAL)
    estimated: bool = False
    disputed: bool = False
    hourly_usage: dict[int, list[int]] = field(default_factory=dict)
    prior: PriorState | None = None

    @property
    def active_until(self) -> int:
        """The end of its session time: its end, or its last sign of life while it is live."""
        return self.last_seen_at if self.ended_at is None else self.ended_at

    @property
    def _server_count(self) -> int:
        """The number of servers on its key: that many ``deleted`` and totals are expected."""
        return max(self.new_count, 1)

    @property
    def _has_final_client_totals(self) -> bool:
        """Whether its client totals came: coturn sends totals last, so the allocation is gone."""
        return self.client_total_count >= self._server_count

    @property
    def _has_all_totals(self) -> bool:
        return self._has_final_client_totals and self.peer_total_count >= self._server_count


@dataclass(slots=True)
class KeyState:
    """The sessions of one key that a report can still change, and those that this step changed.

    ``merged``: stored pending sessions, each with the session that it was merged into.
    """

    active: SessionState | None = None
    pending: SessionState | None = None
    changed: list[SessionState] = field(default_factory=list)
    merged: list[tuple[SessionState, SessionState]] = field(default_factory=list)


def session_id(source_id: int, epoch: int, position: int) -> bytes:
    """The id of the session that begins with that report: 16 bytes, a version-8 UUID.

    Contains the position, so that settling the same reports again gives the same ids: 16 bits of
    source, 32 of epoch, 62 of position.
    """
    value = source_id << 112 | epoch << 80 | 0x8 << 76 | 0b10 << 62 | position
    return value.to_bytes(16)


def first_position(session_id: bytes) -> tuple[int, int]:
    """The (epoch, position) of the report that a session began with."""
    value = int.from_bytes(session_id)
    return value >> 80 & 0xFFFF_FFFF, value & 0x3FFF_FFFF_FFFF_FFFF


def apply_report(
    key_state: KeyState,
    report: Report,
    *,
    source_id: int,
    grace: int,
    hour: int,
    gap_positions: Sequence[tuple[int, int]] = (),
) -> None:
    """Apply the next report of a key, in order of position.

    ``grace``: in microseconds. ``hour``: the start of the hour of its receipt, in its realm's
    calendar. ``gap_positions``: the (epoch, position), in order, after which each
    of the source's capture gaps lies. A session around a gap may have lost interims.
    """
    now = report.received_at
    session = key_state.active
    if session is not None and expire(session, now, grace):
        add_changed(key_state, session)
        if session.phase is Phase.CLOSED:
            session = key_state.active = None
    kind = report.kind
    if kind == ReportKind.INTERIM:
        _apply_interim(key_state, session, report, source_id, hour)
        return
    if kind == ReportKind.NEW:
        session = _apply_new(key_state, session, report, source_id)
    elif session is None or not _belongs_to(session, report):
        session = _start_next(key_state, session, report, source_id, start_known=False)
    else:
        if session.end_cause is EndCause.EXPIRED:
            _reopen(key_state, session)
        add_changed(key_state, session)
    session.confirmed = True
    if kind == ReportKind.DELETED:
        _apply_deleted(session, now)
    elif kind == ReportKind.TOTAL:
        _apply_total(session, report, hour, gap_positions)
    else:
        _apply_status(session, report)
    if session.end_cause is EndCause.DELETED and session._has_all_totals:
        session.phase = Phase.CLOSED
        key_state.active = None


def apply_sighting(key_state: KeyState, sighting: StatusKeySighting, *, grace: int) -> bool:
    """Apply a status key that a scan found to the latest session of its key; True if it counts.

    coturn sets the status key at every status and deletes it at the end. So a sighting confirms a
    session whose statuses were lost, and keeps one live whose refreshes were lost. It starts no
    session. It does not count if the session has a report since the scan began, or if the key is
    older than any lifetime: a server that crashed leaves its keys behind
    (docs/coturn.md#no-publish-on-stop).
    """
    session = key_state.active
    set_at = sighting.seen_at - sighting.idle_seconds * SECOND
    if (
        session is None
        or session.end_cause is EndCause.DELETED
        or session._has_final_client_totals
        or session.last_seen_at >= sighting.scan_started_at
        or sighting.seen_at - set_at > ASSUMED_LIFETIME + grace
    ):
        return False
    refreshed = set_at > session.last_seen_at
    if expire(session, sighting.seen_at, grace) and session.phase is Phase.CLOSED:
        key_state.active = None
        add_changed(key_state, session)
        return False
    if session.end_cause is EndCause.EXPIRED:
        if not refreshed:
            return False
        _reopen(key_state, session)
    add_changed(key_state, session)
    session.confirmed = True
    if refreshed:
        session.last_seen_at = set_at
        session.expires_at = max(session.expires_at, set_at + ASSUMED_LIFETIME)
    return True


def expire(session: SessionState, now: int, grace: int) -> bool:
    """End a session if its expiry and ``grace`` (microseconds) have passed; True if this ended it.

    It ended at its last sign of life. If it is unconfirmed, its traffic was unauthenticated, and
    no later report may reopen it (docs/coturn.md#unauthenticated-traffic).
    """
    if session.ended_at is not None or now <= session.expires_at + grace:
        return False
    session.ended_at = session.last_seen_at
    session.end_cause = EndCause.EXPIRED
    if not session.confirmed:
        session.phase = Phase.CLOSED
    return True


def _apply_interim(
    key_state: KeyState, session: SessionState | None, report: Report, source_id: int, hour: int
) -> None:
    if session is None or session.end_cause is EndCause.DELETED or session._has_final_client_totals:
        session = _start_next(key_state, session, report, source_id, start_known=False)
    elif session.end_cause is EndCause.EXPIRED:
        if key_state.pending is None:
            key_state.pending = _start(key_state, report, source_id)
            key_state.pending.phase = Phase.PENDING
        session = key_state.pending
        add_changed(key_state, session)
    else:
        add_changed(key_state, session)
    _extend_last_seen(session, report.received_at)
    _add_usage(session, hour, report.side == Side.PEER, report[-4:])


def _belongs_to(session: SessionState, report: Report) -> bool:
    """Whether a ``refreshed``, ``deleted`` or total belongs to the latest session of its key."""
    if report.kind == ReportKind.TOTAL:
        total_count = (
            session.client_total_count if report.side == Side.CLIENT else session.peer_total_count
        )
        return total_count < session._server_count
    return session.end_cause is not EndCause.DELETED and (
        not session._has_final_client_totals or report.kind == ReportKind.DELETED
    )


def _apply_new(
    key_state: KeyState, session: SessionState | None, report: Report, source_id: int
) -> SessionState:
    if (
        session is not None
        and session.ended_at is None
        and not session._has_final_client_totals
        and session.server_address is not None
        and report.server_address is not None
        and session.server_address != report.server_address
    ):
        # Another server uses the key at the same time (docs/coturn.md#shared-key): one session.
        session.new_count = min(session._server_count + 1, MAX_SERVERS)
        session.disputed = True
        add_changed(key_state, session)
        return session
    session = _start_next(key_state, session, report, source_id, start_known=True)
    session.new_count = 1
    return session


def _start_next(
    key_state: KeyState,
    previous: SessionState | None,
    report: Report,
    source_id: int,
    *,
    start_known: bool,
) -> SessionState:
    """Start another session. The previous one is closed; if live, it ended at its last report."""
    if previous is not None:
        if previous.ended_at is None:
            previous.ended_at = previous.last_seen_at
            previous.end_cause = (
                EndCause.SUPERSEDED if report.kind == ReportKind.NEW else EndCause.EXPIRED
            )
        previous.phase = Phase.CLOSED
        add_changed(key_state, previous)
    if key_state.pending is not None:
        key_state.pending.phase = Phase.CLOSED
        add_changed(key_state, key_state.pending)
        key_state.pending = None
    key_state.active = _start(key_state, report, source_id)
    key_state.active.start_known = start_known
    return key_state.active


def _start(key_state: KeyState, report: Report, source_id: int) -> SessionState:
    now = report.received_at
    session = SessionState(
        session_id=session_id(source_id, report.epoch, report.position),
        user_key=report.user_key,
        realm_id=report.realm_id,
        started_at=now,
        last_seen_at=now,
        expires_at=now + ASSUMED_LIFETIME,
    )
    key_state.changed.append(session)
    return session


def _reopen(key_state: KeyState, session: SessionState) -> None:
    session.ended_at = session.end_cause = None
    pending = key_state.pending
    if pending is None:
        return
    # The interims since its supposed end belong to it.
    session.usage = [a + b for a, b in zip(session.usage, pending.usage, strict=True)]
    for hour, added in pending.hourly_usage.items():
        _add_to_hour(session, hour, added)
    if pending.prior is not None:
        key_state.merged.append((pending, session))
        if pending.prior.single_hour is not None:
            _add_to_hour(session, pending.prior.single_hour, pending.prior.usage)
    key_state.changed = [touched for touched in key_state.changed if touched is not pending]
    key_state.pending = None


def add_changed(key_state: KeyState, session: SessionState) -> None:
    """Note that a session changed in this step."""
    changed = key_state.changed
    if not changed or (
        changed[-1] is not session and all(other is not session for other in changed)
    ):
        changed.append(session)


def _extend_last_seen(session: SessionState, now: int) -> None:
    if session.ended_at is None:
        session.last_seen_at = max(session.last_seen_at, now)
        if not session.lifetime_known:
            session.expires_at = now + ASSUMED_LIFETIME


def _apply_status(session: SessionState, report: Report) -> None:
    now = report.received_at
    if report.lifetime:
        expires_at = now + report.lifetime * SECOND
        # Two servers: the longer of their lifetimes.
        session.expires_at = (
            max(session.expires_at, expires_at)
            if session.new_count > 1 and session.lifetime_known
            else expires_at
        )
        session.lifetime_known = True
    # lifetime=0 is only a sign of life: with two address families, the other one may go on.
    _extend_last_seen(session, now)
    if session.server_address is None:
        session.transport = report.transport
        session.server_address = report.server_address
        session.client_address = report.client_address


def _apply_deleted(session: SessionState, now: int) -> None:
    _extend_last_seen(session, now)
    session.deleted_count += 1
    if session.deleted_count >= session._server_count:
        session.ended_at = now
        session.end_cause = EndCause.DELETED


def _apply_total(
    session: SessionState, report: Report, hour: int, gap_positions: Sequence[tuple[int, int]]
) -> None:
    now = report.received_at
    counts = report[-4:]
    _extend_last_seen(session, now)
    if report.side == Side.CLIENT:
        session.client_total_count += 1
        session.client_total = [a + b for a, b in zip(session.client_total, counts, strict=True)]
        missing = [a - b for a, b in zip(session.client_total, session.usage[_CLIENT], strict=True)]
        if not session._has_final_client_totals:
            # The other server's total is still to come: until then this is a lower bound.
            missing = [max(0, count) for count in missing]
        session.estimated |= any(count > 0 for count in missing)
        session.disputed |= any(count < 0 for count in missing)
        if any(missing):
            _add_usage(session, hour, False, missing)
        if session._has_final_client_totals and session.ended_at is None:
            # coturn sends totals when it deletes an allocation, so its lifetime is over.
            session.expires_at = now
            session.lifetime_known = True
    else:
        session.peer_total_count += 1
        session.peer_total = [a + b for a, b in zip(session.peer_total, counts, strict=True)]
        if session.peer_total_count >= session._server_count:
            _apply_peer_total(session, report, hour, gap_positions)


def _apply_peer_total(
    session: SessionState, report: Report, hour: int, gap_positions: Sequence[tuple[int, int]]
) -> None:
    """Compare the peer total with the interims, and add what they lack if some may be lost.

    The total wraps, so the difference is a lower bound (docs/coturn.md#peer-total-wraps).
    """
    missing = [
        (total - sum_) % PEER_MODULUS
        for total, sum_ in zip(session.peer_total, session.usage[_PEER], strict=True)
    ]
    if not any(missing):
        return
    interims_missed = (
        session.estimated
        or not session.start_known
        or _has_gap_between(gap_positions, first_position(session.session_id), report[:2])
    )
    if interims_missed and _is_plausible_loss(*missing[:2]) and _is_plausible_loss(*missing[2:]):
        session.estimated = True
        _add_usage(session, hour, True, missing)
    else:
        session.disputed = True


def _has_gap_between(
    gap_positions: Sequence[tuple[int, int]], first: tuple[int, int], last: tuple[int, int]
) -> bool:
    """Whether a gap lies after ``first`` and before ``last``."""
    index = bisect_left(gap_positions, first)
    return index < len(gap_positions) and gap_positions[index] < last


def _is_plausible_loss(packets: int, bytes_: int) -> bool:
    """Whether a difference modulo 2^32 can be that of lost interims, and not that of extra ones."""
    return packets < PEER_MODULUS // 2 and bytes_ <= packets * LARGEST_PACKET_BYTES


def _add_to_hour(session: SessionState, hour: int, counters: Sequence[int]) -> None:
    before = session.hourly_usage.get(hour, [0] * 8)
    session.hourly_usage[hour] = [a + b for a, b in zip(before, counters, strict=True)]


def _add_usage(session: SessionState, hour: int, of_peer: bool, counts: Sequence[int]) -> None:
    received_packets, received_bytes, sent_packets, sent_bytes = counts
    first = 4 if of_peer else 0
    sums = session.hourly_usage.get(hour)
    if sums is None:
        sums = session.hourly_usage[hour] = [0] * 8
    for numbers in (session.usage, sums):
        numbers[first] += received_packets
        numbers[first + 1] += received_bytes
        numbers[first + 2] += sent_packets
        numbers[first + 3] += sent_bytes
