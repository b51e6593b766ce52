"""SQL for adjustments, and for the queue ``periods_to_adjust``.

A writer holds the lock ``rollup``.
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import date
from typing import Any, Final
from uuid import UUID

from sqlalchemy import Connection, Uuid, func, select
from sqlalchemy.dialects.postgresql import insert

from accounting.db.queries import Queries
from accounting.db.schema import adjustments
from accounting.domain.counters import COUNTERS

_QUERIES: Final = Queries("accounting.billing")
_ADJUSTMENT: Final = adjustments.c

ADJUSTED_NUMBERS: Final = (*COUNTERS, "session_microseconds")
"""The numeric columns of an adjustment."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ManualAdjustment:
    """An adjustment that a person posts. ``numbers``: signed, by column of ADJUSTED_NUMBERS."""

    realm: str
    realm_id: int
    period: date
    user_key: UUID
    numbers: Mapping[str, int]
    reason: str
    author: str

    def key(self) -> str:
        """Its content as canonical text.

        Not the period that it is posted in: when it is posted again after a restore, that may be a
        later one.
        """
        return json.dumps(
            [
                self.realm,
                self.period.isoformat(),
                str(self.user_key),
                [self.numbers.get(name, 0) for name in ADJUSTED_NUMBERS],
                self.reason,
                self.author,
            ]
        )

    def columns(self) -> dict[str, Any]:
        """The values of its columns, but for its id and the period that it is posted in."""
        return {
            "realm_id": self.realm_id,
            "period": self.period,
            "user_key": self.user_key,
            "reason": self.reason,
            "author": self.author,
            "manual": True,
            **{name: self.numbers.get(name, 0) for name in ADJUSTED_NUMBERS},
        }


def dequeue_periods(connection: Connection, limit: int) -> int:
    """Move entries of ``periods_to_adjust`` to a temporary table; returns how many users' periods.

    The temporary table lasts for the transaction.
    """
    connection.execute(_QUERIES.text("create_dequeued_periods"))
    return connection.execute(_QUERIES.text("dequeue_periods"), {"limit": limit}).rowcount


def post_late_usage(connection: Connection) -> list[UUID]:
    """Post the late usage of the dequeued periods; returns the ids of the adjustments."""
    return list(connection.execute(_QUERIES.text("post_late_usage")).scalars())


def manual_adjustment_id(connection: Connection, adjustment: ManualAdjustment) -> UUID:
    """The id of a manual adjustment: a function of its content, so equal ones are the same."""
    adjustment_id: UUID = connection.execute(
        select(func.accounting.event_id("manual adjustment", adjustment.key(), type_=Uuid))
    ).scalar_one()
    return adjustment_id


def insert_manual(
    connection: Connection, adjustment_id: UUID, adjustment: ManualAdjustment, posted_in: date
) -> bool:
    """Insert a manual adjustment; False if it was posted before."""
    inserted = connection.execute(
        insert(adjustments)
        .values(adjustment_id=adjustment_id, posted_in=posted_in, **adjustment.columns())
        .on_conflict_do_nothing(constraint="adjustments_pkey")
        .returning(_ADJUSTMENT.adjustment_id)
    )
    return inserted.scalar() is not None


def fetch_adjustments(connection: Connection, ids: Iterable[UUID]) -> Sequence[Any]:
    """Rows of adjustments by id, in order of id; ``before_*``: what was billed of the line before.

    That is of late usage; for manual adjustments it is 0.
    """
    return connection.execute(_QUERIES.text("fetch_adjustments"), {"ids": list(ids)}).all()


def adjustment_target(connection: Connection, adjustment_id: UUID) -> tuple[int, date, UUID] | None:
    """(realm_id, period, user_key) of the line that an adjustment corrects."""
    row = connection.execute(
        select(_ADJUSTMENT.realm_id, _ADJUSTMENT.period, _ADJUSTMENT.user_key).where(
            _ADJUSTMENT.adjustment_id == adjustment_id
        )
    ).one_or_none()
    return None if row is None else (row[0], row[1], row[2])
