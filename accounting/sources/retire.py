"""Take a source out of service, so that nothing waits for a machine that is gone; and back again.

A retired source also returns by itself: the loader reopens it when it loads a message that was
received after the source was retired (:func:`reopen_if_retired`).
"""

from datetime import timedelta
from typing import Final

import structlog
from sqlalchemy import Connection, Engine

from accounting.db.clock import database_now
from accounting.db.engine import lost_connections
from accounting.db.locks import waiting_for_loaders
from accounting.domain.calendar import from_micros
from accounting.errors import UsageError
from accounting.sources import lease_queries, source_queries
from accounting.sources.source_queries import SourceRow

log = structlog.get_logger()

MAX_CAPTURE_AGE: Final = timedelta(seconds=60)
"""A source is captured where its last checkpoint is not older; there is one every second."""


def retire_source(engine: Engine, name: str, *, also_captured: bool = False) -> str | None:
    """Retire a source. Returns the host that captures it now, None for none or if it was retired.

    Raises UsageError for an unknown name, and for a captured source unless ``also_captured``.
    """
    with lost_connections(), engine.begin() as connection, waiting_for_loaders(connection):
        source = source_queries.lock_known_source(connection, name)
        host = None if source.retired_at is not None else _capturing_host(connection, source)
        if host is not None and not also_captured:
            raise UsageError(
                f"source '{name}' is captured by {host} now, and its next message would return it "
                "to service: stop its collector first, or retire it with --yes"
            )
        source_queries.retire(connection, source.source_id)
        return host


def _capturing_host(connection: Connection, source: SourceRow) -> str | None:
    """The host whose collector captures a source now.

    One that has the lease and does not reach Redis captures nothing: that Redis may be gone.
    """
    lease = lease_queries.valid_lease(connection, source.source_id)
    if lease is None or source.captured_until is None:
        return None
    age = database_now(connection) - from_micros(source.captured_until)
    return lease.host if age <= MAX_CAPTURE_AGE else None


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
