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
from accounting.domain.realm_rules import RealmRules
from accounting.domain.session_ids import first_position, session_id

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


# In Python 3.11 a member costs five times as much to find in its class as in a module.
_DELETED: Final = EndCause.DELETED
_EXPIRED: Final = EndCause.EXPIRED
_SUPERSEDED: Final = EndCause.SUPERSEDED
_CLOSED: Final = Phase.CLOSED
_PENDING: Final = Phase.PENDING
_NEW: Final = ReportKind.NEW
_DELETED_REPORT: Final = ReportKind.DELETED
_INTERIM: Final = ReportKind.INTERIM
_TOTAL: Final = ReportKind.TOTAL
_PEER_SIDE: Final = Side.PEER


Counters = Sequence[int]
"""Received packets and bytes, sent packets and bytes: of one side, in the order of the wire."""


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
    server_address: str | None = None
    transport: str | None = None


@dataclass(slots=True)
class SessionState:
    """A session, with all that later reports may need of it.

    Not keyword-only, which would double the cost of making one.

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
    hourly_usage: dict[int, list[int]] = field(default_factory=lambda: NO_HOURS)
    prior: PriorState | None = None

    @property
    def active_until(self) -> int:
        """The end of its session time: its end, or its last report while it is live."""
        return self.last_seen_at if self.ended_at is None else self.ended_at

    @property
    def _server_count(self) -> int:
        """The number of servers on its key: that many ``deleted`` and totals are expected."""
        return self.new_count or 1

    @property
    def _has_final_client_totals(self) -> bool:
        """Whether its client totals came: coturn sends totals last, so the allocation is gone."""
        return self.client_total_count >= (self.new_count or 1)

    @property
    def _has_all_totals(self) -> bool:
        return self._has_final_client_totals and self.peer_total_count >= self._server_count


NO_HOURS: Final[dict[int, list[int]]] = {}
NO_SESSIONS: Final[list[SessionState]] = []
NO_MERGES: Final[list[tuple[SessionState, SessionState]]] = []
"""Shared by all that changed nothing, as most in a loader's memory: replaced, never changed."""


