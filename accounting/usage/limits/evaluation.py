"""Evaluate limits: which thresholds the usage of users and realms has reached.

The roll-up evaluates what it changed, as far as that may reach something (see
``user_usage_hourly.next_check_score``). Setting a limit and a rebuild evaluate a whole realm. All
compare the usage of whole buckets, so that they agree.

The usage of a front's limits is in its cells: :mod:`accounting.front.limits.evaluate_limits` stages
it, and the rest is the same.
"""

import json
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from decimal import Decimal
from typing import NamedTuple
from uuid import UUID

from sqlalchemy import Connection

from accounting.db.schema.limits import REALM_KEY
from accounting.domain.calendar import from_micros
from accounting.domain.limits import limit_bucket
from accounting.domain.realm_rules import RealmRules
from accounting.feed import outbox
from accounting.identities.realm_queries import names_by_id
from accounting.usage import rollup_queries
from accounting.usage.limits import limit_queries
from accounting.usage.limits.limit_queries import (
    Crossing,
    Limit,
    LimitBucket,
    LimitedLength,
)


class Limited(NamedTuple):
    """What of the realms that a roll-up changes is limited.

    ``lengths``: of their limits; empty if they have none. ``last_hours``: the start of the last
    hour of each whose users have limits.
    """

    lengths: Sequence[LimitedLength]
    last_hours: Mapping[int, int]


class Changes(NamedTuple):
    """How many events an evaluation made."""

    reached: int
    cleared: int


def prepare(connection: Connection, realm_ids: Collection[int]) -> Limited:
    """Before usage of realms is added: stage those whose users have limits.

    The buckets of that usage are inserted.
    """
    limit_queries.create_scratch_tables(connection)
    lengths = limit_queries.limited_lengths(connection, realm_ids)
    return Limited(lengths, limit_queries.stage_realms(connection, realm_ids) if lengths else {})


def evaluate(
    connection: Connection,
    limited: Limited,
    rules: Mapping[int, RealmRules],
    hours: Iterable[tuple[int, int]],
    folds: Mapping[int, int],
) -> None:
    """After usage was added: evaluate the limits of the staged users, and of the realms.

    ``hours``: (realm_id, start) of those that changed. ``folds``: the fold watermarks.
    """
    if limited.lengths:
        limit_queries.stage_buckets(connection, buckets_of(limited, rules, hours), folds)
        limit_queries.stage_checks(connection)
        limit_queries.count_usage(connection, _lengths(limited))
        change_states(connection, limited)
        limit_queries.set_next_checks(connection)


def evaluate_realm(
    connection: Connection,
    rules: RealmRules,
    realm_id: int,
    *,
    user_key: UUID | None = None,
    removed: int | None = None,
    stage: "StageRealm | None" = None,
) -> Changes:
    """Evaluate all limits of a realm for all of its usage, or for that of one user.

    ``removed``: a limit that is removed meanwhile. What it has reached in the buckets that run now
    is cleared; the others' next checks are set without it. ``stage``: stages the usage, unless
    :func:`stage_realm` does. The caller holds the lock ``rollup``, and has staged no usage.
    """
    limited = (stage or stage_realm)(connection, rules, realm_id, user_key)
    if not limited.lengths:
        return Changes(0, 0)
    changes = change_states(connection, limited, removed)
    limit_queries.change_reached_amounts(connection)
    if removed is not None:
        limit_queries.delete_limit(connection, removed)
        limit_queries.stage_realms(connection, [realm_id])
    limit_queries.set_next_checks(connection)
    return changes


def stage_realm(
    connection: Connection, rules: RealmRules, realm_id: int, user_key: UUID | None = None
) -> Limited:
    """Stage the usage of all limits of a realm, or of one user; returns what is limited.

    Stages nothing where there are no limits.
    """
    limited = prepare(connection, [realm_id])
    if not limited.lengths:
        return limited
    folds = {realm_id: 0} | rollup_queries.read_fold_watermarks(connection)
    since = limited_since(limited, rules)
    until = rollup_queries.last_hour_end(connection, realm_id)
    hours = [
        (realm_id, hour)
        for hour in rollup_queries.hours_between(connection, realm_id, since, until)
    ]
    limit_queries.stage_buckets(connection, buckets_of(limited, {realm_id: rules}, hours), folds)
    limit_queries.stage_users(connection, user_key)
    limit_queries.stage_checks(connection)
    limit_queries.stage_lost_states(connection, realm_id, user_key)
    limit_queries.count_usage(connection, _lengths(limited))
    return limited


