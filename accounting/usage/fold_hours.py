"""Folding hours: finished hours of users are added to their days and months.

The current hour changes every other second, and would change its day and month as often. So days
and months contain the hours before the realm's fold watermark, and the views add the later ones.
Late usage of a folded hour is added to all three.
"""

from collections.abc import Mapping

from sqlalchemy import Connection

from accounting.domain.calendar import BucketLength
from accounting.domain.realm_rules import RealmRules
from accounting.usage import rollup_queries
from accounting.usage.rollup_queries import RealmHour


def fold_until(
    connection: Connection, rules: Mapping[int, RealmRules], untils: Mapping[int, int]
) -> dict[int, int]:
    """Advance the fold watermarks of realms to ``untils``; returns those of all realms.

    Microseconds, at borders of hours. The caller holds the roll-up lock.
    """
    folds = rollup_queries.read_fold_watermarks(connection)
    moving = {
        realm_id: until for realm_id, until in untils.items() if until > folds.get(realm_id, 0)
    }
    if moving:
        hours = [
            realm_hour(rules[realm_id], realm_id, starts_at)
            for realm_id, until in moving.items()
            for starts_at in rollup_queries.hours_between(
                connection, realm_id, folds.get(realm_id, 0), until
            )
        ]
        rollup_queries.add_folded_hours(connection, hours, moving)
    return folds | moving


def fold_all(connection: Connection, rules: Mapping[int, RealmRules], realm_id: int) -> None:
    """Fold all hours of a realm, the current one included."""
    fold_until(connection, rules, {realm_id: rollup_queries.last_hour_end(connection, realm_id)})


def realm_hour(rules: RealmRules, realm_id: int, starts_at: int) -> RealmHour:
    """An hour of a realm with its day and its month."""
    return RealmHour(realm_id, *(rules.calendar.bucket(level, starts_at) for level in BucketLength))
