"""Settles evidence: folds it into sessions, and expires those without a sign of life.

The loader settles what it loads, in the same transaction. The job ``settle`` does it for what was
loaded without, and where no collector is alive. Each moves the watermark, so that nothing is
settled twice.
"""

from collections.abc import Sequence
from typing import Final

from sqlalchemy import Connection

from accounting.db.locks import lock, require_lock
from accounting.domain.session_fold import AllocationKey, Report, SessionState, StatusKeySighting
from accounting.domain.thread_silence import LocatedSession
from accounting.identities import erasure_queries
from accounting.identities.realm_queries import all_rules
from accounting.sessions import relay_threads, session_queries
from accounting.sessions.key_fold import KeyFold
from accounting.sessions.open_sessions import OpenSessions
from accounting.sessions.session_changes import StoredState, pack_changes
from accounting.sessions.write_changes import write_changes
from accounting.sources import gap_queries, watermark_queries
from accounting.sources.watermark_queries import Watermark

Evidence = Report | StatusKeySighting

DUE_BATCH: Final = 20_000
"""The most due sessions in one transaction."""


class Settler:
    """Settles one source in transactions of its caller, and keeps its open sessions in between.

    ``memory_limit``: how many keys stay in memory. They are valid while every transaction was
    committed, and nobody else changed their sessions.
    """

    def __init__(self, source_id: int, *, memory_limit: int) -> None:
        self._source_id = source_id
        self._memory = OpenSessions(memory_limit)
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

    def settle(
        self,
        connection: Connection,
        watermark: Watermark,
        reached: Watermark,
        evidence: Sequence[Evidence],
    ) -> int:
        """Settle evidence in order of position, expire sessions, and move the watermark.

        A session expires by ``reached.settled_until``. Returns how many may be due: if DUE_BATCH,
        there may be more.
        """
        source_id, memory = self._source_id, self._memory
        rules = all_rules(connection)
        gap_positions = gap_queries.gap_positions(connection, source_id)
        memory.begin(connection, source_id, rules, gap_positions)
        # Plain tuples: they equal AllocationKey, and are made in a third of the time.
        keys = [
            (source_id, item.database, item.username_key, item.allocation_id) for item in evidence
        ]
        memory.require(connection, keys)
        folds = memory.folds
        changed: dict[AllocationKey, KeyFold] = {}
        for key, item in zip(keys, evidence, strict=True):
            fold = folds[key]
            if not fold.state.changed:
                changed[fold.key] = fold
            fold.apply(item)
        due: list[AllocationKey] = []
        expired: list[LocatedSession] = []
        rechecks: list[SessionState] = []
        until = reached.settled_until
        if until is not None:
            due = session_queries.read_due_keys(connection, source_id, until, DUE_BATCH)
            memory.require(connection, due)
            # Also those that this batch changed: they are not stored yet as they are now.
            for key in dict.fromkeys([*due, *changed]):
                fold = folds[key]
                session = fold.state.active
                if session is None or session.ended_at is not None:
                    continue
                if fold.expire(until):
                    changed[key] = fold
                    address = session.server_address
                    expired.append((key.database, key.allocation_id, address, session))
                elif isinstance(session.prior, StoredState) and session.prior.recheck_at < until:
                    grace = rules[session.realm_id].grace_at(session.started_at)
                    session.prior.recheck_at = session.expires_at + grace
                    rechecks.append(session)
        changes = pack_changes(changed.values(), rules)
        write_changes(connection, changes, rules)
        relay_threads.record_activity(connection, source_id, changes.activity)
        if until is not None:
            relay_threads.record_expiry(connection, source_id, expired, until)
        session_queries.reschedule(connection, rechecks)
        memory.end(changed.values())
        moved = watermark_queries.advance_watermark(connection, watermark, reached)
        assert moved, "another process moved the watermark in spite of the lock"
        return len(due)
