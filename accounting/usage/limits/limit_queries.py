"""Rows of ``limits`` and ``limit_states``, and the usage that is compared with them.

A writer holds the lock ``rollup``. Queries are planned as the roll-up's are: by index look-ups.
"""

from collections.abc import Collection, Iterable, Mapping
from datetime import datetime
from decimal import Decimal
from typing import Any, Final, NamedTuple
from uuid import UUID

from sqlalchemy import Connection

from accounting.db.binary_copy import binary_cursor, copy_rows
from accounting.db.engine import prefer_index_scans, psycopg_connection
from accounting.db.queries import Queries
from accounting.domain.calendar import Bucket
from accounting.feed.outbox import EventType

_QUERIES: Final = Queries("accounting.usage.limits")
_USER_USAGE: Final = {
    "hour": "user_usage_hourly",
    "day": "user_usage_daily",
    "month": "user_usage_monthly",
}
_REALM_USAGE: Final = {
    "hour": "realm_usage_hourly",
    "day": "realm_usage_daily",
    "month": "realm_usage_monthly",
}
_BUCKETS: Final = (
    ("limit_id", "int4"),
    ("realm_id", "int4"),
    ("whom", "text"),
    ("user_key", "uuid"),
    ("level", "text"),
    ("starts_at", "timestamptz"),
    ("ends_at", "timestamptz"),
    ("time_zone", "text"),
    ("folded_until", "timestamptz"),
)
REALM_KEY: Final = UUID(int=0)
"""The key of a limit of the realm in ``limit_states``."""


class Limit(NamedTuple):
    """A row of ``limits``."""

    limit_id: int
    realm_id: int
    whom: str
    user_key: UUID | None
    measure: str
    direction: str
    per: str
    amount: int
    thresholds: list[int]
    set_at: datetime

    @property
    def level(self) -> str:
        """The length of the usage that makes up a bucket: a period's is that of its days."""
        return "day" if self.per == "period" else self.per


class Crossing(NamedTuple):
    """A threshold that was reached, or is no longer reached, as an event says it.

    ``reached_amount``: the amount when it was reached, the last time of ``times_reached``.
    """

    type: EventType
    limit_id: int
    user_key: UUID
    starts_at: datetime
    threshold: int
    ends_at: datetime
    usage: Decimal
    reached_amount: int
    times_reached: int


def read_limits(
    connection: Connection, realm_ids: Collection[int], limit_id: int | None = None
) -> list[Limit]:
    """The limits of some realms, or one of them."""
    rows = connection.execute(
        _QUERIES.text("read_limits"), {"realm_ids": list(realm_ids), "limit_id": limit_id}
    )
    return [Limit(*row) for row in rows]


def put_limit(connection: Connection, values: Mapping[str, Any]) -> tuple[int, bool]:
    """Insert a limit, or change that of the same usage; its number, and whether that changed it."""
    changed: int | None = connection.execute(_QUERIES.text("put_limit"), values).scalar()
    if changed is not None:
        return changed, True
    unchanged: int = connection.execute(_QUERIES.text("find_limit"), values).scalar_one()
    return unchanged, False


def delete_limit(connection: Connection, limit_id: int) -> int | None:
    """Delete a limit and its states; returns its realm, None for an unknown limit."""
    realm_id: int | None = connection.execute(
        _QUERIES.text("delete_limit"), {"limit_id": limit_id}
    ).scalar()
    return realm_id


def stage_buckets(
    connection: Connection, buckets: Iterable[tuple[Limit, Bucket]], folds: Mapping[int, int]
) -> None:
    """Stage the buckets to be evaluated. ``folds``: the fold watermarks of realms."""
    for table in ("buckets", "checks", "usage"):
        connection.execute(_QUERIES.text(f"create_staged_limit_{table}"))
    with binary_cursor(psycopg_connection(connection)) as cursor:
        copy_rows(
            cursor,
            "staged_limit_buckets",
            _BUCKETS,
            (
                (
                    limit.limit_id,
                    limit.realm_id,
                    limit.whom,
                    None if limit.user_key is None else limit.user_key.bytes,
                    limit.level,
                    bucket.starts_at,
                    bucket.ends_at,
                    bucket.time_zone,
                    bucket.ends_at if limit.per == "hour" else folds[limit.realm_id],
                )
                for limit, bucket in buckets
            ),
        )


def stage_all(connection: Connection, limits: Collection[Limit]) -> None:
    """Stage everyone with usage in the staged buckets, and every state that may not hold now."""
    with prefer_index_scans(connection):
        for level, usage in _USER_USAGE.items():
            connection.execute(_QUERIES.text("stage_all_users", usage=usage), {"level": level})
        connection.execute(_QUERIES.text("stage_realms"))
        connection.execute(_QUERIES.text("stage_lost_states"), {"limit_ids": _ids(limits)})


def change_states(connection: Connection, limits: Collection[Limit]) -> list[Crossing]:
    """Compare what is staged with the limits, and record what was reached or cleared."""
    levels = {limit.level for limit in limits} | {"hour"}
    with prefer_index_scans(connection):
        for level in sorted(levels):
            for name, usage in (("user", _USER_USAGE), ("realm", _REALM_USAGE)):
                connection.execute(
                    _QUERIES.text(f"count_{name}_usage", usage=usage[level]), {"level": level}
                )
        rows = connection.execute(_QUERIES.text("change_states"), {"limit_ids": _ids(limits)})
        return [Crossing(*row) for row in rows]


def _ids(limits: Iterable[Limit]) -> list[int]:
    return [limit.limit_id for limit in limits]
