"""Settles evidence: folds it into sessions, and expires those without a report.

The loader settles what it loads, in the same transaction. The job ``settle`` does it for what was
loaded without, and where no collector is alive. Each moves the watermark, so that nothing is
settled twice.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Final, NamedTuple

import structlog
from sqlalchemy import Connection

from accounting.db.locks import lock, require_lock
from accounting.domain.realm_rules import RealmRules
from accounting.domain.session_fold import AllocationKey, KeyFold, Report, StatusKeySighting
from accounting.domain.thread_silence import ExpiredSession
from accounting.identities import erasure_queries
from accounting.identities.realm_queries import all_rules
from accounting.sessions import relay_threads, session_queries, set_aside_reports
from accounting.sessions.careful_fold import SetAside
from accounting.sessions.fold_failure import FoldFailed
from accounting.sessions.open_sessions import OpenSessions
from accounting.sessions.session_changes import SessionChanges, StoredState, pack_changes
from accounting.sessions.write_changes import write_changes
from accounting.sources import gap_queries, watermark_queries
from accounting.sources.watermark_queries import Watermark

Evidence = Report | StatusKeySighting

log = structlog.get_logger()

MAX_FAILED_KEYS: Final = 100_000
RETRY_MICROSECONDS: Final = 3_600_000_000
"""When a session whose expiry was set aside is due again."""
DUE_BATCH: Final = 20_000
"""The most due sessions in one transaction."""


class Basis(NamedTuple):
    """What evidence is folded against, besides the sessions. ``version``: of the open sessions.

    It only changes while its writer has locked out settling or the loader of the source.
    """

    version: int
    erasure_count: int  # an erasure empties addresses of sessions
    gap_positions: Sequence[tuple[int, int]]
    rules: Mapping[int, RealmRules]

    def is_like(self, other: "Basis") -> bool:
        """Whether both are the same, besides realms that the other one does not know."""
        return self[:3] == other[:3] and all(
            realm_id in self.rules and self.rules[realm_id].is_like(known)
            for realm_id, known in other.rules.items()
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class SettledBatch:
    """What evidence changes, to be written while the next batch is folded.

    ``watermark`` and ``basis``: what it was folded against. ``expired``: sessions, by
    ``reached.settled_until``. ``rechecks``: as ``session_queries.reschedule`` takes them.
    ``due_count``: how many sessions may have been due: if DUE_BATCH, there may be more.
    ``folds``: those that it changed.
    """

    watermark: Watermark
    basis: Basis
    reached: Watermark
    changes: SessionChanges
    expired: Sequence[ExpiredSession]
    rechecks: Sequence[tuple[bytes, bytes, int]]
    set_aside: Sequence[SetAside]
    due_count: int
    folds: Sequence[KeyFold]


class Settler:
    """Folds the evidence of one source, batch by batch, and keeps its open sessions in between.

    ``memory_limit``: how many keys stay in memory. They are valid while every batch was written,
    and nobody else changed their sessions; otherwise the caller drops the settler.
    ``failed_keys``: of :func:`take_care`.
    """

    def __init__(
        self, source_id: int, *, memory_limit: int, failed_keys: Collection[AllocationKey]
    ) -> None:
        self.source_id = source_id
        self.memory = OpenSessions(memory_limit, failed_keys)
        self._watermark: Watermark | None = None
        self._basis: Basis | None = None

    @property
    def watermark(self) -> Watermark:
        """How far settling will have come once all that was folded is written."""
        assert self._watermark is not None
        return self._watermark

    def begin(self, connection: Connection) -> Watermark:
        """Read how far settling has come, and make the memory ready for what follows, in order.

        Under the lock of settling. All gaps up to the end of the evidence must be stored.
        """
        watermark, basis = _read_basis(connection, self.source_id)
        if self._basis is not None and not (
            self.watermark.place == watermark.place
            and basis.is_like(
                self._basis._replace(gap_positions=basis.gap_positions, rules=self.memory.rules)
            )
        ):
            self.memory.clear()
        self._watermark, self._basis = watermark, basis
        self.memory.begin(connection, self.source_id, basis.rules, basis.gap_positions)
        return watermark

    def apply(self, connection: Connection, evidence: Sequence[Evidence]) -> None:
        """Apply stored evidence, in order of position."""
        source_id, memory = self.source_id, self.memory
        keys = [
            (source_id, item.database, item.username_key, item.allocation_id) for item in evidence
        ]
        realms = (item.realm_id for item in evidence)
        memory.require(connection, dict(zip(keys, realms, strict=True)))
        for key, item in zip(keys, evidence, strict=True):
            memory.apply(memory.folds[key], item)

    def finish(self, connection: Connection, reached: Watermark) -> SettledBatch:
        """Expire sessions by ``reached.settled_until``; returns all that is to be written.

        The batch before may not be written yet. Raises FoldFailed: drop the settler, and settle
        again after :func:`take_care`.
        """
        assert self._basis is not None
        memory, until = self.memory, reached.settled_until
        expired: list[ExpiredSession] = []
        rechecks: list[tuple[bytes, bytes, int]] = []
        due_count = 0 if until is None else self._expire(connection, until, expired, rechecks)
        if memory.failures:
            raise FoldFailed(memory.failures) from next(iter(memory.failures.values()))
        folds, set_aside = memory.take_changed()
        batch = SettledBatch(
            watermark=self.watermark,
            basis=self._basis._replace(rules=dict(memory.rules)),
            reached=reached,
            changes=pack_changes(folds, memory.rules),
            expired=expired,
            rechecks=rechecks,
            set_aside=set_aside,
            due_count=due_count,
            folds=folds,
        )
        self._watermark = replace(reached, version=self.watermark.version)
        return batch

    def _expire(
        self,
        connection: Connection,
        until: int,
        expired: list[ExpiredSession],
        rechecks: list[tuple[bytes, bytes, int]],
    ) -> int:
        """Expire the sessions that are due, and those of this batch, which are not stored yet."""
        memory = self.memory
        due = session_queries.read_due_keys(connection, self.source_id, until, DUE_BATCH)
        memory.read(connection, due)
        # A rebuild may have stored other sessions since: then the batch is stale.
        folds = [memory.folds[key] for key in due if key in memory.folds]
        unchanged = [fold for fold in folds if not fold.changed]
        for fold in [*memory.changed, *unchanged]:
            session = fold.active
            if session is None or session.ended_at is not None:
                continue
            try:
                is_expired = until > session.expires_at and fold.expire(until)
            except Exception as error:  # noqa: BLE001  # a bug may raise anything
                memory.failures[fold.key] = error
                continue
            if is_expired:
                expired.append(
                    ExpiredSession(
                        fold.key.database,
                        fold.key.allocation_id,
                        session.server_address,
                        session.last_seen_at,
                        session.expires_at,
                        session.confirmed,
                    )
                )
            elif isinstance(session.prior, StoredState) and session.prior.recheck_at < until:
                recheck_at = session.expires_at + fold.rules.grace_at(session.started_at)
                if recheck_at < until:
                    # A bug kept it from expiring.
                    recheck_at = until + RETRY_MICROSECONDS
                session.prior.recheck_at = recheck_at
                rechecks.append((session.session_id, session.user_key, recheck_at))
        memory.changed += [fold for fold in unchanged if fold.changed]
        return len(due)

    def written(self, batch: SettledBatch, following: SettledBatch | None = None) -> None:
        """Note that a batch is committed; ``following``: what was folded since."""
        self.memory.end(batch.folds, () if following is None else following.folds)


def lock_settling(connection: Connection, source_id: int, *, wait: bool = True) -> None:
    """Keep others from settling a source until the transaction ends.

    Raises LockHeld where another does; ``wait``: only after a while.
    """
    (lock if wait else require_lock)(connection, f"settle.{source_id}")


def is_current(connection: Connection, batch: SettledBatch) -> bool:
    """Whether a batch may be written: nobody changed what it was folded against.

    Under the locks of settling and of the source.
    """
    watermark, basis = _read_basis(connection, batch.watermark.source_id)
    return watermark.place == batch.watermark.place and basis.is_like(batch.basis)


def write(connection: Connection, batch: SettledBatch) -> None:
    """Write a batch, and move the watermark."""
    source_id, until = batch.watermark.source_id, batch.reached.settled_until
    write_changes(
        connection, batch.changes, batch.basis.rules, (batch.watermark.settled_until, until)
    )
    relay_threads.record_activity(connection, source_id, batch.changes.activity)
    if until is not None:
        relay_threads.record_expiry(connection, source_id, batch.expired, until)
    session_queries.reschedule(connection, batch.rechecks)
    set_aside_reports.add(connection, batch.set_aside)
    moved = watermark_queries.advance_watermark(connection, batch.watermark, batch.reached)
    assert moved, "another process moved the watermark in spite of the lock"


def take_care(failed_keys: set[AllocationKey], failure: FoldFailed) -> None:
    """Have the failed keys folded with care from now on, so that a bug sets aside single reports.

    Raises the failure where that was no help.
    """
    if failed_keys.issuperset(failure.keys):
        raise failure
    log.error(
        "folding raised an error, reports are set aside: see turn-accounting doctor",
        keys=len(failure.keys),
        exc_info=failure.__cause__,
    )
    if len(failed_keys) > MAX_FAILED_KEYS:
        failed_keys.clear()
    failed_keys.update(failure.keys)


def _read_basis(connection: Connection, source_id: int) -> tuple[Watermark, Basis]:
    watermark = watermark_queries.read_watermark(connection, source_id)
    return watermark, Basis(
        watermark.version,
        erasure_queries.erasure_count(connection),
        gap_queries.gap_positions(connection, source_id),
        all_rules(connection),
    )
