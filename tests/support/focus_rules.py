"""The rules of FOCUS 1.2 that usage rows must keep, in this project's own words.

The specification's own validator knows versions up to 1.0 alone, which name some columns otherwise.
``tests/data/focus/columns.tsv`` has what the specification says of each column: whether a dataset
must have it, what it holds, and when it may be null in a row whose category is Usage.
"""

import csv
import re
from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime
from decimal import Decimal
from pathlib import Path
from typing import Final, NamedTuple

TABLE: Final = Path(__file__).resolve().parents[1] / "data/focus/columns.tsv"
NUMBER: Final = re.compile(r"-?\d+(\.\d+)?(E-?\d+)?")
TIME: Final = re.compile(r"\d{4}-\d{2}-\d{2}T\d{2}:\d{2}:\d{2}Z")
UNIT: Final = re.compile(r"[KMGTPE]?B|[KMGTPE]iB|[A-Z][a-z]+s")
ALLOWED: Final = {
    "ChargeCategory": {"Usage"},  # all that the project writes
    "ChargeClass": {"Correction"},
    "ChargeFrequency": {"One-Time", "Recurring", "Usage-Based"},
    "PricingCategory": {"Standard", "Dynamic", "Committed", "Other"},
    "ServiceCategory": {"Networking"},
    "ServiceSubcategory": {
        "Application Networking", "Content Delivery", "Network Connectivity",
        "Network Infrastructure", "Network Routing", "Network Security", "Other (Networking)",
    },
}  # fmt: skip
PRODUCTS: Final = (("ListUnitPrice", "ListCost"), ("ContractedUnitPrice", "ContractedCost"))
UNITS: Final = (("ConsumedQuantity", "ConsumedUnit"), ("PricingQuantity", "PricingUnit"))
PERIODS: Final = (
    ("BillingPeriodStart", "BillingPeriodEnd"),
    ("ChargePeriodStart", "ChargePeriodEnd"),
)
Row = Mapping[str, str | None]


class ColumnRule(NamedTuple):
    """A line of the table."""

    column: str
    presence: str
    kind: str
    null: str


def column_rules() -> dict[str, ColumnRule]:
    with TABLE.open(newline="") as file:
        return {rule["column"]: ColumnRule(**rule) for rule in csv.DictReader(file, delimiter="\t")}


def problems(names: Sequence[str], rows: Sequence[Row]) -> list[str]:
    """What of a dataset breaks a rule. Null is None."""
    rules = column_rules()
    return [
        *_problems_of_names(names, rules),
        *(
            f"row {number}: {problem}"
            for number, row in enumerate(rows)
            for problem in _problems_of_row(row, rules)
        ),
    ]


def _problems_of_names(names: Sequence[str], rules: Mapping[str, ColumnRule]) -> Iterator[str]:
    for rule in rules.values():
        if rule.presence == "mandatory" and rule.column not in names:
            yield f"no column {rule.column}"
    own = [name.startswith("x_") for name in names]
    if own != sorted(own):
        yield "columns of the specification come first"
    for name in names:
        if name not in rules and not name.startswith("x_"):
            yield f"unknown column {name}"


def _problems_of_row(row: Row, rules: Mapping[str, ColumnRule]) -> Iterator[str]:
    of_values = [
        problem for name in row if name in rules for problem in _problems_of_value(rules[name], row)
    ]
    yield from of_values or _problems_between_values(row)


def _problems_of_value(rule: ColumnRule, row: Row) -> Iterator[str]:
    name, value = rule.column, row[rule.column]
    if value is None:
        may_be_null = rule.null == "in corrections" and row["ChargeClass"] is not None
        if not may_be_null and rule.null != "may":
            yield f"{name} is null"
    elif not value.strip() or not _has_format(rule.kind, value):
        yield f"{name} is {value!r}"
    elif value not in ALLOWED.get(name, {value}):
        yield f"{name} is {value!r}, which is not allowed"


def _problems_between_values(row: Row) -> Iterator[str]:
    is_correction = row["ChargeClass"] is not None
    for quantity, unit in UNITS:
        if (row[quantity] is None) != (row[unit] is None):
            yield f"{quantity} goes with {unit}"
    for start, end in PERIODS:
        if _time(row[start]) >= _time(row[end]):
            yield f"{start} is not before {end}"
    if not is_correction:
        yield from _problems_of_products(row)
    is_earlier = _time(row["ChargePeriodEnd"]) <= _time(row["BillingPeriodStart"])
    if is_correction != is_earlier:
        yield "a correction, and nothing else, is of an earlier period"


def _problems_of_products(row: Row) -> Iterator[str]:
    for price, cost in PRODUCTS:
        factors = [row[price], row["PricingQuantity"]]
        if None not in factors:
            product = Decimal(str(factors[0])) * Decimal(str(factors[1]))
            if product != Decimal(str(row[cost])):
                yield f"{price} times PricingQuantity is not {cost}"


def _has_format(kind: str, value: str) -> bool:
    match kind:
        case "decimal":
            return NUMBER.fullmatch(value) is not None
        case "price":
            return NUMBER.fullmatch(value) is not None and Decimal(value) >= 0
        case "time":
            return TIME.fullmatch(value) is not None
        case "currency":
            return re.fullmatch("[A-Z]{3}", value) is not None
        case "unit":
            return UNIT.fullmatch(value) is not None
        case "string":
            return True
        case _:
            raise AssertionError(kind)


def _time(value: str | None) -> datetime:
    assert value is not None
    return datetime.fromisoformat(value)
