"""Folds a key although a bug in the fold raises for some of its evidence.

What raises is set aside, the sessions stay as they were before it, and the rest is folded. So a bug
costs the usage of a report until ``rebuild`` takes it in after the fix, and never stops capture.
Copies the sessions at each report, so that only keys are folded like this whose fold has raised.
"""

import copy
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import fields
from pathlib import Path
from traceback import extract_tb
from typing import Final, NamedTuple

from accounting.domain.realm_rules import RealmRules
from accounting.domain.session_fold import (
    AllocationKey,
    Counters,
    KeyFold,
    SessionState,
    StatusKeySighting,
)
from accounting.domain.session_hours import hours_of
from accounting.domain.session_ids import first_position
from accounting.sessions.fold_failure import FoldFailed
from accounting.sessions.session_changes import pack_changes

_SESSION_FIELDS: Final = tuple(field.name for field in fields(SessionState))


class SetAside(NamedTuple):
    """A report that raised. ``received_at`` in microseconds.

    ``sighting``: its number, where it is a sighting of a status key; else 0. Where the expiry of a
    session raised, the position is that of its first report.
    """

    source_id: int
    epoch: int
    position: int
    sighting: int
    realm_id: int
    received_at: int
    reason: str


class CarefulFold(KeyFold):
    """A fold that does not raise: it passes what raised to ``on_set_aside``.

    Each change is also packed on trial, since a bug may show only there. The session that the
    report may belong to is marked as disputed.
    """

    __slots__ = ("_on_set_aside",)

    def __init__(
        self,
        key: AllocationKey,
        realm_id: int,
        rules: RealmRules,
        gap_positions: Sequence[tuple[int, int]],
        on_set_aside: Callable[[SetAside], object],
    ) -> None:
        super().__init__(key, realm_id, rules, gap_positions)
        self._on_set_aside = on_set_aside

    def apply_interim(
        self, epoch: int, position: int, now: int, of_peer: bool, counters: Counters
    ) -> None:
        """Apply an interim, or set it aside."""
        with self._setting_aside(epoch, position, now):
            super().apply_interim(epoch, position, now, of_peer, counters)

    def apply_total(
        self, epoch: int, position: int, now: int, of_peer: bool, counters: Counters
    ) -> None:
        """Apply a total, or set it aside."""
        with self._setting_aside(epoch, position, now):
            super().apply_total(epoch, position, now, of_peer, counters)

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
        """Apply a ``new``, ``refreshed`` or ``deleted``, or set it aside."""
        with self._setting_aside(epoch, position, now):
            super().apply_status(
                epoch, position, now, kind, lifetime, transport, server_address, client_address
            )

    def apply_sighting(self, sighting: StatusKeySighting) -> bool:
        """Apply a status key that a scan found, or set it aside; True if it counts."""
        with self._setting_aside(
            sighting.epoch, sighting.position, sighting.seen_at, sighting.number
        ):
            return super().apply_sighting(sighting)
        return False

    def expire(self, until: int) -> bool:
        """End the active session if it expired before ``until``, or set it aside."""
        session = self.active
        if session is None:
            return False
        with self._setting_aside(*first_position(session.session_id), session.started_at):
            return super().expire(until)
        return False

    def set_session_aside(self, session: SessionState, error: Exception) -> None:
        """Set aside what is not one report's."""
        self._set_aside(*first_position(session.session_id), session.started_at, 0, error)

    @contextmanager
    def _setting_aside(
        self, epoch: int, position: int, received_at: int, sighting: int = 0
    ) -> Iterator[None]:
        try:
            with self._restored_on_error():
                yield
        except Exception as error:  # noqa: BLE001  # a bug may raise anything
            self._set_aside(epoch, position, received_at, sighting, error)

    def _set_aside(
        self, epoch: int, position: int, received_at: int, sighting: int, error: Exception
    ) -> None:
        self._on_set_aside(
            SetAside(
                self.key.source_id,
                epoch,
                position,
                sighting,
                self.realm_id,
                received_at,
                _reason(error),
            )
        )
        session = self.active or self.pending
        if session is None or session.disputed:
            return
        # A session that can't be packed stays as it is.
        with suppress(Exception), self._restored_on_error():
            session.disputed = True
            self._add_changed(session)

    @contextmanager
    def _restored_on_error(self) -> Iterator[None]:
        """Restore the sessions where the block, or packing what it changed, raises an error."""
        active, pending = self.active, self.pending
        changed, merged = self.changed.copy(), self.merged.copy()
        # Those that a report can change. The others are closed, and were packed on trial.
        kept = [(s, copy.deepcopy(s)) for s in (active, pending) if s is not None]
        try:
            yield
            open_ids = {id(session) for session, _ in kept}
            packed_ids = {id(session) for session in changed} - open_ids
            self._pack_on_trial([s for s in self.changed if id(s) not in packed_ids])
        except Exception:
            # In place, as the caller refers to them.
            for session, copied in kept:
                for name in _SESSION_FIELDS:
                    setattr(session, name, getattr(copied, name))
            self.active, self.pending = active, pending
            self.changed, self.merged = changed, merged
            raise

    def _pack_on_trial(self, changed: Sequence[SessionState]) -> None:
        trial = KeyFold(self.key, self.realm_id, self.rules)
        trial.active, trial.pending, trial.changed, trial.merged = copy.deepcopy(
            (self.active, self.pending, list(changed), self.merged)
        )
        for session in trial.changed:
            hours_of(session, self.rules.calendar)
        pack_changes([trial], {self.realm_id: self.rules})


def _reason(error: BaseException) -> str:
    """The type of an error and the line that raised it. A message may contain what users sent."""
    if isinstance(error, FoldFailed) and error.__cause__ is not None:
        error = error.__cause__
    line = extract_tb(error.__traceback__)[-1]
    return f"{type(error).__name__} in {Path(line.filename).name}:{line.lineno}"
