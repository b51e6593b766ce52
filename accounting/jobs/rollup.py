"""Roll up: sessions' hours into the usage of users and realms by hour, day and month.

Replaces what settling touched, and never adds: run twice, the books are the same.
"""

from typing import Final

from sqlalchemy import Engine

from accounting.model.buckets import Level
from accounting.store import rollups
from accounting.store.database import lost_connections
from accounting.store.locks import try_lock
from accounting.store.realms import all_rules

BATCH: Final = 200_000
"""Marks of touched hours taken in one transaction at the most."""


def rollup(engine: Engine, *, limit: int = BATCH) -> int:
    """Bring all usage up to what is settled; returns how many hours of realms were replaced.

    Does nothing when another scheduler is rolling up. Raises ConnectionLost.
    """
    replaced = 0
    while hours := _rollup_some(engine, limit):
        replaced += hours
    return replaced


def _rollup_some(engine: Engine, limit: int) -> int:
    with lost_connections(), engine.begin() as connection:
        if not try_lock(connection, "rollup"):
            return 0
        touched = rollups.take_touched(connection, limit)
        if not touched:
            return 0
        rules = all_rules(connection)
        hours = [
            rollups.Hour(
                realm_id,
                *(rules[realm_id].calendar.bucket(level, starts_at) for level in Level),
            )
            for realm_id, starts_at in touched
        ]
        rollups.put_buckets(
            connection,
            (
                (hour.realm_id, level, bucket)
                for hour in hours
                for level, bucket in zip(Level, hour[1:], strict=True)
            ),
        )
        rollups.replace_usage(connection, hours)
        rollups.touch_closed_periods(connection)
        return len(hours)
