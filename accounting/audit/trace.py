"""Traces what was billed to a user to its sessions and to coturn's reports. Writes nothing.

What a report contributed is what recomputing its session made of it. Dropped reports are shown as
one sum: as it was carried or, for a session without any report left, as it is stored.
"""

from collections.abc import Iterator
from datetime import date
from uuid import UUID

from sqlalchemy import Connection, Engine

from accounting.audit import evidence_queries, finalized_queries
from accounting.audit.contributions import (
    is_within,
    recompute_contributions,
    statement_positions,
    sum_hours,
)
from accounting.audit.snapshot import quiesced_snapshot
from accounting.audit.statement_check import (
    find_closed_periods,
    partly_dropped,
)
from accounting.audit.trace_results import (
    NO_COUNTERS,
    Trace,
    TracedReport,
    TracedSession,
    sum_numbers,
)
from accounting.billing import period_queries
from accounting.billing.adjustment_queries import adjustment_target
from accounting.billing.period_queries import PeriodRow, find_period
from accounting.billing.statement_queries import billed_lines
from accounting.db.engine import lost_connections
from accounting.domain.periods import describe_wait
from accounting.errors import UsageError, not_closed
from accounting.identities import realm_queries
from accounting.identities.realm_queries import find_realm
from accounting.identities.user_queries import (
    count_sessions,
    find_user_key,
    unknown_user_error,
    username_keys,
)
from accounting.progress import Progress, no_progress


def trace(
    engine: Engine,
    realm: str,
    period: date,
    *,
    user: str | None = None,
    key: UUID | None = None,
    progress: Progress = no_progress,
) -> Trace:
    """Trace a user's line in a closed period, and all adjustments of it.

    ``user``: the user_id; or ``key``: the user_key, for a user whose name was erased. Raises
    UsageError for an unknown name, and NotYet for a period that is not closed.
    """
    progress(0, doing="waiting for the jobs to rest")
    with quiesced_snapshot(engine) as connection, lost_connections():
        realm_id = find_realm(connection, realm)
        row = find_period(connection, realm_id, realm, period)
        if row.cutoff is None:
            waits = describe_wait(
                period_queries.waits_for(connection, realm_id, period, ()),
                row.ends_at,
                row.time_zone,
            )
            raise not_closed(
                realm,
                period,
                waits,
                "its sessions: `turn-accounting sessions`, then `turn-accounting trace --session`",
            )
        user_key = key or find_user_key(connection, realm_id, user or "")
        if user_key is None:
            raise unknown_user_error(connection, realm, user or "")
        lines = billed_lines(connection, realm_id, period, user_key)
        sessions = [
            *_trace_finalized_sessions(connection, row, user_key),
            *_trace_sessions(connection, row, row.cutoff, user_key, progress),
        ]
        if key is not None and not lines and not sessions:
            raise UsageError(f"no user_key {key} has usage in period {period} of realm '{realm}'")
        closed = find_closed_periods(connection, [realm_id], period)
        return Trace(
            realm=realm,
            period=period,
            user_key=user_key,
            lines=lines,
            sessions=sessions,
            partly_dropped=next(iter(partly_dropped(connection, {realm_id: realm}, closed)), None),
        )


def trace_adjustment(
    engine: Engine, adjustment_id: UUID, *, progress: Progress = no_progress
) -> Trace:
    """Trace the period and user of an adjustment. Raises UsageError."""
    with lost_connections(), engine.connect() as connection:
        target = adjustment_target(connection, adjustment_id)
        if target is None:
            raise UsageError(
                f"no adjustment {adjustment_id} is known: `turn-accounting statement REALM PERIOD "
                "--adjustments --json` shows their ids"
            )
        realm_id, period, user_key = target
        realm = realm_queries.names_by_id(connection)[realm_id]
    return trace(engine, realm, period, key=user_key, progress=progress)


def _trace_finalized_sessions(
    connection: Connection, period: PeriodRow, user_key: UUID
) -> Iterator[TracedSession]:
    """The user's sessions without any report left, as they are stored."""
    names = evidence_queries.source_names(connection)
    for key, session, numbers in finalized_queries.finalized_of_user(
        connection, period.realm_id, user_key, (period.starts_at, period.ends_at)
    ):
        yield TracedSession(
            session=session,
            source=names[key.source_id],
            allocation_id=key.allocation_id,
            numbers=numbers,
            dropped_counters=numbers[:8],
        )


def _trace_sessions(
    connection: Connection,
    period: PeriodRow,
    cutoff: str,
    user_key: UUID,
    progress: Progress,
) -> Iterator[TracedSession]:
    """The user's sessions with usage in a period, recomputed. ``cutoff``: of its statement."""
    late_after = statement_positions(connection, cutoff)
    progress(0, doing="recomputing the user's sessions")
    total = None
    if progress is not no_progress:
        total = count_sessions(connection, user_key)
    recomputed = recompute_contributions(
        connection, period.realm_id, username_keys(connection, user_key)
    )
    for count, (source, key, contribution) in enumerate(recomputed, start=1):
        progress(count, total, doing="recomputing the user's sessions")
        session = contribution.session
        if session.user_key != user_key.bytes or not session.confirmed:
            continue
        hours = [hour for hour in contribution.hours if is_within(period, hour.starts_at)]
        if not hours:
            continue
        carried = contribution.carried
        yield TracedSession(
            session=session,
            source=source,
            allocation_id=key.allocation_id,
            numbers=sum_hours(hours),
            dropped_counters=None
            if carried is None
            else sum_numbers((added for hour, added in carried if is_within(period, hour)), 8),
            reports=[
                TracedReport(
                    source=source,
                    report=report,
                    counters=counters if is_within(period, report.received_at) else NO_COUNTERS,
                    late=report[:2] > late_after.get(key.source_id, (0, 0)),
                )
                for report, counters in contribution.reports
            ],
        )
