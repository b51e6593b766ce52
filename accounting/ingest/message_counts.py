"""Tallies: counts of rows that only grow, kept in the transaction that writes the rows."""

from collections.abc import Mapping
from typing import Literal, NamedTuple

from sqlalchemy import Connection
from sqlalchemy.dialects.postgresql import insert

from accounting.db.schema import message_counts


class CounterKey(NamedTuple):
    """What is counted; ``reason`` parts it (the reason of a rejection), or is empty."""

    outcome: Literal["loaded", "rejected"]
    reason: str = ""


def add(connection: Connection, source_id: int, counts: Mapping[CounterKey, int]) -> None:
    """Add to the message_counts of a source."""
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
