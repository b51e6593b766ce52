"""Tallies: counts of rows that only grow, kept in the transaction that writes the rows."""

from collections.abc import Mapping
from typing import Literal, NamedTuple

from sqlalchemy import Connection
from sqlalchemy.dialects.postgresql import insert

from accounting.db.schema import tallies


class Counted(NamedTuple):
    """What is counted; ``detail`` parts it (the reason of a rejection), or is empty."""

    counted: Literal["loaded", "rejected"]
    detail: str = ""


def add(connection: Connection, source_id: int, counts: Mapping[Counted, int]) -> None:
    """Add to the tallies of a source."""
    rows = [
        {"source_id": source_id, **counted._asdict(), "total": count}
        for counted, count in sorted(counts.items())
        if count
    ]
    if not rows:
        return
    query = insert(tallies)
    connection.execute(
        query.on_conflict_do_update(
            constraint="tallies_pkey", set_={"total": tallies.c.total + query.excluded.total}
        ),
        rows,
    )
