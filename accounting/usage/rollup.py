"""Roll up: sessions' hours into the usage of users and realms by hour, day and month.

Settling says by how much it changed an hour of a user; here that is taken and added, in one
transaction, so that each change counts once however often this runs. The cost is that of what
changed: not of the hour, the month or the realm that it is part of. Days and months of users get
an hour when it is over: see ``folds``.
"""

from typing import Final

from sqlalchemy import Engine

from accounting.db.engine import lost_connections
from accounting.db.locks import try_lock
from accounting.domain.calendar import BucketLength
from accounting.identities import bucket_queries
from accounting.identities.realm_queries import all_rules
from accounting.usage import peaks, rollup_queries
from accounting.usage.fold_hours import fold_until, realm_hour

BATCH: Final = 200_000
"""Marks of touched hours taken in one transaction at the most."""


def rollup(engine: Engine, *, limit: int = BATCH) -> int:
    """Bring all usage up to what is settled; returns how many hours of realms changed.

    Does nothing when another scheduler is rolling up. Raises ConnectionLost.
    """
    changed = 0
    while hours := _rollup_some(engine, limit):
        changed += hours
    return changed


def _rollup_some(engine: Engine, limit: int) -> int:
    with lost_connections(), engine.begin() as connection:
        if not try_lock(connection, "rollup"):
            return 0
        touched = set(rollup_queries.dequeue_deltas(connection, limit))
        slices = peaks.dequeue_slices(connection)
        touched.update((realm_id, starts_at) for realm_id, starts_at, _ in slices)
        if not touched:
            return 0
        rules = all_rules(connection)
        hours = [
            realm_hour(rules[realm_id], realm_id, starts_at)
            for realm_id, starts_at in sorted(touched)
        ]
        # The last one of each realm, as they are in order.
        folds = fold_until(connection, rules, dict(sorted(touched)))
        bucket_queries.insert_buckets(
            connection,
            (
                (hour.realm_id, level, bucket)
                for hour in hours
                for level, bucket in zip(BucketLength, hour[1:], strict=True)
            ),
        )
        rollup_queries.stage_hours(connection, hours, folds)
        rollup_queries.add_usage(connection)
        peaks.recount(connection, [(one.realm_id, one.hour) for one in hours], slices)
        rollup_queries.queue_adjustments(connection)
        return len(hours)
