"""Read the rows of a selection from the views of ``reporting``, in a fixed order."""

from collections.abc import Generator, Sequence
from datetime import date, datetime
from decimal import Decimal
from typing import Final, NamedTuple

import psycopg
from psycopg.errors import UndefinedFunction, UndefinedTable
from psycopg.sql import SQL, Composable, Identifier

from accounting.db.queries import Queries
from accounting.domain.counters import COUNTERS
from accounting.domain.periods import LATE_USAGE_AUTHOR
from accounting.errors import AccountingError
from accounting.export.copy_format import Column, CopyFormat, cell_list, copy_statement
from accounting.export.focus_schema import focus_columns
from accounting.export.focus_terms import FocusTerms
from accounting.export.selection import ExportKind, Selection

_QUERIES: Final = Queries("accounting.export")
CHUNK_BYTES: Final = 1 << 18
"""COPY sends a message for each row; chunks of this size are yielded."""


_COLUMNS_IN_MANIFEST: Final = {(ExportKind.STATEMENTS, "cutoff")}
"""Columns that are the same in all rows of a period: the manifest has them instead."""


class PeriodStatus(NamedTuple):
    """A period that a selection needs. ``state``: "open", "closing" or "closed"."""

    realm: str
    period: date
    state: str
    waits_for: str | None
    ends_at: datetime
    time_zone: str


class StatementCutoffText(NamedTuple):
    """The cutoff of a statement, as JSON text."""

    realm: str
    period: date
    cutoff: str


class Partition(NamedTuple):
    """The rows of a realm and a period. ``period``: None for rows in no period that is known."""

    realm: str
    period: date | None


class RowTotals(NamedTuple):
    """The number of rows, and the sum of each numeric column."""

    rows: int
    sums: dict[str, Decimal]


