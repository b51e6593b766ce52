"""Writes ``key_sightings``: the status keys that scans found, placed among the reports.

Sightings at one position are numbered in the order in which they are loaded. Settling continues
after the highest (epoch, position, number) that it has applied.
"""

from collections import Counter
from collections.abc import Sequence
from uuid import UUID

from sqlalchemy import Connection, insert, select

from accounting.db.schema import key_sightings
from accounting.domain.calendar import from_micros
from accounting.domain.session_fold import StatusKeySighting


def add_sightings(
    connection: Connection,
    source_id: int,
    sightings: Sequence[StatusKeySighting],
    start: tuple[int, int],
) -> None:
    """Insert sightings, in order, and number them.

    Only those at the (epoch, position) ``start`` may be stored already; they are not added again.
    """
    if not sightings:
        return
    table = key_sightings.c
    stored = connection.execute(
        select(
            table.database, table.user_key, table.username_key, table.allocation_id, table.seen_at
        ).where(table.source_id == source_id, table.epoch == start[0], table.position == start[1])
    ).all()
    known = {tuple(row) for row in stored}
    numbers = Counter({start: len(stored)})
    rows = []
    for sighting in sightings:
        position = sighting.epoch, sighting.position
        row = sighting._asdict() | {
            "source_id": source_id,
            "user_key": UUID(bytes=sighting.user_key),
            "username_key": UUID(bytes=sighting.username_key),
            "scan_started_at": from_micros(sighting.scan_started_at),
            "seen_at": from_micros(sighting.seen_at),
        }
        identity = tuple(
            row[name]
            for name in ("database", "user_key", "username_key", "allocation_id", "seen_at")
        )
        if position == start and identity in known:
            continue
        numbers[position] += 1
        rows.append(row | {"sighting": numbers[position]})
    if rows:
        connection.execute(insert(key_sightings), rows)
