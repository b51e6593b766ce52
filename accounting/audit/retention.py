"""Retain: reports older than the operator wants to keep are dropped, a whole day at a time.

A day goes only when nothing that was billed can be lost with it: its sessions have ended, and every
period that they fed is closed and was proved from the reports lately. One transaction a day: what
its sessions came to is compared with the books once more and sealed, the lives that later reports
may still belong to are carried over, and the partition is dropped. So a kill leaves all or nothing.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, date, timedelta
from itertools import islice
from typing import Final

import structlog
from sqlalchemy import Connection, Engine

from accounting.audit import retention_queries
from accounting.audit.evidence_queries import Cutoff
from accounting.audit.recompute import merge_deltas, replay_by
from accounting.audit.recompute_books import SESSIONS_PER_BATCH
from accounting.audit.retention_queries import DependentPeriod, SourceDay
from accounting.audit.verify import VerifyResult, verify
from accounting.billing.close_period import refresh_periods
from accounting.db.engine import lost_connections
from accounting.db.locks import try_lock
from accounting.domain.calendar import from_micros
from accounting.domain.session_fold import Phase
from accounting.domain.session_hours import SessionHour, hours_of
from accounting.identities import realm_queries
from accounting.sources.watermark_queries import Watermark

log = structlog.get_logger()

PROOF_MAX_AGE: Final = timedelta(days=7)
"""A period is verified again where its last proof is older: all reports at most once a week."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ExpiredDay:
    """A day (UTC) older than the setting. ``kept_for``: why its reports stay; empty: dropped."""

    day: date
    reports: int
    blockers: tuple[str, ...]


def retain(engine: Engine, days: int | None) -> int:
    """Drop the days that may go; returns how many. ``days``: how long to keep; None: for ever.

    Stops at the first that may not. Does nothing while another scheduler does. Raises NotYet and
    ConnectionLost.
    """
    dropped = 0
    for found in expired_days(engine, days):
        if found.blockers:
            log.info("reports are kept", day=str(found.day), reason="; ".join(found.blockers))
            break
        dropped += 1
    return dropped


def preview(engine: Engine, days: int | None) -> Iterator[str]:
    """Lines that say of each day older than the setting whether it would be dropped, or why not."""
    if days is None:
        yield "ACCOUNTING_REPORT_RETENTION_DAYS is not set: all reports are kept"
        return
    found = None
    for found in expired_days(engine, days, dry_run=True):
        fate = f"kept: {'; '.join(found.blockers)}" if found.blockers else "would be dropped"
        yield f"{found.day}  {found.reports:,} reports  {fate}"
    if found is None:
        yield f"no reports are older than {days} days"


def expired_days(
    engine: Engine, days: int | None, *, dry_run: bool = False
) -> Iterator[ExpiredDay]:
    """Every day older than the setting, the oldest first: dropped, or with what keeps it.

    Verifies all periods where that was not done lately. Raises NotYet and ConnectionLost.
    """
    if days is None or not refresh_periods(engine):
        return
    with lost_connections(), engine.connect() as connection:
        old = _older(connection, days)
    if dry_run:
        # In one transaction that is given up: each day is judged as if those before were dropped.
        with lost_connections(), engine.connect() as connection, connection.begin() as given_up:
            if not try_lock(connection, "retain"):
                return
            is_kept = False
            for day in old:
                found = _judge(engine, connection, day, after_kept=is_kept)
                is_kept |= bool(found.blockers)
                yield found
            given_up.rollback()
        return
    is_kept = False
    for day in old:
        with lost_connections(), engine.connect() as connection, connection.begin() as dropping:
            if not try_lock(connection, "retain"):
                return
            if day not in retention_queries.report_days(connection):
                continue  # somebody else was faster
            found = _judge(engine, connection, day, after_kept=is_kept)
            if not found.blockers and not retention_queries.drop_day(connection, day):
                found = replace(found, blockers=("its reports are being read now",))
            if found.blockers:
                dropping.rollback()
        is_kept |= bool(found.blockers)
        yield found


def _older(connection: Connection, days: int) -> list[date]:
    clock = retention_queries.period_clock(connection)
    if clock is None:
        return []
    kept_since = (clock.astimezone(UTC) - timedelta(days=days)).date()
    return [day for day in retention_queries.report_days(connection) if day < kept_since]


