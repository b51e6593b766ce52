"""The roll-up: adds queued usage deltas to the usage of users, realms and servers.

Deltas are taken and added in one transaction, so each counts once. The cost depends on what
changed, not on the size of the hour, the month or the realm. Users' days and months get an hour
when it is over: see ``fold_hours``. Then they are in the feed too: see ``counted_usage``.
"""

from collections.abc import Mapping, Sequence
from typing import Final

from sqlalchemy import Connection, Engine

from accounting.db.engine import lost_connections
from accounting.db.locks import require_lock
from accounting.domain.calendar import BucketLength
from accounting.domain.realm_rules import RealmRules
from accounting.domain.session_hours import PeakSlice
from accounting.errors import LockHeld
from accounting.identities import bucket_queries
from accounting.identities.realm_queries import all_rules
from accounting.usage import counted_usage, peaks, rollup_queries
from accounting.usage.fold_hours import FOLD_DELAY, fold_hours_over, realm_hour
from accounting.usage.limits import evaluation
from accounting.usage.rollup_queries import RealmHour

BATCH: Final = 200_000
"""Usage deltas taken in one transaction, at most."""


def rollup(engine: Engine, *, limit: int = BATCH) -> int:
    """Add everything that is queued; returns how many hours of realms changed.

    Raises LockHeld if another session has the lock from the beginning, and ConnectionLost.
    """
    total = 0
    try:
        while hours := _rollup_some(engine, limit):
            total += hours
    except LockHeld:
        if not total:
            raise
    return total


def _rollup_some(engine: Engine, limit: int) -> int:
    with lost_connections(), engine.begin() as connection:
        require_lock(connection, "rollup")
        changed = set(rollup_queries.dequeue_deltas(connection, limit))
        changed.update(rollup_queries.dequeue_server_deltas(connection))
        slices = peaks.dequeue_slices(connection)
        changed.update((realm_id, starts_at) for realm_id, starts_at, _ in slices)
        due = rollup_queries.realms_to_fold(connection, FOLD_DELAY)
        if not changed and not due:
            return 0
        rules = all_rules(connection)
        hours = [
            realm_hour(rules[realm_id], realm_id, starts_at)
            for realm_id, starts_at in sorted(changed)
        ]
        folds = fold_hours_over(connection, rules, hours, due)
        if hours:
            _add(connection, rules, hours, slices, folds.after)
        # With what was just added, which is then no correction of the hours that were just folded.
        counted_usage.write_hours(connection, folds.spans())
        counted_usage.write_corrections(connection, _folded_before(hours, folds.before))
        return len(hours)


def _add(
    connection: Connection,
    rules: Mapping[int, RealmRules],
    hours: Sequence[RealmHour],
    slices: Sequence[PeakSlice],
    folds: Mapping[int, int],
) -> None:
    bucket_queries.insert_buckets(
        connection,
        (
            (hour.realm_id, level, bucket)
            for hour in hours
            for level, bucket in zip(BucketLength, hour[1:], strict=True)
        ),
    )
    limited = evaluation.prepare(connection, {hour.realm_id for hour in hours})
    rollup_queries.stage_hours(connection, hours, folds)
    rollup_queries.add_usage(connection, is_limited=bool(limited.last_hours))
    starts = [(hour.realm_id, hour.hour.starts_at) for hour in hours]
    evaluation.evaluate(connection, limited, rules, starts, folds)
    peaks.recount(connection, [(hour.realm_id, hour.hour) for hour in hours], slices)
    rollup_queries.queue_adjustments(connection)
    rollup_queries.note_changed_hours(connection)


def _folded_before(hours: Sequence[RealmHour], folds: Mapping[int, int]) -> dict[int, int]:
    """The fold watermarks of the realms of which a folded hour changed."""
    return {
        hour.realm_id: folds[hour.realm_id]
        for hour in hours
        if hour.hour.starts_at < folds.get(hour.realm_id, 0)
    }
