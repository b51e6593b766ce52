"""Closed periods, proved: each line at its cutoff, and what came later by its adjustments.

From the reports, as long as they are kept. Where they were dropped beyond the cutoff, a statement
is compared with the digest that it had when it was last proved from them.
"""

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime, time
from typing import Any, Final

from sqlalchemy import Connection

from accounting.audit import comparison, evidence_queries, proof_records, retention_queries
from accounting.audit.comparison import LineComparison
from accounting.audit.differences import Difference, DifferenceFactory
from accounting.audit.proof_records import Proof
from accounting.audit.recompute import Stop
from accounting.billing import period_queries
from accounting.billing.period_queries import PeriodRow
from accounting.billing.statement_queries import LINE_NUMBERS
from accounting.domain import statements
from accounting.domain.calendar import to_micros
from accounting.domain.counters import COUNTERS
from accounting.domain.statements import line_digest

ADJUSTED_NUMBERS: Final = (*COUNTERS, "session_microseconds")
"""The numbers that late usage adjusts."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ClosedPeriod:
    """A closed period, and what there is to prove it by.

    ``stop``: its cutoff. ``is_told``: its lines can be computed again at the cutoff.
    ``kept_since``: where some of its reports were dropped, the first day (UTC) that has all;
    ``proof``: its last proof.
    """

    row: PeriodRow
    stop: Stop
    recomputable: bool
    kept_since: date | None
    proof: Proof | None


@dataclass(frozen=True, slots=True, kw_only=True)
class PartlyDroppedPeriod:
    """A closed period of which reports were dropped: all are kept from ``kept_since`` on (UTC).

    ``proof``: the last that was made while all were there; None where there was none.
    """

    realm: str
    period: date
    kept_since: date
    proof: Proof | None


def find_closed_periods(
    connection: Connection, realm_ids: Collection[int], period: date | None
) -> list[ClosedPeriod]:
    """The closed periods of those realms, or the one of each that begins on that day."""
    upto = retention_queries.dropped_positions_by_source(connection)
    kept_since = retention_queries.first_complete_days(connection)
    proved = proof_records.load_proofs(connection)
    found: list[ClosedPeriod] = []
    for realm_id in realm_ids:
        for row in period_queries.realm_periods(connection, realm_id):
            if row.cutoff is None or period not in (None, row.period):
                continue
            cutoff = evidence_queries.parse_cutoff(connection, row.cutoff)
            reached = {mark.source_id: (mark.epoch, mark.position) for mark in cutoff.watermarks}
            since = kept_since.get(realm_id)
            found.append(
                ClosedPeriod(
                    row=row,
                    stop=Stop(
                        realm_id=realm_id,
                        starts_at=to_micros(row.starts_at),
                        ends_at=to_micros(row.ends_at),
                        cutoff=cutoff,
                    ),
                    recomputable=all(reached.get(of, (0, 0)) >= last for of, last in upto.items()),
                    kept_since=since
                    if since and row.starts_at < datetime.combine(since, time(), UTC)
                    else None,
                    proof=proved.get((realm_id, row.period)),
                )
            )
    return found


def partly_dropped(
    names: Mapping[int, str], closed: Iterable[ClosedPeriod]
) -> list[PartlyDroppedPeriod]:
    """The periods among them of which reports were dropped, by name of realm."""
    return [
        PartlyDroppedPeriod(
            realm=names[one.row.realm_id],
            period=one.row.period,
            kept_since=one.kept_since,
            proof=one.proof,
        )
        for one in closed
        if one.kept_since is not None
    ]


def stored_digest(connection: Connection, row: PeriodRow) -> str:
    """The digest over all lines of a period's statement."""
    return statements.statement_digest(comparison.line_digests(connection, row))


def check_statement(
    connection: Connection, naming: DifferenceFactory, closed: ClosedPeriod
) -> Iterator[Difference]:
    """What is wrong with a closed period: its borders, its lines, its balance."""
    row = closed.row
    assert row.cutoff is not None
    starts_at = closed.stop.starts_at

    def difference(what: str, kind: str, **rest: Any) -> Difference:
        return naming.difference(row.realm_id, starts_at, what=what, kind=kind, **rest)

    if naming.period_bounds(row.realm_id, row.period) != (starts_at, closed.stop.ends_at):
        yield difference("periods", "differs", column="starts_at, ends_at")
    if not closed.recomputable:
        proved = None if closed.proof is None else closed.proof.digest
        booked = stored_digest(connection, row)
        if booked != proved:
            yield difference(
                "statements",
                "differs",
                column="digest of all lines",
                booked=booked,
                recomputed=proved or "never proved",
            )
    lines = comparison.compare_statement if closed.recomputable else comparison.stored_lines
    for line in lines(connection, row):
        if line.stored is None or line.recomputed is None:
            kind = "missing" if line.stored is None else "unfounded"
            yield difference("statements", kind, user_key=line.user_key)
            continue
        yield from _unequal(difference, "statements", LINE_NUMBERS, line)
        true = line_digest(
            realm=naming.realm_name(row.realm_id),
            period=row.period,
            user_key=line.user_key,
            numbers=line.recomputed,
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
    for line in comparison.unbalanced_adjustments(connection, row):
        yield from _unequal(difference, "adjustments", ADJUSTED_NUMBERS, line)


def _unequal(
    difference: Callable[..., Difference], what: str, columns: Sequence[str], line: LineComparison
) -> Iterator[Difference]:
    for column, booked, proved in zip(
        columns, line.stored or (), line.recomputed or (), strict=True
    ):
        if booked != proved:
            yield difference(
                what,
                "differs",
                user_key=line.user_key,
                column=column,
                booked=str(booked),
                recomputed=str(proved),
            )
