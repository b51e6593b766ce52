"""Traces one session to its reports, and to the periods that have a part of it. Writes nothing."""

from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import Final
from uuid import UUID

from sqlalchemy import Connection, Engine

from accounting.audit import evidence_queries, finalized_queries
from accounting.audit.contributions import (
    is_within,
    recompute_contributions,
    statement_positions,
    sum_hours,
)
from accounting.audit.session_lookup import StoredSession, find_session
from accounting.audit.snapshot import quiesced_snapshot
from accounting.audit.trace_results import (
    Numbers,
    PeriodPart,
    SessionTrace,
    TracedReport,
    TracedSession,
    sum_numbers,
)
from accounting.billing import period_queries
from accounting.billing.period_queries import PeriodRow
from accounting.db.engine import lost_connections
from accounting.domain.session_fold import (
    SessionState,
)
from accounting.domain.session_ids import short_session_id
from accounting.errors import UsageError
from accounting.progress import Progress, no_progress

_NO_NUMBERS: Final = (0,) * 9
_A_DAY: Final = timedelta(days=1)
"""No hour is longer."""


def trace_session(
    engine: Engine, session_id: UUID, *, progress: Progress = no_progress
) -> SessionTrace:
    """Trace one confirmed session to its reports, and to the periods that have a part of it.

    Raises UsageError where there is none.
    """
    progress(0, doing="waiting for the jobs to rest")
    with quiesced_snapshot(engine) as connection, lost_connections():
        stored = find_session(connection, session_id)
        if stored is None:
            raise UsageError(
                f"no session {short_session_id(session_id)} is known: `turn-accounting sessions` "
                "shows their ids"
            )
        periods = [
            row
            for row in period_queries.realm_periods(connection, stored.realm_id)
            if row.starts_at <= stored.last_seen_at and stored.started_at < row.ends_at
        ]
        progress(0, doing="recomputing the session")
        recomputed = _recompute_session(connection, stored, periods)
        if recomputed is None:
            recomputed = _finalized_session(connection, stored, periods)
        traced, parts = recomputed
        return SessionTrace(
            realm=stored.realm,
            user_id=stored.user_id,
            user_key=stored.user_key,
            session=traced,
            parts=[part for part in parts if any(part.numbers)],
            stored=stored.counters,
        )


def _recompute_session(
    connection: Connection, stored: StoredSession, periods: Sequence[PeriodRow]
) -> tuple[TracedSession, list[PeriodPart]] | None:
    """The session recomputed from its reports; None where none of them is left."""
    late_after = {row.period: statement_positions(connection, row.cutoff) for row in periods}
    for source, key, contribution in recompute_contributions(
        connection, stored.realm_id, [stored.key.username_key], only=stored.key
    ):
        session = contribution.session
        if session.session_id != stored.session_id.bytes:
            continue
        hours = list(contribution.hours)
        carried = contribution.carried
        traced = TracedSession(
            session=session,
            source=source,
            allocation_id=key.allocation_id,
            numbers=sum_hours(hours),
            dropped_counters=None
            if carried is None
            else sum_numbers((row[1] for row in carried), 8),
            reports=[
                TracedReport(
                    source=source,
                    report=report,
                    counters=counters,
                    late=any(
                        is_within(row, report.received_at)
                        and key.source_id in late_after[row.period]
                        and report[:2] > late_after[row.period][key.source_id]
                        for row in periods
                    ),
                )
                for report, counters in contribution.reports
            ],
        )
        parts = [
            PeriodPart(
                period=row.period,
                is_closed=row.closed_at is not None,
                numbers=sum_hours(hour for hour in hours if is_within(row, hour.starts_at)),
            )
            for row in periods
        ]
        return traced, parts
    return None


def _finalized_session(
    connection: Connection, stored: StoredSession, periods: Sequence[PeriodRow]
) -> tuple[TracedSession, list[PeriodPart]]:
    """The session as it is stored, all of whose reports were dropped."""

    def read(span: tuple[datetime, datetime]) -> tuple[SessionState | None, Numbers]:
        found = finalized_queries.finalized_of_user(
            connection, stored.realm_id, stored.user_key, span, session_id=stored.session_id
        )
        return next(((session, numbers) for _, session, numbers in found), (None, _NO_NUMBERS))

    session, numbers = read((stored.started_at - _A_DAY, stored.last_seen_at + _A_DAY))
    if session is None:
        raise UsageError(
            f"session {short_session_id(stored.session_id)} does not follow from its reports: "
            "`turn-accounting verify` names what is wrong"
        )
    traced = TracedSession(
        session=session,
        source=evidence_queries.source_names(connection)[stored.key.source_id],
        allocation_id=stored.key.allocation_id,
        numbers=numbers,
        dropped_counters=numbers[:8],
    )
    return traced, [
        PeriodPart(
            period=row.period,
            is_closed=row.closed_at is not None,
            numbers=read((row.starts_at, row.ends_at))[1],
        )
        for row in periods
    ]
