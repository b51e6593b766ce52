"""The job ``retain``: drops reports older than the operator wants to keep, a day at a time.

A day is dropped only when nothing billed can be lost with it: its sessions have ended, and every
period with usage of them, and every period of its realms that overlaps the day, is closed and was
verified lately; with a place for archives, once its archive was read back. One transaction a day
compares the day's sessions with the books once more, finalizes or carries them, and drops the
partition; so a kill leaves all of that or nothing.
"""

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, date, timedelta
from itertools import islice
from typing import Final

import structlog
from sqlalchemy import Connection, Engine

from accounting.archive import archive_records
from accounting.archive.day_contents import day_contents
from accounting.archive.write_archive import archive_day
from accounting.audit import finalized_queries, retention_queries
from accounting.audit.evidence_queries import Cutoff, EvidenceScope
from accounting.audit.recompute import recompute_sessions
from accounting.audit.recompute_books import SESSIONS_PER_BATCH
from accounting.audit.retention_queries import DependentPeriod, SourceDay
from accounting.audit.verify import VerifyResult, verify
from accounting.billing.close_period import refresh_periods
from accounting.db.engine import lost_connections
from accounting.db.locks import require_lock
from accounting.domain.calendar import from_micros
from accounting.domain.session_fold import Phase
from accounting.identities import realm_queries
from accounting.plurals import counted
from accounting.sessions.careful_fold import SetAside
from accounting.sources.watermark_queries import Watermark

log = structlog.get_logger()

