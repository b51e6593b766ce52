"""The table ``key_sightings``, written: what scans of the status keys saw, among the reports.

Numbers them in the order in which they are loaded. The numbers of two spools say nothing of each
other, and settling takes in what has a higher number than it took before.
"""

from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple
from uuid import UUID

from sqlalchemy import Connection, insert, select

from accounting.db.schema import key_sightings
from accounting.domain.calendar import from_micros
from accounting.identities.names import Identity


class Seen(NamedTuple):
    """A key that a scan found, with whose allocation it is; times in microseconds."""

    epoch: int
    position: int
    database: int
    identity: Identity
    allocation_id: int
    scan_started_at: int
    seen_at: int
    idle_seconds: int


def add_sightings(
    connection: Connection, source_id: int, seen: Sequence[Seen], start: tuple[int, int]
) -> None:
    """Keep what was seen, in order. Only what lies at ``start`` may be kept already: it stays."""
    if not seen:
        return
    table = key_sightings.c
    kept = connection.execute(
        select(
            table.database, table.user_key, table.username_key, table.allocation_id, table.seen_at
        ).where(table.source_id == source_id, table.epoch == start[0], table.position == start[1])
    ).all()
    known = {tuple(row) for row in kept}
    numbers = Counter({start: len(kept)})
    rows = []
    for one in seen:
        place = one.epoch, one.position
        row = {
            "database": one.database,
            "user_key": UUID(bytes=one.identity.user_key),
            "username_key": UUID(bytes=one.identity.username_key),
            "allocation_id": one.allocation_id,
            "seen_at": from_micros(one.seen_at),
        }
        if place == start and tuple(row.values()) in known:
            continue
        numbers[place] += 1
        rows.append(
            {
                **row,
                "source_id": source_id,
                "epoch": one.epoch,
                "position": one.position,
                "sighting": numbers[place],
                "realm_id": one.identity.realm_id,
                "scan_started_at": from_micros(one.scan_started_at),
                "idle_seconds": one.idle_seconds,
            }
        )
    if rows:
        connection.execute(insert(key_sightings), rows)
