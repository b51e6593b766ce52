"""Leases: which collector may load a source now. By the database's clock, renewed while it works.

A lease decides who works, never what counts: that is the guard on the position's business.
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
    """Who holds a source: ``holder`` is the id of a spool, ``host`` the name of its machine."""

    holder: str
    host: str


def take(
    connection: Connection, source_id: int, *, holder: str, host: str, seconds: float
) -> Lease | None:
    """Take or renew the lease of a source for so long; None when it is ours, else whose it is."""
    now = func.clock_timestamp()
    expires_at = now + func.make_interval(0, 0, 0, 0, 0, 0, seconds)
    values = {"holder": holder, "host": host, "renewed_at": now, "expires_at": expires_at}
    taken = connection.execute(
        insert(source_leases)
        .values(source_id=source_id, **values)
        .on_conflict_do_update(
            constraint="source_leases_pkey",
            set_=values,
            where=(source_leases.c.holder == holder) | (source_leases.c.expires_at < now),
        )
        .returning(source_leases.c.holder)
    ).first()
    if taken is not None:
        return None
    lease = _lease(connection, source_id)
    assert lease is not None, "a lease is released under the lock of its source"
    return lease


def held_by_other(connection: Connection, source_id: int, holder: str) -> Lease | None:
    """The lease of a source when somebody else has it now; takes and renews nothing."""
    lease = _lease(connection, source_id, source_leases.c.expires_at >= func.clock_timestamp())
    return None if lease is None or lease.holder == holder else lease


def _lease(
    connection: Connection, source_id: int, *conditions: ColumnElement[bool]
) -> Lease | None:
    row = connection.execute(
        select(source_leases.c.holder, source_leases.c.host).where(
            source_leases.c.source_id == source_id, *conditions
        )
    ).one_or_none()
    return None if row is None else Lease(holder=row.holder, host=row.host)


def end_hung(connection: Connection, seconds: float) -> int:
    """End the sessions of collectors and loaders that hang in a transaction; returns how many.

    The server would wait for such a client for ever, and so would whoever takes over. `seconds`:
    how long nothing came of it, between two statements or in the midst of its rows.
    """
    return len(connection.execute(_QUERIES.text("end_hung_loaders"), {"seconds": seconds}).all())


def release(connection: Connection, source_id: int, holder: str) -> None:
    """Give a lease back, so that another collector need not wait until it expires."""
    connection.execute(
        source_leases.delete().where(
            source_leases.c.source_id == source_id, source_leases.c.holder == holder
        )
    )
