"""Verify: everything recomputed from the reports, and compared with the books to the last unit.

Changes nothing, but for settling and rolling up what waits, and notes of each closed period how it
came out. Each difference is named: what stands where, what is booked, and what the reports say.
"""

from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping
from datetime import UTC, date, datetime, time
from itertools import chain
from typing import Any

from sqlalchemy import Connection, Engine

from accounting.audit import comparison, evidence_queries, proof_records
from accounting.audit.comparison import DERIVED_TABLES
from accounting.audit.differences import Difference, DifferenceFactory
from accounting.audit.recompute_books import quiesced_snapshot, recompute_books
from accounting.audit.retention_queries import FinalizedMismatch
from accounting.audit.statement_check import (
    PartlyDroppedPeriod,
    check_statement,
    find_closed_periods,
    partly_dropped,
    stored_digest,
)
from accounting.billing.statement_queries import current_cutoff
from accounting.db.engine import lost_connections
from accounting.domain.calendar import BucketLength, from_micros, to_micros
from accounting.errors import UsageError, unknown_name
from accounting.identities import realm_queries
from accounting.progress import Progress, no_progress


class VerifyResult:
    """The differences as they are found, and afterwards how much was compared.

    ``partly_dropped``: the closed periods that could not be compared with all of their reports.
    """

    def __init__(self) -> None:
        self.sessions = 0
        self.differences = 0
        self.partly_dropped: list[PartlyDroppedPeriod] = []


def verify(
    engine: Engine,
    realm: str | None = None,
    period: date | None = None,
    *,
    result: VerifyResult | None = None,
    progress: Progress = no_progress,
) -> Iterator[Difference]:
    """Every difference between the books and the reports, of one realm or period or of all.

    ``verdict`` is filled as they come. Taken to the end, proofs are noted. Raises UsageError for
    what nobody knows, NotYet, and ConnectionLost.
    """
    found = result or VerifyResult()
    differing: Counter[tuple[str, date | None]] = Counter()

    def count(sessions: int) -> None:
        found.sessions += sessions
        progress(found.sessions)

    with quiesced_snapshot(engine) as connection, lost_connections():
        names = realm_queries.names_by_id(connection)
        chosen = _chosen(names, realm)
        rules = realm_queries.all_rules(connection)
        closed = find_closed_periods(connection, chosen, period)
        now = evidence_queries.settled_cutoff(connection)
        stops = [one.stop for one in closed if one.recomputable]
        unsealed = recompute_books(connection, rules, now, chosen, count, stops)
        naming = DifferenceFactory(names, rules)
        for difference in chain(
            lost_reports(connection) if realm is None and period is None else (),
            _differences(connection, naming, chosen, realm, period),
            finalized_differences(naming, unsealed),
            *(check_statement(connection, naming, one) for one in closed),
        ):
            found.differences += 1
            differing[difference.realm, difference.period] += 1
            yield difference
        found.partly_dropped = partly_dropped(names, closed)
        noted = [(one, stored_digest(connection, one.row)) for one in closed]
        positions = current_cutoff(connection).to_text()
    with lost_connections(), engine.begin() as connection:
        for one, digest in noted:
            proof_records.record_proof(
                connection,
                one.row.realm_id,
                one.row.period,
                digest=digest,
                positions=positions,
                differences=differing[names[one.row.realm_id], one.row.period]
                + differing["", None],
                is_whole=one.kept_since is None,
            )


def _chosen(names: Mapping[int, str], realm: str | None) -> list[int]:
    chosen = [realm_id for realm_id, name in names.items() if realm in (None, name)]
    if realm is not None and not chosen:
        raise unknown_name("realm", realm, names.values())
    return chosen


def lost_reports(connection: Connection) -> Iterator[Difference]:
    """Sources of which fewer reports are kept than were loaded, and not dropped."""
    for source, loaded, kept in comparison.find_lost_reports(connection):
        yield Difference(
            realm="",
            period=None,
            what="reports",
            kind="missing",
            column=f"count of source {source}",
            booked=str(kept),
            recomputed=str(loaded),
        )


def finalized_differences(
    naming: DifferenceFactory, unsealed: Iterable[FinalizedMismatch]
) -> Iterator[Difference]:
    """Sessions whose reports were dropped, by the day they began, that were changed afterwards."""
    for one in unsealed:
        yield naming.difference(
            one.realm_id,
            to_micros(datetime.combine(one.day, time(), UTC)),
            what="sessions",
            kind="differs",
            column="digest of a day whose reports were dropped",
            booked=f"{one.stored_count} sessions",
            recomputed=f"{one.finalized_count} sessions",
        )


def _differences(
    connection: Connection,
    naming: DifferenceFactory,
    chosen: Collection[int],
    realm: str | None,
    period: date | None,
) -> Iterator[Difference]:
    for realm_id in chosen:
        span = None if period is None else naming.period_bounds(realm_id, period)
        if period is not None and span is None:
            if realm is not None:
                raise UsageError(f"no period of realm '{realm}' begins on {period}")
            continue
        yield from compare_tables(connection, naming, realm_id, span)


def compare_tables(
    connection: Connection,
    naming: DifferenceFactory,
    realm_id: int,
    span: tuple[int, int] | None = None,
) -> Iterator[Difference]:
    """What differs from the staged books of a realm: all tables that follow from the reports."""
    for name in DERIVED_TABLES:
        for mismatch in comparison.find_mismatches(connection, name, [realm_id], span):
            yield from naming.from_mismatch(mismatch)
    yield from _wrong_buckets(connection, naming, realm_id, span)


def _wrong_buckets(
    connection: Connection, naming: DifferenceFactory, realm_id: int, span: tuple[int, int] | None
) -> Iterator[Difference]:
    calendar = naming.rules[realm_id].calendar

    def lies_within(starts_at: int) -> bool:
        return span is None or span[0] <= starts_at < span[1]

    for _, level, starts_at, ends_at, zone in comparison.stored_buckets(connection, [realm_id]):
        bucket = calendar.bucket(BucketLength(level), starts_at)
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
    for of_realm, level, starts_at, *_ in comparison.missing_buckets(connection):
        if of_realm == realm_id and lies_within(starts_at):
            yield naming.difference(
                realm_id, starts_at, what="buckets", kind="missing", column=level
            )


def _shown(value: Any) -> str:
    if isinstance(value, datetime):
        return value.isoformat()
    return from_micros(value).isoformat() if isinstance(value, int) else str(value)
