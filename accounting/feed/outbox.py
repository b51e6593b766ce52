"""The feed, stored: events posted with what they tell, numbered later by one job.

Owns the tables ``feed_outbox`` and ``feed``. Knows no event's meaning.
"""

from collections.abc import Mapping
from typing import Any, Final, Literal

from sqlalchemy import Connection, func

from accounting.db.engine import along_keys
from accounting.db.queries import Queries
from accounting.db.schema import feed_outbox

_QUERIES: Final = Queries("accounting.feed")

EventType = Literal["session.ended", "period.closed", "adjustment.posted"]


def enqueue_event(
    connection: Connection, type_: EventType, realm_id: int, payload: Mapping[str, Any], key: str
) -> None:
    """Tell the billing worker something, in the transaction of what it tells.

    ``key`` names the event among those of its type, for ever: the event's id comes from the two,
    and of events with one id only the first is told. ``payload``: what JSON can hold, times as ISO
    8601, no name of a user.
    """
    connection.execute(
        feed_outbox.insert().values(
            event_id=func.accounting.event_id(type_, key),
            type=type_,
            realm_id=realm_id,
            payload=dict(payload),
        )
    )


def number_events(connection: Connection, limit: int) -> int:
    """Move the oldest events of the outbox into the feed; returns how many were taken.

    The caller holds the lock ``feed``, taken by a statement before.
    """
    with along_keys(connection):
        return int(connection.execute(_QUERIES.text("number_feed"), {"limit": limit}).scalar_one())
