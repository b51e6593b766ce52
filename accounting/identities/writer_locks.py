"""Lock out what writes names, sessions and their hours, and so reads rules and erasures."""

from typing import Final

from sqlalchemy import Connection, select

from accounting.db.locks import lock, waiting_for_loaders
from accounting.db.queries import Queries
from accounting.db.schema import sources

_QUERIES: Final = Queries("accounting.identities")


def lock_out_settling_and_loaders(connection: Connection) -> None:
    """Wait for settling and for all loaders, and keep them out until the transaction ends.

    Loaders last, since meanwhile nothing is loaded, and also those of sources that are new. The
    caller has taken its other locks before, in the order of closing a period.
    """
    _lock_settling(connection)
    lock_out_loaders(connection)
    _lock_settling(connection)  # of sources that are new since then


def lock_out_loaders(connection: Connection) -> None:
    """Wait for all loaders, and keep them out until the transaction ends, those of new sources too.

    Readers of ``sources`` are not blocked. Raises LockHeld when one of them hangs.
    """
    with waiting_for_loaders(connection):
        connection.execute(_QUERIES.text("lock_out_loaders"))


def _lock_settling(connection: Connection) -> None:
    for source_id in connection.execute(
        select(sources.c.source_id).order_by("source_id")
    ).scalars():
        lock(connection, f"settle.{source_id}")
