"""The invariants of the books, when nothing is queued.

Sums by server = by transport = by user; no peak of a server is above that of its realm, and these
peaks together are not below it. Of each user of a closed period: statement + late usage = hours,
and the usage.counted of the feed = statement.
"""

from collections.abc import Iterable, Mapping, Sequence
from datetime import date, datetime
from decimal import Decimal
from typing import Any, Final
from uuid import UUID

from accounting.domain.counters import COUNTERS
from tests.support.books import Books

BILLED_NUMBERS: Final = (*COUNTERS, "session_seconds")
COUNTED_NUMBERS: Final = (*BILLED_NUMBERS, "sessions_started", "sessions_ended", "estimated_bytes")
LineKey = tuple[str, date, UUID]
_NUMBERS: Final = ", ".join(f"sum({name}) AS {name}" for name in COUNTED_NUMBERS)
_SUMS: Final = "SELECT realm, starts_at, {} FROM reporting.{} GROUP BY 1, 2 ORDER BY 1, 2"
_WRONG_PEAKS: Final = """
SELECT r.realm, r.starts_at, r.peak_sessions, p.highest, p.together
FROM reporting.realm_usage_{1} r LEFT JOIN (
    SELECT realm, starts_at, max(peak_sessions) AS highest, sum(peak_sessions) AS together
    FROM reporting.{0}_usage_{1} GROUP BY 1, 2
) p USING (realm, starts_at)
WHERE r.peak_sessions NOT BETWEEN coalesce(p.highest, 0) AND coalesce(p.together, 0)
"""


_WRONG_LOADS: Final = """
SELECT realm_id, server, l.live_sessions, s.live_sessions AS counted
FROM accounting.server_load l FULL JOIN (
    SELECT realm_id, accounting.server_host(server_address) AS server, count(*) AS live_sessions
    FROM accounting.sessions WHERE ended_at IS NULL AND confirmed GROUP BY 1, 2
) s USING (realm_id, server)
WHERE l.live_sessions IS DISTINCT FROM s.live_sessions
"""


def assert_servers_add_up(books: Books) -> None:
    """By server and by transport, hour by hour and day by day; and the open sessions."""
    for length in ("hourly", "daily"):
        of_users = _sums(books, f"user_usage_{length}")
        for dimension in ("server", "transport"):
            assert _sums(books, f"{dimension}_usage_{length}") == of_users, (dimension, length)
            assert books.query(_WRONG_PEAKS.format(dimension, length), prepare=True) == []
    assert books.query(_WRONG_LOADS, prepare=True) == []


def _sums(books: Books, view: str) -> list[dict[str, Any]]:
    rows = books.query(_SUMS.format(_NUMBERS, view), prepare=True)
    return [row for row in rows if any(row[name] for name in COUNTED_NUMBERS)]


def sums_by_line(
    rows: Iterable[Mapping[str, Any]], names: Sequence[str] = BILLED_NUMBERS
) -> dict[LineKey, tuple[Decimal, ...]]:
    """The sums of all numbers by realm, period and user, without users whose sums are all 0."""
    sums: dict[LineKey, list[Decimal]] = {}
    for row in rows:
        key = row["realm"], row["period"], row["user_key"]
        line = sums.setdefault(key, [Decimal(0)] * len(names))
        for index, name in enumerate(names):
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


def counted_usage(books: Books) -> list[dict[str, Any]]:
    """All usage.counted, numbered or not, in order, as payloads with the realm; ids differ."""
    events = books.query(
        "SELECT r.realm, c.*, started_at AS starts_at, accounting.iso_time(ended_at) AS ends_at,"
        " round(session_microseconds / 1e6, 6)::text AS session_seconds,"
        " is_correction AS correction FROM ("
        " SELECT 0 AS place, * FROM accounting.feed"
        " UNION ALL SELECT 1, * FROM accounting.feed_outbox"
        ") c JOIN accounting.realms r USING (realm_id)"
        " WHERE type = 'usage.counted' ORDER BY place, seq"
    )
    assert len({event["event_id"] for event in events}) == len(events)
    shown = ("realm", "user_key", "starts_at", "ends_at", *COUNTED_NUMBERS, "correction")
    return [{name: event[name] for name in shown} for event in events]


def assert_counted_usage_adds_up(books: Books) -> None:
    """Of a closed period the usage.counted are its statement, of other folded hours the hours."""
    folds = {
        row["realm"]: row["folded_until"]
        for row in books.query(
            "SELECT realm, folded_until FROM accounting.fold_watermarks"
            " JOIN accounting.realms USING (realm_id)"
        )
    }
    closed = [row for row in books.rows("periods") if row["state"] == "closed"]

    def line(row: Mapping[str, Any]) -> Any:
        """The closed period of an hour, or the hour."""
        for period in closed:
            if (
                row["realm"] == period["realm"]
                and period["starts_at"] <= row["starts_at"] < period["ends_at"]
            ):
                return period["period"]
        return row["starts_at"]

    counted = [{**event, "period": line(event)} for event in counted_usage(books)]
    hours = [
        {**row, "period": line(row)}
        for row in books.rows("user_usage_hourly")
        if row["starts_at"] < folds[row["realm"]]
    ]
    open_hours = [row for row in hours if isinstance(row["period"], datetime)]
    assert sums_by_line(counted, COUNTED_NUMBERS) == sums_by_line(
        [*books.rows("statements"), *open_hours], COUNTED_NUMBERS
    )
