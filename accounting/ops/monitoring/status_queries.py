"""What the books tell of themselves while they are written: for metrics, health and `doctor`.

Owns reading it, in a read-only transaction with a time-out. Nothing here scans a table that grows
with usage: sources, open gaps, live sessions and the last day's hours have indexes of their own.
Names no user.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

from sqlalchemy import Connection, Engine, select, text

from accounting.db.engine import lost_connections
from accounting.db.migrations import current_revision, head_revision
from accounting.db.queries import Queries
from accounting.db.schema import job_runs, message_counts, sources
from accounting.domain.calendar import to_micros
from accounting.sessions.relay_threads import read_statuses

_QUERIES: Final = Queries("accounting.ops")

STATEMENT_TIMEOUT: Final = "3s"
USAGE_DELTAS_LIMIT: Final = 100_000


@dataclass(frozen=True, slots=True, kw_only=True)
class SourceStatus:
    """A source that is not retired. Lags in seconds behind the database's clock; None: never yet.

    ``gap_from``: begin of its open gap, microseconds. ``holder`` and ``host`` have its lease.
    """

    source: str
    mode: str
    captured_lag_seconds: float | None
    loaded_lag_seconds: float | None
    settled_lag_seconds: float | None
    last_received_at: int | None
    gap_from: int | None
    gap_cause: str | None
    holder: str | None
    host: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class RealmStatus:
    """A realm's usage of the last 24 hours, client side, and its sessions that live now."""

    realm: str
    live_sessions: int
    used_bytes: int
    estimated_bytes: int
    unattributed_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class SilentThread:
    """A relay thread that owes a word since ``since`` (microseconds); ``server`` '' if unknown."""

    source: str
    database: int
    server: str
    thread: int
    silent_since: int
    missed_count: int


@dataclass(frozen=True, slots=True, kw_only=True)
class JobStatus:
    """How a job went. Times in microseconds; ``last_error`` is the kind of the last failure."""

    job: str
    runs: int
    failures: int
    failures_in_a_row: int
    last_succeeded_at: int | None
    last_seconds: float | None
    last_error: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class DatabaseStatus:
    """All that the database tells. ``usage_deltas`` counts to TOUCHED_AT_MOST.

    With another ``revision`` than this version's nothing else is known.
    """

    revision: str | None
    sources: tuple[SourceStatus, ...] = ()
    gaps: tuple[tuple[str, str, int], ...] = ()
    message_counts: tuple[tuple[str, str, str, int], ...] = ()
    realms: tuple[RealmStatus, ...] = ()
    silent_threads: tuple[SilentThread, ...] = ()
    jobs: tuple[JobStatus, ...] = ()
    usage_deltas: int = 0

    @property
    def is_at_head(self) -> bool:
        """Whether the database has this version's schema."""
        return self.revision == head_revision()


def read_database_status(engine: Engine) -> DatabaseStatus:
    """Read it all at one moment. Raises ConnectionLost, also when it takes too long."""
    revision = current_revision(engine)
    if revision != head_revision():
        return DatabaseStatus(revision=revision)
    with lost_connections(), engine.connect() as connection, connection.begin():
        connection.execute(text("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ, READ ONLY"))
        connection.execute(
            text("SELECT set_config('statement_timeout', :timeout, true)"),
            {"timeout": STATEMENT_TIMEOUT},
        )
        known = _rows(connection, "watch_sources").all()
        return DatabaseStatus(
            revision=revision,
            sources=tuple(map(_source, known)),
            gaps=tuple(
                (row.source, row.cause, row.gaps) for row in _rows(connection, "watch_gaps")
            ),
            message_counts=_tallies(connection),
            realms=tuple(
                RealmStatus(**row._mapping)  # noqa: SLF001  # SQLAlchemy's public name for it
                for row in _rows(connection, "watch_realms")
            ),
            silent_threads=tuple(_silent_threads(connection, known)),
            jobs=tuple(map(_job, connection.execute(select(job_runs).order_by("job")))),
            usage_deltas=connection.execute(
                _QUERIES.text("watch_touched"), {"limit": USAGE_DELTAS_LIMIT}
            ).scalar_one(),
        )


def _rows(connection: Connection, name: str) -> Any:
    return connection.execute(_QUERIES.text(name))


def _time(value: Any) -> int | None:
    return None if value is None else to_micros(value)


def _source(row: Any) -> SourceStatus:
    return SourceStatus(
        source=row.source,
        mode=row.mode,
        captured_lag_seconds=row.captured_lag_seconds,
        loaded_lag_seconds=row.loaded_lag_seconds,
        settled_lag_seconds=row.settled_lag_seconds,
        last_received_at=_time(row.last_received_at),
        gap_from=_time(row.gap_from),
        gap_cause=row.gap_cause,
        holder=row.holder,
        host=row.host,
    )


def _tallies(connection: Connection) -> tuple[tuple[str, str, str, int], ...]:
    """(source, outcome, reason, total), of retired sources too: counters never fall."""
    rows = connection.execute(
        select(
            sources.c.source,
            message_counts.c.outcome,
            message_counts.c.reason,
            message_counts.c.total,
        )
        .join_from(message_counts, sources, sources.c.source_id == message_counts.c.source_id)
        .order_by(sources.c.source, message_counts.c.outcome, message_counts.c.reason)
    )
    return tuple((row.source, row.outcome, row.reason, row.total) for row in rows)


def _silent_threads(connection: Connection, known: Sequence[Any]) -> list[SilentThread]:
    return [
        SilentThread(
            source=row.source,
            database=thread.database,
            server=thread.server,
            thread=thread.thread,
            silent_since=voice.overdue_since or voice.last_report_at,
            missed_count=voice.missed_count,
        )
        for row in known
        if row.settled_until is not None
        for thread, voice in sorted(read_statuses(connection, row.source_id).items())
        if voice.is_silent(to_micros(row.settled_until))
    ]


def _job(row: Any) -> JobStatus:
    return JobStatus(
        job=row.job,
        runs=row.runs,
        failures=row.failures,
        failures_in_a_row=row.failures_in_a_row,
        last_succeeded_at=_time(row.last_succeeded_at),
        last_seconds=row.last_seconds,
        last_error=row.last_error,
    )
