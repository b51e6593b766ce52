"""Compares the statements and adjustments of a front with those of its cells."""

from collections.abc import Iterator
from datetime import date
from typing import Final

from sqlalchemy import Engine

from accounting.audit.differences import Difference
from accounting.db.queries import Queries
from accounting.front.cells import reading_cells

_QUERIES: Final = Queries("accounting.front.billing")
_CHECKS: Final = {
    "check_lines": "statements",
    "check_parts": "statements",
    "check_adjustments": "adjustments",
    "check_billed": "billed usage",
}
"""Each yields rows that differ, under the name of what was compared. The last one finds what the
others can't compare, and in other words what they find."""


def check_billing(engine: Engine, realm: str | None, period: date | None) -> Iterator[Difference]:
    """Yield where what the front billed is not what its cells have now, of a realm or a period."""
    found = set()
    with reading_cells(engine, statement_seconds=0) as connection:
        for name, what in _CHECKS.items():
            rows = connection.execute(_QUERIES.text(name), {"realm": realm, "period": period})
            for row in rows.mappings():
                users_period = row["realm"], row["period"], row["user_key"]
                if what == "billed usage" and users_period in found:
                    continue
                found.add(users_period)
                yield Difference(
                    realm=row["realm"],
                    period=row["period"],
                    what=what,
                    kind=row["kind"],
                    user_key=row["user_key"],
                    column=row["column"] or "",
                    booked=row["booked"] or "",
                    recomputed=row["recomputed"] or "",
                )
