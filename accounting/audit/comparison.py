"""Proof, stored: what the reports come to, staged beside the books and compared with them.

Owns scratch tables that end with their transaction, and the comparison. Reads the books only.
"""

from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from decimal import Decimal
from typing import Any, Final
from uuid import UUID

from psycopg import Cursor
from sqlalchemy import Column, Connection, MetaData, Select, Table, and_, or_, select, text
from sqlalchemy.sql.expression import ColumnElement

from accounting.billing.period_queries import PeriodRow
from accounting.billing.statement_queries import LINE_NUMBERS
from accounting.db import schema
from accounting.db.binary_copy import binary_cursor, copy_rows
from accounting.db.engine import psycopg_connection
from accounting.db.queries import Queries
from accounting.db.schema import statements
from accounting.domain.calendar import Bucket, BucketLength, from_micros
from accounting.domain.session_fold import AllocationKey, SessionState
from accounting.domain.session_hours import SessionHour
from accounting.sessions.session_hour_queries import SESSION_HOUR_COLUMNS
from accounting.sessions.session_queries import (
    KEY_COLUMNS,
    SESSION_COLUMNS,
    session_row,
)
from accounting.usage.rollup_queries import RealmHour

_QUERIES: Final = Queries("accounting.audit")

DERIVED_TABLES: Final[Mapping[str, Table]] = {
    "sessions": schema.sessions,
    "session_usage": schema.session_hours,
    **{schema.user_usage[name].name: table for name, table in schema.whole_user_usage.items()},
    **{table.name: table for table in schema.realm_usage.values()},
}
"""What follows from the reports, in order of derivation; wherever it stands."""

_UNPROVED: Final = frozenset({"recheck_at", "end_events", "single_hour"})
"""Columns of the jobs' own work: when to look again, how often an end was told, and whether hours
stand in rows of their own."""
_STATEMENTS: Final = (
    "prove_user_hourly",
    "prove_user_daily",
    "prove_user_monthly",
    "prove_realm_hourly",
    "prove_realm_daily",
    "prove_realm_monthly",
)
_HOURS: Final = (
    ("realm_id", "int4"),
    ("starts_at", "timestamptz"),
    ("ends_at", "timestamptz"),
    ("day_starts_at", "timestamptz"),
    ("month_starts_at", "timestamptz"),
)

