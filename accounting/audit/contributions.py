"""What each report of a session contributed to its usage, by recomputing the session.

An interim brings its own figures, a total what the interims lacked.
"""

import copy
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from operator import itemgetter

from sqlalchemy import Connection

from accounting.audit import evidence_queries
from accounting.audit.evidence_queries import Evidence, EvidenceScope
from accounting.audit.trace_results import NO_COUNTERS, Numbers, sum_numbers
from accounting.billing.period_queries import PeriodRow
from accounting.domain.calendar import to_micros
from accounting.domain.session_fold import (
    AllocationKey,
    KeyFold,
    Report,
    SessionState,
    StatusKeySighting,
)
from accounting.domain.session_hours import SessionHour, hours_of
from accounting.identities import realm_queries
from accounting.sessions.careful_fold import CarefulFold
from accounting.sessions.fold_failure import FoldFailed


@dataclass(slots=True)
class Contributions:
    """A session's usage, attributed to the reports that brought it.

    ``carried``: that of dropped reports, by hour; None for a session that was not carried.
    ``attributed``: the usage that is attributed so far. ``hours``: of the session at the end.
    """

    session: SessionState
    carried: list[tuple[int, Numbers]] | None = None
    reports: list[tuple[Report, Numbers]] = field(default_factory=list)
    attributed: Numbers = NO_COUNTERS
    hours: Iterable[SessionHour] = ()

    def take(self) -> Numbers:
        """The usage that is not attributed yet; afterwards it is."""
        usage = tuple(self.session.usage)
        new = tuple(a - b for a, b in zip(usage, self.attributed, strict=True))
        self.attributed = usage
        return new


def recompute_contributions(
    connection: Connection,
    realm_id: int,
    usernames: Sequence[bytes],
    *,
    only: AllocationKey | None = None,
) -> Iterator[tuple[str, AllocationKey, Contributions]]:
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
) -> list[Contributions]:
    """Apply a key's evidence report by report; returns every session with what each brought.

    Expires by ``until``. Raises FoldFailed.
    """
    # By identity: sessions are mutable, and ``fold.changed`` keeps each of them.
    contributions: dict[int, Contributions] = {}
    for item in evidence:
        if isinstance(item, SessionState):
            fold.resume(item)
            carried = [(hour, tuple(added)) for hour, added in item.hourly_usage.items()]
            contributions[id(item)] = Contributions(item, carried, attributed=tuple(item.usage))
            continue
        pending, active = fold.pending, fold.active
        _apply(fold, item)
        for session in fold.changed:
            contributions.setdefault(id(session), Contributions(session))
        if pending is not None and all(session is not pending for session in fold.changed):
            # It was merged into the active session, which has its usage now.
            merged, target = contributions.pop(id(pending)), contributions[id(active)]
            target.reports += merged.reports
            target.attributed = sum_numbers((target.attributed, merged.attributed), 8)
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


def is_within(period: PeriodRow, time: int) -> bool:
    """Whether a time, in microseconds, is in a period."""
    return to_micros(period.starts_at) <= time < to_micros(period.ends_at)


def sum_hours(hours: Iterable[SessionHour]) -> Numbers:
    """The eight counters and the session microseconds of these hours."""
    return sum_numbers((*hour.counters, hour.active_to - hour.active_from) for hour in hours)


def statement_positions(connection: Connection, cutoff: str | None) -> dict[int, tuple[int, int]]:
    """(epoch, position) by source_id that a statement was computed at; empty without one."""
    if cutoff is None:
        return {}
    return {
        watermark.source_id: (watermark.epoch, watermark.position)
        for watermark in evidence_queries.parse_cutoff(connection, cutoff).watermarks
    }
