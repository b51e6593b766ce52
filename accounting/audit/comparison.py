"""Compares the stored books with the recomputed ones."""

from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from decimal import Decimal
from functools import cache
from typing import Any, Final, LiteralString, NamedTuple
from uuid import UUID

from sqlalchemy import Connection, FromClause, Select, Table, and_, bindparam, func, or_, select
from sqlalchemy.sql.expression import ColumnElement

from accounting.audit.recomputed_tables import recomputed_table
from accounting.billing.period_queries import PeriodRow
from accounting.billing.statement_queries import LINE_NUMBERS
from accounting.db import schema
from accounting.db.binary_copy import binary_cursor
from accounting.db.engine import psycopg_connection
from accounting.db.queries import Queries
from accounting.db.schema import statements
from accounting.domain.calendar import Bucket, BucketLength, from_micros

_QUERIES: Final = Queries("accounting.audit")

DERIVED_TABLES: Final[Mapping[str, Table]] = {
    "sessions": schema.sessions,
    "session_usage": schema.session_hours,
    **{schema.user_usage[name].name: table for name, table in schema.whole_user_usage.items()},
    **{table.name: table for table in schema.realm_usage.values()},
    schema.server_usage_hourly.name: schema.server_usage_hourly,
    schema.dimension_peaks_hourly.name: schema.dimension_peaks,
}
"""The tables that follow from the reports, in order of derivation, each with what is read for it.

Of some that is a view, because the table keeps part of its rows elsewhere.
"""
_BOOKKEEPING_COLUMNS: Final = frozenset(
    {"recheck_at", "end_events", "single_hour", "next_check_score"}
)
"""Columns that say how the jobs came to a row, and do not follow from the reports."""


def session_count(connection: Connection, realm_ids: Collection[int]) -> int:
    """How many sessions those realms have."""
    table = schema.sessions
    query = select(func.count()).select_from(table).where(table.c.realm_id.in_(realm_ids))
    return connection.execute(query).scalar_one()


@dataclass(frozen=True, slots=True, kw_only=True)
class Mismatch:
    """A row that differs. ``stored`` or ``recomputed`` is None where that side lacks the row."""

    table: str
    stored: Mapping[str, Any] | None
    recomputed: Mapping[str, Any] | None

    @property
    def known_row(self) -> Mapping[str, Any]:
        """The stored row, or the recomputed one where there is none."""
        row = self.stored if self.stored is not None else self.recomputed
        assert row is not None
        return row


def find_mismatches(
    connection: Connection,
    name: str,
    realm_ids: Collection[int],
    bounds: tuple[int, int] | None = None,
    *,
    sessions: Table | None = None,
) -> Iterator[Mismatch]:
    """Find the rows of one of DERIVED_TABLES that differ from the recomputed ones.

    ``bounds``: only rows that start within them. ``sessions``: only rows of the sessions in that
    table.
    """
    query = _mismatch_query(name, is_bounded=bounds is not None, sessions=sessions)
    values: dict[str, Any] = {"realm_ids": list(realm_ids)}
    if bounds is not None:
        values |= {"since": from_micros(bounds[0]), "until": from_micros(bounds[1])}
    keys = [column.name for column in DERIVED_TABLES[name].primary_key]
    columns = list(DERIVED_TABLES[name].c.keys())
    for row in connection.execute(query, values):
        stored_row = dict(zip(columns, row[: len(columns)], strict=True))
        recomputed_row = dict(zip(columns, row[len(columns) :], strict=True))
        yield Mismatch(
            table=name,
            stored=None if stored_row[keys[0]] is None else stored_row,
            recomputed=None if recomputed_row[keys[0]] is None else recomputed_row,
        )


@cache
def _mismatch_query(name: str, *, is_bounded: bool, sessions: Table | None) -> Select[Any]:
    """Made once: on small books, making it takes as long as running it."""
    table = DERIVED_TABLES[name]
    starts_at = "started_at" if name == "sessions" else "starts_at"

    def selected(side: Table, alias: str) -> FromClause:
        query = select(side).where(side.c.realm_id.in_(bindparam("realm_ids", expanding=True)))
        if is_bounded:
            query = query.where(
                side.c[starts_at] >= bindparam("since"), side.c[starts_at] < bindparam("until")
            )
        if sessions is not None:
            query = query.where(side.c.session_id.in_(select(sessions.c.session_id)))
        return query.subquery(alias)

    stored = selected(table, "stored")
    recomputed = selected(recomputed_table(table, f"recomputed_{name}"), "recomputed")
    same_key = and_(*(stored.c[key.name] == recomputed.c[key.name] for key in table.primary_key))
    return (
        select(stored, recomputed)
        .select_from(stored.join(recomputed, same_key, full=True))
        .where(or_(*columns_differ(stored.c, recomputed.c, derived_columns(table))))
    )


