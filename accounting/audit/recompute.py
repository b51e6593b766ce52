"""Recomputes sessions from the evidence alone, by the rules that settling applies.

Settling folds a key's evidence in many steps, recomputing folds it in one: the result must be the
same. Where reports were dropped, the fold begins with the carried sessions. Writes nothing.
"""

import copy
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from itertools import chain, groupby
from operator import itemgetter

from sqlalchemy import Connection

from accounting.audit import evidence_queries
from accounting.audit.checkpoints import Checkpoint, SourceCheckpoint, source_checkpoints
from accounting.audit.evidence_queries import Evidence, EvidenceScope
from accounting.domain import session_fold
from accounting.domain.realm_rules import RealmRules
from accounting.domain.session_fold import AllocationKey, KeyFold, Phase, SessionState

RecomputedSession = tuple[AllocationKey, SessionState, Checkpoint | None]


def recompute_sessions(
    connection: Connection,
    rules: Mapping[int, RealmRules],
    scope: EvidenceScope,
    checkpoints: Collection[Checkpoint] = (),
) -> Iterator[RecomputedSession]:
    """Recompute sessions as they stand at the scope's cutoff, and as they stood at checkpoints.

    Each session comes once without a checkpoint. A confirmed one also comes with each checkpoint in
    whose period it may have usage; ``checkpoints`` must be some that one pass can serve. Sessions
    that ended with the dropped reports do not come. The
    connection should be in REPEATABLE READ. Memory does not grow with the reports.
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
    evidence = evidence_queries.read_evidence(connection, scope)
    for key, group in groupby(evidence, key=itemgetter(0)):
        _, first = next(group)
        realm_id = first.realm_id
        recomputation = _KeyRecomputation(
            KeyFold(key, realm_id, rules[realm_id], gap_positions[key.source_id]),
            checkpoints_by_source.get((realm_id, key.source_id), []),
        )
        for session, checkpoint in recomputation.run(
            chain([first], (item for _, item in group)), watermarks[key.source_id].settled_until
        ):
            yield key, session, checkpoint


class _KeyRecomputation:
    """The fold of one key, and the checkpoints that lie in its evidence, in order."""

    def __init__(self, fold: KeyFold, checkpoints: Sequence[SourceCheckpoint]) -> None:
        self._fold = fold
        self._checkpoints = checkpoints
        self._passed = 0

    def run(
        self, evidence: Iterable[Evidence], settled_until: int | None
    ) -> Iterator[tuple[SessionState, Checkpoint | None]]:
        """Apply all evidence of the key; yield its sessions as soon as they are final."""
        fold, checkpoints = self._fold, self._checkpoints
        for item in evidence:
            if isinstance(item, SessionState):
                fold.resume(item)
                continue
            while self._passed < len(checkpoints) and checkpoints[self._passed].precedes(item):
                yield from self._pass_checkpoint()
            fold.apply(item)
            if any(session.phase is Phase.CLOSED for session in fold.changed):
                yield from self._take_closed_sessions()
        while self._passed < len(checkpoints):
            yield from self._pass_checkpoint()
        if settled_until is not None:
            fold.expire(settled_until)
        for session in fold.changed:
            yield session, None

    def _pass_checkpoint(self) -> Iterator[tuple[SessionState, Checkpoint]]:
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
                    grace = self._fold.rules.grace_at(session.started_at)
                    session_fold.expire(snapshot, checkpoint.settled_until, grace)
                yield snapshot, checkpoint.checkpoint

    def _take_closed_sessions(self) -> Iterator[tuple[SessionState, Checkpoint | None]]:
        """Yield the closed sessions: as they are now, they stand at all checkpoints to come."""
        fold = self._fold
        for session in fold.changed:
            if session.phase is Phase.CLOSED:
                yield session, None
                for checkpoint in self._checkpoints[self._passed :] if session.confirmed else ():
                    if checkpoint.may_have_usage_of(session):
                        yield session, checkpoint.checkpoint
        fold.changed = [session for session in fold.changed if session.phase is not Phase.CLOSED]
