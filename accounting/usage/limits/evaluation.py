"""Evaluate limits: which thresholds the usage of users and realms has reached.

The roll-up evaluates what it changed; setting a limit and a rebuild evaluate a whole realm. Both
give the same states, because each compares the present usage of whole buckets.
"""

import json
from collections.abc import Collection, Iterable, Iterator, Mapping
from datetime import UTC, datetime
from decimal import Decimal

from sqlalchemy import Connection

from accounting.domain.calendar import Bucket, BucketLength, to_micros
from accounting.domain.periods import periods
from accounting.domain.realm_rules import RealmRules
from accounting.feed import outbox
from accounting.identities.realm_queries import names_by_id
from accounting.usage import rollup_queries
from accounting.usage.limits import limit_queries
from accounting.usage.limits.limit_queries import REALM_KEY, Crossing, Limit


def evaluate_realm(
    connection: Connection, rules: RealmRules, realm_id: int, limits: Collection[Limit]
) -> int:
    """Evaluate limits of one realm for all of its usage; returns how many events that made.

    The caller holds the lock ``rollup``.
    """
    if not limits:
        return 0
    folds = rollup_queries.read_fold_watermarks(connection)
    until = rollup_queries.last_hour_end(connection, realm_id)
    since = min(
        limit_bucket(rules, limit.per, to_micros(limit.set_at)).starts_at for limit in limits
    )
    hours = rollup_queries.hours_between(connection, realm_id, since, until)
    limit_queries.stage_buckets(
        connection, _buckets(limits, {realm_id: hours}, {realm_id: rules}), {realm_id: 0} | folds
    )
    limit_queries.stage_all(connection, limits)
    return _enqueue(connection, limits, limit_queries.change_states(connection, limits))


def limit_bucket(rules: RealmRules, per: str, time: int) -> Bucket:
    """The bucket of a limit that contains ``time``, in microseconds."""
    if per != "period":
        return rules.calendar.bucket(BucketLength(per), time)
    period = next(periods(rules, time, time))
    return Bucket(starts_at=period.starts_at, ends_at=period.ends_at, time_zone=period.time_zone)


def _buckets(
    limits: Iterable[Limit], hours: Mapping[int, Iterable[int]], rules: Mapping[int, RealmRules]
) -> Iterator[tuple[Limit, Bucket]]:
    """The buckets of limits that have some of these hours, each once.

    ``hours``: the starts of those of each realm, in order.
    """
    for limit in limits:
        set_at = to_micros(limit.set_at)
        ends_at = None
        for hour in hours.get(limit.realm_id, ()):
            if ends_at is not None and hour < ends_at:
                continue
            bucket = limit_bucket(rules[limit.realm_id], limit.per, hour)
            ends_at = bucket.ends_at
            if ends_at > set_at:
                yield limit, bucket


def _enqueue(
    connection: Connection, limits: Iterable[Limit], crossings: Collection[Crossing]
) -> int:
    """Enqueue the events of crossings.

    An event's id is made of its limit, user, bucket and threshold, and of how often that was
    reached: not of the usage, which depends on how reports were batched.
    """
    by_id = {limit.limit_id: limit for limit in limits}
    names = names_by_id(connection) if crossings else {}
    outbox.enqueue_events(
        connection,
        (
            (
                crossing.type,
                by_id[crossing.limit_id].realm_id,
                _payload(by_id[crossing.limit_id], crossing),
                _event_key(by_id[crossing.limit_id], crossing, names),
            )
            for crossing in crossings
        ),
    )
    return len(crossings)


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


def _iso_time(time: datetime) -> str:
    return time.astimezone(UTC).isoformat()
