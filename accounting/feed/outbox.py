"""SQL for the outbox of the feed: tables ``feed_outbox`` and ``feed``."""

import json
from collections.abc import Iterable, Mapping
from typing import Any, Final, Literal, NamedTuple, get_args

from sqlalchemy import Connection

from accounting.db.engine import prefer_index_scans
from accounting.db.queries import Queries

_QUERIES: Final = Queries("accounting.feed")

EventType = Literal[
    "session.ended", "usage.counted", "period.closed", "adjustment.posted",
    "limit.reached", "limit.cleared", "source.trouble", "webhook.disabled",
]  # fmt: skip
EVENT_TYPES: Final[tuple[str, ...]] = get_args(EventType)


def enqueue_event(
    connection: Connection,
    type_: EventType,
    realm_id: int | None,
    payload: Mapping[str, Any],
    unique_key: str,
) -> None:
    """Enqueue an event, in the transaction of its cause.

    ``realm_id``: None for what concerns no realm. ``payload``: JSON values, times as ISO 8601, and
    never a user's name. ``unique_key`` identifies the event among those of its type: ``event_id``
    is derived from both, and numbering drops a second event with the same id.
    """
    enqueue_events(connection, [(type_, realm_id, payload, unique_key)])


def enqueue_events(
    connection: Connection,
    events: Iterable[tuple[EventType, int | None, Mapping[str, Any], str]],
) -> None:
    """Enqueue events in order; each as :func:`enqueue_event` takes it."""
    rows = [(type_, realm_id, json.dumps(payload), key) for type_, realm_id, payload, key in events]
    if rows:
        types, realm_ids, payloads, keys = map(list, zip(*rows, strict=True))
        connection.execute(
            _QUERIES.text("enqueue_events"),
            {"types": types, "realm_ids": realm_ids, "payloads": payloads, "keys": keys},
        )


class NumberedEvents(NamedTuple):
    """How many events left the outbox, and the last one's number; None: none is new."""

    dequeued: int
    last_seq: int | None


def number_events(connection: Connection, limit: int) -> NumberedEvents:
    """Move the oldest events of the outbox into the feed.

    The caller took the lock ``feed`` in an earlier statement.
    """
    with prefer_index_scans(connection):
        row = connection.execute(_QUERIES.text("number_events"), {"limit": limit}).one()
        return NumberedEvents(row.dequeued, row.last_seq)


def notify_consumers(connection: Connection, last_seq: int) -> None:
    """Wake the consumers that wait for events, at the end of the transaction."""
    connection.execute(_QUERIES.text("notify_consumers"), {"last_seq": str(last_seq)})
