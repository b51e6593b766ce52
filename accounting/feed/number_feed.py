"""Number the feed: the only job that gives events their order.

It holds the lock ``feed`` until the numbers are committed. So numbers become visible in order, and
a reader who has seen a number never misses a smaller one.
"""

from typing import Final

import structlog
from psycopg.errors import ProgramLimitExceeded
from sqlalchemy import Engine
from sqlalchemy.exc import OperationalError

from accounting.db.engine import lost_connections
from accounting.db.locks import require_lock
from accounting.errors import LockHeld
from accounting.feed import outbox

log = structlog.get_logger()

BATCH_SIZE: Final = 10_000
"""Events numbered in one transaction at the most."""


def number_feed(engine: Engine, *, limit: int = BATCH_SIZE) -> int:
    """Number all enqueued events and notify the consumers; returns how many were dequeued.

    Raises LockHeld if another scheduler numbers from the beginning, and ConnectionLost.
    """
    total = 0
    try:
        while (dequeued := _number_batch(engine, limit)) == limit:
            total += dequeued
    except LockHeld:
        if not total:
            raise
        return total
    return total + dequeued


def _number_batch(engine: Engine, limit: int) -> int:
    with lost_connections(), engine.begin() as connection:
        # A statement of its own: the next one sees all that the last holder committed.
        require_lock(connection, "feed")
        numbered = outbox.number_events(connection, limit)
    if numbered.last_seq is not None:
        _notify_consumers(engine, numbered.last_seq)
    return numbered.dequeued


def _notify_consumers(engine: Engine, last_seq: int) -> None:
    """Wake the consumers, which look every few seconds in any case.

    In a transaction of its own: any login can fill the server's queue of notifications, and then
    no transaction with one can commit.
    """
    try:
        with lost_connections(), engine.begin() as connection:
            outbox.notify_consumers(connection, last_seq)
    except OperationalError as error:
        if not isinstance(error.orig, ProgramLimitExceeded):
            raise
        log.warning(
            "the queue of notifications is full, consumers of the feed look by themselves",
            advice="a session that listens stays in one transaction: end it",
        )
