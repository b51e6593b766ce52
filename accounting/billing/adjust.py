"""Adjust: what changed in closed periods, posted apart from usage and kept for ever.

Late usage is posted as the difference that is still missing, so that a run that is repeated posts
nothing twice. A correction by hand has a reason and an author, and stands outside of that sum.
"""

from collections.abc import Iterable, Mapping
from datetime import date
from typing import Any, Final, NamedTuple
from uuid import UUID

from sqlalchemy import Connection, Engine

from accounting.billing import period_queries
from accounting.billing.close_period import find_period
from accounting.db.engine import lost_connections
from accounting.db.locks import lock, try_lock
from accounting.domain.counters import COUNTERS
from accounting.errors import NotYet, UsageError
from accounting.feed import outbox
from accounting.identities.realm_queries import find_realm

BATCH_SIZE: Final = 1_000
"""Users' periods that are looked at in one transaction at the most."""


class ManualAdjustment(NamedTuple):
    """A correction by hand. ``is_new`` False: the same was posted before, and not again."""

    adjustment_id: UUID
    is_new: bool


def adjust(engine: Engine, *, limit: int = BATCH_SIZE) -> int:
    """Post the late usage of closed periods; returns how many adjustments that made.

    Does nothing while somebody rolls up. Raises ConnectionLost.
    """
    posted = 0
    while True:
        taken, made = _adjust_some(engine, limit)
        posted += made
        if not taken:
            return posted


def _adjust_some(engine: Engine, limit: int) -> tuple[int, int]:
    with lost_connections(), engine.begin() as connection:
        if not try_lock(connection, "rollup"):
            return 0, 0
        taken = period_queries.take_touched(connection, limit)
        if not taken:
            return 0, 0
        period_queries.draw(connection)
        made = period_queries.post_late_usage(connection)
        _tell(connection, made)
        return taken, len(made)


def post_manual_adjustment(
    engine: Engine,
    realm: str,
    period: date,
    user: str,
    numbers: Mapping[str, int],
    *,
    reason: str,
    author: str,
) -> ManualAdjustment:
    """Post a correction of a closed period, once: the same in every word is not posted again.

    ``numbers``: signed, by counter, and ``session_microseconds``. Raises UsageError for a realm,
    period or user that is not known and for nothing to post, NotYet for a period not closed yet.
    """
    if not reason.strip() or not author.strip():
        raise UsageError("an adjustment needs a reason and an author: they are kept for ever")
    if author.strip() == period_queries.LATE_USAGE_AUTHOR:
        raise UsageError(
            f"'{period_queries.LATE_USAGE_AUTHOR}' posts late usage: expected who decided this correction"
        )
    if not any(numbers.values()):
        raise UsageError("nothing to adjust: name at least one number that is not 0")
    with lost_connections(), engine.begin() as connection:
        lock(connection, "rollup")
        period_queries.draw(connection)
        realm_id = find_realm(connection, realm)
        found = find_period(connection, realm_id, realm, period)
        if found.closed_at is None:
            raise NotYet(f"period {period} of realm '{realm}' is not closed yet: nothing to adjust")
        user_key = period_queries.find_user_key(connection, realm_id, user)
        if user_key is None:
            raise UsageError(f"no user '{user}' is known in realm '{realm}'")
        before = period_queries.posted_by_hand(
            connection, realm_id, period, user_key, numbers, reason, author
        )
        if before is not None:
            return ManualAdjustment(before, is_new=False)
        posted_in = next(
            row.period
            for row in period_queries.realm_periods(connection, realm_id)
            if row.closed_at is None and row.starts_at > found.starts_at
        )
        made = period_queries.post_by_hand(
            connection, realm_id, period, posted_in, user_key, numbers, reason, author
        )
        _tell(connection, [made])
        return ManualAdjustment(made, is_new=True)


def _tell(connection: Connection, ids: Iterable[UUID]) -> None:
    for row in period_queries.adjustments(connection, ids):
        payload: dict[str, Any] = {
            "adjustment_id": str(row.adjustment_id),
            "period": row.period.isoformat(),
            "posted_in": row.posted_in.isoformat(),
            "user_key": str(row.user_key),
            **{name: getattr(row, name) for name in COUNTERS},
            "session_seconds": _seconds(int(row.session_microseconds)),
            "reason": row.reason,
            "author": row.author,
        }
        outbox.enqueue_event(
            connection, "adjustment.posted", row.realm_id, payload, str(row.adjustment_id)
        )


def _seconds(microseconds: int) -> str:
    """Exact seconds as text: JSON's own numbers may lose digits on the way."""
    sign = "-" if microseconds < 0 else ""
    whole, rest = divmod(abs(microseconds), 1_000_000)
    return f"{sign}{whole}.{rest:06d}"
