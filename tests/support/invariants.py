"""The invariant of billing: statement + late usage = hours, for each user of a closed period."""

from collections.abc import Iterable, Mapping
from datetime import date
from decimal import Decimal
from typing import Any, Final
from uuid import UUID

from accounting.domain.counters import COUNTERS
from tests.support.books import Books

BILLED_NUMBERS: Final = (*COUNTERS, "session_seconds")
LineKey = tuple[str, date, UUID]


def sums_by_line(rows: Iterable[Mapping[str, Any]]) -> dict[LineKey, tuple[Decimal, ...]]:
    """The sums of all numbers by realm, period and user, without users whose sums are all 0."""
    sums: dict[LineKey, list[Decimal]] = {}
    for row in rows:
        key = row["realm"], row["period"], row["user_key"]
        line = sums.setdefault(key, [Decimal(0)] * len(BILLED_NUMBERS))
        for index, name in enumerate(BILLED_NUMBERS):
            line[index] += Decimal(row[name])
    return {key: tuple(line) for key, line in sums.items() if any(line)}


def assert_closed_periods_add_up(books: Books) -> None:
    closed = [row for row in books.rows("periods") if row["state"] == "closed"]
    hours = [
        {**hour, "period": period["period"]}
        for hour in books.rows("user_usage_hourly")
        for period in closed
        if hour["realm"] == period["realm"]
        and period["starts_at"] <= hour["starts_at"] < period["ends_at"]
    ]
    late_usage = [row for row in books.rows("adjustments") if row["author"] == "turn-accounting"]
    assert sums_by_line([*books.rows("statements"), *late_usage]) == sums_by_line(hours)
