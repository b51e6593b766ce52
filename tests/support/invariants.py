"""What holds for every closed period, always: statement + late usage naming it = its hours."""

from collections.abc import Iterable, Mapping
from datetime import date
from decimal import Decimal
from typing import Any, Final
from uuid import UUID

from accounting.domain.counters import COUNTERS
from tests.support.books import Books

NUMBERS: Final = (*COUNTERS, "session_seconds")
Line = tuple[str, date, UUID]


def sums_by_line(rows: Iterable[Mapping[str, Any]]) -> dict[Line, tuple[Decimal, ...]]:
    """The sums of all numbers by realm, period and user; users with nothing left out."""
    sums: dict[Line, list[Decimal]] = {}
    for row in rows:
        line = row["realm"], row["period"], row["user_key"]
        kept = sums.setdefault(line, [Decimal(0)] * len(NUMBERS))
        for index, name in enumerate(NUMBERS):
            kept[index] += Decimal(row[name])
    return {line: tuple(numbers) for line, numbers in sums.items() if any(numbers)}


def assert_closed_periods_add_up(books: Books) -> None:
    closed = [row for row in books.rows("periods") if row["state"] == "closed"]
    hours = [
        {**hour, "period": period["period"]}
        for hour in books.rows("user_usage_hourly")
        for period in closed
        if hour["realm"] == period["realm"]
        and period["starts_at"] <= hour["starts_at"] < period["ends_at"]
    ]
    late = [row for row in books.rows("adjustments") if row["author"] == "turn-accounting"]
    assert sums_by_line([*books.rows("statements"), *late]) == sums_by_line(hours)
