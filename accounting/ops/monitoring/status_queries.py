"""The state of the database, for metrics, health and ``doctor``.

The transaction is read-only and has a time-out. No query scans a table that grows with usage:
indexes hold just the open gaps, the live sessions and the last day's hours. No query returns a
username.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields
from datetime import datetime
from typing import Any, Final, NamedTuple, TypeVar

from sqlalchemy import Connection, Engine, select, text

from accounting.db.engine import lost_connections, private_connection
from accounting.db.migrations import current_revision
from accounting.db.queries import Queries
from accounting.db.revisions import head_revision
from accounting.db.schema import job_runs, message_counts, sources
from accounting.db.schema.limits import REALM_KEY
from accounting.domain.calendar import to_micros
from accounting.reporting import view_queries
from accounting.reporting.cells import CellState, ask_cells
from accounting.sessions.relay_threads import read_statuses

_QUERIES: Final = Queries("accounting.ops")

STATEMENT_TIMEOUT: Final = "3s"
MICROSECONDS: Final = 1_000_000
CELL_SECONDS: Final = 1.5
"""How long a cell of a front has to answer: with the database itself, less than a snapshot has."""
USAGE_DELTAS_LIMIT: Final = 100_000
SET_ASIDE_LIMIT: Final = 10_000
LIMITS_REACHED_LIMIT: Final = 10_000


@dataclass(frozen=True, slots=True, kw_only=True)
class SourceStatus:
    """A source that is not retired. Lags are seconds behind the database's clock; None for never.

    ``gap_from``: start of its open gap, microseconds. ``holder`` and ``host`` have its lease; the
    clock of that machine is ``clock_ahead_seconds`` ahead of the database's.
    """

    source: str
    captured_lag_seconds: float | None
    loaded_lag_seconds: float | None
    settled_lag_seconds: float | None
    last_received_at: int | None
    gap_from: int | None
    gap_cause: str | None
    holder: str | None
    host: str | None
    clock_ahead_seconds: float | None


class SourceNotice(NamedTuple):
    """What an operator should know of a source. ``is_error``: usage is lost or not captured."""

    source: str
    is_error: bool
    notice: str


class SetAsideCount(NamedTuple):
    """How many reports of a source are set aside, up to SET_ASIDE_LIMIT, and the last reason."""

    source: str
    reports: int
    reason: str | None


class WebhookStatus(NamedTuple):
    """An endpoint. ``failing_seconds``: for how long it has not taken the next event, 0: it has.

    ``delivered_events``, ``refused_events``: since it was added. ``disabled_cause`` None: it is
    enabled. ``events_behind``: those that it is still to get, of the next 100,000 of the feed.
    """

    number: int
    delivered_events: int
    failing_seconds: float
    disabled_cause: str | None
    events_behind: int
    refused_events: int


class CellStatus(NamedTuple):
    """A cell of a front. ``failing_seconds``: for how long its feed can't be read, for a reason.

    ``forwarded_seq``: the number, in the cell's feed, up to which that was forwarded.
    """

    cell: str
    failing_seconds: float
    error: str | None
    forwarded_seq: int


class GapCount(NamedTuple):
    """How many gaps a source has had for a cause."""

    source: str
    cause: str
    gaps: int


class RecentGaps(NamedTuple):
    """The gaps that ended within the last ``hours``, and the ``cause`` of the longest, '' for none.

    ``seconds``: how long they were together within that span.
    """

    hours: int
    gaps: int
    seconds: float
    cause: str


class MessageCount(NamedTuple):
    """How many messages of a source had an outcome (``loaded``, ``rejected``) for a reason."""

    source: str
    outcome: str
    reason: str
    total: int


@dataclass(frozen=True, slots=True, kw_only=True)
class RealmStatus:
    """A realm's usage of the last 24 hours, client side, and its live sessions.

    ``unattributed_names``: the user ids under which unattributed bytes were reported.
    ``new_unattributed_names``: those of them that came in the hour until 11 minutes ago.
    """

    realm: str
    live_sessions: int
    used_bytes: int
    estimated_bytes: int
    unattributed_bytes: int
    unattributed_names: int
    new_unattributed_names: int


class LimitStatus(NamedTuple):
    """How often a threshold of a realm's limits is reached now: in a bucket that runs.

    ``limits``: how many the realm has. ``realm_reached``: how many limits of the realm as a whole.
    ``users_reached``: how often users have reached theirs, up to LIMITS_REACHED_LIMIT.
    """

    realm: str
    threshold: int
    limits: int
    realm_reached: int
    users_reached: int


@dataclass(frozen=True, slots=True, kw_only=True)
class SilentThread:
    """A relay thread without reports since ``silent_since``, microseconds.

    ``server`` is '' if unknown; ``missed_count`` allocations expired without a report.
    """

    source: str
    database: int
    server: str
    thread: int
    silent_since: int
    missed_count: int


@dataclass(frozen=True, slots=True, kw_only=True)
class JobStatus:
    """The results of a job. Times in microseconds; ``last_error`` is the last failure's type.

    ``blocked_since``, ``blocked_at``: the first and the last run since the last success that could
    not take its lock, and ``blocked_by`` who held it. None: none.
    """

    job: str
    runs: int
    failures: int
    failures_in_a_row: int
    last_succeeded_at: int | None
    last_seconds: float | None
    last_error: str | None
    blocked_since: int | None
    blocked_at: int | None
    blocked_by: str | None

    @property
    def blocked_seconds(self) -> float:
        """For how long the job could not take its lock; 0 since it last did."""
        if self.blocked_since is None or self.blocked_at is None:
            return 0.0
        return (self.blocked_at - self.blocked_since) / MICROSECONDS


@dataclass(frozen=True, slots=True, kw_only=True)
class DatabaseStatus:
    """The state of the database. ``usage_deltas`` counts up to USAGE_DELTAS_LIMIT.

    With another ``revision`` than this version's, all other fields are empty.
    ``cell_states``: of a front, which has no sources of its own.
    """

    revision: str | None
    cell_states: tuple[CellState, ...] = ()
    sources: tuple[SourceStatus, ...] = ()
    notices: tuple[SourceNotice, ...] = ()
    gaps: tuple[GapCount, ...] = ()
    recent_gaps: tuple[RecentGaps, ...] = ()
    message_counts: tuple[MessageCount, ...] = ()
    realms: tuple[RealmStatus, ...] = ()
    limits: tuple[LimitStatus, ...] = ()
    silent_threads: tuple[SilentThread, ...] = ()
    jobs: tuple[JobStatus, ...] = ()
    usage_deltas: int = 0
    set_aside: tuple[SetAsideCount, ...] = ()
    webhooks: tuple[WebhookStatus, ...] = ()
    is_front: bool = False
    cells: tuple[CellStatus, ...] = ()

    @property
    def is_at_head(self) -> bool:
        """Whether the database has this version's schema."""
        return self.revision == head_revision()


