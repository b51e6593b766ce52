"""Rows of ``source_leases``: which collector works on a source, by the database's clock.

A lease only decides which collector works. ``source_queries.advance`` keeps a message from being
counted twice, however many collectors believe that they hold the lease.
"""

from dataclasses import dataclass
from typing import Final

from sqlalchemy import ColumnElement, Connection, func, select
from sqlalchemy.dialects.postgresql import insert

from accounting.db.queries import Queries
from accounting.db.schema import source_leases

_QUERIES: Final = Queries("accounting.sources")


@dataclass(frozen=True, slots=True, kw_only=True)
class Lease:
    """The collector that has a lease: ``holder`` identifies its spool, ``host`` its machine."""

    holder: str
    host: str


def acquire(
    connection: Connection,
    source_id: int,
    *,
    holder: str,
    host: str,
    lease_seconds: float,
    clock_ahead_seconds: float | None = None,
) -> Lease | None:
    """Acquire or renew the lease of a source.

    Returns None on success, or the lease of the other collector that has it.
    """
    now = func.clock_timestamp()
    expires_at = now + func.make_interval(0, 0, 0, 0, 0, 0, lease_seconds)
    values = {
        "holder": holder,
        "host": host,
        "renewed_at": now,
        "expires_at": expires_at,
        "clock_ahead_seconds": clock_ahead_seconds,
    }
    acquired = connection.execute(
        insert(source_leases)
        .values(source_id=source_id, **values)
        .on_conflict_do_update(
            constraint="source_leases_pkey",
            set_=values,
            where=(source_leases.c.holder == holder) | (source_leases.c.expires_at < now),
        )
        .returning(source_leases.c.holder)
    ).first()
    if acquired is not None:
        return None
    lease = _lease(connection, source_id)
    assert lease is not None, "the caller's lock on the source prevents a release meanwhile"
    return lease


def valid_lease(connection: Connection, source_id: int) -> Lease | None:
    """The lease of a source; None when it has expired or was released. Renews nothing."""
    return _lease(connection, source_id, source_leases.c.expires_at >= func.clock_timestamp())


def _lease(
    connection: Connection, source_id: int, *conditions: ColumnElement[bool]
) -> Lease | None:
    row = connection.execute(
        select(source_leases.c.holder, source_leases.c.host).where(
            source_leases.c.source_id == source_id, *conditions
        )
    ).one_or_none()
    return None if row is None else Lease(holder=row.holder, host=row.host)


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
