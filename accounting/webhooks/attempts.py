"""The record of each request to an endpoint: written, listed, and pruned after some days."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, Final
from uuid import UUID

from sqlalchemy import Connection, Engine

from accounting.db.clock import database_now
from accounting.db.engine import lost_connections
from accounting.db.queries import Queries
from accounting.feed.reader import FeedEvent
from accounting.webhooks.endpoint_numbers import read_format

KEPT_DAYS: Final = 7
PRUNED_PER_TRANSACTION: Final = 5_000
_QUERIES: Final = Queries("accounting.webhooks")


@dataclass(frozen=True, slots=True, kw_only=True)
class Attempt:
    """A request and what became of it. ``failure`` None: all of its events were taken."""

    attempted_at: datetime
    events: Sequence[FeedEvent]
    taken: int
    status: int | None
    failure: str | None
    seconds: float


def insert_attempt(
    connection: Connection, number: int, attempt: Attempt, seq: int, history: UUID | None
) -> None:
    """Record a request. ``seq``, ``history``: the endpoint's position after it."""
    connection.execute(
        _QUERIES.text("insert_attempt"),
        {
            "number": number,
            "attempted_at": attempt.attempted_at,
            "first_seq": attempt.events[0].seq,
            "last_seq": attempt.events[-1].seq,
            "events": len(attempt.events),
            "taken": attempt.taken,
            "status": attempt.status,
            "failure": attempt.failure,
            "seconds": attempt.seconds,
            "seq": seq,
            "history": history,
        },
    )


def list_attempts(
    engine: Engine, number: int | None, *, failed: bool = False, limit: int | None = None
) -> list[Mapping[str, Any]]:
    """The requests of an endpoint, or of all, newest first; ``failed``: only those.

    Raises UsageError for an unknown endpoint.
    """
    with lost_connections(), engine.connect() as connection:
        if number is not None:
            read_format(connection, number)
        rows = connection.execute(
            _QUERIES.text("list_attempts"), {"number": number, "failed": failed, "limit": limit}
        )
        return [dict(row) for row in rows.mappings()]


def prune_attempts(engine: Engine) -> int:
    """Delete the records that are too old; returns how many. Raises ConnectionLost."""
    pruned = 0
    while True:
        with lost_connections(), engine.begin() as connection:
            before = database_now(connection) - timedelta(days=KEPT_DAYS)
            count = connection.execute(
                _QUERIES.text("prune_attempts"),
                {"before": before, "most": PRUNED_PER_TRANSACTION},
            ).rowcount
        pruned += count
        if count < PRUNED_PER_TRANSACTION:
            return pruned
