"""Create the daily partitions of the reports ahead of time, so that loading finds them."""

from datetime import UTC, timedelta
from typing import Final

from sqlalchemy import Engine

from accounting.db.clock import database_now
from accounting.db.engine import lost_connections
from accounting.db.locks import require_lock
from accounting.ingest.report_queries import ensure_partition

DAYS_AHEAD: Final = 7


def make_partitions(engine: Engine) -> int:
    """Create the missing partitions of today (UTC) and the days ahead; returns how many.

    Today is the database's. Raises LockHeld while another scheduler does, and ConnectionLost.
    """
    with lost_connections(), engine.connect() as connection:
        today = database_now(connection).astimezone(UTC).date()
    created = 0
    for days in range(DAYS_AHEAD + 1):
        with lost_connections(), engine.begin() as connection:
            require_lock(connection, "partitions")
            created += ensure_partition(connection, today + timedelta(days=days))
    return created
