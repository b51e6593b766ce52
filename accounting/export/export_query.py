"""What an export reads: rows of the views of ``reporting``, in a fixed order, as COPY gives them.

Owns which rows belong to a selection, and how each format spells a cell. The server sorts, sums and
formats; nothing here holds more than a few rows.
"""

from collections.abc import Generator
from dataclasses import dataclass
from datetime import date, datetime
from decimal import Decimal
from enum import StrEnum
from typing import Final, NamedTuple

import psycopg
from psycopg.errors import UndefinedFunction, UndefinedTable
from psycopg.sql import SQL, Composable, Identifier, Literal

from accounting.billing.adjustment_queries import LATE_USAGE_AUTHOR
from accounting.domain.counters import COUNTERS
from accounting.errors import AccountingError

TEXT, BOOL, BIGINT, NUMERIC = 25, 16, 20, 1700
"""Types of columns, as Postgres numbers them."""
CHUNK_BYTES: Final = 1 << 18
"""COPY sends each row by itself; they are handed on so many bytes at once."""

# A spreadsheet takes a cell that begins so for a formula (OWASP, CSV injection). The quote that
# defuses is itself escaped, so that whoever strips one from a text has the text again.
_BEGINNINGS: Final = "=+@\t\r\n'\uff1d\uff0b\uff0d\uff20-"
# Where a comma stands in numbers, a spreadsheet begins a cell after these too, quoted or not.
_SEPARATORS: Final = ";\t\r\n"
_DEFUSED: Final = f"([{_SEPARATORS}])(?=[{_BEGINNINGS}])"


class ExportKind(StrEnum):
    """What is exported."""

    USAGE = "usage"
    SESSIONS = "sessions"
    STATEMENTS = "statements"
    ADJUSTMENTS = "adjustments"


class CopyFormat(StrEnum):
    """How rows leave Postgres. ``PLAIN``: CSV without a header and undefused, for a program."""

    CSV = "csv"
    JSON_LINES = "jsonl"
    RAW_CSV = "plain"


@dataclass(frozen=True, slots=True, kw_only=True)
class Selection:
    """Which rows: of a realm or all, of a period or a half-open span of time.

    Sessions belong where they ended, usage where its bucket starts, adjustments where they were
    posted (so those of a closed period are final), statements to their period.
    """

    kind: ExportKind
    realm: str | None = None
    period: date | None = None
    since: datetime | None = None
    until: datetime | None = None
    subject: str = "user"
    granularity: str = "day"


class Column(NamedTuple):
    """A column of a view. ``type``: Postgres' number of it."""

    name: str
    type_oid: int


class PeriodStatus(NamedTuple):
    """A period that a selection needs."""

    realm: str
    period: date
    state: str
    waits_for: str | None


class Totals(NamedTuple):
    """How many rows there are, and the sum of every column that is a count."""

    rows: int
    sums: dict[str, Decimal]


