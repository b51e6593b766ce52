"""Reconciles the books with coturn's own log, session by session.

Only names differences: the log is not evidence, and nothing is booked from it. Sessions are matched
by realm, username and allocation id. Where a server used an id again, or another server has the
same one, sessions with equal counters are paired first and the rest in order.

Where the logs lack a part of a session, or have the lines of several under one key, their sums are
lower bounds: a difference is what the books have less of.
"""

import operator
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final
from uuid import UUID

from sqlalchemy import Connection, Engine

from accounting.audit.log_files import read_logs
from accounting.audit.log_session_queries import (
    BilledSession,
    LoggedKey,
    fetch_billed_sessions,
    fetch_sessions_by_allocation,
)
from accounting.db.engine import lost_connections
from accounting.domain.coturn_log import LoggedSession
from accounting.domain.counters import COUNTERS
from accounting.domain.log_names import alterable, name_as_logged
from accounting.domain.text_escaping import escape
from accounting.progress import Progress, no_progress

KEYS_PER_BATCH: Final = 5_000


@dataclass(frozen=True, slots=True, kw_only=True)
class LogDifference:
    """A session on which log and books disagree, as ``reconcile --json`` prints it.

    ``kind``: `missing` from the books, `unfounded` (billed, though never authenticated in the log),
    or `differs` in ``column``. ``estimated`` and ``disputed``: the books' own flags of the session.
    """

    log: str
    line: int
    realm: str
    username: str
    allocation_id: str
    kind: str
    session_id: UUID | None = None
    column: str = ""
    logged: int | None = None
    booked: int | None = None
    estimated: bool = False
    disputed: bool = False


@dataclass(slots=True)
class ReconcileResult:
    """How much was compared, counted while the differences are yielded.

    ``sessions``: authenticated ones in the logs; ``differing``: how many logged sessions differ.
    ``unauthenticated``: logged sessions that must not be billed. ``unlogged``: billed sessions of
    the same keys that are in no log, perhaps because they are of other days. ``partial``: logged
    sessions that were compared as lower bounds. ``repeated_lines``: those that several logs had.
    """

    sessions: int = 0
    differing: int = 0
    unauthenticated: int = 0
    unlogged: int = 0
    partial: int = 0
    repeated_lines: int = 0


def reconcile(
    engine: Engine,
    logs: Sequence[Path],
    *,
    result: ReconcileResult | None = None,
    progress: Progress = no_progress,
) -> Iterator[LogDifference]:
    """Yield each difference between the sessions of the logs and the billed ones.

    Fills ``result`` meanwhile. Raises UsageError for a log that can't be read or holds no session.
    """
    summary = result or ReconcileResult()
    read = read_logs(logs, progress)
    summary.repeated_lines = read.repeated_lines
    names = [str(path) for path in logs]
    logged = defaultdict[LoggedKey, list[LoggedSession]](list)
    for session in read.sessions:
        first = session.first
        key = LoggedKey(escape(first.realm), escape(first.username), first.allocation_id)
        logged[key].append(session)
    keys = sorted(logged)
    with lost_connections(), engine.connect() as connection:
        for start in range(0, len(keys), KEYS_PER_BATCH):
            batch = keys[start : start + KEYS_PER_BATCH]
            billed = _billed_sessions(connection, batch)
            for key in batch:
                yield from _KeyComparison(key, names, billed[key], summary).compare(logged[key])
            progress(start + len(batch), len(keys), doing="comparing names and ids")


def _billed_sessions(
    connection: Connection, keys: Sequence[LoggedKey]
) -> defaultdict[LoggedKey, list[BilledSession]]:
    """The billed sessions of keys; also of names that a log writes as those of the keys."""
    billed = defaultdict[LoggedKey, list[BilledSession]](list)
    for key, session in fetch_billed_sessions(connection, keys):
        billed[key].append(session)
    altered = {
        LoggedKey(name_as_logged(key.realm), name_as_logged(key.username), key.allocation_id): key
        for key in keys
        if key not in billed and (alterable(key.realm) or alterable(key.username))
    }
    if altered:
        ids = {key.allocation_id for key in altered}
        for key, session in fetch_sessions_by_allocation(connection, sorted(ids)):
            written = LoggedKey(
                name_as_logged(key.realm), name_as_logged(key.username), key.allocation_id
            )
            if written in altered:
                billed[altered[written]].append(session)
    return billed


