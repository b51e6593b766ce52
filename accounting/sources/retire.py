"""Take a source out of service, so that nothing waits for a machine that is gone; and back again.

A retired source also returns by itself: the loader reopens it when it loads a message that was
received after the source was retired (:func:`reopen_if_retired`).
"""

import structlog
from sqlalchemy import Connection, Engine

from accounting.db.engine import lost_connections
from accounting.db.locks import waiting_for_loaders
from accounting.sources import source_queries
from accounting.sources.source_queries import SourceRow

log = structlog.get_logger()


def retire_source(engine: Engine, name: str) -> None:
    """Retire a source. Raises UsageError for an unknown name."""
    with lost_connections(), engine.begin() as connection, waiting_for_loaders(connection):
        source = source_queries.lock_known_source(connection, name)
        source_queries.retire(connection, source.source_id)


def reopen_source(engine: Engine, name: str) -> bool:
    """Return a retired source to service; False if it is in service. UsageError if unknown.

    Raises LockHeld while its loader hangs.
    """
    with lost_connections(), engine.begin() as connection, waiting_for_loaders(connection):
        source = source_queries.lock_known_source(connection, name)
        return source_queries.reopen(connection, source.source_id)


def reopen_if_retired(
    connection: Connection, source: SourceRow, last_received_at: int | None
) -> None:
    """Return a retired source to service when messages were received after it was retired.

    Messages that its spool still held from before do not count: the collector may be gone.
    """
    if source.retired_at is None or last_received_at is None:
        return
    if last_received_at > source.retired_at and source_queries.reopen(connection, source.source_id):
        log.warning(
            "a retired source is back in service: its messages arrive again", source=source.source
        )
