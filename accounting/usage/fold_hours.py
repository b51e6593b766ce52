"""Folding hours: finished hours of users are added to their days and months.

The current hour changes every other second, and would change its day and month as often. So days
and months contain the hours before the realm's fold watermark, and the views add the later ones.
Late usage of a folded hour is added to all three. An hour is folded a minute after its end by the
database's clock, whether usage comes or not: that minute is for the reports that still belong to
it, and for the seconds of sessions that go on.
"""

from collections.abc import Iterable, Mapping
from datetime import timedelta
from typing import Final, NamedTuple

from sqlalchemy import Connection

from accounting.db.clock import database_now
from accounting.domain.calendar import BucketLength, to_micros
from accounting.domain.realm_rules import RealmRules
from accounting.usage import counted_usage, rollup_queries
from accounting.usage.rollup_queries import RealmHour

FOLD_DELAY: Final = timedelta(seconds=60)
"""How long an hour is over when it is folded."""


class Folds(NamedTuple):
    """The fold watermarks of all realms before and after folding; microseconds."""

    before: Mapping[int, int]
    after: Mapping[int, int]

    def spans(self) -> dict[int, tuple[int, int]]:
        """From where to where each watermark moved that did."""
        return {
            realm_id: (self.before.get(realm_id, 0), until)
            for realm_id, until in self.after.items()
            if until != self.before.get(realm_id, 0)
        }


def fold_until(
    connection: Connection, rules: Mapping[int, RealmRules], untils: Mapping[int, int]
) -> Folds:
    """Advance the fold watermarks of realms to ``untils``, and write nothing to the feed.

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
    return Folds(folds, folds | moving)


def fold_hours_over(
    connection: Connection,
    rules: Mapping[int, RealmRules],
    changed: Iterable[RealmHour],
    due: Mapping[int, int],
) -> Folds:
    """Fold the hours that are over for long enough, and write nothing to the feed.

    ``changed``: hours that are about to change. ``due``: of ``rollup_queries.realms_to_fold``.
    """
    last_ends = dict(due)
    for hour in changed:
        last_ends[hour.realm_id] = max(hour.hour.ends_at, last_ends.get(hour.realm_id, 0))
    over = to_micros(database_now(connection) - FOLD_DELAY)
    untils = {
        realm_id: rules[realm_id].calendar.bucket(BucketLength.HOUR, min(over, last_end)).starts_at
        for realm_id, last_end in last_ends.items()
    }
    return fold_until(connection, rules, untils)


def fold_and_count(
    connection: Connection, rules: Mapping[int, RealmRules], untils: Mapping[int, int]
) -> None:
    """As :func:`fold_until`, and write the folded hours to the feed."""
    folds = fold_until(connection, rules, untils)
    counted_usage.write_hours(connection, folds.spans())


def fold_all(connection: Connection, rules: Mapping[int, RealmRules], realm_id: int) -> None:
    """Fold all hours of a realm, the current one included."""
    until = rollup_queries.last_hour_end(connection, realm_id)
    fold_and_count(connection, rules, {realm_id: until})


def realm_hour(rules: RealmRules, realm_id: int, starts_at: int) -> RealmHour:
    """An hour of a realm with its day and its month."""
    return RealmHour(realm_id, *(rules.calendar.bucket(level, starts_at) for level in BucketLength))