class KeyFold:
    """The sessions of one key while its evidence is applied, in order of position.

    ``active`` and ``pending`` are what a report can still change, ``changed`` what this step
    changed. ``merged``: stored pending sessions, each with the session that it was merged into.
    ``rules``: of its realm. ``gap_positions``: the (epoch, position), in order, after which each of
    the source's capture gaps lies. ``user_key``: the user of the next report, as names are resolved
    by the rule of its time. ``channel``: what the channels of the key begin with, if that is known.

    Times and ``now``, when a report was received, are in microseconds. The loader calls
    :meth:`apply_interim`, :meth:`apply_total` and :meth:`apply_status` for every message, with
    values in place of a Report, which takes as long to make as to apply.
    """

    __slots__ = (
        "active",
        "changed",
        "channel",
        "gap_positions",
        "key",
        "merged",
        "pending",
        "realm_id",
        "rules",
        "user_key",
    )

    def __init__(
        self,
        key: AllocationKey,
        realm_id: int,
        rules: RealmRules,
        gap_positions: Sequence[tuple[int, int]] = (),
    ) -> None:
        self.key = key
        self.realm_id = realm_id
        self.rules = rules
        self.gap_positions = gap_positions
        self.user_key = b""
        self.channel = b""
        self.active: SessionState | None = None
        self.pending: SessionState | None = None
        self.changed: list[SessionState] = NO_SESSIONS
        self.merged: list[tuple[SessionState, SessionState]] = NO_MERGES

    def resume(self, session: SessionState) -> None:
        """Continue a session that earlier evidence left open.

        A session without a prior state, such as one that dropped reports left, counts as changed.
        """
        if session.phase is _PENDING:
            self.pending = session
        else:
            self.active = session
        if session.prior is None:
            self._add_changed(session)

    def apply(self, evidence: Report | StatusKeySighting) -> None:
        """Apply the next report or sighting, as it is stored."""
        if isinstance(evidence, StatusKeySighting):
            self.apply_sighting(evidence)
            return
        self.user_key = evidence.user_key
        place, now, kind = evidence[:2], evidence.received_at, evidence.kind
        if kind == _INTERIM:
            self.apply_interim(*place, now, evidence.side == _PEER_SIDE, evidence[-4:])
        elif kind == _TOTAL:
            self.apply_total(*place, now, evidence.side == _PEER_SIDE, evidence[-4:])
        else:
            self.apply_status(
                *place,
                now,
                kind,
                evidence.lifetime,
                evidence.transport,
                evidence.server_address,
                evidence.client_address,
            )

    def apply_interim(
        self, epoch: int, position: int, now: int, of_peer: bool, counters: Counters
    ) -> None:
        """Apply an interim: usage since the one before."""
        session = self.active
        if session is not None and now > session.expires_at:
            session = self._expire_active(now)
        if session is None or session.ended_at is not None or session.client_total_count:
            session = self._session_of_late_interim(session, epoch, position, now)
        elif not self.changed or self.changed[-1] is not session:
            self._add_changed(session)
        _extend_last_seen(session, now)
        _add_usage(session, self.rules.hour_at(now), of_peer, counters)

    def apply_total(
        self, epoch: int, position: int, now: int, of_peer: bool, counters: Counters
    ) -> None:
        """Apply a total: all usage of an allocation that is gone."""
        session = self.active
        if session is not None and now > session.expires_at:
            session = self._expire_active(now)
        if session is None or session._server_count <= (
            session.peer_total_count if of_peer else session.client_total_count
        ):
            session = self._start_next(session, epoch, position, now)
        else:
            self._continue(session)
        session.confirmed = True
        _extend_last_seen(session, now)
        hour = self.rules.hour_at(now)
        if of_peer:
            self._apply_peer_total(session, epoch, position, hour, counters)
        else:
            _apply_client_total(session, now, hour, counters)
        self._close_if_complete(session)

    def apply_status(
        self,
        epoch: int,
        position: int,
        now: int,
        kind: int,
        lifetime: int | None,
        transport: str | None,
        server_address: str | None,
        client_address: str | None,
    ) -> None:
        """Apply a ``new``, ``refreshed`` or ``deleted``."""
        session = self.active
        if session is not None and now > session.expires_at:
            session = self._expire_active(now)
        if kind == _NEW:
            session = self._apply_new(session, epoch, position, now, server_address)
        elif (
            session is None
            or session.end_cause is _DELETED
            or (kind != _DELETED_REPORT and session._has_final_client_totals)
        ):
            session = self._start_next(session, epoch, position, now)
        else:
            self._continue(session)
        session.confirmed = True
        if kind == _DELETED_REPORT:
            _apply_deleted(session, now)
            self._close_if_complete(session)
            return
        if lifetime:
            expires_at = now + lifetime * SECOND
            # Two servers: the longer of their lifetimes.
            session.expires_at = (
                max(session.expires_at, expires_at)
                if session.new_count > 1 and session.lifetime_known
                else expires_at
            )
            session.lifetime_known = True
        # lifetime=0 ends nothing: with two address families, the other one may go on.
        _extend_last_seen(session, now)
        if session.server_address is None:
            session.transport = transport
            session.server_address = server_address
            session.client_address = client_address

    def apply_sighting(self, sighting: StatusKeySighting) -> bool:
        """Apply a status key that a scan found to the latest session of its key; True if it counts.

        coturn sets the status key at every status and deletes it at the end. So a sighting confirms
        a session whose statuses were lost, and keeps one live whose refreshes were lost. It starts
        no session. It does not count if the session has a report since the scan began, or if the
        key is older than any lifetime: a server that crashed leaves its keys behind
        (docs/coturn.md#no-publish-on-stop).
        """
        session = self.active
        if session is None:
            return False
        grace = self.rules.grace_at(session.started_at)
        set_at = sighting.seen_at - sighting.idle_seconds * SECOND
        if (
            session.end_cause is _DELETED
            or session._has_final_client_totals
            or session.last_seen_at >= sighting.scan_started_at
            or sighting.seen_at - set_at > ASSUMED_LIFETIME + grace
        ):
            return False
        refreshed = set_at > session.last_seen_at
        if expire(session, sighting.seen_at, grace):
            self._add_changed(session)
            if session.phase is _CLOSED:
                self.active = None
                return False
        if session.end_cause is _EXPIRED and not refreshed:
            return False
        self._continue(session)
        session.confirmed = True
        if refreshed:
            session.last_seen_at = set_at
            session.expires_at = max(session.expires_at, set_at + ASSUMED_LIFETIME)
        return True

    def expire(self, until: int) -> bool:
        """End the active session if it expired before ``until``, a watermark; True if it did."""
        session = self.active
        if session is None or session.ended_at is not None or until <= session.expires_at:
            return False
        self._expire_active(until)
        # Not by ended_at, which is None to mypyc, as it was above.
        return session.end_cause is _EXPIRED

    def _expire_active(self, now: int) -> SessionState | None:
        """End the active session if it expired before ``now``; returns it if it is still active."""
        session = self.active
        assert session is not None
        if expire(session, now, self.rules.grace_at(session.started_at)):
            self._add_changed(session)
            if session.phase is _CLOSED:
                self.active = None
                return None
        return session

    def _session_of_late_interim(
        self, session: SessionState | None, epoch: int, position: int, now: int
    ) -> SessionState:
        """The session of an interim when the active one is missing, has ended or has totals."""
        if session is None or session.end_cause is _DELETED or session._has_final_client_totals:
            return self._start_next(session, epoch, position, now)
        if session.end_cause is _EXPIRED:
            if self.pending is None:
                self.pending = self._start(epoch, position, now)
                self.pending.phase = _PENDING
            session = self.pending
        self._add_changed(session)
        return session

    def _apply_new(
        self,
        session: SessionState | None,
        epoch: int,
        position: int,
        now: int,
        server_address: str | None,
    ) -> SessionState:
        if (
            session is not None
            and session.ended_at is None
            and not session._has_final_client_totals
            and session.server_address is not None
            and server_address is not None
            and session.server_address != server_address
        ):
            # Another server uses the key at the same time (docs/coturn.md#shared-key): one session.
            session.new_count = min(session._server_count + 1, MAX_SERVERS)
            session.disputed = True
            self._add_changed(session)
            return session
        session = self._start_next(session, epoch, position, now, _SUPERSEDED)
        session.start_known = True
        session.new_count = 1
        return session

    def _start_next(
        self,
        previous: SessionState | None,
        epoch: int,
        position: int,
        now: int,
        end_cause: EndCause = _EXPIRED,
    ) -> SessionState:
        """Start another session. The previous one is closed; if live, it ended at its last report.

        ``end_cause``: of a live one.
        """
        if previous is not None:
            if previous.ended_at is None:
                previous.ended_at = previous.last_seen_at
                previous.end_cause = end_cause
            previous.phase = _CLOSED
            self._add_changed(previous)
        if self.pending is not None:
            self.pending.phase = _CLOSED
            self._add_changed(self.pending)
            self.pending = None
        self.active = self._start(epoch, position, now)
        return self.active

    def _start(self, epoch: int, position: int, now: int) -> SessionState:
        session = SessionState(
            session_id(self.key.source_id, epoch, position),
            self.user_key,
            self.realm_id,
            now,  # started_at
            now,  # last_seen_at
            now + ASSUMED_LIFETIME,
        )
        self._add_changed(session)
        return session

    def _continue(self, session: SessionState) -> None:
        """Note a change of a session. If it is supposed to have expired, it has not."""
        if session.end_cause is _EXPIRED:
            self._reopen(session)
        self._add_changed(session)

    def _reopen(self, session: SessionState) -> None:
        session.ended_at = session.end_cause = None
        pending = self.pending
        if pending is None:
            return
        # The interims since its supposed end belong to it.
        session.usage = [a + b for a, b in zip(session.usage, pending.usage, strict=True)]
        for hour, added in pending.hourly_usage.items():
            _add_to_hour(session, hour, added)
        if pending.prior is not None:
            self.merged = [*self.merged, (pending, session)]
            if pending.prior.single_hour is not None:
                _add_to_hour(session, pending.prior.single_hour, pending.prior.usage)
        self.changed = [touched for touched in self.changed if touched is not pending]
        self.pending = None

    def _apply_peer_total(
        self, session: SessionState, epoch: int, position: int, hour: int, counters: Counters
    ) -> None:
        """Compare the peer total with the interims, and add what they lack if some may be lost.

        The total wraps, so the difference is a lower bound (docs/coturn.md#peer-total-wraps).
        """
        session.peer_total_count += 1
        session.peer_total = _sum(session.peer_total, counters)
        if session.peer_total_count < session._server_count:
            return
        usage = session.usage[_PEER]
        if session.peer_total == usage:
            return
        missing = [
            (total - sum_) % PEER_MODULUS
            for total, sum_ in zip(session.peer_total, usage, strict=True)
        ]
        if not any(missing):
            return
        interims_missed = (
            session.estimated
            or not session.start_known
            or _has_gap_between(
                self.gap_positions, first_position(session.session_id), (epoch, position)
            )
        )
        if (
            interims_missed
            and _is_plausible_loss(*missing[:2])
            and _is_plausible_loss(*missing[2:])
        ):
            session.estimated = True
            _add_usage(session, hour, True, missing)
        else:
            session.disputed = True

    def _close_if_complete(self, session: SessionState) -> None:
        """Close a session that coturn deleted and that has all totals: nothing can follow."""
        if session.end_cause is _DELETED and session._has_all_totals:
            session.phase = _CLOSED
            self.active = None

    def _add_changed(self, session: SessionState) -> None:
        """Note that a session changed in this step."""
        if not self.changed:
            self.changed = [session]
        elif all(other is not session for other in self.changed):
            self.changed.append(session)


