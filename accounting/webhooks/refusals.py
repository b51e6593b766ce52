"""The events that an endpoint did not take and is not sent again: written, listed, and pruned.

An event without a customer is not sent at all; others are refused by the receiver. A replay forgets
them, since it sends them again.
"""

from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta
from typing import Any, Final

from sqlalchemy import Connection, Engine

from accounting.db.clock import database_now
from accounting.db.engine import lost_connections
from accounting.db.queries import Queries
from accounting.webhooks.endpoint_numbers import read_format
from accounting.webhooks.message import Refusal

KEPT_DAYS: Final = 400
"""Longer than a year: a refusal is usage that nobody billed."""
_QUERIES: Final = Queries("accounting.webhooks")


def insert_refusals(
    connection: Connection, number: int, refusals: Sequence[Refusal], refused_at: datetime
) -> None:
    """Record the events that an endpoint does not get; each once."""
    if not refusals:
        return
    connection.execute(
        _QUERIES.text("insert_refusal"),
        [
            {
                "number": number,
                "event_id": refusal.event.event_id,
                "seq": refusal.event.seq,
                "type": refusal.event.type,
                "reason": refusal.reason,
                "refused_at": refused_at,
            }
            for refusal in refusals
        ],
    )


def list_refusals(
    engine: Engine, number: int | None, limit: int | None = None
) -> list[Mapping[str, Any]]:
    """The events that an endpoint, or any, does not get, newest first, with realm and user.

    Raises UsageError for an unknown endpoint.
    """
    with lost_connections(), engine.connect() as connection:
        if number is not None:
            read_format(connection, number)
        rows = connection.execute(
            _QUERIES.text("list_refusals"), {"number": number, "limit": limit}
        )
        return [dict(row) for row in rows.mappings()]


def prune_refusals(engine: Engine) -> int:
    """Delete the records that are too old; returns how many. Raises ConnectionLost."""
    with lost_connections(), engine.begin() as connection:
        before = database_now(connection) - timedelta(days=KEPT_DAYS)
        return connection.execute(_QUERIES.text("prune_refusals"), {"before": before}).rowcount
