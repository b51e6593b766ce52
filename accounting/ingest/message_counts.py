"""Counts of loaded and rejected messages, updated in the transaction that inserts the messages."""

from collections.abc import Mapping
from typing import Literal, NamedTuple

from sqlalchemy import Connection
from sqlalchemy.dialects.postgresql import insert

from accounting.db.schema import message_counts


class CounterKey(NamedTuple):
    """One counter of a source. ``reason``: of a rejection, else empty."""

    outcome: Literal["loaded", "rejected"]
    reason: str = ""


def add(connection: Connection, source_id: int, counts: Mapping[CounterKey, int]) -> None:
    """Add to the counters of a source."""
    rows = [
        {"source_id": source_id, **key._asdict(), "total": count}
        for key, count in sorted(counts.items())
        if count
    ]
    if not rows:
        return
    query = insert(message_counts)
    connection.execute(
        query.on_conflict_do_update(
            constraint="message_counts_pkey",
            set_={"total": message_counts.c.total + query.excluded.total},
        ),
        rows,
    )