StageRealm = Callable[[Connection, RealmRules, int, UUID | None], Limited]
"""As :func:`stage_realm`."""


def limited_since(limited: Limited, rules: RealmRules) -> int:
    """The start of the first bucket of these limits, all of one realm."""
    return min(
        limit_bucket(rules, length.per, length.set_at).starts_at for length in limited.lengths
    )


def _lengths(limited: Limited) -> set[str]:
    # What was lost is staged with the length "hour", which every realm has.
    return {"hour", *(length.per for length in limited.lengths)}


def buckets_of(
    limited: Limited, rules: Mapping[int, RealmRules], hours: Iterable[tuple[int, int]]
) -> Iterator[LimitBucket]:
    """The buckets of limits that contain these hours, or the last one of their realm."""
    by_realm: dict[int, set[int]] = {}
    for realm_id, hour in (*hours, *limited.last_hours.items()):
        by_realm.setdefault(realm_id, set()).add(hour)
    for realm_id, per, set_at in limited.lengths:
        ends_at = None
        for hour in sorted(by_realm.get(realm_id, ())):
            if ends_at is None or hour >= ends_at:
                bucket = limit_bucket(rules[realm_id], per, hour)
                ends_at = bucket.ends_at
                if ends_at > set_at:
                    yield LimitBucket(realm_id, per, bucket)


def change_states(connection: Connection, limited: Limited, removed: int | None = None) -> Changes:
    """Record what the staged usage has reached, and enqueue its events.

    An event's id is made of its limit, user, bucket and threshold, and of how often that was
    reached: not of the usage, which depends on how reports were batched.
    """
    if any(length.per == "period" for length in limited.lengths):
        limit_queries.note_periods(connection)
    crossings = limit_queries.change_states(connection, removed)
    if crossings:
        numbers = {crossing.limit_id for crossing in crossings}
        limits = limit_queries.read_limits(connection, numbers)
        names = names_by_id(connection)
        outbox.enqueue_events(
            connection,
            (
                (
                    crossing.type,
                    limits[crossing.limit_id].realm_id,
                    _payload(limits[crossing.limit_id], crossing),
                    _event_key(limits[crossing.limit_id], crossing, names),
                )
                for crossing in crossings
            ),
        )
    reached = sum(crossing.type == "limit.reached" for crossing in crossings)
    return Changes(reached, len(crossings) - reached)


def _payload(limit: Limit, crossing: Crossing) -> dict[str, object]:
    return {
        "limit_id": limit.limit_id,
        "whom": limit.whom,
        "user_key": None if crossing.user_key == REALM_KEY else str(crossing.user_key),
        "measure": limit.measure,
        "direction": limit.direction,
        "per": limit.per,
        "amount": limit.amount,
        "threshold": crossing.threshold,
        "usage": _number(crossing.usage),
        "starts_at": _iso_time(crossing.starts_at),
        "ends_at": _iso_time(crossing.ends_at),
    }


def _event_key(limit: Limit, crossing: Crossing, names: Mapping[int, str]) -> str:
    return json.dumps(
        [
            limit.limit_id,
            names[limit.realm_id],
            limit.whom,
            str(crossing.user_key),
            limit.measure,
            limit.direction,
            limit.per,
            crossing.reached_amount,
            _iso_time(crossing.starts_at),
            crossing.threshold,
            crossing.times_reached,
        ]
    )


def _number(usage: Decimal) -> int | float:
    """Bytes and sessions are whole; seconds have up to six decimals."""
    return int(usage) if usage == usage.to_integral_value() else float(usage)


def _iso_time(time: int) -> str:
    return from_micros(time).isoformat()
