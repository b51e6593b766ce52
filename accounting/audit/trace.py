"""Trace: from what was billed to a user, by way of the sessions, to coturn's own reports.

Writes nothing. What a report brought is what the recomputation of its session made of it: an
interim its own figures, a total what the interims lacked. What dropped reports brought is shown in
one sum, as it was carried over or, where none of a session are left, as it is booked.
"""

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import date
from itertools import groupby
from operator import itemgetter
from typing import Final
from uuid import UUID

from sqlalchemy import Connection, Engine

from accounting.audit import evidence_queries, recompute, retention_queries
from accounting.audit.evidence_queries import Cutoff
from accounting.audit.recompute_books import quiesced_snapshot
from accounting.audit.statement_check import (
    PartlyDroppedPeriod,
    find_closed_periods,
    partly_dropped,
)
from accounting.billing.adjustment_queries import adjustment_target
from accounting.billing.period_queries import PeriodRow, find_period
from accounting.billing.statement_queries import BilledLine, billed_lines
from accounting.db.engine import lost_connections
from accounting.domain.calendar import to_micros
from accounting.domain.realm_rules import RealmRules
from accounting.domain.session_fold import AllocationKey, KeyState, Report, SessionState, UsageDelta
from accounting.domain.session_hours import hours_of
from accounting.errors import NotYet, UsageError
from accounting.identities import realm_queries
from accounting.identities.realm_queries import find_realm
from accounting.identities.user_queries import find_user_key, username_keys

Numbers = tuple[int, ...]
"""The eight counters and session microseconds."""
_NOTHING: Final = (0,) * 8


@dataclass(frozen=True, slots=True, kw_only=True)
class TracedReport:
    """A report, and what it brought to the period. ``late``: it came after the statement's cutoff.

    ``counters``: the eight, signed; all zero for a status, and for a total that found nothing
    missing.
    """

    source: str
    report: Report
    counters: Numbers
    late: bool


@dataclass(slots=True, kw_only=True)
class TracedSession:
    """A session with usage in the period: its numbers there, and all of its reports.

    ``dropped``: the eight counters that reports brought which are not kept any more; None where
    all are kept.
    """

    session: SessionState
    source: str
    allocation_id: int
    numbers: Numbers
    dropped_counters: Numbers | None = None
    reports: list[TracedReport] = field(default_factory=list)


@dataclass(slots=True, kw_only=True)
class Trace:
    """What was billed for a user's period, and the sessions that it came from.

    ``partly_dropped``: set where reports of the period were dropped.
    """

    realm: str
    period: date
    user_key: UUID
    lines: list[BilledLine]
    sessions: list[TracedSession]
    partly_dropped: PartlyDroppedPeriod | None = None

    @property
    def billed(self) -> Numbers:
        """The sum of the statement's line and the adjustments for late usage."""
        return _sum(line.numbers for line in self.lines if not line.manual)

    @property
    def traced(self) -> Numbers:
        """The sum over the sessions."""
        return _sum(session.numbers for session in self.sessions)

    @property
    def adds_up(self) -> bool:
        """Whether the sessions have what was billed, and their reports brought what they have."""
        return self.billed == self.traced and all(
            session.numbers[:8]
            == _sum(
                (session.dropped_counters or _NOTHING, *(one.counters for one in session.reports)),
                8,
            )
            for session in self.sessions
        )


def trace(
    engine: Engine, realm: str, period: date, *, user: str | None = None, key: UUID | None = None
) -> Trace:
    """Trace a user's line in a closed period, and all adjustments that name it.

    ``user``: by name, or ``key``: by key, for one whose name is erased. Raises UsageError for what
    nobody knows, and NotYet for a period that is not closed.
    """
    with quiesced_snapshot(engine) as connection, lost_connections():
        realm_id = find_realm(connection, realm)
        row = find_period(connection, realm_id, realm, period)
        if row.cutoff is None:
            raise NotYet(f"period {period} of realm '{realm}' is not closed yet: nothing to trace")
        found = key or find_user_key(connection, realm_id, user or "")
        if found is None:
            raise UsageError(f"no user '{user}' is known in realm '{realm}'")
        lines = billed_lines(connection, realm_id, period, found)
        sessions = [
            *_sealed_sessions(connection, row, found),
            *_sessions(
                connection, row, evidence_queries.parse_cutoff(connection, row.cutoff), found
            ),
        ]
        if key is not None and not lines and not sessions:
            raise UsageError(f"no user_key {key} has usage in period {period} of realm '{realm}'")
        closed = find_closed_periods(connection, [realm_id], period)
        return Trace(
            realm=realm,
            period=period,
            user_key=found,
            lines=lines,
            sessions=sessions,
            partly_dropped=next(iter(partly_dropped({realm_id: realm}, closed)), None),
        )


def trace_adjustment(engine: Engine, adjustment_id: UUID) -> Trace:
    """Trace the period of a user that an adjustment names. Raises UsageError."""
    with lost_connections(), engine.connect() as connection:
        found = adjustment_target(connection, adjustment_id)
        if found is None:
            raise UsageError(f"no adjustment {adjustment_id} is known")
        realm_id, period, key = found
        realm = realm_queries.names_by_id(connection)[realm_id]
    return trace(engine, realm, period, key=key)


