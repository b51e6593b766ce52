"""Traces what was billed to a user to its sessions, and one session or all to coturn's reports.

Writes nothing.

What a report contributed is what recomputing its session made of it: an interim its own figures, a
total what the interims lacked. Dropped reports are shown as one sum: as it was carried or, for a
session without any report left, as it is stored.
"""

import copy
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import date, datetime, timedelta
from itertools import groupby
from operator import itemgetter
from typing import Final
from uuid import UUID

from sqlalchemy import Connection, Engine

from accounting.audit import evidence_queries, finalized_queries
from accounting.audit.evidence_queries import Evidence, EvidenceScope
from accounting.audit.session_lookup import StoredSession, find_session
from accounting.audit.snapshot import quiesced_snapshot
from accounting.audit.statement_check import (
    PartlyDroppedPeriod,
    find_closed_periods,
    partly_dropped,
)
from accounting.billing import period_queries
from accounting.billing.adjustment_queries import adjustment_target
from accounting.billing.period_queries import PeriodRow, find_period
from accounting.billing.statement_queries import BilledLine, billed_lines
from accounting.db.engine import lost_connections
from accounting.domain.calendar import to_micros
from accounting.domain.periods import describe_wait
from accounting.domain.session_fold import (
    AllocationKey,
    KeyFold,
    Report,
    SessionState,
    StatusKeySighting,
)
from accounting.domain.session_hours import SessionHour, hours_of
from accounting.domain.session_ids import short_session_id
from accounting.errors import UsageError, not_closed
from accounting.identities import realm_queries
from accounting.identities.realm_queries import find_realm
from accounting.identities.user_queries import (
    count_sessions,
    find_user_key,
    unknown_user_error,
    username_keys,
)
from accounting.progress import Progress, no_progress
from accounting.sessions.careful_fold import CarefulFold
from accounting.sessions.fold_failure import FoldFailed

