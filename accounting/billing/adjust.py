"""Post adjustments of closed periods: late usage by the job, manual ones by a person.

Late usage is the difference between the hours of a user's period and what is billed for it, so a
repeated run posts nothing. Manual adjustments don't count in that difference.
"""

from collections.abc import Iterable, Mapping
from datetime import date
from decimal import Decimal
from typing import Any, Final, NamedTuple
from uuid import UUID

from sqlalchemy import Connection, Engine

from accounting.billing import adjustment_queries, period_queries
from accounting.billing.adjustment_queries import ManualAdjustment
from accounting.db.engine import lost_connections
from accounting.db.locks import lock
from accounting.domain.counters import COUNTERS
from accounting.domain.periods import LATE_USAGE_AUTHOR, describe_wait
from accounting.errors import LockHeld, NotYet, UsageError, not_closed
from accounting.feed import outbox
from accounting.identities.realm_queries import find_realm
from accounting.identities.user_queries import find_user_key, unknown_user_error

BATCH_SIZE: Final = 1_000
"""Entries of ``periods_to_adjust`` handled in one transaction at the most."""
WAIT_SECONDS: Final = 10.0
"""How long the job waits for the roll-up. Their intervals begin together, so that without waiting
it would find the lock taken nearly always where the roll-up is busy."""


class PostedAdjustment(NamedTuple):
    """A manual adjustment. ``is_new`` False: an equal one was posted before, and it is that one."""

    adjustment_id: UUID
    is_new: bool


def adjust(engine: Engine, *, limit: int = BATCH_SIZE) -> int:
    """Post the late usage of closed periods; returns how many adjustments.

    Raises LockHeld when the roll-up keeps its lock, and ConnectionLost.
    """
    total = 0
    while True:
        try:
            dequeued, posted = _adjust_batch(engine, limit)
        except LockHeld:
            if not total:
                raise
            return total
        total += posted
        if not dequeued:
            return total


def _adjust_batch(engine: Engine, limit: int) -> tuple[int, int]:
    """(users' periods dequeued, adjustments posted)."""
    with lost_connections(), engine.begin() as connection:
        lock(connection, "rollup", wait_seconds=WAIT_SECONDS)
        dequeued = adjustment_queries.dequeue_periods(connection, limit)
        if not dequeued:
            return 0, 0
        period_queries.refresh_periods(connection)
        adjustment_ids = adjustment_queries.post_late_usage(connection)
        enqueue_posted(connection, adjustment_ids)
        return dequeued, len(adjustment_ids)


def post_manual_adjustment(
    engine: Engine,
    realm: str,
    period: date,
    user: str,
    numbers: Mapping[str, int],
    *,
    reason: str,
    author: str,
) -> PostedAdjustment:
    """Post a person's adjustment of a closed period, unless an equal one was posted before.

    ``numbers``: signed, by counter, and ``session_microseconds``. Raises UsageError for an unknown
    realm, period or user and when all numbers are 0, NotYet for a period that is not closed, or
    where a front has none that is open.
    """
    if not reason.strip() or not author.strip():
        raise UsageError("an adjustment needs a reason and an author: they are kept for ever")
    if author.strip() == LATE_USAGE_AUTHOR:
        raise UsageError(
            f"'{LATE_USAGE_AUTHOR}' posts late usage: expected who decided this correction"
        )
    if not any(numbers.values()):
        raise UsageError("nothing to adjust: name at least one number that is not 0")
    with lost_connections(), engine.begin() as connection:
        lock(connection, "rollup")
        period_queries.refresh_periods(connection)
        realm_id = find_realm(connection, realm)
        row = period_queries.find_period(connection, realm_id, realm, period)
        if row.closed_at is None:
            waits = describe_wait(
                period_queries.waits_for(connection, realm_id, period, ()),
                row.ends_at,
                row.time_zone,
            )
            raise not_closed(
                realm, period, waits, "adjust it then, as `turn-accounting period list` shows"
            )
        user_key = find_user_key(connection, realm_id, user)
        if user_key is None:
            raise unknown_user_error(connection, realm, user)
        adjustment = ManualAdjustment(
            realm=realm,
            realm_id=realm_id,
            period=period,
            user_key=user_key,
            numbers=numbers,
            reason=reason,
            author=author,
        )
        later = [
            later.period
            for later in period_queries.realm_periods(connection, realm_id)
            if later.closed_at is None and later.starts_at > row.starts_at
        ]
        if not later:
            raise NotYet(
                f"no cell has a period of realm '{realm}' that is open, in which an adjustment of "
                f"{period} could be posted"
            )
        adjustment_id = adjustment_queries.manual_adjustment_id(connection, adjustment)
        is_new = adjustment_queries.insert_manual(connection, adjustment_id, adjustment, later[0])
        if is_new:
            enqueue_posted(connection, [adjustment_id])
        return PostedAdjustment(adjustment_id, is_new)


def enqueue_posted(connection: Connection, ids: Iterable[UUID]) -> None:
    """Enqueue the event of each adjustment, in the transaction that posts them."""
    for row in adjustment_queries.fetch_adjustments(connection, ids):
        payload: dict[str, Any] = {
            "adjustment_id": str(row.adjustment_id),
            "period": row.period.isoformat(),
            "posted_in": row.posted_in.isoformat(),
            "user_key": str(row.user_key),
            **{name: getattr(row, name) for name in COUNTERS},
            "session_seconds": _seconds(row.session_microseconds),
            "before": None if row.manual else _billed_before(row),
            "reason": row.reason,
            "author": row.author,
        }
        outbox.enqueue_event(
            connection, "adjustment.posted", row.realm_id, payload, str(row.adjustment_id)
        )


def _billed_before(row: Any) -> dict[str, Any]:
    """What was billed of the line before, in the names of the payload."""
    return {
        **{name: int(getattr(row, f"before_{name}")) for name in COUNTERS},
        "session_seconds": _seconds(row.before_session_microseconds),
    }


def _seconds(microseconds: Decimal) -> str:
    """Seconds as text, because JSON readers may round a fraction."""
    return f"{Decimal(microseconds).scaleb(-6):.6f}"
