"""SQL for the outbox of the feed: tables ``feed_outbox`` and ``feed``."""

from collections.abc import Mapping
from typing import Any, Final, Literal

from sqlalchemy import Connection, func

from accounting.db.engine import prefer_index_scans
from accounting.db.queries import Queries
from accounting.db.schema import feed_outbox

_QUERIES: Final = Queries("accounting.feed")

EventType = Literal["session.ended", "period.closed", "adjustment.posted"]


def enqueue_event(
    connection: Connection,
    type_: EventType,
    realm_id: int,
    payload: Mapping[str, Any],
    unique_key: str,
) -> None:
    """Enqueue an event, in the transaction of its cause.

    ``payload``: JSON values, times as ISO 8601, and never a user's name. ``unique_key`` identifies
    the event among those of its type: ``event_id`` is derived from both, and numbering drops a
    second event with the same id.
    """
    connection.execute(
        feed_outbox.insert().values(
            event_id=func.accounting.event_id(type_, unique_key),
            type=type_,
            realm_id=realm_id,
            payload=dict(payload),
        )
    )


def number_events(connection: Connection, limit: int) -> int:
    """Move the oldest events of the outbox into the feed; returns how many were dequeued.

    The caller took the lock ``feed`` in an earlier statement.
    """
    with prefer_index_scans(connection):
        return int(
            connection.execute(_QUERIES.text("number_events"), {"limit": limit}).scalar_one()
        )