Numbers = tuple[int, ...]
"""The eight counters and session microseconds."""
_NO_COUNTERS: Final = (0,) * 8
_NO_NUMBERS: Final = (0,) * 9
_A_DAY: Final = timedelta(days=1)
"""No hour is longer."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TracedReport:
    """A report, and what it contributed to the period.

    ``counters``: the eight, signed; all zero for a status, and for a total when nothing was
    missing. ``late``: it was settled after the statement's cutoff.
    """

    source: str
    report: Report
    counters: Numbers
    late: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class TracedSession:
    """A session with usage in the period: its numbers there, and all of its reports.

    ``dropped_counters``: the eight counters of its dropped reports; None where all are kept.
    """

    session: SessionState
    source: str
    allocation_id: int
    numbers: Numbers
    dropped_counters: Numbers | None = None
    reports: list[TracedReport] = field(default_factory=list)

    @property
    def adds_up(self) -> bool:
        """Whether its reports add up to its numbers."""
        reported = (report.counters for report in self.reports)
        return self.numbers[:8] == _sum((self.dropped_counters or _NO_COUNTERS, *reported), 8)


@dataclass(frozen=True, slots=True, kw_only=True)
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
        """Whether the sessions add up to the bill, and the reports of each to the session."""
        return self.billed == self.traced and all(session.adds_up for session in self.sessions)


@dataclass(slots=True)
class _Contributions:
    """A session's usage, attributed to the reports that brought it.

    ``carried``: that of dropped reports, by hour; None for a session that was not carried.
    ``attributed``: the usage that is attributed so far. ``hours``: of the session at the end.
    """

    session: SessionState
    carried: list[tuple[int, Numbers]] | None = None
    reports: list[tuple[Report, Numbers]] = field(default_factory=list)
    attributed: Numbers = _NO_COUNTERS
    hours: Iterable[SessionHour] = ()

    def take(self) -> Numbers:
        """The usage that is not attributed yet; afterwards it is."""
        usage = tuple(self.session.usage)
        new = tuple(a - b for a, b in zip(usage, self.attributed, strict=True))
        self.attributed = usage
        return new


@dataclass(frozen=True, slots=True, kw_only=True)
class PeriodPart:
    """What a period has of a session."""

    period: date
    is_closed: bool
    numbers: Numbers


@dataclass(frozen=True, slots=True, kw_only=True)
class SessionTrace:
    """A session with all that it has, and its part in each period.

    ``user_id`` is empty when absent or erased. ``stored``: its eight counters in the books.
    """

    realm: str
    user_id: str
    user_key: UUID
    session: TracedSession
    parts: list[PeriodPart]
    stored: Numbers

    @property
    def adds_up(self) -> bool:
        """Whether the reports add up to the session in the books."""
        return self.stored == self.session.numbers[:8] and self.session.adds_up


def trace(
    engine: Engine,
    realm: str,
    period: date,
    *,
    user: str | None = None,
    key: UUID | None = None,
    progress: Progress = no_progress,
) -> Trace:
    """Trace a user's line in a closed period, and all adjustments of it.

    ``user``: the user_id; or ``key``: the user_key, for a user whose name was erased. Raises
    UsageError for an unknown name, and NotYet for a period that is not closed.
    """
    progress(0, doing="waiting for the jobs to rest")
    with quiesced_snapshot(engine) as connection, lost_connections():
        realm_id = find_realm(connection, realm)
        row = find_period(connection, realm_id, realm, period)
        if row.cutoff is None:
            waits = describe_wait(
                period_queries.waits_for(connection, realm_id, period, ()),
                row.ends_at,
                row.time_zone,
            )
            raise not_closed(
                realm,
                period,
                waits,
                "its sessions: `turn-accounting sessions`, then `turn-accounting trace --session`",
            )
        user_key = key or find_user_key(connection, realm_id, user or "")
        if user_key is None:
            raise unknown_user_error(connection, realm, user or "")
        lines = billed_lines(connection, realm_id, period, user_key)
        sessions = [
            *_trace_finalized_sessions(connection, row, user_key),
            *_trace_sessions(connection, row, row.cutoff, user_key, progress),
        ]
        if key is not None and not lines and not sessions:
            raise UsageError(f"no user_key {key} has usage in period {period} of realm '{realm}'")
        closed = find_closed_periods(connection, [realm_id], period)
        return Trace(
            realm=realm,
            period=period,
            user_key=user_key,
            lines=lines,
            sessions=sessions,
            partly_dropped=next(iter(partly_dropped(connection, {realm_id: realm}, closed)), None),
        )


def trace_adjustment(
    engine: Engine, adjustment_id: UUID, *, progress: Progress = no_progress
) -> Trace:
    """Trace the period and user of an adjustment. Raises UsageError."""
    with lost_connections(), engine.connect() as connection:
        target = adjustment_target(connection, adjustment_id)
        if target is None:
            raise UsageError(
                f"no adjustment {adjustment_id} is known: `turn-accounting statement REALM PERIOD "
                "--adjustments --json` shows their ids"
            )
        realm_id, period, user_key = target
        realm = realm_queries.names_by_id(connection)[realm_id]
    return trace(engine, realm, period, key=user_key, progress=progress)


def trace_session(
    engine: Engine, session_id: UUID, *, progress: Progress = no_progress
) -> SessionTrace:
    """Trace one confirmed session to its reports, and to the periods that have a part of it.

    Raises UsageError where there is none.
    """
    progress(0, doing="waiting for the jobs to rest")
    with quiesced_snapshot(engine) as connection, lost_connections():
        stored = find_session(connection, session_id)
        if stored is None:
            raise UsageError(
                f"no session {short_session_id(session_id)} is known: `turn-accounting sessions` "
                "shows their ids"
            )
        periods = [
            row
            for row in period_queries.realm_periods(connection, stored.realm_id)
            if row.starts_at <= stored.last_seen_at and stored.started_at < row.ends_at
        ]
        progress(0, doing="recomputing the session")
        recomputed = _recompute_session(connection, stored, periods)
        if recomputed is None:
            recomputed = _finalized_session(connection, stored, periods)
        traced, parts = recomputed
        return SessionTrace(
            realm=stored.realm,
            user_id=stored.user_id,
            user_key=stored.user_key,
            session=traced,
            parts=[part for part in parts if any(part.numbers)],
            stored=stored.counters,
        )


def _recompute_session(
    connection: Connection, stored: StoredSession, periods: Sequence[PeriodRow]
) -> tuple[TracedSession, list[PeriodPart]] | None:
    """The session recomputed from its reports; None where none of them is left."""
    late_after = {row.period: _statement_positions(connection, row.cutoff) for row in periods}
    for source, key, contribution in _recompute(
        connection, stored.realm_id, [stored.key.username_key], only=stored.key
    ):
        session = contribution.session
        if session.session_id != stored.session_id.bytes:
            continue
        hours = list(contribution.hours)
        carried = contribution.carried
        traced = TracedSession(
            session=session,
            source=source,
            allocation_id=key.allocation_id,
            numbers=_sum_hours(hours),
            dropped_counters=None if carried is None else _sum((row[1] for row in carried), 8),
            reports=[
                TracedReport(
                    source=source,
                    report=report,
                    counters=counters,
                    late=any(
                        _within(row, report.received_at)
                        and key.source_id in late_after[row.period]
                        and report[:2] > late_after[row.period][key.source_id]
                        for row in periods
                    ),
                )
                for report, counters in contribution.reports
            ],
        )
        parts = [
            PeriodPart(
                period=row.period,
                is_closed=row.closed_at is not None,
                numbers=_sum_hours(hour for hour in hours if _within(row, hour.starts_at)),
            )
            for row in periods
        ]
        return traced, parts
    return None


def _finalized_session(
    connection: Connection, stored: StoredSession, periods: Sequence[PeriodRow]
) -> tuple[TracedSession, list[PeriodPart]]:
    """The session as it is stored, all of whose reports were dropped."""

    def read(span: tuple[datetime, datetime]) -> tuple[SessionState | None, Numbers]:
        found = finalized_queries.finalized_of_user(
            connection, stored.realm_id, stored.user_key, span, session_id=stored.session_id
        )
        return next(((session, numbers) for _, session, numbers in found), (None, _NO_NUMBERS))

    session, numbers = read((stored.started_at - _A_DAY, stored.last_seen_at + _A_DAY))
    if session is None:
        raise UsageError(
            f"session {short_session_id(stored.session_id)} does not follow from its reports: "
            "`turn-accounting verify` names what is wrong"
        )
    traced = TracedSession(
        session=session,
        source=evidence_queries.source_names(connection)[stored.key.source_id],
        allocation_id=stored.key.allocation_id,
        numbers=numbers,
        dropped_counters=numbers[:8],
    )
    return traced, [
        PeriodPart(
            period=row.period,
            is_closed=row.closed_at is not None,
            numbers=read((row.starts_at, row.ends_at))[1],
        )
        for row in periods
    ]


def _within(period: PeriodRow, time: int) -> bool:
    return to_micros(period.starts_at) <= time < to_micros(period.ends_at)


def _sum_hours(hours: Iterable[SessionHour]) -> Numbers:
    """The eight counters and the session microseconds of these hours."""
    return _sum((*hour.counters, hour.active_to - hour.active_from) for hour in hours)


def _trace_finalized_sessions(
    connection: Connection, period: PeriodRow, user_key: UUID
) -> Iterator[TracedSession]:
    """The user's sessions without any report left, as they are stored."""
    names = evidence_queries.source_names(connection)
    for key, session, numbers in finalized_queries.finalized_of_user(
        connection, period.realm_id, user_key, (period.starts_at, period.ends_at)
    ):
        yield TracedSession(
            session=session,
            source=names[key.source_id],
            allocation_id=key.allocation_id,
            numbers=numbers,
            dropped_counters=numbers[:8],
        )