class ExportQuery:
    """One selection in one transaction: all methods read the same snapshot."""

    def __init__(self, connection: psycopg.Connection, selection: Selection) -> None:
        """``connection``: in a transaction whose queries see one snapshot."""
        self._connection = connection
        self._selection = selection
        self.rows_copied = 0
        """Rows that the last :meth:`copy` yielded: COPY sends each as one message."""
        connection.execute("SET TRANSACTION READ ONLY")
        connection.execute("SET LOCAL TimeZone = 'UTC'")
        connection.execute("SET LOCAL DateStyle = 'ISO'")
        try:
            cursor = connection.execute(SQL("SELECT v.* FROM {} LIMIT 0").format(self._from()))
        except (UndefinedTable, UndefinedFunction) as error:
            raise AccountingError(
                f"Postgres: {str(error).splitlines()[0]}: "
                "bring it to this version with `turn-accounting db upgrade`"
            ) from error
        self.columns = [
            Column(column.name, type_info.name if type_info else "")
            for column in cursor.description or ()
            if (selection.kind, column.name) not in _COLUMNS_IN_MANIFEST
            and not (selection.is_partitioned and column.name in selection.partition_columns)
            for type_info in [psycopg.adapters.types.get(column.type_code)]
        ]
        if selection.kind is ExportKind.FOCUS:
            self.columns = focus_columns(self.columns)

    def known_realms(self) -> set[str]:
        """The names of all realms."""
        return {name for (name,) in self._connection.execute("SELECT reporting.known_realms()")}

    def known_periods(self) -> set[date]:
        """The first days of all periods of the selected realm, or of all realms."""
        conditions = _conjunction([*_equal(Identifier("realm"), self._selection.realm)])
        query = SQL("SELECT period FROM reporting.periods WHERE {}").format(conditions)
        return {period for (period,) in self._connection.execute(query)}

    def periods(self) -> list[PeriodStatus]:
        """The periods that the selection names, or that overlap its span."""
        selection = self._selection
        conditions = [
            *_equal(Identifier("realm"), selection.realm),
            *_equal(Identifier("period"), selection.period),
        ]
        if selection.since:
            conditions.append(SQL("ends_at > {}").format(selection.since))
        if selection.until:
            conditions.append(SQL("starts_at < {}").format(selection.until))
        columns = SQL(", ").join(map(Identifier, PeriodStatus._fields))
        query = SQL('SELECT {} FROM reporting.periods WHERE {} ORDER BY realm COLLATE "C", period')
        rows = self._connection.execute(query.format(columns, _conjunction(conditions)))
        return [PeriodStatus._make(row) for row in rows]

    def span_waits_for(self) -> str | None:
        """What the selected span lacks, as a message; None when it is final."""
        selection = self._selection
        row = self._connection.execute(
            "SELECT reporting.span_waits_for(%s, %s, %s, true)",
            (selection.realm, selection.since, selection.until),
        ).fetchone()
        assert row is not None
        waits_for: str | None = row[0]
        return waits_for

    def totals(self) -> RowTotals:
        """Totals of the selected rows."""
        names = [
            column.name
            for column in self.columns
            if column.type_name in {"int8", "numeric", "exact_decimal"}
            and not column.name.endswith("UnitPrice")
        ]
        return self._sum(names, self._from(), self._where())

    def late_usage(self) -> RowTotals:
        """Totals of the late usage of the selected period, which its usage rows include."""
        conditions = [
            *_equal(Identifier("realm"), self._selection.realm),
            *_equal(Identifier("period"), self._selection.period),
            *_equal(Identifier("author"), LATE_USAGE_AUTHOR),
        ]
        view = SQL("reporting.adjustments v")
        return self._sum(COUNTERS, view, _conjunction(conditions))

    def cutoffs(self) -> list[StatementCutoffText]:
        """The cutoff of each selected statement, in the order of the rows."""
        query = SQL(
            'SELECT v.realm COLLATE "C", v.period, v.cutoff FROM {} WHERE {} GROUP BY 1, 2, 3'
            " ORDER BY 1, 2"
        )
        rows = self._connection.execute(query.format(self._from(), self._where()))
        return [StatementCutoffText._make(row) for row in rows]

    def _sum(self, names: Sequence[str], source: Composable, condition: Composable) -> RowTotals:
        sums = [SQL("coalesce(sum({}), 0)").format(Identifier("v", name)) for name in names]
        row = self._connection.execute(
            SQL("SELECT {} FROM {} WHERE {}").format(
                SQL(", ").join([SQL("count(*)"), *sums]), source, condition
            )
        ).fetchone()
        assert row is not None
        return RowTotals(row[0], dict(zip(names, map(Decimal, row[1:]), strict=True)))

    def partitions(self) -> list[Partition]:
        """The partitions that have rows, in a fixed order."""
        query = SQL('SELECT DISTINCT v.realm COLLATE "C", {} FROM {} WHERE {} ORDER BY 1, 2')
        rows = self._connection.execute(
            query.format(self._partition_period(), self._from(), self._where())
        )
        return [Partition._make(row) for row in rows]

    def copy(self, copy_format: CopyFormat, partition: Partition | None = None) -> Generator[bytes]:
        """Yield the selected rows in order, or those of a partition, in chunks of whole rows.

        A caller that stops early closes the generator: until then COPY occupies the connection.
        """
        query = SQL("SELECT {} FROM {} WHERE {} ORDER BY {}").format(
            cell_list(self.columns, copy_format),
            self._from(),
            self._where(partition),
            self._order(),
        )
        statement = copy_statement(query, copy_format)
        with self._connection.cursor() as cursor, cursor.copy(statement) as copy:
            chunk: list[bytes] = []
            size = 0
            self.rows_copied = -1 if copy_format is CopyFormat.CSV else 0  # the header is no row
            for row in copy:
                self.rows_copied += 1
                chunk.append(bytes(row))
                size += len(row)
                if size >= CHUNK_BYTES:
                    yield b"".join(chunk)
                    chunk, size = [], 0
            yield b"".join(chunk)

    def _from(self) -> Composable:
        """The view as ``v``, joined with its periods as ``p`` where a condition needs them."""
        selection = self._selection
        match selection.kind:
            case ExportKind.FOCUS:
                rows = psycopg.ClientCursor(self._connection).mogrify(
                    _QUERIES.driver("focus_rows"), (selection.focus or FocusTerms()).parameters()
                )
                return SQL("({}) v").format(SQL(rows))
            case ExportKind.USAGE:
                length = {"hour": "hourly", "day": "daily", "month": "monthly"}
                view = f"{selection.subject}_usage_{length[selection.granularity]}"
            case ExportKind.SESSIONS | ExportKind.STATEMENTS | ExportKind.ADJUSTMENTS:
                view = selection.kind.value
        table = SQL("{} v").format(Identifier("reporting", view))
        match selection.kind:
            case ExportKind.USAGE | ExportKind.SESSIONS if selection.period is not None:
                return SQL("{} JOIN reporting.periods p ON p.realm = v.realm").format(table)
            case ExportKind.USAGE | ExportKind.SESSIONS if selection.is_partitioned:
                return SQL(
                    "{0} LEFT JOIN reporting.periods p"
                    " ON p.realm = v.realm AND {1} >= p.starts_at AND {1} < p.ends_at"
                ).format(table, self._time())
            case ExportKind.STATEMENTS if selection.period is None:
                return SQL(
                    "{} JOIN reporting.periods p ON p.realm = v.realm AND p.period = v.period"
                ).format(table)
            case _:
                return table

    def _partition_period(self) -> Composable:
        """The period of a row, by which a partitioned export divides it."""
        match self._selection.kind:
            case ExportKind.USAGE | ExportKind.SESSIONS:
                return Identifier("p", "period")
            case ExportKind.STATEMENTS | ExportKind.ADJUSTMENTS:
                return Identifier("v", self._selection.partition_columns[1])
            case ExportKind.FOCUS:
                raise AssertionError("a FOCUS file is not partitioned")

    def _where(self, partition: Partition | None = None) -> Composable:
        selection, time = self._selection, self._time()
        is_focus = selection.kind is ExportKind.FOCUS
        conditions = _equal(Identifier("v", "x_Realm" if is_focus else "realm"), selection.realm)
        if selection.kind is ExportKind.SESSIONS:
            conditions.append(SQL("v.ended_at IS NOT NULL"))
        if selection.period is not None:
            match selection.kind:
                case ExportKind.USAGE | ExportKind.SESSIONS:
                    conditions += _equal(Identifier("p", "period"), selection.period)
                    conditions.append(SQL("{0} >= p.starts_at AND {0} < p.ends_at").format(time))
                case ExportKind.STATEMENTS:
                    conditions += _equal(Identifier("v", "period"), selection.period)
                case ExportKind.ADJUSTMENTS:
                    conditions += _equal(Identifier("v", "posted_in"), selection.period)
                case ExportKind.FOCUS:
                    conditions += _equal(Identifier("v", "x_Period"), selection.period)
        if selection.since is not None:
            conditions.append(SQL("{} >= {}").format(time, selection.since))
        if selection.until is not None:
            conditions.append(SQL("{} < {}").format(time, selection.until))
        if partition is not None:
            conditions += _equal(Identifier("v", "realm"), partition.realm)
            period = self._partition_period()
            conditions.append(
                SQL("{} IS NULL").format(period)
                if partition.period is None
                else SQL("{} = {}").format(period, partition.period)
            )
        return _conjunction(conditions)

    def _time(self) -> Composable:
        """The time by which a row belongs to a span."""
        match self._selection.kind:
            case ExportKind.USAGE:
                return Identifier("v", "starts_at")
            case ExportKind.SESSIONS:
                return Identifier("v", "ended_at")
            case ExportKind.STATEMENTS:
                return Identifier("p", "starts_at")
            case ExportKind.ADJUSTMENTS:
                return Identifier("v", "posted_at")
            case ExportKind.FOCUS:
                return Identifier("v", "BillingPeriodStart")

    def _order(self) -> Composable:
        """A total order that doesn't depend on the server's collation."""
        match self._selection.kind:
            case ExportKind.USAGE if self._selection.subject == "realm":
                return SQL('v.starts_at, v.realm COLLATE "C"')
            case ExportKind.USAGE:
                return SQL("v.starts_at, v.user_key")
            case ExportKind.SESSIONS:
                return SQL("v.ended_at, v.session_id, v.user_key")
            case ExportKind.STATEMENTS:
                return SQL('v.realm COLLATE "C", v.user_id COLLATE "C", v.period, v.user_key')
            case ExportKind.ADJUSTMENTS:
                return SQL("v.posted_at, v.adjustment_id")
            case ExportKind.FOCUS:
                return SQL(
                    'v."x_Realm" COLLATE "C", v."BillingAccountName" COLLATE "C",'
                    ' v."BillingPeriodStart", v."BillingAccountId" COLLATE "C",'
                    ' v."x_AdjustmentId" COLLATE "C" NULLS FIRST'
                )


def _equal(column: Identifier, value: object) -> list[Composable]:
    """The condition that a column has a value; without a value, none."""
    return [] if value is None else [SQL("{} = {}").format(column, value)]


def _conjunction(conditions: list[Composable]) -> Composable:
    return SQL(" AND ").join(conditions) if conditions else SQL("true")
