"""Recomputes sessions from the evidence alone, by the rules that settling applies.

Settling folds a key's evidence in many steps, recomputing folds it in one: the result must be the
same. Where reports were dropped, the fold begins with the carried sessions. Writes nothing.
"""

import copy
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import chain, groupby, islice
from operator import itemgetter
from typing import NamedTuple

from sqlalchemy import Connection

from accounting.audit import evidence_queries
from accounting.audit.checkpoints import Checkpoint, SourceCheckpoint, source_checkpoints
from accounting.audit.evidence_queries import Evidence, EvidenceScope
from accounting.domain.realm_rules import RealmRules
from accounting.domain.session_fold import AllocationKey, KeyFold, Phase, SessionState
from accounting.domain.session_hours import SessionHour, hours_of
from accounting.sessions.careful_fold import CarefulFold, SetAside
from accounting.sessions.fold_failure import FoldFailed


class RecomputedSession(NamedTuple):
    """A session with its hours, as it stands at the cutoff, or as it stood at ``checkpoint``."""

    key: AllocationKey
    session: SessionState
    hours: Sequence[SessionHour]
    checkpoint: Checkpoint | None


def recompute_sessions(
    connection: Connection,
    rules: Mapping[int, RealmRules],
    scope: EvidenceScope,
    checkpoints: Collection[Checkpoint] = (),
    *,
    on_set_aside: Callable[[SetAside], object],
) -> Iterator[RecomputedSession]:
    """Recompute sessions as they stand at the scope's cutoff, and as they stood at checkpoints.

    Each session comes once without a checkpoint. A confirmed one also comes with each checkpoint in
    whose period it may have usage; ``checkpoints`` must be some that one pass can serve. Sessions
    that ended with the dropped reports do not come. ``on_set_aside`` gets the reports whose fold
    raised an error, and that are left out. The connection should be in REPEATABLE READ. Memory does
    not grow with the reports.
    """
    watermarks = {watermark.source_id: watermark for watermark in scope.cutoff.watermarks}
    gap_positions = {
        source_id: evidence_queries.gap_positions(connection, source_id, scope.cutoff)
        for source_id in watermarks
    }
    checkpoints_by_source = {
        (realm_id, source_id): source_checkpoints(checkpoints, realm_id, source_id)
        for realm_id in {checkpoint.realm_id for checkpoint in checkpoints}
        for source_id in watermarks
    }

    def recompute(fold: KeyFold, group: Iterator[Evidence]) -> Iterator[RecomputedSession]:
        source_id = fold.key.source_id
        recomputation = _KeyRecomputation(
            fold, checkpoints_by_source.get((fold.realm_id, source_id), [])
        )
        return recomputation.run(group, watermarks[source_id].settled_until)

    # Of each key that failed, how many of its sessions had come before.
    failed: dict[AllocationKey, int] = {}
    for key, realm_id, group in _by_key(connection, scope):
        fold = KeyFold(key, realm_id, rules[realm_id], gap_positions[key.source_id])
        count = 0
        try:
            for recomputed in recompute(fold, group):
                count += 1
                yield recomputed
        except FoldFailed:
            failed[key] = count
    if failed:
        scope = replace(scope, username_keys=list({key.username_key for key in failed}))
        for key, realm_id, group in _by_key(connection, scope):
            if key in failed:
                fold = CarefulFold(
                    key, realm_id, rules[realm_id], gap_positions[key.source_id], on_set_aside
                )
                yield from islice(recompute(fold, group), failed[key], None)


def _by_key(
    connection: Connection, scope: EvidenceScope
) -> Iterator[tuple[AllocationKey, int, Iterator[Evidence]]]:
    """The evidence of each key, with its realm_id."""
    evidence = evidence_queries.read_evidence(connection, scope)
    for key, group in groupby(evidence, key=itemgetter(0)):
        items = map(itemgetter(1), group)
        first = next(items)
        yield key, first.realm_id, chain([first], items)


class _KeyRecomputation:
    """The fold of one key, and the checkpoints that lie in its evidence, in order."""

    def __init__(self, fold: KeyFold, checkpoints: Sequence[SourceCheckpoint]) -> None:
        self._fold = fold
        self._checkpoints = checkpoints
        self._passed = 0

    def run(
        self, evidence: Iterable[Evidence], settled_until: int | None
    ) -> Iterator[RecomputedSession]:
        """Apply all evidence of the key; yield its sessions as soon as they are final."""
        fold, checkpoints = self._fold, self._checkpoints
        for item in evidence:
            if isinstance(item, SessionState):
                fold.resume(item)
                continue
            while self._passed < len(checkpoints) and checkpoints[self._passed].precedes(item):
                yield from self._pass_checkpoint()
            try:
                fold.apply(item)
            except Exception as error:
                raise FoldFailed([fold.key]) from error
            if any(session.phase is Phase.CLOSED for session in fold.changed):
                yield from self._take_closed_sessions()
        while self._passed < len(checkpoints):
            yield from self._pass_checkpoint()
        if settled_until is not None:
            try:
                fold.expire(settled_until)
            except Exception as error:
                raise FoldFailed([fold.key]) from error
        for session in fold.changed:
            yield from self._result(session)

    def _result(
        self, session: SessionState, checkpoint: Checkpoint | None = None
    ) -> Iterator[RecomputedSession]:
        try:
            hours = tuple(hours_of(session, self._fold.rules.calendar))
        except Exception as error:
            if not isinstance(self._fold, CarefulFold):
                raise FoldFailed([self._fold.key]) from error
            # At a checkpoint: the session as it stands at the cutoff was packed on trial.
            self._fold.set_session_aside(session, error)
            return
        yield RecomputedSession(self._fold.key, session, hours, checkpoint)

    def _pass_checkpoint(self) -> Iterator[RecomputedSession]:
        """Yield copies of the open sessions as they stand at the next checkpoint."""
        checkpoint = self._checkpoints[self._passed]
        self._passed += 1
        for session in self._fold.changed:
            if session.confirmed and checkpoint.may_have_usage_of(session):
                snapshot = copy.copy(session)
                snapshot.hourly_usage = {
                    hour: counters.copy() for hour, counters in session.hourly_usage.items()
                }
                if session is self._fold.active and checkpoint.settled_until is not None:
                    expiring = KeyFold(self._fold.key, self._fold.realm_id, self._fold.rules)
                    expiring.resume(snapshot)
                    expiring.expire(checkpoint.settled_until)
                yield from self._result(snapshot, checkpoint.checkpoint)

    def _take_closed_sessions(self) -> Iterator[RecomputedSession]:
        """Yield the closed sessions: as they are now, they stand at all checkpoints to come."""
        fold = self._fold
        for session in fold.changed:
            if session.phase is Phase.CLOSED:
                yield from self._result(session)
                for checkpoint in self._checkpoints[self._passed :] if session.confirmed else ():
                    if checkpoint.may_have_usage_of(session):
                        yield from self._result(session, checkpoint.checkpoint)
        fold.changed = [session for session in fold.changed if session.phase is not Phase.CLOSED]
