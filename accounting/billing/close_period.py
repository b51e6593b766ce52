"""Close: billing periods drawn, and closed with their statements when nothing is awaited.

One transaction for each period: its lines, the period, and what the feed tells of it. While it
runs nobody settles or rolls up, so that the lines and their cutoff are of one moment.
"""

from collections.abc import Collection
from dataclasses import dataclass
from datetime import UTC, date

from sqlalchemy import Connection, Engine

from accounting.billing import period_queries
from accounting.db.engine import lost_connections
from accounting.db.locks import lock, try_lock
from accounting.errors import NotYet, UsageError, unknown_name
from accounting.feed import outbox
from accounting.identities import realm_queries
from accounting.identities.realm_queries import find_realm
from accounting.sources import source_queries


@dataclass(frozen=True, slots=True, kw_only=True)
class CloseResult:
    """What closing a period made, or would make. ``sums``: over all its lines, by column."""

    realm: str
    period: date
    line_count: int
    excluded_sources: tuple[str, ...]
    sums: dict[str, int]


def close_periods(engine: Engine) -> int:
    """Draw the periods, and close all that wait for nothing; returns how many.

    Does nothing while somebody rolls up. Raises ConnectionLost.
    """
    if not refresh_periods(engine):
        return 0
    closed = 0
    while ready := _ready(engine):
        for realm_id, period in ready:
            try:
                _close(engine, realm_id, period, (), dry_run=False)
            except NotYet:
                return closed  # Something came in between: the next run looks again.
            closed += 1
    return closed


def refresh_periods(engine: Engine) -> bool:
    """Draw every realm's periods by its rules; False while somebody rolls up."""
    with lost_connections(), engine.begin() as connection:
        if not try_lock(connection, "rollup"):
            return False
        period_queries.draw(connection)
        return True


def close_period(
    engine: Engine,
    realm: str,
    period: date,
    *,
    excluded_sources: Collection[str] = (),
    dry_run: bool = False,
) -> CloseResult:
    """Close one period now, without waiting for those sources.

    Raises NotYet with what it waits for, and UsageError for a realm, period or source that is not
    known, or a period that is closed already.
    """
    with lost_connections(), engine.begin() as connection:
        lock(connection, "rollup")
        period_queries.draw(connection)
        realm_id = find_realm(connection, realm)
        known = {one.source for one in source_queries.all_sources(connection)}
        for name in excluded_sources:
            if name not in known:
                raise unknown_name("source", name, known)
        found = find_period(connection, realm_id, realm, period)
        if found.closed_at is not None:
            raise UsageError(
                f"period {period} of realm '{realm}' is closed already, since "
                f"{found.closed_at.astimezone(UTC):%Y-%m-%d %H:%M:%SZ}"
            )
    return _close(engine, realm_id, period, excluded_sources, dry_run=dry_run)


def find_period(
    connection: Connection, realm_id: int, realm: str, period: date
) -> period_queries.PeriodRow:
    """A period by its first day. Raises UsageError."""
    rows = period_queries.realm_periods(connection, realm_id)
    for row in rows:
        if row.period == period:
            return row
    known = ", ".join(str(row.period) for row in rows[-5:])
    raise UsageError(
        f"realm '{realm}' has no period that begins on {period}: the last are {known or 'none yet'}"
    )


def _ready(engine: Engine) -> list[tuple[int, date]]:
    with lost_connections(), engine.connect() as connection:
        return period_queries.ready(connection)


def _close(
    engine: Engine, realm_id: int, period: date, excluded_sources: Collection[str], *, dry_run: bool
) -> CloseResult:
    with lost_connections(), engine.connect() as connection, connection.begin() as transaction:
        # Waited for, in one order: whoever settles or rolls up only ever tries these locks.
        lock(connection, "rollup")
        for source in source_queries.all_sources(connection):
            lock(connection, f"settle.{source.source_id}")
        realm = realm_queries.names(connection)[realm_id]
        row = find_period(connection, realm_id, realm, period)
        if row.closed_at is not None:
            raise NotYet(f"period {period} of realm '{realm}' was closed by somebody else just now")
        waits = period_queries.waits(connection, realm_id, period, excluded_sources)
        if waits is not None:
            raise NotYet(f"period {period} of realm '{realm}' waits for: {waits}")
        cutoff = period_queries.cutoff(connection, realm_id, period, excluded_sources)
        lines = period_queries.close(connection, realm_id, period, cutoff)
        sums = period_queries.statement_sums(connection, realm_id, period)
        outbox.enqueue_event(
            connection,
            "period.closed",
            realm_id,
            {
                "realm": realm,
                "period": period.isoformat(),
                "starts_at": row.starts_at.astimezone(UTC).isoformat(),
                "ends_at": row.ends_at.astimezone(UTC).isoformat(),
                "time_zone": row.time_zone,
                "statements": lines,
                "without": list(cutoff.excluded_sources),
            },
            f"{realm_id}/{period}",
        )
        if dry_run:
            transaction.rollback()
        return CloseResult(
            realm=realm,
            period=period,
            line_count=lines,
            excluded_sources=tuple(cutoff.excluded_sources),
            sums=sums,
        )
