"""The columns and the metadata of an export in FOCUS 1.2.

FOCUS is the FinOps Open Cost and Usage Specification. The rows are those of ``focus_rows`` in
``queries.sql``; docs/billing-worker.md#focus says what each column has.
"""

from collections.abc import Sequence
from typing import Any, Final

from accounting.export.copy_format import DECIMAL_PLACES, DECIMAL_PRECISION, Column
from accounting.export.focus_terms import FocusTerms

FOCUS_VERSION: Final = "1.2"
SCHEMA_ID: Final = "c0a3a3b2-7a53-5d0a-9a64-2f6b1f3c1200"
"""Changes with the columns, as does the date."""
SCHEMA_DATE: Final = "2026-11-28T00:00:00Z"
_TYPES: Final = {
    "timestamptz": "utc_time",
    "numeric": "exact_decimal",
}
_DATA_TYPES: Final = {
    "utc_time": "DATETIME",
    "exact_decimal": "DECIMAL",
    "int8": "INTEGER",
    "date": "DATE",
}


def focus_columns(columns: Sequence[Column]) -> list[Column]:
    """Columns in the formats of the specification."""
    return [Column(name, _TYPES.get(type_name, type_name)) for name, type_name in columns]


def focus_metadata(terms: FocusTerms, columns: Sequence[Column]) -> dict[str, Any]:
    """The specification's metadata, for the manifest, and the terms."""
    return {
        "DataGenerator": "turn-accounting",
        "SchemaId": SCHEMA_ID,
        "FocusVersion": FOCUS_VERSION,
        "CreationDate": SCHEMA_DATE,
        "ColumnDefinition": [_column_definition(column) for column in columns],
        "price_per_gb": None if terms.price_per_gb is None else f"{terms.price_per_gb:f}",
        "currency": terms.currency,
    }


def _column_definition(column: Column) -> dict[str, Any]:
    definition: dict[str, Any] = {
        "ColumnName": column.name,
        "DataType": _DATA_TYPES.get(column.type_name, "STRING"),
    }
    if column.type_name == "exact_decimal":
        definition |= {"NumericPrecision": DECIMAL_PRECISION, "NumberScale": DECIMAL_PLACES}
    return definition
