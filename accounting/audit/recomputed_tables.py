"""Scratch tables for the recomputed books, with the columns of the stored tables.

Each is named ``recomputed_`` and the stored table's name, and is dropped with its transaction.
"""

from collections.abc import Iterable, Mapping
from functools import cache
from typing import Any, Final

from psycopg import Cursor
from sqlalchemy import Column, Connection, MetaData, Table, text

from accounting.db.binary_copy import binary_cursor, copy_rows
from accounting.db.engine import psycopg_connection
from accounting.db.queries import Queries
from accounting.domain.calendar import Bucket, BucketLength
from accounting.domain.realm_rules import RealmRules
from accounting.domain.session_fold import AllocationKey, SessionState
from accounting.domain.session_hours import SessionHour
from accounting.domain.time_zones import tzdata_version
from accounting.sessions.session_hour_queries import SESSION_HOUR_COLUMNS
from accounting.sessions.session_rows import (
    KEY_COLUMNS,
    SESSION_COLUMNS,
    session_row,
)
from accounting.usage.rollup_queries import RealmHour

_QUERIES: Final = Queries("accounting.audit")

_HOUR_COLUMNS: Final = (
    ("realm_id", "int4"),
    ("starts_at", "timestamptz"),
    ("ends_at", "timestamptz"),
    ("day_starts_at", "timestamptz"),
    ("month_starts_at", "timestamptz"),
)
_BUCKET_COLUMNS: Final = (
    ("realm_id", "int4"),
    ("level", "text"),
    ("starts_at", "timestamptz"),
    ("ends_at", "timestamptz"),
    ("time_zone", "text"),
    ("tzdata_version", "text"),
)
_BUCKET_STATEMENTS: Final = (
    ("recompute_user_buckets", "recomputed_user_usage_daily", "day_starts_at"),
    ("recompute_user_buckets", "recomputed_user_usage_monthly", "month_starts_at"),
    ("recompute_realm_buckets", "recomputed_realm_usage_daily", "day_starts_at"),
    ("recompute_realm_buckets", "recomputed_realm_usage_monthly", "month_starts_at"),
)


@cache
def recomputed_table(table: Table, name: str | None = None) -> Table:
    """The scratch table with the columns of ``table``. ``name``: where it is not the usual one.

    One object for all calls, so that its compiled statements serve each realm.
    """
    columns = (Column(column.name, column.type) for column in table.c)
    return Table(name or f"recomputed_{table.name}", MetaData(), *columns)


def create_session_tables(connection: Connection) -> None:
    """Create the empty tables of sessions and their hours."""
    psycopg_connection(connection).execute(_QUERIES.driver("create_recomputed_sessions"))


def create_tables(connection: Connection) -> None:
    """Create all tables, empty."""
    create_session_tables(connection)
    psycopg_connection(connection).execute(_QUERIES.driver("create_recomputed_usage"))


def add_sessions(
    connection: Connection, sessions: Iterable[tuple[AllocationKey, SessionState]]
) -> None:
    """Add recomputed sessions."""
    with _cursor(connection) as cursor:
        copy_rows(
            cursor,
            "recomputed_sessions",
            (*KEY_COLUMNS, ("recheck_at", "timestamptz"), *SESSION_COLUMNS),
            (session_row(key, session, session.expires_at) for key, session in sessions),
        )


def add_session_hours(connection: Connection, hours: Iterable[SessionHour]) -> None:
    """Add the hours of recomputed sessions."""
    _copy_hours(connection, "recomputed_session_usage", hours)


def add_period_hours(connection: Connection, hours: Iterable[SessionHour]) -> None:
    """Add hours of closed periods as they stood at the periods' cutoffs."""
    _copy_hours(connection, "recomputed_period_usage", hours)


def _copy_hours(connection: Connection, table: str, hours: Iterable[SessionHour]) -> None:
    with _cursor(connection) as cursor:
        rows = ((*hour[:10], *hour.counters) for hour in hours)
        copy_rows(cursor, table, SESSION_HOUR_COLUMNS, rows)


def recompute_usage(connection: Connection, rules: Mapping[int, RealmRules]) -> None:
    """Fill the tables of users' and realms' usage, and of buckets, from the hours of sessions."""
    with _cursor(connection) as cursor:
        session_hours = cursor.execute(
            "SELECT realm_id, starts_at, bool_or(confirmed)"
            " FROM recomputed_session_usage GROUP BY 1, 2"
        ).fetchall()
        billed_hours = []
        buckets: set[tuple[int, BucketLength, Bucket]] = set()
        for realm_id, starts_at, is_billed in session_hours:
            calendar = rules[realm_id].calendar
            hour = RealmHour(
                realm_id, *(calendar.bucket(length, starts_at) for length in BucketLength)
            )
            buckets.add((realm_id, BucketLength.HOUR, hour.hour))
            if is_billed:
                billed_hours.append(hour)
                buckets.add((realm_id, BucketLength.DAY, hour.day))
                buckets.add((realm_id, BucketLength.MONTH, hour.month))
        copy_rows(
            cursor,
            "recomputed_hours",
            _HOUR_COLUMNS,
            (
                (
                    hour.realm_id,
                    hour.hour.starts_at,
                    hour.hour.ends_at,
                    hour.day.starts_at,
                    hour.month.starts_at,
                )
                for hour in billed_hours
            ),
        )
        copy_rows(
            cursor,
            "recomputed_buckets",
            _BUCKET_COLUMNS,
            (
                (
                    realm_id,
                    length.value,
                    bucket.starts_at,
                    bucket.ends_at,
                    bucket.time_zone,
                    tzdata_version(),
                )
                for realm_id, length, bucket in buckets
            ),
        )
    connection.execute(
        text("ANALYZE recomputed_sessions, recomputed_session_usage, recomputed_hours")
    )
    connection.execute(_QUERIES.text("recompute_user_hours"))
    connection.execute(_QUERIES.text("recompute_realm_hours"))
    connection.execute(_QUERIES.text("recompute_server_hours"))
    connection.execute(_QUERIES.text("recompute_dimension_peaks"))
    connection.execute(_QUERIES.text("recompute_server_load"))
    for statement, table, bucket_starts_at in _BUCKET_STATEMENTS:
        connection.execute(
            _QUERIES.text(statement, buckets=table, bucket_starts_at=bucket_starts_at)
        )
    # The statements of closed periods are compared one by one.
    connection.execute(text("CREATE INDEX ON recomputed_period_usage (realm_id, starts_at)"))
    connection.execute(text("CREATE INDEX ON recomputed_user_usage_hourly (realm_id, starts_at)"))
    connection.execute(text("ANALYZE recomputed_period_usage, recomputed_user_usage_hourly"))


def _cursor(connection: Connection) -> Cursor[Any]:
    return binary_cursor(psycopg_connection(connection))
