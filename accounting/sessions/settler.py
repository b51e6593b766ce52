"""Settles evidence: folds it into sessions, and expires those without a sign of life.

The loader settles what it loads, in the same transaction. The job ``settle`` does it for what was
loaded without, and where no collector is alive. Each moves the watermark, so that nothing is
settled twice.
"""

from collections.abc import Collection, Sequence
from typing import Final

import structlog
from sqlalchemy import Connection

from accounting.db.locks import lock, require_lock
from accounting.domain.session_fold import AllocationKey, Report, SessionState, StatusKeySighting
from accounting.domain.thread_silence import LocatedSession
from accounting.identities import erasure_queries
from accounting.identities.realm_queries import all_rules
from accounting.sessions import relay_threads, session_queries, set_aside_reports
from accounting.sessions.fold_failure import FoldFailed
from accounting.sessions.open_sessions import OpenSessions
from accounting.sessions.session_changes import StoredState, pack_changes
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


class Settler:
    """Settles one source in transactions of its caller, and keeps its open sessions in between.

    ``memory_limit``: how many keys stay in memory. They are valid while every transaction was
    committed, and nobody else changed their sessions. ``failed_keys``: of :func:`take_care`.
    """

    def __init__(
        self, source_id: int, *, memory_limit: int, failed_keys: Collection[AllocationKey]
    ) -> None:
        self._source_id = source_id
        self._memory = OpenSessions(memory_limit, failed_keys)
        self._version: tuple[int, int] | None = None
        self._in_transaction = False

    def lock(self, connection: Connection, *, wait: bool = True) -> None:
        """Keep others from settling until the transaction ends.

        Raises LockHeld where another does; ``wait``: only after a while.
        """
        name = f"settle.{self._source_id}"
        (lock if wait else require_lock)(connection, name)

    def begin(self, connection: Connection) -> Watermark:
        """Begin a step, under the lock; returns how far settling has come."""
        watermark = watermark_queries.read_watermark(connection, self._source_id)
        # An erasure empties addresses of sessions.
        version = watermark.version, erasure_queries.erasure_count(connection)
        if self._in_transaction or version != self._version:
            self._memory.clear()
        self._in_transaction, self._version = True, version
        return watermark

    def committed(self) -> None:
        """Note that the transaction of :meth:`begin` was committed; otherwise it failed."""
        self._in_transaction = False

    def open(self, connection: Connection) -> OpenSessions:
        """Make the memory ready for evidence, which is then applied in order of position.

        All gaps up to the end of the evidence must be stored.
        """
        rules = all_rules(connection)
        gap_positions = gap_queries.gap_positions(connection, self._source_id)
        self._memory.begin(connection, self._source_id, rules, gap_positions)
        return self._memory

    def apply(self, connection: Connection, evidence: Sequence[Evidence]) -> None:
        """Apply stored evidence, in order of position."""
        source_id, memory = self._source_id, self._memory
        keys = [
            (source_id, item.database, item.username_key, item.allocation_id) for item in evidence
        ]
        realms = (item.realm_id for item in evidence)
        memory.require(connection, dict(zip(keys, realms, strict=True)))
        for key, item in zip(keys, evidence, strict=True):
            memory.apply(memory.folds[key], item)

    def finish(self, connection: Connection, watermark: Watermark, reached: Watermark) -> int:
        """Expire sessions by ``reached.settled_until``, write all changes, move the watermark.

        Returns how many sessions may be due: if DUE_BATCH, there may be more. Raises FoldFailed:
        roll back, and settle again after :func:`take_care`.
        """
        memory, until = self._memory, reached.settled_until
        due_count = 0
        expired: list[LocatedSession] = []
        rechecks: list[SessionState] = []
        if until is not None:
            due_count = self._expire(connection, until, expired, rechecks)
        if memory.failures:
            raise FoldFailed(memory.failures) from next(iter(memory.failures.values()))
        # A careful fold that restored its sessions may be there twice.
        changes = pack_changes(dict.fromkeys(memory.changed), memory.rules)
        write_changes(connection, changes, memory.rules)
        relay_threads.record_activity(connection, self._source_id, changes.activity)
        if until is not None:
            relay_threads.record_expiry(connection, self._source_id, expired, until)
        session_queries.reschedule(connection, rechecks)
        set_aside_reports.add(connection, memory.set_aside)
        memory.end()
        moved = watermark_queries.advance_watermark(connection, watermark, reached)
        assert moved, "another process moved the watermark in spite of the lock"
        return due_count

    def _expire(
        self,
        connection: Connection,
        until: int,
        expired: list[LocatedSession],
        rechecks: list[SessionState],
    ) -> int:
        """Expire the sessions that are due, and those of this batch, which are not stored yet."""
        memory = self._memory
        due = session_queries.read_due_keys(connection, self._source_id, until, DUE_BATCH)
        memory.read(connection, due)
        unchanged = [memory.folds[key] for key in due if not memory.folds[key].changed]
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
                key = fold.key
                expired.append((key.database, key.allocation_id, session.server_address, session))
            elif isinstance(session.prior, StoredState) and session.prior.recheck_at < until:
                due_at = session.expires_at + fold.rules.grace_at(session.started_at)
                # Where a bug kept it from expiring, later again.
                session.prior.recheck_at = due_at if due_at >= until else until + RETRY_MICROSECONDS
                rechecks.append(session)
        memory.changed += [fold for fold in unchanged if fold.changed]
        return len(due)


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
