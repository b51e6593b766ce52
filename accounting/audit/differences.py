"""Differences between the books and the reports, and how they are named. Reads nothing."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import date, datetime
from typing import Any
from uuid import UUID

from accounting.audit import comparison
from accounting.audit.comparison import DERIVED_TABLES, Mismatch
from accounting.domain.calendar import from_micros, to_micros
from accounting.domain.periods import PeriodBounds, periods
from accounting.domain.realm_rules import RealmRules


@dataclass(frozen=True, slots=True, kw_only=True)
class Difference:
    """One thing in the books that is not what the reports say.

    ``what``: the table it stands in, or `reports`, `buckets`, `periods`,
    `statements`, `adjustments`.
    ``kind``: `missing` from the books, `unfounded` by any report, or `differs` in ``column``.
    ``period``: the first day of the billing period that it falls in, as its realm's rules have it.
    """

    realm: str
    period: date | None
    what: str
    kind: str
    user_key: UUID | None = None
    session_id: UUID | None = None
    starts_at: datetime | None = None
    column: str = ""
    booked: str = ""
    recomputed: str = ""


class DifferenceFactory:
    """How a difference is named: realms by name, times by the period they fall in."""

    def __init__(self, names: Mapping[int, str], rules: Mapping[int, RealmRules]) -> None:
        self.rules = rules
        self._names = names
        self._last: dict[int, PeriodBounds] = {}

    def realm_name(self, realm_id: int) -> str:
        """The name of a realm."""
        return self._names[realm_id]

    def period_bounds(self, realm_id: int, period: date) -> tuple[int, int] | None:
        """The borders of a realm's period that begins on that local day."""
        noon = to_micros(datetime.fromisoformat(f"{period}T12:00:00+00:00"))
        day = 86_400_000_000
        for one in periods(self.rules[realm_id], noon - 2 * day, noon + 2 * day):
            if one.first_day == period:
                return one.starts_at, one.ends_at
        return None

    def from_mismatch(self, mismatch: Mismatch) -> Iterator[Difference]:
        """One difference for a row that only one side has, else one for each column."""
        row = mismatch.known_row
        begins = row["started_at"] if mismatch.table == "sessions" else row["starts_at"]
        at = to_micros(begins)
        booked, proved = mismatch.stored, mismatch.recomputed
        which = {
            "user_key": row.get("user_key"),
            "session_id": row.get("session_id"),
        }
        if booked is None or proved is None:
            kind = "missing" if booked is None else "unfounded"
            yield self.difference(row["realm_id"], at, what=mismatch.table, kind=kind, **which)
            return
        for column in comparison.derived_columns(DERIVED_TABLES[mismatch.table]):
            if booked[column] != proved[column]:
                yield self.difference(
                    row["realm_id"],
                    at,
                    what=mismatch.table,
                    kind="differs",
                    column=column,
                    booked=str(booked[column]),
                    recomputed=str(proved[column]),
                    **which,
                )

    def difference(self, realm_id: int, at: int, **rest: Any) -> Difference:
        """A difference in what begins at that time, in microseconds."""
        last = self._last.get(realm_id)
        if last is None or not last.starts_at <= at < last.ends_at:
            last = next(periods(self.rules[realm_id], at, at))
            self._last[realm_id] = last
        return Difference(
            realm=self._names[realm_id], period=last.first_day, starts_at=from_micros(at), **rest
        )