PROOF_MAX_AGE: Final = timedelta(days=7)
"""A period is verified again when its last proof is older. One verify covers all days that fall
due within it: one for each day would read all reports daily.
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class ExpiredDay:
    """A day (UTC) older than the setting. ``blockers``: why its reports stay; empty: dropped."""

    day: date
    reports: int
    blockers: tuple[str, ...]


def retain(engine: Engine, days: int | None, archive: str | None = None) -> int:
    """Drop the days that may go; returns how many. ``days``: how long to keep; None: for ever.

    ``archive``: the path or URL of a place, in which a day is archived before it is dropped. Stops
    at the first day with a blocker. Raises NotYet, ConnectionLost, LockHeld while another scheduler
    runs it, and AccountingError where a day can't be archived.
    """
    dropped = 0
    for expired in expired_days(engine, days, archive):
        if expired.blockers:
            log.info("reports are kept", day=str(expired.day), reason="; ".join(expired.blockers))
            break
        dropped += 1
    return dropped


def preview(engine: Engine, days: int | None, archive: str | None = None) -> Iterator[str]:
    """Yield a line for each day older than the setting: would be dropped, or is kept and why."""
    if days is None:
        yield "ACCOUNTING_REPORT_RETENTION_DAYS is not set: all reports are kept"
        return
    expired = None
    dropped = "would be dropped" if archive is None else f"would be archived in {archive}, dropped"
    for expired in expired_days(engine, days, dry_run=True):
        outcome = f"kept: {'; '.join(expired.blockers)}" if expired.blockers else dropped
        yield f"{expired.day}  {counted(expired.reports, 'report')}  {outcome}"
    if expired is None:
        yield f"no report is older than {counted(days, 'day')}"


def expired_days(
    engine: Engine, days: int | None, archive: str | None = None, *, dry_run: bool = False
) -> Iterator[ExpiredDay]:
    """Every day older than the setting, the oldest first: dropped, or with its blockers.

    Verifies all periods where that was not done lately. ``archive``: as for :func:`retain`. Raises
    NotYet and ConnectionLost.
    """
    if days is None:
        return
    refresh_periods(engine)
    with lost_connections(), engine.connect() as connection:
        candidates = _days_before_retention(connection, days)
    is_blocked = False
    if dry_run:
        # One transaction, rolled back: each day is evaluated as if those before were dropped.
        with lost_connections(), engine.connect() as connection, connection.begin() as transaction:
            # Between two statements it may verify all periods.
            require_lock(connection, "retain", max_idle_seconds=0)
            for day in candidates:
                expired = _evaluate_day(engine, connection, day, after_blocked=is_blocked)
                is_blocked |= bool(expired.blockers)
                yield expired
            transaction.rollback()
        return
    for day in candidates:
        with lost_connections(), engine.connect() as connection, connection.begin() as transaction:
            # Between two statements it may verify all periods.
            require_lock(connection, "retain", max_idle_seconds=0)
            if day not in retention_queries.report_days(connection):
                continue  # another scheduler has dropped it
            expired = _evaluate_day(engine, connection, day, after_blocked=is_blocked)
            if not expired.blockers and archive is not None:
                expired = replace(expired, blockers=_archive_day(engine, connection, archive, day))
            if not expired.blockers and (reason := retention_queries.drop_day(connection, day)):
                expired = replace(expired, blockers=(reason,))
            if expired.blockers:
                transaction.rollback()
        is_blocked |= bool(expired.blockers)
        yield expired


def _archive_day(
    engine: Engine, connection: Connection, archive: str, day: date
) -> tuple[str, ...]:
    """Archive a day, and record that it is dropped; returns why it must stay.

    The archive is written and read back by a connection of its own, and then compared with what
    the transaction that drops the day finds in it.
    """
    manifest = archive_day(engine, archive, day)
    contents = day_contents(connection, day)
    if manifest is None:
        return ("reports of it came while it was archived",) if contents else ()
    if manifest.contents != contents:
        return ("reports of it came or went while it was archived",)
    archive_records.record_drop(connection, manifest)
    return ()


def _days_before_retention(connection: Connection, days: int) -> list[date]:
    clock = retention_queries.retention_clock(connection)
    if clock is None:
        return []
    kept_since = (clock.astimezone(UTC) - timedelta(days=days)).date()
    return [day for day in retention_queries.report_days(connection) if day < kept_since]


def _evaluate_day(
    engine: Engine, connection: Connection, day: date, *, after_blocked: bool
) -> ExpiredDay:
    """Find the blockers of a day; without any, write what takes the place of its reports."""
    source_days = retention_queries.sources_on(connection, day)
    counts = retention_queries.count_reports(connection, day)
    realm_ids = {realm_id for realm_id, _ in counts}
    blockers = [*_blocking_sources(source_days, day)]
    retention_queries.drop_day_tables(connection)
    retention_queries.create_day_sessions(connection, day, source_days)
    for source, count in retention_queries.count_active_sessions(connection).items():
        blockers.append(f"{counted(count, 'open session')} of source '{source}'")
    periods = retention_queries.dependent_periods(connection, day, realm_ids, PROOF_MAX_AGE)
    all_closed = all(period.is_closed for period in periods)
    all_fresh = all(period.is_fresh for period in periods)
    if all_closed and not all_fresh and not blockers and not after_blocked:
        _verify_all(engine)
        periods = retention_queries.dependent_periods(connection, day, realm_ids, PROOF_MAX_AGE)
    blockers += _blocking_periods(periods)
    if after_blocked:
        blockers.append("a day before is kept")
    if counts and not blockers:
        blockers += _finalize_day(connection, day, source_days)
        if not blockers:
            retention_queries.record_dropped(connection, day, source_days, counts)
    return ExpiredDay(day=day, reports=sum(counts.values()), blockers=tuple(blockers))


def _blocking_sources(source_days: Collection[SourceDay], day: date) -> Iterator[str]:
    _, ends_at = retention_queries.day_bounds(day)
    for source_day in source_days:
        settled_until = source_day.settled_until
        if source_day.is_unsettled:
            yield f"reports of source '{source_day.source}' are not settled yet"
        elif not source_day.is_retired and (settled_until is None or settled_until < ends_at):
            reached = (
                "not settled yet"
                if settled_until is None
                else f"settled until {from_micros(settled_until):%Y-%m-%d %H:%M:%SZ}"
            )
            yield f"source '{source_day.source}' is {reached}"


def _verify_all(engine: Engine) -> None:
    """Verify all periods, which writes their proofs."""
    result = VerifyResult()
    for _ in verify(engine, result=result):
        pass
    log.info("verified", sessions=result.sessions, differences=result.differences)


def _blocking_periods(periods: Sequence[DependentPeriod]) -> Iterator[str]:
    """The periods that are not closed; where all are, those without a fresh and clean proof."""
    for period in [period for period in periods if not period.is_closed] or periods:
        name = f"period {period.period} of realm '{period.realm}'"
        if period.period is None:
            yield f"a period of realm '{period.realm}' is not drawn yet"
        elif not period.is_closed:
            yield f"{name} is not closed"
        elif not period.is_fresh:
            yield f"{name} was not verified lately"
        elif period.differences:
            yield (
                f"{name} has {counted(period.differences, 'difference')}, verified "
                f"{period.checked_at:%Y-%m-%d}: see `turn-accounting verify`"
            )


def _finalize_day(
    connection: Connection, day: date, source_days: Collection[SourceDay]
) -> Iterator[str]:
    """Finalize or carry the day's sessions, unless the books differ from its reports.

    Sessions expire here only by the time of the day's last report: evidence of later days, which
    may prove them active, is not read.
    """
    rules = realm_queries.all_rules(connection)
    cutoff = Cutoff(
        watermarks=tuple(
            Watermark(
                source_id=source_day.source_id,
                epoch=source_day.last[0],
                position=source_day.last[1],
                received_at=source_day.received_at,
                settled_until=source_day.received_at,
                # A sighting at the position of the last report came after that report.
                last_sighting=(*source_day.last, -1),
            )
            for source_day in source_days
            if source_day.last is not None
        )
    )
    scope = EvidenceScope(
        cutoff=cutoff, realm_ids=list(rules), day=retention_queries.day_bounds(day)
    )
    finalized_queries.create_tables(connection)
    set_aside: list[SetAside] = []
    recomputed = recompute_sessions(connection, rules, scope, on_set_aside=set_aside.append)
    while batch := list(islice(recomputed, SESSIONS_PER_BATCH)):
        hours = [
            hour for item in batch if item.session.phase is Phase.CLOSED for hour in item.hours
        ]
        sessions = [(item.key, item.session) for item in batch]
        finalized_queries.add_sessions(connection, sessions, hours)
    if set_aside:
        yield f"{counted(len(set_aside), 'report')} of it set aside: see `turn-accounting verify`"
        return
    mismatches = finalized_queries.count_mismatches(connection)
    if mismatches:
        yield f"{counted(mismatches, 'wrong row')} of its sessions: see `turn-accounting verify`"
        return
    finalized_queries.finalize_day(connection)
