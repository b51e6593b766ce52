"""Roll-ups, stored: marks taken, buckets written, what changed added to users' and realms' usage.

Owns ``user_usage_*``, ``realm_usage_*``, ``folds`` and ``buckets``; the borders are
``domain.calendar``'. Days and months of users hold the hours before their realm's fold; the views
``user_days`` and ``user_months`` add the others.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Final, NamedTuple

from sqlalchemy import Connection, func, select
from sqlalchemy.dialects.postgresql import insert

from accounting.db.binary_copy import binary_cursor, copy_rows
from accounting.db.engine import prefer_index_scans, psycopg_connection
from accounting.db.queries import Queries
from accounting.db.schema import buckets, fold_watermarks
from accounting.domain.calendar import Bucket, BucketLength, from_micros, to_micros

_QUERIES: Final = Queries("accounting.usage")

_STATEMENTS: Final = (
    "begin_buckets",
    "rollup_user_hourly",
    "rollup_user_daily",
    "rollup_user_monthly",
    "rollup_realm_hourly",
    "rollup_realm_daily",
    "rollup_realm_monthly",
)
_HOURS: Final = (
    ("realm_id", "int4"),
    ("starts_at", "timestamptz"),
    ("ends_at", "timestamptz"),
    ("day_starts_at", "timestamptz"),
    ("day_ends_at", "timestamptz"),
    ("month_starts_at", "timestamptz"),
    ("month_ends_at", "timestamptz"),
    ("is_folded", "bool"),
)
_FOLDS: Final = (
    ("realm_id", "int4"),
    ("starts_at", "timestamptz"),
    ("day_starts_at", "timestamptz"),
    ("month_starts_at", "timestamptz"),
)


class RealmHour(NamedTuple):
    """An hour of a realm, with the day and the month that it lies in."""

    realm_id: int
    hour: Bucket
    day: Bucket
    month: Bucket


def dequeue_deltas(connection: Connection, limit: int) -> list[tuple[int, int]]:
    """Take marks off ``usage_deltas``; returns the (realm_id, start) of the hours they name."""
    connection.execute(_QUERIES.text("stage_touched"))
    connection.execute(_QUERIES.text("stage_hours"))
    connection.execute(_QUERIES.text("take_touched"), {"limit": limit})
    with binary_cursor(psycopg_connection(connection)) as cursor:
        cursor.execute("SELECT DISTINCT realm_id, starts_at FROM staged_touched")
        return cursor.fetchall()


def read_fold_watermarks(connection: Connection) -> dict[int, int]:
    """Up to where the hours of each realm are folded; none for a realm without usage."""
    return {
        realm_id: to_micros(until)
        for realm_id, until in connection.execute(
            select(fold_watermarks.c.realm_id, fold_watermarks.c.folded_until)
        )
    }


def hours_between(connection: Connection, realm_id: int, since: int, until: int) -> list[int]:
    """The starts of a realm's hours with usage from ``since`` to before ``until``, in order."""
    found = connection.execute(
        select(buckets.c.starts_at)
        .where(
            buckets.c.realm_id == realm_id,
            buckets.c.level == BucketLength.HOUR.value,
            buckets.c.starts_at >= from_micros(since),
            buckets.c.starts_at < from_micros(until),
        )
        .order_by(buckets.c.starts_at)
    )
    return [to_micros(starts_at) for (starts_at,) in found]


def last_hour_end(connection: Connection, realm_id: int) -> int:
    """Where the last hour of a realm with usage ends; 0 where there is none."""
    query = select(func.max(buckets.c.ends_at)).where(
        buckets.c.realm_id == realm_id, buckets.c.level == BucketLength.HOUR.value
    )
    ends_at = connection.execute(query).scalar_one()
    return 0 if ends_at is None else to_micros(ends_at)


def add_folded_hours(
    connection: Connection, hours: Iterable[RealmHour], untils: Mapping[int, int]
) -> None:
    """Add those hours to their days and months, and move the folds of realms to ``untils``."""
    connection.execute(_QUERIES.text("stage_folds"))
    with binary_cursor(psycopg_connection(connection)) as cursor:
        cursor.execute("TRUNCATE staged_folds")  # of an earlier fold in this transaction
        copy_rows(
            cursor,
            "staged_folds",
            _FOLDS,
            (
                (one.realm_id, one.hour.starts_at, one.day.starts_at, one.month.starts_at)
                for one in hours
            ),
        )
    with prefer_index_scans(connection):
        connection.execute(_QUERIES.text("fold_user_daily"))
        connection.execute(_QUERIES.text("fold_user_monthly"))
    put = insert(fold_watermarks)
    connection.execute(
        put.on_conflict_do_update(
            index_elements=["realm_id"], set_={"folded_until": put.excluded.folded_until}
        ),
        [
            {"realm_id": realm_id, "folded_until": from_micros(until)}
            for realm_id, until in untils.items()
        ],
    )


def stage_hours(
    connection: Connection, hours: Sequence[RealmHour], untils: Mapping[int, int]
) -> None:
    """Stage the hours that this roll-up is about, with their days and months.

    ``untils``: up to where the hours of their realms are folded.
    """
    with binary_cursor(psycopg_connection(connection)) as cursor:
        copy_rows(
            cursor,
            "staged_hours",
            _HOURS,
            (
                (
                    one.realm_id,
                    one.hour.starts_at,
                    one.hour.ends_at,
                    one.day.starts_at,
                    one.day.ends_at,
                    one.month.starts_at,
                    one.month.ends_at,
                    one.hour.starts_at < untils[one.realm_id],
                )
                for one in hours
            ),
        )
        cursor.execute("ANALYZE staged_hours")


def add_usage(connection: Connection) -> None:
    """Add what the taken marks say to all usage that they are part of."""
    with prefer_index_scans(connection):
        for name in _STATEMENTS:
            connection.execute(_QUERIES.text(name))


def queue_adjustments(connection: Connection) -> None:
    """Mark the closed periods that the taken hours lie in, for adjustments to be posted."""
    connection.execute(_QUERIES.text("touch_closed_periods"))
