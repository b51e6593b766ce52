"""The usage tables: takes queued deltas, adds them, and folds hours into days and months.

The days and months of users contain the hours before the realm's fold watermark; the views
``user_days`` and ``user_months`` add the later hours.
"""

from collections.abc import Mapping, Sequence
from datetime import timedelta
from typing import Final, NamedTuple

from sqlalchemy import Connection, func, select
from sqlalchemy.dialects.postgresql import insert

from accounting.db.binary_copy import binary_cursor, copy_rows
from accounting.db.engine import prefer_index_scans, psycopg_connection
from accounting.db.queries import Queries
from accounting.db.schema import buckets, fold_watermarks
from accounting.domain.calendar import Bucket, BucketLength, from_micros, to_micros

_QUERIES: Final = Queries("accounting.usage")

_DAY: Final = {"usage": "user_usage_daily", "starts_at": "day_starts_at"}
_MONTH: Final = {"usage": "user_usage_monthly", "starts_at": "month_starts_at"}
_REALM_BUCKETS: Final = (
    {"usage": "realm_usage_hourly", "starts_at": "starts_at"},
    {"usage": "realm_usage_daily", "starts_at": "day_starts_at"},
    {"usage": "realm_usage_monthly", "starts_at": "month_starts_at"},
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


class RealmHour(NamedTuple):
    """An hour of a realm, with the day and the month that it lies in."""

    realm_id: int
    hour: Bucket
    day: Bucket
    month: Bucket


def dequeue_deltas(connection: Connection, limit: int) -> list[tuple[int, int]]:
    """Take and stage queued deltas; returns the (realm_id, start) of the hours they change."""
    create_staged_deltas(connection)
    connection.execute(_QUERIES.text("create_staged_realm_deltas"))
    connection.execute(_QUERIES.text("dequeue_usage_deltas"), {"limit": limit})
    with binary_cursor(psycopg_connection(connection)) as cursor:
        return cursor.execute(_QUERIES.driver("stage_realm_deltas")).fetchall()


def dequeue_server_deltas(connection: Connection) -> list[tuple[int, int]]:
    """Take and stage the queued server deltas, as :func:`dequeue_deltas`: there are only few."""
    connection.execute(_QUERIES.text("create_staged_server_deltas"))
    with binary_cursor(psycopg_connection(connection)) as cursor:
        return cursor.execute(_QUERIES.driver("dequeue_server_deltas")).fetchall()


def create_staged_deltas(connection: Connection) -> None:
    """Create the scratch table of deltas, for a caller that fills it itself."""
    connection.execute(_QUERIES.text("create_staged_deltas"))


def realms_to_fold(connection: Connection, delay: timedelta) -> dict[int, int]:
    """The realms with hours that are over for ``delay`` and not folded; the end of the last one."""
    rows = connection.execute(
        _QUERIES.text("realms_to_fold"), {"delay_seconds": delay.total_seconds()}
    )
    return {realm_id: to_micros(ends_at) for realm_id, ends_at in rows}


def read_fold_watermarks(connection: Connection) -> dict[int, int]:
    """Up to where the hours of each realm are folded; realms without usage are absent."""
    return {
        realm_id: to_micros(until)
        for realm_id, until in connection.execute(
            select(fold_watermarks.c.realm_id, fold_watermarks.c.folded_until)
        )
    }


def hours_between(connection: Connection, realm_id: int, since: int, until: int) -> list[int]:
    """The starts of a realm's hours with usage from ``since`` to before ``until``, in order."""
    rows = connection.execute(
        select(buckets.c.starts_at)
        .where(
            buckets.c.realm_id == realm_id,
            buckets.c.level == BucketLength.HOUR.value,
            buckets.c.starts_at >= from_micros(since),
            buckets.c.starts_at < from_micros(until),
        )
        .order_by(buckets.c.starts_at)
    )
    return [to_micros(starts_at) for (starts_at,) in rows]


def last_hour_end(connection: Connection, realm_id: int) -> int:
    """The end of a realm's last hour with usage; 0 without usage."""
    query = select(func.max(buckets.c.ends_at)).where(
        buckets.c.realm_id == realm_id, buckets.c.level == BucketLength.HOUR.value
    )
    ends_at = connection.execute(query).scalar_one()
    return 0 if ends_at is None else to_micros(ends_at)


def add_folded_hours(
    connection: Connection, hours: Sequence[RealmHour], untils: Mapping[int, int]
) -> None:
    """Add hours to the days and months of users, and set the fold watermarks to ``untils``."""
    stage_hours(connection, hours, untils)
    _add_to_days_and_months(connection, "accounting", "user_usage_hourly")
    set_dimension_peaks(connection)
    query = insert(fold_watermarks)
    connection.execute(
        query.on_conflict_do_update(
            index_elements=["realm_id"], set_={"folded_until": query.excluded.folded_until}
        ),
        [
            {"realm_id": realm_id, "folded_until": from_micros(until)}
            for realm_id, until in untils.items()
        ],
    )


def stage_hours(
    connection: Connection, hours: Sequence[RealmHour], untils: Mapping[int, int]
) -> None:
    """Stage hours, with their days and months, in place of those staged before.

    ``untils``: the fold watermarks of their realms.
    """
    connection.execute(_QUERIES.text("create_staged_hours"))
    with binary_cursor(psycopg_connection(connection)) as cursor:
        cursor.execute("DELETE FROM staged_hours")
        copy_rows(
            cursor,
            "staged_hours",
            _HOURS,
            (
                (
                    hour.realm_id,
                    hour.hour.starts_at,
                    hour.hour.ends_at,
                    hour.day.starts_at,
                    hour.day.ends_at,
                    hour.month.starts_at,
                    hour.month.ends_at,
                    hour.hour.starts_at < untils[hour.realm_id],
                )
                for hour in hours
            ),
        )
        cursor.execute("ANALYZE staged_hours")


def add_usage(connection: Connection, *, is_limited: bool) -> None:
    """Add the staged deltas to the usage of users, realms and servers.

    ``is_limited``: there are limits, so that users are staged for their evaluation.
    """
    with prefer_index_scans(connection):
        staged = connection.execute(_QUERIES.text("count_staged_deltas")).scalar_one()
        if is_limited:
            added = connection.execute(_QUERIES.text("add_limited_user_hours")).scalar_one()
        else:
            added = connection.execute(_QUERIES.text("add_user_hours")).rowcount
        if added < staged:
            connection.execute(_QUERIES.text("insert_user_hours"))
    _add_to_days_and_months(connection, "pg_temp", "staged_deltas")
    with prefer_index_scans(connection):
        for length in _REALM_BUCKETS:
            connection.execute(_QUERIES.text("add_realm_usage", **length))
        connection.execute(_QUERIES.text("add_server_usage"))
        connection.execute(_QUERIES.text("delete_empty_server_hours"))
        connection.execute(_QUERIES.text("add_server_load"))
        connection.execute(_QUERIES.text("delete_idle_servers"))
        connection.execute(_QUERIES.text("delete_old_traffic"))
    connection.execute(_QUERIES.text("note_last_hours"))


def _add_to_days_and_months(connection: Connection, schema: str, table: str) -> None:
    with prefer_index_scans(connection):
        for length in (_DAY, _MONTH):
            connection.execute(
                _QUERIES.text("add_user_usage", **length, schema=schema, table=table)
            )


def set_dimension_peaks(connection: Connection) -> None:
    """Set the peaks of servers and transports in the staged hours that are folded."""
    with prefer_index_scans(connection):
        connection.execute(_QUERIES.text("delete_dimension_peaks"))
        connection.execute(_QUERIES.text("insert_dimension_peaks"))


def note_changed_hours(connection: Connection) -> None:
    """Note that the staged hours changed, for a front that has limits."""
    connection.execute(_QUERIES.text("note_changed_hours"))


def queue_adjustments(connection: Connection) -> None:
    """Queue the closed periods that the staged deltas belong to, for late usage to be posted."""
    connection.execute(_QUERIES.text("queue_adjustments"))
