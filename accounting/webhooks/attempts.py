"""Prune the records of requests and refusals; part of the job ``retain``."""

from datetime import timedelta
from typing import Final

from sqlalchemy import Engine

from accounting.db.clock import database_now
from accounting.db.engine import lost_connections
from accounting.db.queries import Queries

ATTEMPT_DAYS: Final = 7
REFUSAL_DAYS: Final = 400
"""Longer than a year: a refusal is usage that nobody billed."""
ATTEMPTS_PER_TRANSACTION: Final = 5_000
_QUERIES: Final = Queries("accounting.webhooks")


def prune_attempts(engine: Engine) -> int:
    """Delete the records that are too old; returns how many. Raises ConnectionLost."""
    with lost_connections(), engine.begin() as connection:
        now = database_now(connection)
        before = now - timedelta(days=REFUSAL_DAYS)
        pruned = connection.execute(_QUERIES.text("prune_refusals"), {"before": before}).rowcount
    before = now - timedelta(days=ATTEMPT_DAYS)
    while True:
        with lost_connections(), engine.begin() as connection:
            count = connection.execute(
                _QUERIES.text("prune_attempts"),
                {"before": before, "most": ATTEMPTS_PER_TRANSACTION},
            ).rowcount
        pruned += count
        if count < ATTEMPTS_PER_TRANSACTION:
            return pruned