def _trace_sessions(
    connection: Connection,
    period: PeriodRow,
    cutoff: str,
    user_key: UUID,
    progress: Progress,
) -> Iterator[TracedSession]:
    """The user's sessions with usage in a period, recomputed. ``cutoff``: of its statement."""
    late_after = _statement_positions(connection, cutoff)
    progress(0, doing="recomputing the user's sessions")
    total = None
    if progress is not no_progress:
        total = count_sessions(connection, user_key)
    recomputed = _recompute(connection, period.realm_id, username_keys(connection, user_key))
    for count, (source, key, contribution) in enumerate(recomputed, start=1):
        progress(count, total, doing="recomputing the user's sessions")
        session = contribution.session
        if session.user_key != user_key.bytes or not session.confirmed:
            continue
        hours = [hour for hour in contribution.hours if _within(period, hour.starts_at)]
        if not hours:
            continue
        carried = contribution.carried
        yield TracedSession(
            session=session,
            source=source,
            allocation_id=key.allocation_id,
            numbers=_sum_hours(hours),
            dropped_counters=None
            if carried is None
            else _sum((added for hour, added in carried if _within(period, hour)), 8),
            reports=[
                TracedReport(
                    source=source,
                    report=report,
                    counters=counters if _within(period, report.received_at) else _NO_COUNTERS,
                    late=report[:2] > late_after.get(key.source_id, (0, 0)),
                )
                for report, counters in contribution.reports
            ],
        )


