"""Rows of ``source_leases``: which collector works on a source, by the database's clock.

A lease only decides which collector works. ``source_queries.advance`` keeps a message from being
counted twice, however many collectors believe that they hold the lease.
"""

from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Final

from sqlalchemy import ColumnElement, Connection, and_, false, func, not_, select
from sqlalchemy.dialects.postgresql import insert

from accounting.db.clock import CLOCK_TOLERANCE_SECONDS
from accounting.db.queries import Queries
from accounting.db.schema import source_leases
from accounting.domain.server_identity import UNKNOWN_SERVER, ServerIdentity

_QUERIES: Final = Queries("accounting.sources")


@dataclass(frozen=True, slots=True, kw_only=True)
class Lease:
    """The collector that has a lease: ``holder`` identifies its spool, ``host`` its machine.

    It saw ``server`` at ``server_seen_at``, None for never.
    """

    holder: str
    host: str
    renewed_at: datetime
    server: ServerIdentity
    server_seen_at: datetime | None


def acquire(
    connection: Connection,
    source_id: int,
    *,
    holder: str,
    host: str,
    lease_seconds: float,
    clock_ahead_seconds: float | None = None,
    server: ServerIdentity = UNKNOWN_SERVER,
    server_age_seconds: float | None = None,
    takes_expired: bool = True,
) -> Lease | None:
    """Acquire or renew the lease of a source; the collector saw ``server`` so long ago.

    ``takes_expired``: also when the lease of another collector has expired.
    Returns None on success, or the lease of the other collector that has it.
    """
    now = func.clock_timestamp()
    expires_at = now + func.make_interval(0, 0, 0, 0, 0, 0, lease_seconds)
    seen_at = None
    if server_age_seconds is not None:
        seen_at = now - func.make_interval(0, 0, 0, 0, 0, 0, server_age_seconds)
    values = {
        "holder": holder,
        "host": host,
        "renewed_at": now,
        "expires_at": expires_at,
        "clock_ahead_seconds": clock_ahead_seconds,
        "server": server.to_text(),
        "server_seen_at": seen_at,
    }
    acquired = connection.execute(
        insert(source_leases)
        .values(source_id=source_id, **values)
        .on_conflict_do_update(
            constraint="source_leases_pkey",
            set_=values,
            where=(source_leases.c.holder == holder)
            | (not_(_is_valid()) if takes_expired else false()),
        )
        .returning(source_leases.c.holder)
    ).first()
    if acquired is not None:
        return None
    lease = last_lease(connection, source_id)
    assert lease is not None, "the caller's lock on the source prevents a release meanwhile"
    return lease


def clock_is_off(connection: Connection, source_id: int, tolerance_seconds: float) -> bool:
    """Whether the clock of the collector with the last lease was off by more than the tolerance."""
    ahead = connection.execute(
        select(source_leases.c.clock_ahead_seconds).where(source_leases.c.source_id == source_id)
    ).scalar()
    return ahead is not None and abs(ahead) > tolerance_seconds


def last_lease(connection: Connection, source_id: int) -> Lease | None:
    """The lease of a source, also an expired one; None when it was released. Renews nothing."""
    return _lease(connection, source_id)


def valid_lease(connection: Connection, source_id: int) -> Lease | None:
    """The lease of a source; None when it has expired or was released. Renews nothing."""
    return _lease(connection, source_id, _is_valid())


def _is_valid() -> ColumnElement[bool]:
    """Whether a lease has not expired.

    One that was renewed later than now is of a clock that was ahead and stepped back. Its holder,
    if it works, renews it soon; if it died, nobody must wait until that time.
    """
    now = func.clock_timestamp()
    tolerance = timedelta(seconds=CLOCK_TOLERANCE_SECONDS)
    return and_(source_leases.c.expires_at >= now, source_leases.c.renewed_at <= now + tolerance)


def _lease(
    connection: Connection, source_id: int, *conditions: ColumnElement[bool]
) -> Lease | None:
    row = connection.execute(
        select(source_leases).where(source_leases.c.source_id == source_id, *conditions)
    ).one_or_none()
    if row is None:
        return None
    return Lease(
        holder=row.holder,
        host=row.host,
        renewed_at=row.renewed_at,
        server=ServerIdentity.from_text(row.server),
        server_seen_at=row.server_seen_at,
    )


def terminate_hung_loaders(connection: Connection, silent_seconds: float) -> int:
    """Terminate database sessions of hung collectors and loaders; returns how many.

    Such a session keeps its transaction and its locks for as long as its connection lasts, and
    blocks the collector that takes over. It counts as hung when its client has sent nothing for
    ``silent_seconds``, between two statements or within a COPY.
    """
    query = _QUERIES.text("terminate_hung_loaders")
    return len(connection.execute(query, {"seconds": silent_seconds}).all())


def release(connection: Connection, source_id: int, holder: str) -> None:
    """Release a lease, so that another collector need not wait until it expires."""
    connection.execute(
        source_leases.delete().where(
            source_leases.c.source_id == source_id, source_leases.c.holder == holder
        )
    )
