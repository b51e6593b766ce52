"""Verify: everything recomputed from the reports, and compared with the books to the last unit.

Changes nothing, but for settling and rolling up what waits. Each difference is named: what stands
where, what is booked, and what the reports say.
"""

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import date, datetime
from typing import Any, Final
from uuid import UUID

from sqlalchemy import Connection, Engine

from accounting.errors import UsageError
from accounting.jobs.proof import Progress, snapshot_at_rest, stage_books, unseen
from accounting.jobs.recompute import Stop
from accounting.model.buckets import Level, microseconds, moment
from accounting.model.counters import COUNTERS
from accounting.model.periods import Period, periods
from accounting.model.realms import RealmRules
from accounting.model.statements import digest
from accounting.store import periods as closed_periods
from accounting.store import proving, realms, replaying
from accounting.store.database import lost_connections
from accounting.store.periods import NUMBERS, PeriodRow
from accounting.store.proving import BOOKS, Line, Mismatch

BALANCED: Final = (*COUNTERS, "session_microseconds")
"""The numbers that late usage adjusts."""


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


class Verdict:
    """The differences as they are found, and afterwards how much was compared."""

    def __init__(self) -> None:
        self.sessions = 0
        self.differences = 0


def verify(
    engine: Engine,
    realm: str | None = None,
    period: date | None = None,
    *,
    verdict: Verdict | None = None,
    progress: Progress = unseen,
) -> Iterator[Difference]:
    """Every difference between the books and the reports, of one realm or period or of all.

    ``verdict`` is filled as they come. Raises UsageError for what nobody knows, NotYet, and
    ConnectionLost.
    """
    found = verdict or Verdict()

    def count(sessions: int) -> None:
        found.sessions += sessions
        progress(sessions)

    with snapshot_at_rest(engine) as connection, lost_connections():
        names = realms.names(connection)
        chosen = _chosen(names, realm)
        rules = realms.all_rules(connection)
        closed = [
            row
            for realm_id in chosen
            for row in closed_periods.find(connection, realm_id)
            if row.closed_at is not None and period in (None, row.period)
        ]
        stops = [_stop(connection, row) for row in closed]
        stage_books(connection, rules, replaying.settled_now(connection), chosen, count, stops)
        naming = Naming(names, rules)
        for difference in _differences(connection, naming, chosen, realm, period, closed):
            found.differences += 1
            yield difference


def _chosen(names: Mapping[int, str], realm: str | None) -> list[int]:
    chosen = [realm_id for realm_id, name in names.items() if realm in (None, name)]
    if realm is not None and not chosen:
        raise UsageError(f"no realm '{realm}' is known")
    return chosen


def _stop(connection: Connection, row: PeriodRow) -> Stop:
    assert row.cutoff is not None
    return Stop(
        realm_id=row.realm_id,
        starts_at=microseconds(row.starts_at),
        ends_at=microseconds(row.ends_at),
        cutoff=replaying.cutoff_of(connection, row.cutoff),
    )


def _differences(
    connection: Connection,
    naming: "Naming",
    chosen: Collection[int],
    realm: str | None,
    period: date | None,
    closed: Collection[PeriodRow],
) -> Iterator[Difference]:
    if realm is None and period is None:
        for source, loaded, kept in proving.lost_reports(connection):
            yield Difference(
                realm="",
                period=None,
                what="reports",
                kind="missing",
                column=f"count of source {source}",
                booked=str(kept),
                recomputed=str(loaded),
            )
    for realm_id in chosen:
        span = None if period is None else naming.span(realm_id, period)
        if period is not None and span is None:
            if realm is not None:
                raise UsageError(f"no period of realm '{realm}' begins on {period}")
            continue
        yield from wrong_books(connection, naming, realm_id, span)
    for row in closed:
        yield from _wrong_statement(connection, naming, row)


def wrong_books(
    connection: Connection,
    naming: "Naming",
    realm_id: int,
    span: tuple[int, int] | None = None,
) -> Iterator[Difference]:
    """What differs from the staged books of a realm: all tables that follow from the reports."""
    for name in BOOKS:
        for mismatch in proving.mismatches(connection, name, [realm_id], span):
            yield from naming.name(mismatch)
    yield from _wrong_buckets(connection, naming, realm_id, span)


