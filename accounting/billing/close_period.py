"""Close billing periods: all of closing is decided here.

A period goes through three steps:

1. :func:`refresh_periods` derives it from the realm rules; the borders are ``domain.periods``'.
2. It is open until its end, then closing until ``period_queries.waits_for`` returns None: its
   grace is over, every source is settled and rolled up beyond it, and the period before is closed.
3. :func:`_close` folds its hours, and writes its statement, its cutoff and its ``period.closed``
   event in one transaction. That holds the locks of the roll-up and of settling, so that the lines
   and their cutoff describe the same moment.
"""

import json
from collections.abc import Collection
from dataclasses import dataclass
from datetime import UTC, date

from sqlalchemy import Connection, Engine

from accounting.billing import period_queries, statement_queries
from accounting.billing.period_queries import PeriodRow, find_period
from accounting.db.engine import lost_connections
from accounting.db.locks import lock
from accounting.domain.calendar import to_micros
from accounting.domain.periods import describe_wait
from accounting.errors import (
    LockHeld,
    NotYet,
    UsageError,
    preview_command,
    statement_command,
    unknown_name,
)
from accounting.feed import outbox
from accounting.identities import realm_queries
from accounting.identities.realm_queries import find_realm
from accounting.plurals import counted
from accounting.sources import source_queries
from accounting.usage.fold_hours import fold_and_count


@dataclass(frozen=True, slots=True, kw_only=True)
class CloseResult:
    """What a close wrote, or would write. ``sums``: over all lines, by column.

    ``excluded_sources``: those that were behind and not waited for.
    """

    realm: str
    period: date
    line_count: int
    excluded_sources: tuple[str, ...]
    sums: dict[str, int]

    def summary(self) -> str:
        """The number of its lines, and its traffic."""
        return (
            f"{counted(self.line_count, 'line')}, "
            f"{counted(self.sums['received_bytes'], 'byte')} received, "
            f"{self.sums['sent_bytes']:,} sent"
        )


def close_periods(engine: Engine) -> int:
    """Refresh the periods, and close every one that waits for nothing; returns how many closed.

    Raises LockHeld when settling or the roll-up keep their locks, and ConnectionLost.
    """
    refresh_periods(engine)
    closed = 0
    passed_over: set[int] = set()
    while ready := [row for row in _ready_periods(engine) if row[0] not in passed_over]:
        for realm_id, period in ready:
            try:
                _close(engine, realm_id, period, (), dry_run=False)
            except LockHeld:
                raise
            except NotYet:
                # Its state changed since it was listed. The next run retries this realm.
                passed_over.add(realm_id)
            else:
                closed += 1
    return closed


def refresh_periods(engine: Engine) -> None:
    """Bring every realm's open periods in line with its rules. Raises LockHeld."""
    with lost_connections(), engine.begin() as connection:
        lock(connection, "rollup")
        period_queries.refresh_periods(connection)


def close_period(
    engine: Engine,
    realm: str,
    period: date,
    *,
    excluded_sources: Collection[str] = (),
    dry_run: bool = False,
) -> CloseResult:
    """Close one period now, without waiting for ``excluded_sources``.

    Raises NotYet, with what the period waits for and with ``dry_run`` what its statement would be
    now, or LockHeld; UsageError for an unknown realm,
    period or source, and for a period that is already closed.
    """
    with lost_connections(), engine.begin() as connection:
        lock(connection, "rollup")
        period_queries.refresh_periods(connection)
        realm_id = find_realm(connection, realm)
        known = {source.source for source in source_queries.all_sources(connection)}
        for name in excluded_sources:
            if name not in known:
                raise unknown_name("source", name, known)
        row = find_period(connection, realm_id, realm, period)
        if row.closed_at is not None:
            raise closed_already(row, realm)
    return _close(engine, realm_id, period, excluded_sources, dry_run=dry_run)


def _ready_periods(engine: Engine) -> list[tuple[int, date]]:
    with lost_connections(), engine.connect() as connection:
        return period_queries.ready_periods(connection)


def _close(
    engine: Engine, realm_id: int, period: date, excluded_sources: Collection[str], *, dry_run: bool
) -> CloseResult:
    with lost_connections(), engine.connect() as connection, connection.begin() as transaction:
        _lock_books(connection)
        realm = realm_queries.names_by_id(connection)[realm_id]
        row = find_period(connection, realm_id, realm, period)
        if row.closed_at is not None:
            raise NotYet(f"period {period} of realm '{realm}' was just closed by another process")
        waits_for = period_queries.waits_for(connection, realm_id, period, excluded_sources)
        behind = period_queries.sources_behind(connection, realm_id, period, excluded_sources)
        if waits_for is not None and not dry_run:
            raise not_ready(
                row, realm, waits_for, f"as it is now: `{preview_command(realm, period)}`"
            )
        # So that the feed has all usage of the period before its end.
        ends_at = to_micros(row.ends_at)
        fold_and_count(connection, realm_queries.all_rules(connection), {realm_id: ends_at})
        cutoff = statement_queries.current_cutoff(connection, behind)
        line_count = statement_queries.write_statement(connection, realm_id, period, cutoff)
        period_queries.mark_closed(connection, realm_id, period, cutoff)
        result = CloseResult(
            realm=realm,
            period=period,
            line_count=line_count,
            excluded_sources=tuple(behind),
            sums=statement_queries.statement_sums(connection, realm_id, period),
        )
        if waits_for is not None:
            raise not_ready(row, realm, waits_for, f"as it is now: {result.summary()}")
        figures = statement_queries.statement_figures(connection, realm_id, period)
        enqueue_period_closed(connection, row, result, figures)
        if dry_run:
            transaction.rollback()
        return result


def closed_already(row: PeriodRow, realm: str) -> UsageError:
    """The error for a period that can't be closed again."""
    assert row.closed_at is not None
    return UsageError(
        f"period {row.period} of realm '{realm}' is closed already, since "
        f"{row.closed_at.astimezone(UTC):%Y-%m-%d %H:%M:%SZ}: "
        f"`{statement_command(realm, row.period)}` shows it"
    )


def not_ready(row: PeriodRow, realm: str, waits_for: str, next_step: str) -> NotYet:
    """The error for a period that waits for something, with what to do."""
    waits = describe_wait(waits_for, row.ends_at, row.time_zone)
    return NotYet(f"period {row.period} of realm '{realm}' waits for: {waits}; {next_step}")


def _lock_books(connection: Connection) -> None:
    """Wait for settling and the roll-up to pause; they only try these locks, so no deadlock.

    Raises LockHeld when one of them does not pause.
    """
    lock(connection, "rollup")
    for source in source_queries.all_sources(connection):
        lock(connection, f"settle.{source.source_id}")


def enqueue_period_closed(
    connection: Connection, row: PeriodRow, result: CloseResult, figures: str
) -> None:
    """Enqueue the event, under an id made of the period's borders and ``figures``.

    A period that is closed again after a restore is the same event as long as those are the same.
    The cutoff is another then, and the sources that it did not wait for may be others.
    """
    period, starts_at, ends_at = (
        row.period.isoformat(),
        row.starts_at.astimezone(UTC).isoformat(),
        row.ends_at.astimezone(UTC).isoformat(),
    )
    outbox.enqueue_event(
        connection,
        "period.closed",
        row.realm_id,
        {
            "realm": result.realm,
            "period": period,
            "starts_at": starts_at,
            "ends_at": ends_at,
            "time_zone": row.time_zone,
            "statements": result.line_count,
            "without": list(result.excluded_sources),
            "figures": figures,
        },
        json.dumps([result.realm, period, starts_at, ends_at, figures]),
    )