def derived_columns(table: Table) -> list[str]:
    """The columns of a table that follow from the reports."""
    return [column.name for column in table.c if column.name not in _BOOKKEEPING_COLUMNS]


def columns_differ(left: Any, right: Any, columns: Iterable[str]) -> list[ColumnElement[bool]]:
    """For each column, whether two rows differ in it."""
    return [left[name].is_distinct_from(right[name]) for name in columns]


def stored_buckets(connection: Connection, realm_id: int) -> list[tuple[BucketLength, Bucket]]:
    """The stored buckets of a realm, in order."""
    return _read_buckets(
        connection,
        "SELECT level, starts_at, ends_at, time_zone FROM accounting.buckets"
        " WHERE realm_id = %s ORDER BY level, starts_at",
        realm_id,
    )


def missing_buckets(connection: Connection, realm_id: int) -> list[tuple[BucketLength, Bucket]]:
    """The recomputed buckets of a realm that are not stored, in order."""
    return _read_buckets(
        connection,
        "SELECT level, starts_at, ends_at, time_zone FROM recomputed_buckets r"
        " WHERE realm_id = %s AND NOT EXISTS (SELECT FROM accounting.buckets b"
        " WHERE (b.realm_id, b.level, b.starts_at) = (r.realm_id, r.level, r.starts_at))"
        " ORDER BY level, starts_at",
        realm_id,
    )


def _read_buckets(
    connection: Connection, query: LiteralString, realm_id: int
) -> list[tuple[BucketLength, Bucket]]:
    with binary_cursor(psycopg_connection(connection)) as cursor:
        return [
            (
                BucketLength(length),
                Bucket(starts_at=starts_at, ends_at=ends_at, time_zone=time_zone),
            )
            for length, starts_at, ends_at, time_zone in cursor.execute(query, (realm_id,))
        ]


class ReportCounts(NamedTuple):
    """How many reports of a source were loaded, and are stored.

    ``repeated``: how many have the position of another. ``out_of_order``: how many were received
    earlier than the one before them.
    """

    source: str
    loaded: int
    stored: int
    repeated: int
    out_of_order: int


def count_wrong_reports(connection: Connection) -> list[ReportCounts]:
    """The sources that lack reports, or have some twice or out of order."""
    rows = connection.execute(_QUERIES.text("count_wrong_reports"))
    return [ReportCounts._make(row) for row in rows]


def count_wrong_rejections(connection: Connection) -> list[tuple[str, int, int]]:
    """(source, counted by hour, counted in all) where a source's rejected messages differ."""
    rows = connection.execute(_QUERIES.text("wrong_rejected_counts"))
    return [(source, int(by_hour), int(in_all)) for source, by_hour, in_all in rows]


@dataclass(frozen=True, slots=True, kw_only=True)
class LineComparison:
    """A user's numbers in a closed period; None where that side has none."""

    user_key: UUID
    digest: str | None
    stored: tuple[int, ...] | None
    recomputed: tuple[int, ...] | None


def compare_statement(connection: Connection, period: PeriodRow) -> Iterator[LineComparison]:
    """A closed period's lines with the recomputed ones; numbers in the order of LINE_NUMBERS."""
    return _compare_lines(connection, "compare_statement", period)


def stored_lines(connection: Connection, period: PeriodRow) -> Iterator[LineComparison]:
    """A closed period's lines compared with themselves, where they can't be recomputed."""
    rows = connection.execute(_lines_of(period)).mappings()
    for row in rows.all():
        numbers = tuple(int(row[name]) for name in LINE_NUMBERS)
        yield LineComparison(
            user_key=row["user_key"], digest=row["digest"], stored=numbers, recomputed=numbers
        )


def line_digests(connection: Connection, period: PeriodRow) -> list[tuple[UUID, str]]:
    """(user_key, digest) of each line of a closed period, in order."""
    query = _lines_of(period).with_only_columns(statements.c.user_key, statements.c.digest)
    return [(user_key, digest) for user_key, digest in connection.execute(query)]


def _lines_of(period: PeriodRow) -> Select[Any]:
    return (
        select(statements)
        .where(statements.c.realm_id == period.realm_id, statements.c.period == period.period)
        .order_by(statements.c.user_key)
    )


def unbalanced_adjustments(connection: Connection, period: PeriodRow) -> Iterator[LineComparison]:
    """The users whose line and adjustments for late usage are not their recomputed hours.

    Numbers: the eight counters and session microseconds.
    """
    return _compare_lines(connection, "find_unbalanced_adjustments", period)


def _compare_lines(
    connection: Connection, statement: str, period: PeriodRow
) -> Iterator[LineComparison]:
    rows = connection.execute(
        _QUERIES.text(statement),
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
            stored=_to_integers(row["stored"]),
            recomputed=_to_integers(row["recomputed"]),
        )


def _to_integers(numbers: Iterable[Decimal] | None) -> tuple[int, ...] | None:
    return None if numbers is None else tuple(int(number) for number in numbers)
