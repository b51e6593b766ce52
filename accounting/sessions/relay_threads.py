"""Reads and writes the status of relay threads. The rule is in ``domain.thread_silence``."""

from collections.abc import Mapping, Sequence
from typing import Final

from sqlalchemy import Connection, delete, select
from sqlalchemy.dialects.postgresql import insert

from accounting.db.schema import relay_threads
from accounting.domain import thread_silence
from accounting.domain.calendar import from_micros, to_micros
from accounting.domain.session_fold import SECOND
from accounting.domain.thread_silence import (
    ExpiredSession,
    RelayThread,
    ThreadActivity,
    ThreadStatus,
)
from accounting.sources.gap_queries import gap_periods

KEPT_SECONDS: Final = 7 * 86_400
"""A thread without a report for this long is deleted: servers come and go."""
_TIMES: Final = ("last_report_at", "highest_at", "restarted_at", "overdue_since")
_VALUES: Final = (*_TIMES, "highest_id", "missed_count", "not_explained_by_gap")


def read_statuses(connection: Connection, source_id: int) -> dict[RelayThread, ThreadStatus]:
    """The status of each relay thread of a source."""
    rows = connection.execute(select(relay_threads).where(relay_threads.c.source_id == source_id))
    statuses: dict[RelayThread, ThreadStatus] = {}
    for row in rows.mappings():
        values = {name: row[name] for name in _VALUES}
        for name in _TIMES:
            values[name] = None if values[name] is None else to_micros(values[name])
        thread = RelayThread(row["database"], row["server"], row["thread"])
        statuses[thread] = ThreadStatus(**values)
    return statuses


def record_activity(connection: Connection, source_id: int, activity: ThreadActivity) -> None:
    """Record the last reports of relay threads."""
    _upsert(
        connection,
        source_id,
        thread_silence.record_activity(read_statuses(connection, source_id), activity),
    )


def record_expiry(
    connection: Connection, source_id: int, expired: Sequence[ExpiredSession], until: int
) -> None:
    """Record that these sessions expired; ``until``: the settle watermark of their source."""
    if not expired:
        return
    since = min(session.last_seen_at for session in expired)
    gaps = [
        (start, until if end is None else end)
        for start, end in gap_periods(connection, source_id, since)
    ]
    _upsert(
        connection,
        source_id,
        thread_silence.record_expiry(read_statuses(connection, source_id), expired, gaps),
    )
    connection.execute(
        delete(relay_threads).where(
            relay_threads.c.source_id == source_id,
            relay_threads.c.last_report_at < from_micros(until - KEPT_SECONDS * SECOND),
        )
    )


def _upsert(
    connection: Connection, source_id: int, changed: Mapping[RelayThread, ThreadStatus]
) -> None:
    if not changed:
        return
    upsert = insert(relay_threads)
    connection.execute(
        upsert.on_conflict_do_update(
            constraint="relay_threads_pkey", set_={name: upsert.excluded[name] for name in _VALUES}
        ),
        [
            {"source_id": source_id, **thread._asdict(), **_row(status)}
            for thread, status in sorted(changed.items())
        ],
    )


def _row(status: ThreadStatus) -> dict[str, object]:
    values = {name: getattr(status, name) for name in _VALUES}
    return values | {
        name: None if values[name] is None else from_micros(values[name]) for name in _TIMES
    }
