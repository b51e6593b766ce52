"""Folds the evidence of one allocation key into its sessions.

Settling and the audit both drive ``domain.session_fold`` through :class:`KeyFold`, so that a
recomputation applies each report with the same grace as the job did.
"""

from collections.abc import Mapping, Sequence

from accounting.domain import session_fold
from accounting.domain.realm_rules import RealmRules
from accounting.domain.session_fold import (
    AllocationKey,
    KeyState,
    Phase,
    Report,
    SessionState,
    StatusKeySighting,
)


class KeyFold:
    """The sessions of one key while its evidence is applied, in order of position.

    ``rules``: by realm_id. ``gap_positions``: as :func:`session_fold.apply_report` takes them.
    """

    __slots__ = ("_gap_positions", "_realm", "_rules", "key", "state")

    def __init__(
        self,
        key: AllocationKey,
        rules: Mapping[int, RealmRules],
        gap_positions: Sequence[tuple[int, int]],
    ) -> None:
        self.key = key
        self.state = KeyState()
        self._rules = rules
        self._realm: RealmRules | None = None  # a key is of one realm
        self._gap_positions = gap_positions

    def resume(self, session: SessionState) -> None:
        """Continue a session that earlier evidence left open.

        A session without a prior state, such as one that dropped reports left, counts as changed.
        """
        if session.phase is Phase.PENDING:
            self.state.pending = session
        else:
            self.state.active = session
        if session.prior is None:
            self.state.changed.append(session)

    def apply(self, evidence: Report | StatusKeySighting) -> None:
        """Apply the next report or sighting, with the grace of the session that it finds."""
        rules = self._realm
        if rules is None:
            rules = self._realm = self._rules[evidence.realm_id]
        state = self.state
        active = state.active
        if isinstance(evidence, StatusKeySighting):
            grace = rules.grace_at(evidence.seen_at if active is None else active.started_at)
            session_fold.apply_sighting(state, evidence, grace=grace)
            return
        session_fold.apply_report(
            state,
            evidence,
            source_id=self.key.source_id,
            grace=rules.grace_at(evidence.received_at if active is None else active.started_at),
            hour=rules.calendar.hour(evidence.received_at).starts_at,
            gap_positions=self._gap_positions,
        )

    def expire(self, until: int) -> bool:
        """End the active session if it expired before ``until``, a watermark; True if it did."""
        session = self.state.active
        if session is None:
            return False
        grace = self._rules[session.realm_id].grace_at(session.started_at)
        if not session_fold.expire(session, until, grace):
            return False
        session_fold.add_changed(self.state, session)
        if session.phase is Phase.CLOSED:
            self.state.active = None
        return True
