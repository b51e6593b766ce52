"""Relay threads, stored: when each was last heard, and what it owes. The rule is in the model."""

from collections.abc import Iterable, Mapping
from typing import Final

from sqlalchemy import Connection, delete, select
from sqlalchemy.dialects.postgresql import insert

from accounting.db.schema import relay_threads
from accounting.domain import thread_silence
from accounting.domain.calendar import from_micros, to_micros
from accounting.domain.session_fold import SECOND
from accounting.domain.thread_silence import LocatedSession, RelayThread, ThreadStatus
from accounting.sources.gap_queries import gap_periods

KEPT_SECONDS: Final = 7 * 86_400
"""A thread missed_count for so long is dropped: machines come and go."""
_TIMES: Final = ("last_report_at", "highest_at", "restarted_at", "overdue_since")
_VALUES: Final = (*_TIMES, "highest_id", "missed_count", "not_explained_by_gap")


def read_statuses(connection: Connection, source_id: int) -> dict[RelayThread, ThreadStatus]:
    """What is known of each relay thread of a source."""
    rows = connection.execute(select(relay_threads).where(relay_threads.c.source_id == source_id))
    found: dict[RelayThread, ThreadStatus] = {}
    for row in rows.mappings():
        values = {name: row[name] for name in _VALUES}
        for name in _TIMES:
            values[name] = None if values[name] is None else to_micros(values[name])
        found[RelayThread(row["database"], row["server"], row["thread"])] = ThreadStatus(**values)
    return found


def record_activity(
    connection: Connection, source_id: int, sessions: Iterable[LocatedSession]
) -> None:
    """Note that these lives were heard of."""
    _put(
        connection,
        source_id,
        thread_silence.record_activity(read_statuses(connection, source_id), sessions),
    )


def record_expiry(
    connection: Connection, source_id: int, expired: list[LocatedSession], until: int
) -> None:
    """Note that these lives ended as expired, with all settled that was received before `until`."""
    if not expired:
        return
    since = min(session.last_seen_at for *_, session in expired)
    gaps = [(a, until if b is None else b) for a, b in gap_periods(connection, source_id, since)]
    _put(
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


def _put(
    connection: Connection, source_id: int, changed: Mapping[RelayThread, ThreadStatus]
) -> None:
    if not changed:
        return
    query = insert(relay_threads)
    connection.execute(
        query.on_conflict_do_update(
            constraint="relay_threads_pkey", set_={name: query.excluded[name] for name in _VALUES}
        ),
        [
            {"source_id": source_id, **thread._asdict(), **_values(voice)}
            for thread, voice in sorted(changed.items())
        ],
    )


def _values(voice: ThreadStatus) -> dict[str, object]:
    values = {name: getattr(voice, name) for name in _VALUES}
    return values | {
        name: None if values[name] is None else from_micros(values[name]) for name in _TIMES
    }
