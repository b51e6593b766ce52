"""Partitions: the reports' days made ahead, so that no loader waits for one."""

from datetime import UTC, datetime, timedelta
from typing import Final

from sqlalchemy import Engine

from accounting.db.engine import lost_connections
from accounting.db.locks import try_lock
from accounting.ingest.report_queries import ensure_partition

DAYS_AHEAD: Final = 7


def make_partitions(engine: Engine) -> int:
    """Make the partitions of today (UTC) and the days ahead; returns how many were missing."""
    today = datetime.now(UTC).date()
    made = 0
    for days in range(DAYS_AHEAD + 1):
        with lost_connections(), engine.begin() as connection:
            if not try_lock(connection, "partitions"):
                return made
            made += ensure_partition(connection, today + timedelta(days=days))
    return made
