"""Number the feed: the one job that says in which order the billing worker hears of things.

Under one lock, held until what it numbered is committed: whoever saw a number never misses a
smaller one.
"""

from typing import Final

from sqlalchemy import Engine

from accounting.db.engine import lost_connections
from accounting.db.locks import try_lock
from accounting.feed import outbox

BATCH_SIZE: Final = 10_000
"""Events numbered in one transaction at the most."""


def number_feed(engine: Engine, *, limit: int = BATCH_SIZE) -> int:
    """Number all that was posted, and wake the consumers; returns how many events.

    Does nothing while another scheduler numbers. Raises ConnectionLost.
    """
    total = 0
    while (taken := _number_batch(engine, limit)) == limit:
        total += taken
    return total + taken


def _number_batch(engine: Engine, limit: int) -> int:
    with lost_connections(), engine.begin() as connection:
        # A statement of its own: the next one sees all that the last holder committed.
        if not try_lock(connection, "feed"):
            return 0
        return outbox.number_events(connection, limit)