Status = TypeVar("Status", SourceStatus, RealmStatus, JobStatus)


def read_database_status(engine: Engine) -> DatabaseStatus:
    """Read the state in one database snapshot. Raises ConnectionLost, also after the time-out."""
    revision = current_revision(engine)
    if revision != head_revision():
        return DatabaseStatus(revision=revision)
    with lost_connections(), engine.connect() as connection:
        is_front = connection.execute(_QUERIES.text("is_front")).scalar_one()
    cell_states: tuple[CellState, ...] = ()
    if is_front:
        cell_states = tuple(ask_cells(lambda: private_connection(engine), CELL_SECONDS))
    with lost_connections(), engine.connect() as connection, connection.begin():
        connection.execute(text("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ, READ ONLY"))
        connection.execute(
            text("SELECT set_config('statement_timeout', :timeout, true)"),
            {"timeout": STATEMENT_TIMEOUT},
        )
        source_rows = connection.execute(_QUERIES.text("source_statuses")).all()
        realm_rows = connection.execute(_QUERIES.text("realm_statuses"))
        # A cell's own monitoring has them; and of one that is away this would read nothing.
        notices = () if is_front else connection.exec_driver_sql(view_queries.source_notices().text)
        job_rows = connection.execute(select(job_runs).order_by("job"))
        return DatabaseStatus(
            revision=revision,
            cell_states=cell_states,
            sources=tuple(_to_status(SourceStatus, row) for row in source_rows),
            notices=tuple(SourceNotice(*row) for row in notices),
            gaps=tuple(GapCount(*row) for row in connection.execute(_QUERIES.text("count_gaps"))),
            recent_gaps=tuple(
                RecentGaps(*row) for row in connection.execute(_QUERIES.text("recent_gaps"))
            ),
            message_counts=_message_counts(connection),
            realms=() if is_front else tuple(_to_status(RealmStatus, row) for row in realm_rows),
            limits=tuple(
                LimitStatus(*row)
                for row in connection.execute(
                    _QUERIES.text("limit_statuses"),
                    {"limit": LIMITS_REACHED_LIMIT, "realm_key": REALM_KEY},
                )
            ),
            silent_threads=tuple(_silent_threads(connection, source_rows)),
            set_aside=tuple(
                SetAsideCount(*row)
                for row in connection.execute(
                    _QUERIES.text("count_set_aside"), {"limit": SET_ASIDE_LIMIT}
                )
            ),
            jobs=tuple(_to_status(JobStatus, row) for row in job_rows),
            webhooks=tuple(
                WebhookStatus(*row) for row in connection.execute(_QUERIES.text("webhook_statuses"))
            ),
            is_front=is_front,
            cells=tuple(
                CellStatus(*row) for row in connection.execute(_QUERIES.text("cell_statuses"))
            ),
            usage_deltas=connection.execute(
                _QUERIES.text("count_usage_deltas"), {"limit": USAGE_DELTAS_LIMIT}
            ).scalar_one(),
        )


def _to_status(status_class: type[Status], row: Any) -> Status:
    """Make a status from the row's columns of the same names; times become microseconds."""
    values: dict[str, Any] = {
        field.name: getattr(row, field.name) for field in fields(status_class)
    }
    for name, value in values.items():
        if isinstance(value, datetime):
            values[name] = to_micros(value)
    return status_class(**values)


def _message_counts(connection: Connection) -> tuple[MessageCount, ...]:
    """The counts of all sources, retired ones too: a Prometheus counter must not decrease."""
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
    return tuple(MessageCount(*row) for row in rows)


def _silent_threads(connection: Connection, source_rows: Sequence[Any]) -> Iterator[SilentThread]:
    for row in source_rows:
        if row.settled_until is None:
            continue
        for thread, status in sorted(read_statuses(connection, row.source_id).items()):
            if status.is_silent(to_micros(row.settled_until)):
                yield SilentThread(
                    source=row.source,
                    database=thread.database,
                    server=thread.server,
                    thread=thread.thread,
                    silent_since=status.overdue_since or status.last_report_at,
                    missed_count=status.missed_count,
                )