class ExportQuery:
    """One selection in one transaction: all that is asked is answered from one snapshot."""

    def __init__(self, connection: psycopg.Connection, selection: Selection) -> None:
        """``connection``: in a transaction that has read nothing yet."""
        self._connection = connection
        self._selection = selection
        self.rows_copied = 0
        """Rows that the last copy wrote: COPY sends each as one message."""
        connection.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ, READ ONLY")
        connection.execute("SET LOCAL TimeZone = 'UTC'")
        connection.execute("SET LOCAL DateStyle = 'ISO'")
        try:
            cursor = connection.execute(SQL("SELECT v.* FROM {} LIMIT 0").format(self._view()))
        except (UndefinedTable, UndefinedFunction) as error:
            raise AccountingError(
                f"Postgres: {str(error).splitlines()[0]}: "
                "bring it to this version with `turn-accounting db upgrade`"
            ) from error
        self.columns = [Column(one.name, one.type_code) for one in cursor.description or ()]

    def realm_exists(self) -> bool:
        """Whether the realm of the selection has a period or any usage."""
        found = self._connection.execute(
            "SELECT EXISTS (SELECT FROM reporting.periods WHERE realm = %(realm)s)"
            " OR EXISTS (SELECT FROM reporting.realm_usage_monthly WHERE realm = %(realm)s)",
            {"realm": self._selection.realm},
        ).fetchone()
        assert found is not None
        return bool(found[0])

    def periods(self) -> list[PeriodStatus]:
        """The periods that the selection names, or that begin in its span."""
        one = self._selection
        query = SQL(
            "SELECT realm, period, state, waits_for FROM reporting.periods WHERE {}"
        ).format(
            _all(
                [
                    *_equal("realm", one.realm),
                    *_equal("period", one.period),
                    *([SQL("ends_at > {}").format(one.since)] if one.since else []),
                    *([SQL("starts_at < {}").format(one.until)] if one.until else []),
                ]
            )
        )
        return [PeriodStatus._make(row) for row in self._connection.execute(query)]

    def waits_for(self) -> str | None:
        """What the usage of the selected span waits for, in words."""
        one = self._selection
        found = self._connection.execute(
            "SELECT reporting.span_waits_for(%s, %s, %s)", (one.realm, one.since, one.until)
        ).fetchone()
        assert found is not None
        waits: str | None = found[0]
        return waits

    def totals(self) -> Totals:
        """Count and sums of the selected rows, by the server."""
        counts = [one.name for one in self.columns if one.type_oid in {BIGINT, NUMERIC}]
        row = self._connection.execute(
            SQL("SELECT count(*), {} FROM {} WHERE {}").format(
                SQL(", ").join(
                    SQL("coalesce(sum({}), 0)").format(Identifier("v", name)) for name in counts
                ),
                self._view(),
                self._where(),
            )
        ).fetchone()
        assert row is not None
        return Totals(row[0], dict(zip(counts, map(Decimal, row[1:]), strict=True)))

    def late_usage(self) -> Totals:
        """What was posted to the selected period since it closed: its usage holds that too."""
        row = self._connection.execute(
            SQL("SELECT count(*), {} FROM reporting.adjustments WHERE {}").format(
                SQL(", ").join(
                    SQL("coalesce(sum({}), 0)").format(Identifier(name)) for name in COUNTERS
                ),
                _all(
                    [
                        *_equal("realm", self._selection.realm),
                        *_equal("period", self._selection.period),
                        *_equal("author", LATE_USAGE_AUTHOR),
                    ]
                ),
            )
        ).fetchone()
        assert row is not None
        return Totals(row[0], dict(zip(COUNTERS, map(Decimal, row[1:]), strict=True)))

    def copy(self, copy_format: CopyFormat) -> Generator[bytes]:
        """The selected rows in order, some at once, never part of one. Ends with the last row.

        Who stops before the end closes it: until then the connection is the COPY's.
        """
        query = SQL("SELECT {} FROM {} WHERE {} ORDER BY {}").format(
            SQL(", ").join(_cell(one, copy_format) for one in self.columns),
            self._view(),
            self._where(),
            self._order(),
        )
        match copy_format:
            case CopyFormat.CSV:
                statement = SQL("COPY ({}) TO STDOUT (FORMAT csv, HEADER)").format(query)
            case CopyFormat.RAW_CSV:
                statement = SQL("COPY ({}) TO STDOUT (FORMAT csv)").format(query)
            case CopyFormat.JSON_LINES:
                # JSON holds no control characters: with these as delimiter and quote, COPY
                # writes each value as it is.
                statement = SQL(
                    "COPY (SELECT row_to_json(r) FROM ({}) r)"
                    " TO STDOUT (FORMAT csv, DELIMITER E'\\x01', QUOTE E'\\x02')"
                ).format(query)
        with self._connection.cursor() as cursor, cursor.copy(statement) as copy:
            chunk: list[bytes] = []
            size = 0
            self.rows_copied = -1 if copy_format is CopyFormat.CSV else 0  # its header is no row
            for row in copy:
                self.rows_copied += 1
                chunk.append(bytes(row))
                size += len(row)
                if size >= CHUNK_BYTES:
                    yield b"".join(chunk)
                    chunk, size = [], 0
            yield b"".join(chunk)

    def _view(self) -> Composable:
        one = self._selection
        match one.kind:
            case ExportKind.USAGE:
                length = {"hour": "hourly", "day": "daily", "month": "monthly"}[one.granularity]
                name = f"{one.subject}_usage_{length}"
            case ExportKind.SESSIONS | ExportKind.STATEMENTS | ExportKind.ADJUSTMENTS:
                name = one.kind.value
        view = SQL("{} v").format(Identifier("reporting", name))
        if not self._needs_periods():
            return view
        return SQL("{} JOIN reporting.periods p ON p.realm = v.realm{}").format(
            view, SQL(" AND p.period = v.period") if one.kind is ExportKind.STATEMENTS else SQL("")
        )

    def _needs_periods(self) -> bool:
        one = self._selection
        if one.kind in {ExportKind.USAGE, ExportKind.SESSIONS}:
            return one.period is not None
        return one.kind is ExportKind.STATEMENTS and one.period is None

    def _where(self) -> Composable:
        one, at = self._selection, self._time()
        conditions = _equal("realm", one.realm, "v")
        if one.kind is ExportKind.SESSIONS:
            conditions.append(SQL("v.ended_at IS NOT NULL"))
        if one.period is not None:
            match one.kind:
                case ExportKind.USAGE | ExportKind.SESSIONS:
                    conditions += _equal("period", one.period, "p")
                    conditions.append(SQL("{0} >= p.starts_at AND {0} < p.ends_at").format(at))
                case ExportKind.STATEMENTS:
                    conditions += _equal("period", one.period, "v")
                case ExportKind.ADJUSTMENTS:
                    conditions += _equal("posted_in", one.period, "v")
        if one.since is not None:
            conditions.append(SQL("{} >= {}").format(at, one.since))
        if one.until is not None:
            conditions.append(SQL("{} < {}").format(at, one.until))
        return _all(conditions)

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

    def _order(self) -> Composable:
        """An order without ties that no server's collation changes."""
        match self._selection.kind:
            case ExportKind.USAGE if self._selection.subject == "realm":
                return SQL('v.starts_at, v.realm COLLATE "C"')
            case ExportKind.USAGE:
                return SQL("v.starts_at, v.user_key")
            case ExportKind.SESSIONS:
                return SQL("v.ended_at, v.session_id, v.user_key")
            case ExportKind.STATEMENTS:
                return SQL('v.realm COLLATE "C", v.period, v.user_key')
            case ExportKind.ADJUSTMENTS:
                return SQL("v.posted_at, v.adjustment_id")


def _cell(column: Column, spelling: CopyFormat) -> Composable:
    name = Identifier("v", column.name)
    alias = Identifier(column.name)
    if spelling is CopyFormat.CSV and column.type_oid == TEXT:
        return SQL(
            "CASE WHEN {0} <> '' AND strpos({1}, left({0}, 1)) > 0 THEN '''' ELSE '' END || "
            "CASE WHEN translate({0}, {2}, '') <> {0} "
            "THEN regexp_replace({0}, {3}, E'\\\\1''', 'g') ELSE {0} END AS {4}"
        ).format(name, Literal(_BEGINNINGS), Literal(_SEPARATORS), Literal(_DEFUSED), alias)
    if spelling is CopyFormat.CSV and column.type_oid == BOOL:
        return SQL("{}::text AS {}").format(name, alias)
    return SQL("{} AS {}").format(name, alias)


def _equal(column: str, value: object, table: str | None = None) -> list[Composable]:
    if value is None:
        return []
    name = Identifier(column) if table is None else Identifier(table, column)
    return [SQL("{} = {}").format(name, value)]


def _all(conditions: list[Composable]) -> Composable:
    return SQL(" AND ").join(conditions) if conditions else SQL("true")
