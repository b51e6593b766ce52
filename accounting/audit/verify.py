"""Verifies the books: recomputes everything from the reports and compares it to the last unit.

Writes nothing but what the jobs it runs first write, and a proof of each closed period.
"""

from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, time
from itertools import chain

from sqlalchemy import Connection, Engine

from accounting.audit import (
    comparison,
    counted_check,
    ended_check,
    evidence_queries,
    proof_records,
)
from accounting.audit.comparison import DERIVED_TABLES
from accounting.audit.differences import Difference, DifferenceFactory
from accounting.audit.evidence_queries import source_names
from accounting.audit.finalized_queries import FinalizedMismatch
from accounting.audit.limit_check import check_limits
from accounting.audit.name_check import RealmNames
from accounting.audit.recompute_books import RECOMPUTING, recompute_books
from accounting.audit.snapshot import quiesced_snapshot
from accounting.audit.standing_check import check_standing
from accounting.audit.statement_check import (
    PartlyDroppedPeriod,
    check_statement,
    find_closed_periods,
    partly_dropped,
    stored_digest,
)
from accounting.billing.period_queries import realm_periods
from accounting.billing.statement_queries import current_cutoff
from accounting.db.engine import lost_connections
from accounting.domain.calendar import from_micros, to_micros
from accounting.errors import unknown_name, unknown_period
from accounting.identities import realm_queries
from accounting.plurals import counted
from accounting.progress import Progress, no_progress
from accounting.sessions import set_aside_reports
from accounting.sessions.careful_fold import SetAside


@dataclass(slots=True)
class VerifyResult:
    """How much was compared, counted while the differences are yielded.

    ``partly_dropped``: the closed periods of which some reports were dropped.
    """

    sessions: int = 0
    differences: int = 0
    partly_dropped: list[PartlyDroppedPeriod] = field(default_factory=list)


def verify(
    engine: Engine,
    realm: str | None = None,
    period: date | None = None,
    *,
    result: VerifyResult | None = None,
    progress: Progress = no_progress,
) -> Iterator[Difference]:
    """Yield every difference between the books and the reports, of one realm or period or of all.

    Fills ``result`` meanwhile. Records proofs once all differences are taken. Raises UsageError for
    an unknown name, NotYet, and ConnectionLost.
    """
    summary = result or VerifyResult()
    counts: Counter[tuple[str, date | None]] = Counter()

    total: int | None = None

    def on_batch(sessions: int) -> None:
        summary.sessions += sessions
        progress(summary.sessions, total, doing=RECOMPUTING)

    progress(0, doing="waiting for the jobs to rest")
    with quiesced_snapshot(engine) as connection, lost_connections():
        names = realm_queries.names_by_id(connection)
        realm_ids = find_realm_ids(names, realm)
        rules = realm_queries.all_rules(connection)
        differences = DifferenceFactory(names, rules)
        if period is not None:
            check_period(connection, differences, realm_ids, realm, period)
        closed_periods = find_closed_periods(connection, realm_ids, period)
        if progress is not no_progress:  # counting takes a while
            total = comparison.session_count(connection, realm_ids)
        progress(0, total, doing=RECOMPUTING)
        closed_count = len(closed_periods)
        recomputed = recompute_books(
            connection,
            rules,
            evidence_queries.settled_cutoff(connection),
            realm_ids,
            on_batch,
            lambda: progress(0, doing="rolling up the recomputed sessions"),
            [closed.checkpoint for closed in closed_periods if closed.recomputable],
        )
        for difference in chain(
            wrong_reports(connection) if realm is None and period is None else (),
            _table_differences(connection, differences, realm_ids, period, progress),
            ended_check.check_ends(connection, differences, realm_ids, period),
            finalized_differences(differences, recomputed.mismatches),
            _set_aside_differences(
                differences,
                source_names(connection),
                dict.fromkeys(
                    [*set_aside_reports.read(connection, realm_ids), *recomputed.set_aside]
                ),
                period,
            ),
            *(
                _with_progress(
                    check_statement(connection, differences, closed), progress, number, closed_count
                )
                for number, closed in enumerate(closed_periods)
            ),
        ):
            summary.differences += 1
            counts[difference.realm, difference.period] += 1
            yield difference
        summary.partly_dropped = partly_dropped(connection, names, closed_periods)
        digests = [stored_digest(connection, closed.row) for closed in closed_periods]
        positions = current_cutoff(connection).to_text()
    with lost_connections(), engine.begin() as connection:
        for closed, digest in zip(closed_periods, digests, strict=True):
            row = closed.row
            proof_records.record_proof(
                connection,
                row.realm_id,
                row.period,
                digest=digest,
                positions=positions,
                differences=counts[names[row.realm_id], row.period] + counts["", None],
                from_all_reports=closed.kept_since is None,
            )


def _with_progress(
    differences: Iterator[Difference], progress: Progress, done: int, total: int
) -> Iterator[Difference]:
    progress(done, total, doing="checking statements")
    yield from differences


def find_realm_ids(names: Mapping[int, str], realm: str | None) -> list[int]:
    """The ids of one realm or of all. Raises UsageError for an unknown name."""
    realm_ids = [realm_id for realm_id, name in names.items() if realm in (None, name)]
    if realm is not None and not realm_ids:
        raise unknown_name("realm", realm, names.values())
    return realm_ids


