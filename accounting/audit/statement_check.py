"""Checks closed periods: each line against its cutoff, and later usage against the adjustments.

Lines are recomputed from the reports while those are kept. Where reports beyond the cutoff
were dropped, the stored lines are compared with the digest of the last proof.
"""

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime, time
from typing import Any, Final

from sqlalchemy import Connection

from accounting.audit import (
    comparison,
    counted_check,
    evidence_queries,
    proof_records,
    retention_queries,
)
from accounting.audit.checkpoints import Checkpoint
from accounting.audit.comparison import LineComparison
from accounting.audit.differences import Difference, DifferenceFactory
from accounting.audit.proof_records import Proof
from accounting.billing.period_queries import PeriodRow, realm_periods
from accounting.billing.statement_queries import LINE_NUMBERS
from accounting.domain.calendar import to_micros
from accounting.domain.counters import COUNTERS
from accounting.domain.statements import line_digest, statement_digest

ADJUSTED_NUMBERS: Final = (*COUNTERS, "session_microseconds")
"""The numbers that late usage adjusts."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ClosedPeriod:
    """A closed period, and what it can be checked against.

    ``recomputable``: no report beyond its cutoff was dropped, so its lines can be recomputed.
    ``kept_since``: where some of its reports were dropped, the first day (UTC) that has all.
    ``proof``: its last proof.
    """

    row: PeriodRow
    checkpoint: Checkpoint
    recomputable: bool
    kept_since: date | None
    proof: Proof | None


@dataclass(frozen=True, slots=True, kw_only=True)
class PartlyDroppedPeriod:
    """A closed period of which reports were dropped: all are kept from ``kept_since`` on (UTC).

    ``proof``: the last one made while all were there; None where there was none. ``archives``:
    where days of the period are archived. ``unarchived_days``: of how many days reports were
    dropped without an archive. ``cell``: of a front, whose books these are.
    """

    realm: str
    period: date
    kept_since: date
    proof: Proof | None
    archives: tuple[str, ...] = ()
    unarchived_days: int = 0
    cell: str | None = None


def find_closed_periods(
    connection: Connection, realm_ids: Collection[int], period: date | None
) -> list[ClosedPeriod]:
    """The closed periods of those realms, or the one of each that begins on that day."""
    dropped_positions = retention_queries.dropped_positions_by_source(connection)
    first_complete_days = retention_queries.first_complete_days(connection)
    proofs = proof_records.load_proofs(connection)
    closed: list[ClosedPeriod] = []
    for realm_id in realm_ids:
        kept_since = first_complete_days.get(realm_id)
        for row in realm_periods(connection, realm_id):
            if row.cutoff is None or period not in (None, row.period):
                continue
            cutoff = evidence_queries.parse_cutoff(connection, row.cutoff)
            positions = {
                watermark.source_id: (watermark.epoch, watermark.position)
                for watermark in cutoff.watermarks
            }
            is_whole = kept_since is None or row.starts_at >= datetime.combine(
                kept_since, time(), UTC
            )
            closed.append(
                ClosedPeriod(
                    row=row,
                    checkpoint=Checkpoint(
                        realm_id=realm_id,
                        starts_at=to_micros(row.starts_at),
                        ends_at=to_micros(row.ends_at),
                        cutoff=cutoff,
                    ),
                    recomputable=all(
                        positions.get(source_id, (0, 0)) >= dropped
                        for source_id, dropped in dropped_positions.items()
                    ),
                    kept_since=None if is_whole else kept_since,
                    proof=proofs.get((realm_id, row.period)),
                )
            )
    return closed


def partly_dropped(
    connection: Connection, names: Mapping[int, str], closed: Iterable[ClosedPeriod]
) -> list[PartlyDroppedPeriod]:
    """Those of the periods of which reports were dropped. ``names``: of realms."""
    return [
        PartlyDroppedPeriod(
            realm=names[period.row.realm_id],
            period=period.row.period,
            kept_since=period.kept_since,
            proof=period.proof,
            archives=archives.places,
            unarchived_days=archives.unarchived_days,
        )
        for period in closed
        if period.kept_since is not None
        for archives in [
            retention_queries.archives_of_span(
                connection, period.row.realm_id, period.row.starts_at, period.row.ends_at
            )
        ]
    ]


def stored_digest(connection: Connection, row: PeriodRow) -> str:
    """The digest over all stored lines of a period's statement."""
    return statement_digest(comparison.line_digests(connection, row))


def check_statement(
    connection: Connection, differences: DifferenceFactory, closed: ClosedPeriod
) -> Iterator[Difference]:
    """Check a closed period: its bounds, its lines, line + adjustments = usage, and the feed."""
    row, checkpoint = closed.row, closed.checkpoint
    assert row.cutoff is not None

    def difference(what: str, kind: str, **fields: Any) -> Difference:
        return differences.difference(
            row.realm_id, checkpoint.starts_at, what=what, kind=kind, **fields
        )

    bounds = differences.period_bounds(row.realm_id, row.period)
    if bounds != (checkpoint.starts_at, checkpoint.ends_at):
        yield difference("periods", "differs", column="starts_at, ends_at")
    if not closed.recomputable:
        proved_digest = None if closed.proof is None else closed.proof.digest
        digest = stored_digest(connection, row)
        if digest != proved_digest:
            yield difference(
                "statements",
                "differs",
                column="digest of all lines",
                booked=digest,
                recomputed=proved_digest or "never proved",
            )
    compare = comparison.compare_statement if closed.recomputable else comparison.stored_lines
    yield from check_lines(differences, closed, compare(connection, row))
    for line in comparison.unbalanced_adjustments(connection, row):
        yield from _number_differences(difference, "adjustments", ADJUSTED_NUMBERS, line)
    yield from counted_check.check_closed_period(connection, differences, row)


def check_lines(
    differences: DifferenceFactory, closed: ClosedPeriod, lines: Iterable[LineComparison]
) -> Iterator[Difference]:
    """Check the lines of a statement: their numbers, and the digest of each."""
    row = closed.row
    assert row.cutoff is not None

    def difference(what: str, kind: str, **fields: Any) -> Difference:
        return differences.difference(
            row.realm_id, closed.checkpoint.starts_at, what=what, kind=kind, **fields
        )

    for line in lines:
        if line.stored is None or line.recomputed is None:
            kind = "missing" if line.stored is None else "unfounded"
            yield difference("statements", kind, user_key=line.user_key)
            continue
        yield from _number_differences(difference, "statements", LINE_NUMBERS, line)
        digest = line_digest(
            realm=differences.realm_name(row.realm_id),
            period=row.period,
            user_key=line.user_key,
            numbers=line.recomputed,
            cutoff=row.cutoff,
        )
        if line.digest != digest:
            yield difference(
                "statements",
                "differs",
                user_key=line.user_key,
                column="digest",
                booked=str(line.digest),
                recomputed=digest,
            )


def _number_differences(
    difference: Callable[..., Difference], what: str, columns: Sequence[str], line: LineComparison
) -> Iterator[Difference]:
    for column, stored, recomputed in zip(
        columns, line.stored or (), line.recomputed or (), strict=True
    ):
        if stored != recomputed:
            yield difference(
                what,
                "differs",
                user_key=line.user_key,
                column=column,
                booked=str(stored),
                recomputed=str(recomputed),
            )