def _judge(engine: Engine, connection: Connection, day: date, *, after_kept: bool) -> ExpiredDay:
    """Say what keeps a day; where nothing does, write what is to take its reports' place."""
    found = retention_queries.sources_on(connection, day)
    counts = retention_queries.count_reports(connection, day)
    reasons = [*_unsettled(found, day)]
    if counts:
        retention_queries.drop_staging_tables(connection)
        retention_queries.stage_day_sessions(connection, day, found)
        for source, count in retention_queries.count_active_sessions(connection).items():
            reasons.append(f"{count:,} sessions of source '{source}' have not ended")
        fed = retention_queries.dependent_periods(connection, PROOF_MAX_AGE)
        if not reasons and not after_kept and all(one.is_closed for one in fed):
            fed = _proved(engine, connection, fed)
        reasons += _unproved(fed)
    if after_kept:
        reasons.append("a day before is kept")
    if counts and not reasons:
        reasons += _seal(connection, day, found)
        if not reasons:
            retention_queries.record_dropped(connection, day, found, counts)
    return ExpiredDay(day=day, reports=sum(counts.values()), blockers=tuple(reasons))


def _unsettled(found: Iterable[SourceDay], day: date) -> Iterator[str]:
    _, ends_at = retention_queries.day_bounds(day)
    for one in found:
        until = one.settled_until
        if one.is_unsettled:
            yield f"reports of source '{one.source}' are not settled yet"
        elif not one.is_retired and (until is None or until < ends_at):
            reached = "not settled yet" if until is None else f"settled until {_shown(until)}"
            yield f"source '{one.source}' is {reached}"
        if one.is_out_of_order:
            yield f"reports of source '{one.source}' on a later day came before its last"


def _shown(time: int) -> str:
    return f"{from_micros(time):%Y-%m-%d %H:%M:%SZ}"


def _proved(
    engine: Engine, connection: Connection, fed: list[DependentPeriod]
) -> list[DependentPeriod]:
    """Verify, unless every period was lately."""
    if all(one.is_fresh for one in fed):
        return fed
    verdict = VerifyResult()
    for _ in verify(engine, result=verdict):
        pass
    log.info("verified", sessions=verdict.sessions, differences=verdict.differences)
    return retention_queries.dependent_periods(connection, PROOF_MAX_AGE)


def _unproved(fed: Sequence[DependentPeriod]) -> Iterator[str]:
    """What is to be said of them: those that are not closed first, then the proofs."""
    for one in [one for one in fed if not one.is_closed] or fed:
        name = f"period {one.period} of realm '{one.realm}'"
        if one.period is None:
            yield f"a period of realm '{one.realm}' is not drawn yet"
        elif not one.is_closed:
            yield f"{name} is not closed"
        elif not one.is_fresh:
            yield f"{name} was not verified lately"
        elif one.differences:
            yield (
                f"{name} has {one.differences:,} differences, verified {one.checked_at:%Y-%m-%d}: "
                "see `turn-accounting verify`"
            )


def _seal(connection: Connection, day: date, found: Iterable[SourceDay]) -> Iterator[str]:
    """Write what becomes of a day's lives, unless the books have something else than its reports.

    Lives end here only by the time of the last report: what is seen later decides on later days.
    """
    rules = realm_queries.all_rules(connection)
    cutoff = Cutoff(
        watermarks=tuple(
            Watermark(
                source_id=one.source_id,
                epoch=one.last[0],
                position=one.last[1],
                received_at=one.received_at,
                settled_until=one.received_at,
                last_sighting=(*one.last, -1),  # a sighting at the last report came after it
            )
            for one in found
            if one.last is not None
        )
    )
    retention_queries.create_staging_tables(connection)
    told = replay_by(
        connection, rules, cutoff, list(rules), (), day=retention_queries.day_bounds(day)
    )
    while batch := [(key, session) for key, session, _ in islice(told, SESSIONS_PER_BATCH)]:
        usage: list[SessionHour] = []
        for _, session in batch:
            calendar = rules[session.realm_id].calendar
            if session.phase is Phase.CLOSED:
                usage += hours_of(session, calendar)
            else:
                merge_deltas(session, calendar)
        retention_queries.add_day_sessions(connection, batch, usage)
    wrong = retention_queries.count_mismatches(connection)
    if wrong:
        yield f"{wrong:,} rows of its sessions are not what it says: see `turn-accounting verify`"
        return
    retention_queries.finalize_day(connection)