def check_period(
    connection: Connection,
    differences: DifferenceFactory,
    realm_ids: Collection[int],
    realm: str | None,
    period: date,
) -> None:
    """Raise UsageError for a period that no realm has, though rows may be missing.

    All of them are until the closing job has run once.
    """
    known = {row.period for realm_id in realm_ids for row in realm_periods(connection, realm_id)}
    is_possible = any(differences.period_bounds(realm_id, period) for realm_id in realm_ids)
    is_far = known and not min(known) <= period <= max(known)
    if is_far or not is_possible:
        raise unknown_period(realm, period, known)


def wrong_reports(connection: Connection) -> Iterator[Difference]:
    """The sources with fewer reports than were loaded, or some twice or out of order.

    And those whose rejected messages are not as many as were counted.
    """
    for counts in comparison.count_wrong_reports(connection):
        for kind, column, booked, expected in (
            ("missing", f"count of source {counts.source}", counts.stored, counts.loaded),
            ("unfounded", f"repeated positions of source {counts.source}", counts.repeated, 0),
            ("differs", f"receipt out of order of source {counts.source}", counts.out_of_order, 0),
        ):
            if booked < expected if kind == "missing" else booked > expected:
                yield Difference(
                    realm="",
                    period=None,
                    what="reports",
                    kind=kind,
                    column=column,
                    booked=str(booked),
                    recomputed=str(expected),
                )
    for source, stored, rejected in comparison.count_wrong_rejections(connection):
        yield Difference(
            realm="",
            period=None,
            what="rejected_messages",
            kind="differs",
            column=f"count of source {source}",
            booked=str(stored),
            recomputed=str(rejected),
        )


def _set_aside_differences(
    differences: DifferenceFactory,
    source_names: Mapping[int, str],
    reports: Iterable[SetAside],
    period: date | None,
) -> Iterator[Difference]:
    """The reports that are in no session, because folding them raised or raises an error."""
    by_position: dict[tuple[int, ...], SetAside] = {}
    for report in reports:
        by_position[report[:4]] = report
    for report in by_position.values():
        difference = differences.difference(
            report.realm_id,
            report.received_at,
            what="reports",
            kind="missing",
            column=f"{source_names[report.source_id]} {report.epoch}/{report.position}",
            recomputed=f"set aside: {report.reason}",
        )
        if period is None or difference.period == period:
            yield difference


def finalized_differences(
    differences: DifferenceFactory, mismatches: Iterable[FinalizedMismatch]
) -> Iterator[Difference]:
    """Finalized sessions that were changed, by the day they began."""
    for mismatch in mismatches:
        yield differences.difference(
            mismatch.realm_id,
            to_micros(datetime.combine(mismatch.day, time(), UTC)),
            what="sessions",
            kind="differs",
            column="digest of a day whose reports were dropped",
            booked=counted(mismatch.stored_count, "session"),
            recomputed=counted(mismatch.finalized_count, "session"),
        )


def _table_differences(
    connection: Connection,
    differences: DifferenceFactory,
    realm_ids: Collection[int],
    period: date | None,
    progress: Progress,
) -> Iterator[Difference]:
    for realm_id in realm_ids:
        bounds = None if period is None else differences.period_bounds(realm_id, period)
        if period is not None and bounds is None:
            continue
        yield from compare_tables(connection, differences, realm_id, bounds, progress=progress)
        yield from check_limits(connection, differences, realm_id, bounds)


def compare_tables(
    connection: Connection,
    differences: DifferenceFactory,
    realm_id: int,
    bounds: tuple[int, int] | None = None,
    *,
    progress: Progress = no_progress,
) -> Iterator[Difference]:
    """Compare a realm's derived tables with the recomputed ones.

    And its buckets, its names, what the roll-up keeps, and what the feed has of it.
    """
    for number, table in enumerate(DERIVED_TABLES):
        progress(
            number,
            len(DERIVED_TABLES),
            doing=f"comparing tables of realm '{differences.realm_name(realm_id)}'",
        )
        for mismatch in comparison.find_mismatches(connection, table, [realm_id], bounds):
            yield from differences.from_mismatch(mismatch)
    for difference in _bucket_differences(connection, differences, realm_id):
        assert difference.starts_at is not None
        if bounds is None or bounds[0] <= to_micros(difference.starts_at) < bounds[1]:
            yield difference
    yield from check_standing(connection, differences, realm_id, bounds)
    yield from counted_check.check_open_hours(connection, differences, realm_id, bounds)
    if bounds is None:
        yield from RealmNames(connection, realm_id).check(differences)


def _bucket_differences(
    connection: Connection, differences: DifferenceFactory, realm_id: int
) -> Iterator[Difference]:
    calendar = differences.rules[realm_id].calendar
    for length, stored in comparison.stored_buckets(connection, realm_id):
        expected = calendar.bucket(length, stored.starts_at)
        for column, stored_value, expected_value in (
            ("starts_at", from_micros(stored.starts_at), from_micros(expected.starts_at)),
            ("ends_at", from_micros(stored.ends_at), from_micros(expected.ends_at)),
            ("time_zone", stored.time_zone, expected.time_zone),
        ):
            if stored_value != expected_value:
                yield differences.difference(
                    realm_id,
                    stored.starts_at,
                    what="buckets",
                    kind="differs",
                    column=f"{length.value} {column}",
                    booked=_to_text(stored_value),
                    recomputed=_to_text(expected_value),
                )
    for length, missing in comparison.missing_buckets(connection, realm_id):
        yield differences.difference(
            realm_id, missing.starts_at, what="buckets", kind="missing", column=length.value
        )


def _to_text(value: datetime | str) -> str:
    return value.isoformat() if isinstance(value, datetime) else value
