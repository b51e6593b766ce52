"""Differences between the stored and the recomputed books, named by realm and period."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import date, datetime
from typing import Any, Final
from uuid import UUID

from accounting.audit import comparison
from accounting.audit.comparison import DERIVED_TABLES, Mismatch
from accounting.domain.calendar import from_micros, to_micros
from accounting.domain.periods import PeriodBounds, periods
from accounting.domain.realm_rules import RealmRules

_DAY: Final = 86_400_000_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Difference:
    """One difference, as ``verify --json`` prints it.

    ``what``: one of DERIVED_TABLES, or `reports`, `rejected_messages`, `buckets`, `periods`,
    `statements`, `adjustments`, `limit_states`, `realm_peak_slices`, `server_load`,
    `fold_watermarks`, `users`, `usernames`, `usage.counted`, `session.ended`, `archive`. ``kind``:
    `missing` from the stored books, `unfounded` by the reports, or `differs` in ``column``.
    ``period``: the first day of the billing period that it lies in; None for what is of no time.
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
    """Makes differences: names realms, and finds the billing period of a time."""

    def __init__(self, names: Mapping[int, str], rules: Mapping[int, RealmRules]) -> None:
        self.rules = rules
        self._names = names
        self._last_period: dict[int, PeriodBounds] = {}

    def realm_name(self, realm_id: int) -> str:
        """The name of a realm."""
        return self._names[realm_id]

    def period_bounds(self, realm_id: int, first_day: date) -> tuple[int, int] | None:
        """The (start, end) of a realm's period that begins on that local day, by its rules."""
        noon = to_micros(datetime.fromisoformat(f"{first_day}T12:00:00+00:00"))
        for period in periods(self.rules[realm_id], noon - 2 * _DAY, noon + 2 * _DAY):
            if period.first_day == first_day:
                return period.starts_at, period.ends_at
        return None

    def from_mismatch(self, mismatch: Mismatch) -> Iterator[Difference]:
        """One difference for a row that only one side has, else one for each column."""
        row, table = mismatch.known_row, mismatch.table
        starts_at = to_micros(row["started_at"] if table == "sessions" else row["starts_at"])
        stored, recomputed = mismatch.stored, mismatch.recomputed
        keys = {"user_key": row.get("user_key"), "session_id": row.get("session_id")}
        if stored is None or recomputed is None:
            kind = "missing" if stored is None else "unfounded"
            yield self.difference(row["realm_id"], starts_at, what=table, kind=kind, **keys)
            return
        for column in comparison.derived_columns(DERIVED_TABLES[table]):
            if stored[column] != recomputed[column]:
                yield self.difference(
                    row["realm_id"],
                    starts_at,
                    what=table,
                    kind="differs",
                    column=column,
                    booked=str(stored[column]),
                    recomputed=str(recomputed[column]),
                    **keys,
                )

    def timeless(self, realm_id: int, **fields: Any) -> Difference:
        """A difference in what has no time."""
        return Difference(realm=self._names[realm_id], period=None, **fields)

    def difference(self, realm_id: int, starts_at: int, **fields: Any) -> Difference:
        """A difference in what starts at that time, in microseconds."""
        period = self._last_period.get(realm_id)
        if period is None or not period.starts_at <= starts_at < period.ends_at:
            period = next(periods(self.rules[realm_id], starts_at, starts_at))
            self._last_period[realm_id] = period
        return Difference(
            realm=self._names[realm_id],
            period=period.first_day,
            starts_at=from_micros(starts_at),
            **fields,
        )
