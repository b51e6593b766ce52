"""Reconciles the books with coturn's own log, session by session.

Only names differences: the log is not evidence, and nothing is booked from it. Sessions are matched
by realm, username and allocation id. Where a server used an id again, or another server has the
same one, sessions with equal counters are paired first and the rest in order.
"""

from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final
from uuid import UUID

from sqlalchemy import Engine

from accounting.audit.log_session_queries import (
    BilledSession,
    LoggedKey,
    fetch_billed_sessions,
)
from accounting.db.engine import lost_connections
from accounting.domain.coturn_log import LoggedSession, LogReader
from accounting.domain.counters import COUNTERS
from accounting.domain.text_escaping import escape
from accounting.errors import UsageError
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
    the same keys that are in no log, perhaps because they are of other days.
    """

    sessions: int = 0
    differing: int = 0
    unauthenticated: int = 0
    unlogged: int = 0


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
    logged = defaultdict[LoggedKey, list[LoggedSession]](list)
    for session in _read_logs(logs):
        key = LoggedKey(escape(session.realm), escape(session.username), session.allocation_id)
        logged[key].append(session)
    keys = sorted(logged)
    with lost_connections(), engine.connect() as connection:
        for start in range(0, len(keys), KEYS_PER_BATCH):
            batch = keys[start : start + KEYS_PER_BATCH]
            billed = defaultdict[LoggedKey, list[BilledSession]](list)
            for key, billed_session in fetch_billed_sessions(connection, batch):
                billed[key].append(billed_session)
            for key in batch:
                yield from _compare(key, logged[key], billed[key], summary)
            progress(start + len(batch), len(keys))


def _read_logs(logs: Sequence[Path]) -> list[LoggedSession]:
    reader = LogReader()
    for path in logs:
        try:
            with path.open("rb") as lines:
                count = reader.read(str(path), lines)
        except OSError as error:
            raise UsageError(f"{path}: can't read it: {error.strerror}") from None
        if not count:
            raise UsageError(f"{path}: holds no session's usage: expected a log of coturn with -v")
    return reader.sessions


def _compare(
    key: LoggedKey,
    logged: Iterable[LoggedSession],
    candidates: Sequence[BilledSession],
    summary: ReconcileResult,
) -> Iterator[LogDifference]:
    remaining = list(candidates)
    unpaired: list[LoggedSession] = []
    # Authenticated sessions first: equal counters are more likely to be of one of those.
    for session in sorted(logged, key=lambda session: session.never_authenticated):
        equal = next(
            (billed for billed in remaining if list(billed.counters) == session.counters), None
        )
        if equal is not None:
            remaining.remove(equal)
        if session.never_authenticated:
            summary.unauthenticated += 1
            if equal is not None and any(equal.counters):
                summary.differing += 1
                yield _difference(key, session, "unfounded", equal)
        else:
            summary.sessions += 1
            if equal is None:
                unpaired.append(session)
    for session in unpaired:
        summary.differing += 1
        if not remaining:
            yield _difference(key, session, "missing")
            continue
        counterpart = remaining.pop(0)
        for column, in_log, in_books in zip(
            COUNTERS, session.counters, counterpart.counters, strict=True
        ):
            if in_log != in_books:
                yield _difference(
                    key,
                    session,
                    "differs",
                    counterpart,
                    column=column,
                    logged=in_log,
                    booked=in_books,
                )
    summary.unlogged += len(remaining)


def _difference(
    key: LoggedKey,
    session: LoggedSession,
    kind: str,
    billed: BilledSession | None = None,
    **counts: Any,
) -> LogDifference:
    return LogDifference(
        log=session.log,
        line=session.line,
        realm=key.realm,
        username=key.username,
        allocation_id=f"{key.allocation_id:018d}",
        kind=kind,
        session_id=billed.session_id if billed else None,
        estimated=billed.estimated if billed else False,
        disputed=billed.disputed if billed else False,
        **counts,
    )
