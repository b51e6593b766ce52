"""Reconcile: the books against coturn's own log, session by session.

The log is no evidence and nothing is booked from it: this only names what differs. A session is
told by realm, username and allocation id; where a server used an id again, or another server has
the same one, sessions of the same figures are paired first and the rest in order.
"""

from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final
from uuid import UUID

from sqlalchemy import Connection, Engine

from accounting.audit import log_session_queries as logged
from accounting.audit.log_session_queries import BookedSession, LoggedKey
from accounting.db.engine import lost_connections
from accounting.domain.coturn_log import LoggedSession, LogReader
from accounting.domain.counters import COUNTERS
from accounting.domain.text_escaping import escape
from accounting.errors import UsageError
from accounting.progress import Progress, no_progress

KEYS_PER_BATCH: Final = 5_000


@dataclass(frozen=True, slots=True, kw_only=True)
class LogDifference:
    """A session that log and books don't agree on.

    ``kind``: `missing` from the books, `unfounded` (billed, though the log never saw it begin), or
    `differs` in ``column``. ``estimated`` and ``disputed`` say what the books know of it already.
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
    """How much was compared.

    ``sessions`` of the logs, and how many of them differ; ``strangers`` that nobody is billed for;
    ``unlogged``: booked sessions of the same keys that no log speaks of, from other days perhaps.
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
    """Every session of the logs that is not in the books with the same figures.

    Raises UsageError for a log that can't be read or that holds no session.
    """
    found = ReconcileResult() if result is None else result
    sessions = defaultdict[LoggedKey, list[LoggedSession]](list)
    for session in _read(logs):
        key = LoggedKey(escape(session.realm), escape(session.username), session.allocation_id)
        sessions[key].append(session)
    keys = sorted(sessions)
    with lost_connections(), engine.connect() as connection:
        for start in range(0, len(keys), KEYS_PER_BATCH):
            part = keys[start : start + KEYS_PER_BATCH]
            booked = _booked(connection, part)
            for key in part:
                yield from _compare(key, sessions[key], booked[key], found)
            progress(start + len(part), len(keys))


def _read(logs: Sequence[Path]) -> list[LoggedSession]:
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


def _booked(
    connection: Connection, keys: Sequence[LoggedKey]
) -> defaultdict[LoggedKey, list[BookedSession]]:
    booked = defaultdict[LoggedKey, list[BookedSession]](list)
    for key, session in logged.fetch(connection, keys):
        booked[key].append(session)
    return booked


def _compare(
    key: LoggedKey,
    logged: Iterable[LoggedSession],
    booked: list[BookedSession],
    found: ReconcileResult,
) -> Iterator[LogDifference]:
    left = list(booked)
    unpaired: list[LoggedSession] = []
    # Strangers last: a session that the log saw begin has the better claim to equal figures.
    for session in sorted(logged, key=lambda one: one.never_authenticated):
        same = next((one for one in left if list(one.counters) == session.counters), None)
        if same is not None:
            left.remove(same)
        if session.never_authenticated:
            found.unauthenticated += 1
            if same is not None and any(same.counters):
                found.differing += 1
                yield _difference(key, session, "unfounded", same)
        else:
            found.sessions += 1
            if same is None:
                unpaired.append(session)
    for session in unpaired:
        found.differing += 1
        mate = left.pop(0) if left else None
        if mate is None:
            yield _difference(key, session, "missing")
            continue
        for column, in_log, in_books in zip(COUNTERS, session.counters, mate.counters, strict=True):
            if in_log != in_books:
                yield _difference(
                    key,
                    session,
                    "differs",
                    mate,
                    column=column,
                    logged=in_log,
                    booked_count=in_books,
                )
    found.unlogged += len(left)


def _difference(
    key: LoggedKey,
    session: LoggedSession,
    kind: str,
    booked: BookedSession | None = None,
    *,
    column: str = "",
    logged: int | None = None,
    booked_count: int | None = None,
) -> LogDifference:
    return LogDifference(
        log=session.log,
        line=session.line,
        realm=key.realm,
        username=key.username,
        allocation_id=f"{key.allocation_id:018d}",
        kind=kind,
        session_id=booked.session_id if booked else None,
        column=column,
        logged=logged,
        booked=booked_count,
        estimated=booked.estimated if booked else False,
        disputed=booked.disputed if booked else False,
    )