def expire(session: SessionState, now: int, grace: int) -> bool:
    """End a session if its expiry and ``grace`` (microseconds) have passed; True if this ended it.

    It ended at its last report. If it is unconfirmed, its traffic was unauthenticated, and
    no later report may reopen it (docs/coturn.md#unauthenticated-traffic).
    """
    if session.ended_at is not None or now <= session.expires_at + grace:
        return False
    session.ended_at = session.last_seen_at
    session.end_cause = _EXPIRED
    if not session.confirmed:
        session.phase = _CLOSED
    return True


def _extend_last_seen(session: SessionState, now: int) -> None:
    if session.ended_at is None:
        if now > session.last_seen_at:
            session.last_seen_at = now
        if not session.lifetime_known:
            session.expires_at = now + ASSUMED_LIFETIME


def _apply_deleted(session: SessionState, now: int) -> None:
    _extend_last_seen(session, now)
    session.deleted_count += 1
    if session.deleted_count >= session._server_count:
        session.ended_at = now
        session.end_cause = _DELETED


def _apply_client_total(session: SessionState, now: int, hour: int, counters: Counters) -> None:
    """Compare the client total with the interims, and add what they lack."""
    session.client_total_count += 1
    session.client_total = _sum(session.client_total, counters)
    usage = session.usage[_CLIENT]
    if session.client_total != usage:
        missing = [a - b for a, b in zip(session.client_total, usage, strict=True)]
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


def _sum(total: list[int], counters: Counters) -> list[int]:
    """A total of several servers; mostly of one."""
    if total is NO_TOTAL:
        return list(counters)
    return [a + b for a, b in zip(total, counters, strict=True)]


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
    _set_hour(session, hour, [a + b for a, b in zip(before, counters, strict=True)])


def _set_hour(session: SessionState, hour: int, counters: list[int]) -> None:
    if session.hourly_usage:
        session.hourly_usage[hour] = counters
    else:
        session.hourly_usage = {hour: counters}


def _add_usage(session: SessionState, hour: int, of_peer: bool, counters: Counters) -> None:
    received_packets, received_bytes, sent_packets, sent_bytes = counters
    first, second, third, fourth = (4, 5, 6, 7) if of_peer else (0, 1, 2, 3)
    usage, sums = session.usage, session.hourly_usage.get(hour)
    if sums is None:
        sums = [0] * 8
        _set_hour(session, hour, sums)
    usage[first] += received_packets
    usage[second] += received_bytes
    usage[third] += sent_packets
    usage[fourth] += sent_bytes
    sums[first] += received_packets
    sums[second] += received_bytes
    sums[third] += sent_packets
    sums[fourth] += sent_bytes