class _KeyComparison:
    """Compares the sessions of one key, and takes the billed ones as they are paired."""

    def __init__(
        self,
        key: LoggedKey,
        log_names: Sequence[str],
        billed: Sequence[BilledSession],
        summary: ReconcileResult,
    ) -> None:
        self._key = key
        self._log_names = log_names
        self._remaining = list(billed)
        self._summary = summary

    def compare(self, logged: Sequence[LoggedSession]) -> Iterator[LogDifference]:
        unpaired = []
        # Authenticated sessions first: equal counters are more likely to be of one of those.
        for session in sorted(logged, key=lambda session: session.never_authenticated):
            equal = self._take_equal(session)
            if session.never_authenticated:
                yield from self._check_unauthenticated(session, equal)
            else:
                self._summary.sessions += 1
                if equal is None:
                    unpaired.append(session)
        # Partial ones first: they take a session only where it is enough.
        for session in sorted(unpaired, key=lambda session: session.is_complete):
            if session.is_complete:
                yield from self._check_complete(session)
            else:
                yield from self._check_partial(session, is_only=len(logged) == 1)
        self._summary.unlogged += len(self._remaining)

    def _take_equal(self, session: LoggedSession) -> BilledSession | None:
        for billed in self._remaining:
            if list(billed.counters) == session.counters:
                self._remaining.remove(billed)
                return billed
        return None

    def _check_unauthenticated(
        self, session: LoggedSession, equal: BilledSession | None
    ) -> Iterator[LogDifference]:
        if equal is not None and any(equal.counters) and not session.start_is_covered:
            self._summary.sessions += 1  # the middle of a session, from before the log
            self._summary.partial += 1
            return
        self._summary.unauthenticated += 1
        if equal is not None and any(equal.counters):
            self._summary.differing += 1
            yield self._difference(session, "unfounded", equal)

    def _check_complete(self, session: LoggedSession) -> Iterator[LogDifference]:
        self._summary.differing += 1
        if not self._remaining:
            yield self._difference(session, "missing")
            return
        yield from self._differing_counters(session, self._remaining.pop(0), operator.ne)

    def _check_partial(self, session: LoggedSession, *, is_only: bool) -> Iterator[LogDifference]:
        """Compare with the smallest session that is enough; several servers' with all of them."""
        self._summary.partial += 1
        candidates = (
            [_sum_of(self._remaining)]
            if session.count > 1 and self._remaining
            else sorted(self._remaining, key=lambda billed: sum(billed.counters))
        )
        for billed in candidates:
            if all(
                have >= need for have, need in zip(billed.counters, session.counters, strict=True)
            ):
                self._take(session, billed)
                return
        if not candidates:
            if is_only:
                self._summary.differing += 1
                yield self._difference(session, "missing")
            return
        billed = candidates[-1]
        self._take(session, billed)
        self._summary.differing += 1
        yield from self._differing_counters(session, billed, operator.gt)

    def _differing_counters(
        self,
        session: LoggedSession,
        billed: BilledSession,
        differs: Callable[[int, int], bool],
    ) -> Iterator[LogDifference]:
        """A difference for each counter that differs, given that of the log and of the books."""
        for column, in_log, in_books in zip(
            COUNTERS, session.counters, billed.counters, strict=True
        ):
            if differs(in_log, in_books):
                yield self._difference(
                    session, "differs", billed, column=column, logged=in_log, booked=in_books
                )

    def _take(self, session: LoggedSession, billed: BilledSession) -> None:
        if session.count > 1:
            del self._remaining[: session.count]
        else:
            self._remaining.remove(billed)

    def _difference(
        self,
        session: LoggedSession,
        kind: str,
        billed: BilledSession | None = None,
        **counts: Any,
    ) -> LogDifference:
        return LogDifference(
            log=self._log_names[session.file],
            line=session.line,
            realm=self._key.realm,
            username=self._key.username,
            allocation_id=f"{self._key.allocation_id:018d}",
            kind=kind,
            session_id=billed.session_id if billed else None,
            estimated=billed.estimated if billed else False,
            disputed=billed.disputed if billed else False,
            **counts,
        )


def _sum_of(sessions: Iterable[BilledSession]) -> BilledSession:
    """Several sessions as one, under the id of the first."""
    first, *rest = sessions
    counters = zip(first.counters, *(session.counters for session in rest), strict=True)
    return first._replace(counters=tuple(map(sum, counters)))