def _statement_positions(connection: Connection, cutoff: str | None) -> dict[int, tuple[int, int]]:
    """(epoch, position) by source_id that a statement was computed at; empty without one."""
    if cutoff is None:
        return {}
    return {
        watermark.source_id: (watermark.epoch, watermark.position)
        for watermark in evidence_queries.parse_cutoff(connection, cutoff).watermarks
    }


def _recompute(
    connection: Connection,
    realm_id: int,
    usernames: Sequence[bytes],
    *,
    only: AllocationKey | None = None,
) -> Iterator[tuple[str, AllocationKey, _Contributions]]:
    """(source, key, contributions) of each session of usernames, or of ``only`` one key of them."""
    rules = realm_queries.all_rules(connection)[realm_id]
    names = evidence_queries.source_names(connection)
    now = evidence_queries.settled_cutoff(connection)
    settled_until = {watermark.source_id: watermark.settled_until for watermark in now.watermarks}
    scope = EvidenceScope(cutoff=now, realm_ids=[realm_id], username_keys=usernames)
    evidence = evidence_queries.read_evidence(connection, scope)
    for key, group in groupby(evidence, key=itemgetter(0)):
        if only is not None and key != only:
            continue
        gap_positions = evidence_queries.gap_positions(connection, key.source_id, now)
        items = [item for _, item in group]
        until = settled_until[key.source_id]
        try:
            fold = KeyFold(key, realm_id, rules, gap_positions)
            contributions = _attribute_usage(fold, map(_copied, items), until)
        except FoldFailed:
            fold = CarefulFold(key, realm_id, rules, gap_positions, on_set_aside=lambda _: None)
            contributions = _attribute_usage(fold, items, until)
        for contribution in contributions:
            yield names[key.source_id], key, contribution


def _copied(item: Evidence) -> Evidence:
    """A carried session is changed in its place, and may be needed once more."""
    return copy.deepcopy(item) if isinstance(item, SessionState) else item


def _apply(fold: KeyFold, item: Report | StatusKeySighting) -> None:
    try:
        fold.apply(item)
    except Exception as error:
        raise FoldFailed([fold.key]) from error


def _attribute_usage(
    fold: KeyFold, evidence: Iterable[Evidence], until: int | None
) -> list[_Contributions]:
    """Apply a key's evidence report by report; returns every session with what each brought.

    Expires by ``until``. Raises FoldFailed.
    """
    # By identity: sessions are mutable, and ``fold.changed`` keeps each of them.
    contributions: dict[int, _Contributions] = {}
    for item in evidence:
        if isinstance(item, SessionState):
            fold.resume(item)
            carried = [(hour, tuple(added)) for hour, added in item.hourly_usage.items()]
            contributions[id(item)] = _Contributions(item, carried, attributed=tuple(item.usage))
            continue
        pending, active = fold.pending, fold.active
        _apply(fold, item)
        for session in fold.changed:
            contributions.setdefault(id(session), _Contributions(session))
        if pending is not None and all(session is not pending for session in fold.changed):
            # It was merged into the active session, which has its usage now.
            merged, target = contributions.pop(id(pending)), contributions[id(active)]
            target.reports += merged.reports
            target.attributed = _sum((target.attributed, merged.attributed), 8)
            if merged.carried is not None:
                target.carried = [*(target.carried or ()), *merged.carried]
        if isinstance(item, Report) and fold.changed:
            # The session with new usage, or else the one that the report says something about.
            named = contributions[id(fold.active or active or fold.changed[-1])]
            owner = next(
                (
                    contribution
                    for contribution in contributions.values()
                    if tuple(contribution.session.usage) != contribution.attributed
                ),
                named,
            )
            owner.reports.append((item, owner.take()))
    try:
        if until is not None:
            fold.expire(until)
        for contribution in contributions.values():
            contribution.hours = hours_of(contribution.session, fold.rules.calendar)
    except Exception as error:
        raise FoldFailed([fold.key]) from error
    return list(contributions.values())


def _sum(rows: Iterable[Numbers], length: int = 9) -> Numbers:
    sums = [0] * length
    for numbers in rows:
        sums = [a + b for a, b in zip(sums, numbers, strict=True)]
    return tuple(sums)