def _wrong_buckets(
    connection: Connection, naming: "Naming", realm_id: int, span: tuple[int, int] | None
) -> Iterator[Difference]:
    calendar = naming.rules[realm_id].calendar

    def lies_within(starts_at: int) -> bool:
        return span is None or span[0] <= starts_at < span[1]

    for _, level, starts_at, ends_at, zone in proving.booked_buckets(connection, [realm_id]):
        bucket = calendar.bucket(Level(level), starts_at)
        for column, booked, true in (
            ("starts_at", starts_at, bucket.starts_at),
            ("ends_at", ends_at, bucket.ends_at),
            ("time_zone", zone, bucket.time_zone),
        ):
            if booked != true and lies_within(starts_at):
                yield naming.difference(
                    realm_id,
                    starts_at,
                    what="buckets",
                    kind="differs",
                    column=f"{level} {column}",
                    booked=_shown(booked),
                    recomputed=_shown(true),
                )
    for of_realm, level, starts_at, *_ in proving.missing_buckets(connection):
        if of_realm == realm_id and lies_within(starts_at):
            yield naming.difference(
                realm_id, starts_at, what="buckets", kind="missing", column=level
            )


def _wrong_statement(
    connection: Connection, naming: "Naming", row: PeriodRow
) -> Iterator[Difference]:
    """What is wrong with a closed period: its borders, its lines at their cutoff, its balance."""
    assert row.cutoff is not None
    starts_at = microseconds(row.starts_at)

    def difference(what: str, kind: str, **rest: Any) -> Difference:
        return naming.difference(row.realm_id, starts_at, what=what, kind=kind, **rest)

    borders = starts_at, microseconds(row.ends_at)
    if naming.span(row.realm_id, row.period) != borders:
        yield difference("periods", "differs", column="starts_at, ends_at")
    for line in proving.statement_lines(connection, row):
        if line.booked is None or line.proved is None:
            kind = "missing" if line.booked is None else "unfounded"
            yield difference("statements", kind, user_key=line.user_key)
            continue
        yield from _unequal(difference, "statements", NUMBERS, line)
        true = digest(
            realm=naming.realm(row.realm_id),
            period=row.period,
            user_key=line.user_key,
            numbers=line.proved,
            cutoff=row.cutoff,
        )
        if line.digest != true:
            yield difference(
                "statements",
                "differs",
                user_key=line.user_key,
                column="digest",
                booked=str(line.digest),
                recomputed=true,
            )
    for line in proving.unbalanced(connection, row):
        yield from _unequal(difference, "adjustments", BALANCED, line)


def _unequal(
    difference: Callable[..., Difference], what: str, columns: Sequence[str], line: Line
) -> Iterator[Difference]:
    for column, booked, proved in zip(columns, line.booked or (), line.proved or (), strict=True):
        if booked != proved:
            yield difference(
                what,
                "differs",
                user_key=line.user_key,
                column=column,
                booked=str(booked),
                recomputed=str(proved),
            )


def _shown(value: Any) -> str:
    if isinstance(value, datetime):
        return value.isoformat()
    return moment(value).isoformat() if isinstance(value, int) else str(value)


class Naming:
    """How a difference is named: realms by name, times by the period they fall in."""

    def __init__(self, names: Mapping[int, str], rules: Mapping[int, RealmRules]) -> None:
        self.rules = rules
        self._names = names
        self._last: dict[int, Period] = {}

    def realm(self, realm_id: int) -> str:
        """The name of a realm."""
        return self._names[realm_id]

    def span(self, realm_id: int, period: date) -> tuple[int, int] | None:
        """The borders of a realm's period that begins on that local day."""
        noon = microseconds(datetime.fromisoformat(f"{period}T12:00:00+00:00"))
        day = 86_400_000_000
        for one in periods(self.rules[realm_id], noon - 2 * day, noon + 2 * day):
            if one.first_day == period:
                return one.starts_at, one.ends_at
        return None

    def name(self, mismatch: Mismatch) -> Iterator[Difference]:
        """One difference for a row that only one side has, else one for each column."""
        row = mismatch.row
        begins = row["started_at"] if mismatch.table == "sessions" else row["starts_at"]
        at = microseconds(begins)
        booked, proved = mismatch.booked, mismatch.proved
        which = {
            "user_key": row.get("user_key"),
            "session_id": row.get("session_id"),
        }
        if booked is None or proved is None:
            kind = "missing" if booked is None else "unfounded"
            yield self.difference(row["realm_id"], at, what=mismatch.table, kind=kind, **which)
            return
        for column in proving.proved_columns(BOOKS[mismatch.table]):
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
        last = self._last.get(realm_id)
        if last is None or not last.starts_at <= at < last.ends_at:
            last = next(periods(self.rules[realm_id], at, at))
            self._last[realm_id] = last
        return Difference(
            realm=self._names[realm_id], period=last.first_day, starts_at=moment(at), **rest
        )