_BUCKETS: Final = (
    ("realm_id", "int4"),
    ("level", "text"),
    ("starts_at", "timestamptz"),
    ("ends_at", "timestamptz"),
    ("time_zone", "text"),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Mismatch:
    """One row of the books against what the reports say; ``booked`` or ``proved`` may be missing.

    Both hold the columns that tell the row, and those that differ.
    """

    table: str
    stored: Mapping[str, Any] | None
    recomputed: Mapping[str, Any] | None

    @property
    def known_row(self) -> Mapping[str, Any]:
        """The row as far as both agree, or as the only one has it."""
        found = self.stored if self.stored is not None else self.recomputed
        assert found is not None
        return found


def lock_reports(connection: Connection) -> None:
    """Let nobody drop reports until the transaction ends. Takes no snapshot yet."""
    connection.execute(text("LOCK TABLE ONLY accounting.reports IN ACCESS SHARE MODE"))


def count_in_flight(connection: Connection) -> int:
    """How many things wait for settling or the roll-up: marks of hours, and lives due to end."""
    return int(connection.execute(_QUERIES.text("count_in_flight")).scalar_one())


def create_recomputed_tables(connection: Connection) -> None:
    """Make the scratch tables, empty."""
    psycopg_connection(connection).execute(_QUERIES.driver("stage_proof"))


def add_sessions(
    connection: Connection, sessions: Iterable[tuple[AllocationKey, SessionState]]
) -> None:
    """Stage recomputed lives."""
    with _cursor(connection) as cursor:
        copy_rows(
            cursor,
            "proof_sessions",
            (*KEY_COLUMNS, ("recheck_at", "timestamptz"), *SESSION_COLUMNS),
            (session_row(key, session, session.expires_at) for key, session in sessions),
        )


def add_session_hours(connection: Connection, rows: Iterable[SessionHour]) -> None:
    """Stage the hours of recomputed lives."""
    with _cursor(connection) as cursor:
        copy_rows(
            cursor,
            "proof_session_usage",
            SESSION_HOUR_COLUMNS,
            ((*row[:10], *row.counters) for row in rows),
        )


def add_period_hours(connection: Connection, rows: Iterable[SessionHour]) -> None:
    """Stage hours of closed periods as they were at their cutoffs."""
    with _cursor(connection) as cursor:
        copy_rows(
            cursor,
            "proof_period_usage",
            SESSION_HOUR_COLUMNS,
            ((*row[:10], *row.counters) for row in rows),
        )


def recomputed_hours(connection: Connection) -> list[tuple[int, int, bool]]:
    """(realm_id, start, whether any of it is billed) of the hours that the staged lives touch."""
    with _cursor(connection) as cursor:
        return cursor.execute(
            "SELECT realm_id, starts_at, bool_or(confirmed) FROM proof_session_usage GROUP BY 1, 2"
        ).fetchall()


def add_rollups(connection: Connection, hours: Iterable[RealmHour]) -> None:
    """Stage the usage of users and realms that follows from the staged hours of sessions."""
    with _cursor(connection) as cursor:
        copy_rows(
            cursor,
            "proof_hours",
            _HOURS,
            (
                (
                    one.realm_id,
                    one.hour.starts_at,
                    one.hour.ends_at,
                    one.day.starts_at,
                    one.month.starts_at,
                )
                for one in hours
            ),
        )
        cursor.execute("ANALYZE proof_sessions, proof_session_usage, proof_hours")
    for name in _STATEMENTS:
        connection.execute(_QUERIES.text(name))
    # Closed periods are looked at one by one.
    with _cursor(connection) as cursor:
        cursor.execute("CREATE INDEX ON proof_period_usage (realm_id, starts_at)")
        cursor.execute("CREATE INDEX ON proof_user_usage_hourly (realm_id, starts_at)")
        cursor.execute("ANALYZE proof_period_usage, proof_user_usage_hourly")


def add_buckets(connection: Connection, rows: Iterable[tuple[int, BucketLength, Bucket]]) -> None:
    """Stage the buckets that the staged hours lie in."""
    with _cursor(connection) as cursor:
        copy_rows(
            cursor,
            "proof_buckets",
            _BUCKETS,
            (
                (realm_id, level.value, bucket.starts_at, bucket.ends_at, bucket.time_zone)
                for realm_id, level, bucket in rows
            ),
        )


def stored_buckets(
    connection: Connection, realm_ids: Collection[int]
) -> list[tuple[int, str, int, int, str]]:
    """(realm_id, level, start, end, zone) of every bucket of those realms, in order."""
    with _cursor(connection) as cursor:
        return cursor.execute(
            "SELECT realm_id, level, starts_at, ends_at, time_zone FROM accounting.buckets"
            " WHERE realm_id = ANY (%s) ORDER BY realm_id, level, starts_at",
            (list(realm_ids),),
        ).fetchall()


def missing_buckets(connection: Connection) -> list[tuple[int, str, int, int, str]]:
    """The staged buckets that the books lack."""
    with _cursor(connection) as cursor:
        return cursor.execute(
            "SELECT realm_id, level, starts_at, ends_at, time_zone FROM proof_buckets p"
            " WHERE NOT EXISTS (SELECT FROM accounting.buckets b"
            " WHERE (b.realm_id, b.level, b.starts_at) = (p.realm_id, p.level, p.starts_at))"
            " ORDER BY realm_id, level, starts_at"
        ).fetchall()


def find_mismatches(
    connection: Connection,
    name: str,
    realm_ids: Collection[int],
    span: tuple[int, int] | None = None,
    *,
    sessions: Table | None = None,
) -> Iterator[Mismatch]:
    """The rows of one of BOOKS that are not what the reports say. ``span``: begun within it.

    ``sessions``: only those of the sessions in that table.
    """
    table = DERIVED_TABLES[name]
    proof = recomputed_table(table, f"proof_{name}")
    begins = "started_at" if name == "sessions" else "starts_at"

    def part(of: Table) -> Any:
        query = select(of).where(of.c.realm_id.in_(realm_ids))
        if span is not None:
            query = query.where(
                of.c[begins] >= from_micros(span[0]), of.c[begins] < from_micros(span[1])
            )
        if sessions is not None:
            query = query.where(of.c.session_id.in_(select(sessions.c.session_id)))
        return query

    booked, proved = part(table).subquery("booked"), part(proof).subquery("proved")
    keys = [column.name for column in table.primary_key]
    query = (
        select(booked, proved)
        .select_from(
            booked.join(proved, and_(*(booked.c[key] == proved.c[key] for key in keys)), full=True)
        )
        .where(or_(*unequal(booked.c, proved.c, derived_columns(table))))
    )
    columns = list(booked.c.keys())
    for row in connection.execute(query):
        left = dict(zip(columns, row[: len(columns)], strict=True))
        right = dict(zip(columns, row[len(columns) :], strict=True))
        yield Mismatch(
            table=name,
            stored=None if left[keys[0]] is None else left,
            recomputed=None if right[keys[0]] is None else right,
        )


def recomputed_table(table: Table, name: str | None = None) -> Table:
    """The scratch table with the same columns; of that name, or the one of its proof."""
    columns = (Column(column.name, column.type) for column in table.c)
    return Table(name or f"proof_{table.name}", MetaData(), *columns)


def derived_columns(table: Table) -> list[str]:
    """The columns of a table that follow from the reports."""
    return [column.name for column in table.c if column.name not in _UNPROVED]


def unequal(left: Any, right: Any, columns: Iterable[str]) -> list[ColumnElement[bool]]:
    """For each column, whether two rows differ in it."""
    return [left[name].is_distinct_from(right[name]) for name in columns]


def find_lost_reports(connection: Connection) -> list[tuple[str, int, int]]:
    """(source, loaded, kept) of the sources that have fewer reports than were ever loaded."""
    return [tuple(row) for row in connection.execute(_QUERIES.text("count_reports"))]


@dataclass(frozen=True, slots=True, kw_only=True)
class LineComparison:
    """What is booked for a user in a closed period, and what the reports say; None: no line."""

    user_key: UUID
    digest: str | None
    stored: tuple[int, ...] | None
    recomputed: tuple[int, ...] | None


def compare_statement(connection: Connection, period: PeriodRow) -> Iterator[LineComparison]:
    """A closed period's lines beside the staged hours; numbers in the order of a digest."""
    return _lines(connection, "prove_statements", period)


def stored_lines(connection: Connection, period: PeriodRow) -> Iterator[LineComparison]:
    """A closed period's lines beside themselves, where nothing is left to compute them from."""
    rows = connection.execute(_of_period(period).with_only_columns(statements)).mappings()
    for row in rows.all():
        numbers = tuple(int(row[name]) for name in LINE_NUMBERS)
        yield LineComparison(
            user_key=row["user_key"], digest=row["digest"], stored=numbers, recomputed=numbers
        )


def line_digests(connection: Connection, period: PeriodRow) -> list[tuple[UUID, str]]:
    """The digest of each line of a closed period, by user_key, in its order."""
    rows = connection.execute(
        _of_period(period).with_only_columns(statements.c.user_key, statements.c.digest)
    )
    return [(user_key, digest) for user_key, digest in rows]


def _of_period(period: PeriodRow) -> Select[Any]:
    return (
        select(statements)
        .where(
            statements.c.realm_id == period.realm_id,
            statements.c.period == period.period,
        )
        .order_by(statements.c.user_key)
    )


def unbalanced_adjustments(connection: Connection, period: PeriodRow) -> Iterator[LineComparison]:
    """Users whose line and adjustments for late usage are not their staged hours of the period.

    Numbers: the eight counters and session microseconds.
    """
    return _lines(connection, "prove_adjustments", period)


def _lines(connection: Connection, name: str, period: PeriodRow) -> Iterator[LineComparison]:
    rows = connection.execute(
        _QUERIES.text(name),
        {
            "realm_id": period.realm_id,
            "period": period.period,
            "starts_at": period.starts_at,
            "ends_at": period.ends_at,
        },
    )
    for row in rows.mappings():
        yield LineComparison(
            user_key=row["user_key"],
            digest=row.get("digest"),
            stored=_numbers(row["booked"]),
            recomputed=_numbers(row["proved"]),
        )


def _numbers(values: Iterable[Decimal] | None) -> tuple[int, ...] | None:
    return None if values is None else tuple(int(value) for value in values)


def _cursor(connection: Connection) -> Cursor[Any]:
    return binary_cursor(psycopg_connection(connection))
