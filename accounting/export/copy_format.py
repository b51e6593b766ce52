"""The formats in which COPY writes rows: CSV for spreadsheets, JSON Lines, and raw CSV."""

from collections.abc import Sequence
from enum import StrEnum
from typing import Final, NamedTuple

from psycopg.sql import SQL, Composable, Composed, Identifier, Literal

from accounting.domain.spreadsheet_text import (
    CELL_SEPARATORS,
    FORMULA_AFTER_SEPARATOR,
    FORMULA_STARTS,
)

DECIMAL_PRECISION: Final = 38
DECIMAL_PLACES: Final = 18
"""Of the type ``exact_decimal``."""


class CopyFormat(StrEnum):
    """The format of the rows. ``RAW_CSV`` has neither a header nor escaped formulas."""

    CSV = "csv"
    JSON_LINES = "jsonl"
    RAW_CSV = "raw"


class Column(NamedTuple):
    """A column of a view. ``type_name``: as in ``pg_type``; empty for an unknown type.

    Two more types are for FOCUS: ``utc_time``, a timestamptz of whole seconds, written with ``Z``,
    and ``exact_decimal``, a numeric with 18 places at most.
    """

    name: str
    type_name: str


def cell_list(columns: Sequence[Column], copy_format: CopyFormat) -> Composable:
    """The select list of the columns of the table ``v``."""
    return SQL(", ").join(_cell(column, copy_format) for column in columns)


def _cell(column: Column, copy_format: CopyFormat) -> Composable:
    cell = Identifier("v", column.name)
    alias = Identifier(column.name)
    if copy_format is CopyFormat.CSV and column.type_name == "text":
        return SQL(
            "CASE WHEN {0} <> '' AND strpos({1}, left({0}, 1)) > 0 THEN '''' ELSE '' END || "
            "CASE WHEN translate({0}, {2}, '') <> {0} "
            "THEN regexp_replace({0}, {3}, E'\\\\1''', 'g') ELSE {0} END AS {4}"
        ).format(
            cell,
            Literal(FORMULA_STARTS),
            Literal(CELL_SEPARATORS),
            Literal(FORMULA_AFTER_SEPARATOR),
            alias,
        )
    if copy_format is CopyFormat.CSV and column.type_name == "timestamptz":
        # As in JSON. The time zone of the transaction is UTC.
        return SQL("replace({}::text, ' ', 'T') || ':00' AS {}").format(cell, alias)
    if column.type_name == "utc_time" and copy_format is not CopyFormat.RAW_CSV:
        return SQL("""to_char({}, 'YYYY-MM-DD"T"HH24:MI:SS"Z"') AS {}""").format(cell, alias)
    if column.type_name == "exact_decimal":
        # At least one place: readers of CSV take a column of whole numbers for integers.
        return SQL("round({0}, greatest(min_scale({0}), 1)) AS {1}").format(cell, alias)
    if copy_format is CopyFormat.CSV and column.type_name == "bool":
        return SQL("{}::text AS {}").format(cell, alias)
    return SQL("{} AS {}").format(cell, alias)


def copy_statement(query: Composable, copy_format: CopyFormat) -> Composed:
    """COPY of a query's rows to the client."""
    match copy_format:
        case CopyFormat.CSV:
            return SQL("COPY ({}) TO STDOUT (FORMAT csv, HEADER)").format(query)
        case CopyFormat.RAW_CSV:
            return SQL("COPY ({}) TO STDOUT (FORMAT csv)").format(query)
        case CopyFormat.JSON_LINES:
            # JSON holds no control characters: with two of them as delimiter and quote, COPY
            # writes each value unchanged.
            return SQL(
                "COPY (SELECT row_to_json(r) FROM ({}) r)"
                " TO STDOUT (FORMAT csv, DELIMITER E'\\x01', QUOTE E'\\x02')"
            ).format(query)
