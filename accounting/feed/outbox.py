"""SQL for the outbox of the feed: tables ``feed_outbox`` and ``feed``."""

from collections.abc import Iterable, Mapping
from typing import Any, Final, Literal, NamedTuple, get_args

from sqlalchemy import Connection, bindparam, func

from accounting.db.engine import prefer_index_scans
from accounting.db.queries import Queries
from accounting.db.schema import feed_outbox

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
    rows = [
        {"event_type": type_, "of_realm": realm_id, "details": dict(payload), "unique_key": key}
        for type_, realm_id, payload, key in events
    ]
    if rows:
        event_id = func.accounting.event_id(bindparam("event_type"), bindparam("unique_key"))
        connection.execute(
            feed_outbox.insert().values(
                event_id=event_id,
                type=bindparam("event_type"),
                realm_id=bindparam("of_realm"),
                payload=bindparam("details"),
            ),
            rows,
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