def _sealed_sessions(
    connection: Connection, period: PeriodRow, user_key: UUID
) -> Iterator[TracedSession]:
    """The user's sessions of which no report is left, as they are booked."""
    names = evidence_queries.source_names(connection)
    for key, session, numbers in retention_queries.finalized_of_user(connection, period, user_key):
        yield TracedSession(
            session=session,
            source=names[key.source_id],
            allocation_id=key.allocation_id,
            numbers=numbers,
            dropped_counters=numbers[:8],
        )


def _sessions(
    connection: Connection, period: PeriodRow, cutoff: Cutoff, user_key: UUID
) -> Iterator[TracedSession]:
    rules = realm_queries.all_rules(connection)
    now = evidence_queries.settled_cutoff(connection)
    names = evidence_queries.source_names(connection)
    reached = {mark.source_id: (mark.epoch, mark.position) for mark in cutoff.watermarks}
    borders = to_micros(period.starts_at), to_micros(period.ends_at)
    calendar = rules[period.realm_id].calendar
    for key, session, carried, heard in _told(connection, rules, now, period.realm_id, user_key):
        if session.user_key != user_key.bytes or not session.confirmed:
            continue
        rows = [
            row for row in hours_of(session, calendar) if borders[0] <= row.starts_at < borders[1]
        ]
        if not rows:
            continue
        seconds = sum(row.active_to - row.active_from for row in rows)
        counters = _sum((tuple(row.counters) for row in rows), 8)
        yield TracedSession(
            session=session,
            source=names[key.source_id],
            allocation_id=key.allocation_id,
            numbers=(*counters, seconds),
            dropped_counters=None if carried is None else _brought(carried, borders),
            reports=[
                TracedReport(
                    source=names[key.source_id],
                    report=report,
                    counters=_brought(entries, borders),
                    late=report[:2] > reached.get(key.source_id, (0, 0)),
                )
                for report, entries in heard
            ],
        )


def _told(
    connection: Connection,
    rules: Mapping[int, RealmRules],
    cutoff: Cutoff,
    realm_id: int,
    user_key: UUID,
) -> Iterator[
    tuple[
        AllocationKey, SessionState, list[UsageDelta] | None, list[tuple[Report, list[UsageDelta]]]
    ]
]:
    """Every life of a user's keys, with its reports and the entries that each brought.

    Before them the entries that dropped reports brought; None where there were none.
    """
    untils = {mark.source_id: mark.settled_until for mark in cutoff.watermarks}
    usernames = username_keys(connection, user_key)
    evidence = recompute.read_told(connection, cutoff, [realm_id], usernames)
    for key, group in groupby(evidence, key=itemgetter(0)):
        gap_positions = evidence_queries.gap_positions(connection, key.source_id, cutoff)
        key_state = KeyState()
        # By identity: a life is mutable, and none is forgotten while the key is told.
        heard: defaultdict[int, list[tuple[Report, list[UsageDelta]]]] = defaultdict(list)
        seen: defaultdict[int, int] = defaultdict(int)
        told: dict[int, SessionState] = {}
        carried: dict[int, list[UsageDelta]] = {}
        for _, one in group:
            if isinstance(one, SessionState):
                recompute.carry_on(key_state, one)
                told[id(one)] = one
                carried[id(one)] = one.deltas.copy()
                seen[id(one)] = len(one.deltas)
                continue
            pending = key_state.pending
            before = key_state.active
            recompute.take(key_state, one, key, rules[realm_id], gap_positions)
            told.update((id(session), session) for session in key_state.changed)
            if pending is not None and all(session is not pending for session in key_state.changed):
                # The life that it turned out to be a part of has its entries now.
                assert before is not None
                heard[id(before)] += heard.pop(id(pending))
                seen[id(before)] += len(pending.deltas)
                if id(pending) in carried:
                    carried[id(before)] += carried.pop(id(pending))
                del told[id(pending)]
            if isinstance(one, Report):
                spoken = _spoken_of(key_state.active or before or key_state.changed[-1], told, seen)
                heard[id(spoken)].append((one, spoken.deltas[seen[id(spoken)] :]))
                seen[id(spoken)] = len(spoken.deltas)
        recompute.finish(key_state, rules, untils[key.source_id])
        for session in told.values():
            yield key, session, carried.get(id(session)), heard[id(session)]


def _spoken_of(
    otherwise: SessionState, told: Mapping[int, SessionState], seen: Mapping[int, int]
) -> SessionState:
    """The life that the last report belongs to: the one that it brought something, if any."""
    for session in told.values():
        if len(session.deltas) > seen[id(session)]:
            return session
    return otherwise


def _brought(entries: Sequence[UsageDelta], borders: tuple[int, int]) -> Numbers:
    counters = [0] * 8
    for at, side, *counts in entries:
        if borders[0] <= at < borders[1]:
            for place, count in enumerate(counts, start=4 * side):
                counters[place] += count
    return tuple(counters)


def _sum(numbers: Iterable[Numbers], length: int = 9) -> Numbers:
    sums = [0] * length
    for one in numbers:
        sums = [a + b for a, b in zip(sums, one, strict=True)]
    return tuple(sums)
