"""Verifies closed periods from an archive of reports: recomputes each statement, line by line.

Everything happens in scratch tables; nothing is stored. A period needs the reports from the day on
which the first session with usage in it began, to its statement's cutoff. Days that the archive
lacks are taken from the database while it has them.
"""

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, time, timedelta
from itertools import groupby, islice
from operator import attrgetter
from typing import Any, Final

from sqlalchemy import Connection, Engine, text

from accounting.archive import archive_records
from accounting.archive.archive_manifest import (
    ArchiveManifest,
    archive_manifest_name,
    read_archive_manifest,
)
from accounting.archive.archive_records import ArchiveRecord
from accounting.archive.day_contents import day_span
from accounting.archive.load_archive import last_positions, load_archive
from accounting.audit import comparison, recomputed_tables
from accounting.audit.comparison import LineComparison
from accounting.audit.differences import Difference, DifferenceFactory
from accounting.audit.evidence_queries import ARCHIVED, EvidenceScope
from accounting.audit.recompute import recompute_sessions
from accounting.audit.recompute_books import SESSIONS_PER_BATCH
from accounting.audit.statement_check import ClosedPeriod, check_lines, find_closed_periods
from accounting.audit.verify import check_period, find_realm_ids
from accounting.db.engine import lost_connections, psycopg_connection
from accounting.db.queries import Queries
from accounting.domain.calendar import from_micros
from accounting.domain.realm_rules import RealmRules
from accounting.errors import NotYet
from accounting.export import parquet
from accounting.export.place import Place
from accounting.export.place_address import open_place
from accounting.identities import realm_queries
from accounting.progress import Progress, no_progress
from accounting.sources import source_queries
from accounting.sources.rename import ids_by_former_name

_QUERIES: Final = Queries("accounting.audit")


@dataclass(frozen=True, slots=True, kw_only=True)
class IncompletePeriod:
    """A closed period of which reports were dropped on a day without an archive."""

    realm: str
    period: date
    day: date


@dataclass(slots=True)
class ArchiveResult:
    """What was verified, counted while the differences are yielded.

    ``archived_days``: how many days were read from the archive; ``kept_reports``: reports that were
    read from the database instead.
    """

    statements: int = 0
    lines: int = 0
    archived_days: int = 0
    archived_reports: int = 0
    kept_reports: int = 0
    differences: int = 0
    incomplete: list[IncompletePeriod] = field(default_factory=list)


def verify_archive(
    engine: Engine,
    address: str,
    realm: str | None = None,
    period: date | None = None,
    *,
    result: ArchiveResult,
    progress: Progress = no_progress,
) -> Iterator[Difference]:
    """Yield the differences between statements and what an archive's reports give.

    ``address``: the path or URL of the archive. Of one realm or period, or of all that are closed.
    Fills ``result`` meanwhile. Raises UsageError for an unknown name, NotYet where the period is
    not closed, ConfigurationError without pyarrow, AccountingError where the archive can't be read
    or is of another installation, and ConnectionLost.
    """
    parquet.require_pyarrow()
    place = open_place(address)
    with lost_connections(), engine.connect() as connection:
        names = realm_queries.names_by_id(connection)
        realm_ids = find_realm_ids(names, realm)
        rules = realm_queries.all_rules(connection)
        differences = DifferenceFactory(names, rules)
        if period is not None:
            check_period(connection, differences, realm_ids, realm, period)
        closed_periods = find_closed_periods(connection, realm_ids, period)
    if not closed_periods:
        which = "no period" if period is None else f"period {period}"
        raise NotYet(f"{which} is closed yet, so there is no statement to verify")
    first_day = attrgetter("row.period")
    for _, group in groupby(sorted(closed_periods, key=first_day), key=first_day):
        with (
            lost_connections(),
            engine.connect().execution_options(isolation_level="REPEATABLE READ") as connection,
            connection.begin() as transaction,
        ):
            verification = _Verification(
                connection, place, names, rules, differences, list(group), result, progress
            )
            for difference in verification.run():
                result.differences += 1
                yield difference
            transaction.rollback()


class _Verification:
    """The periods that begin on one day, and their evidence in scratch tables."""

    def __init__(
        self,
        connection: Connection,
        place: Place,
        names: Mapping[int, str],
        rules: Mapping[int, RealmRules],
        differences: DifferenceFactory,
        periods: list[ClosedPeriod],
        result: ArchiveResult,
        progress: Progress,
    ) -> None:
        self._connection = connection
        self._place = place
        self._names = names
        self._rules = rules
        self._differences = differences
        self._periods = periods
        self._result = result
        self._progress = progress
        self._realm_ids = [period.row.realm_id for period in periods]
        # Realms whose evidence has a hole, on that day.
        self._incomplete: dict[str, date] = {}

    def run(self) -> Iterator[Difference]:
        """Load the evidence; recompute and compare each statement whose evidence is whole."""
        psycopg_connection(self._connection).execute(_QUERIES.driver("create_archived_evidence"))
        problems = list(self._load(*self._days()))
        yield from problems
        if problems:
            return
        self._connection.execute(text("ANALYZE pg_temp.reports, pg_temp.key_sightings"))
        for period in self._periods:
            name = self._names[period.row.realm_id]
            if (day := self._incomplete.get(name)) is not None:
                self._result.incomplete.append(
                    IncompletePeriod(realm=name, period=period.row.period, day=day)
                )
                continue
            yield from self._verify(period)

    def _days(self) -> tuple[date, date]:
        """The first and the last day (UTC) of the evidence."""
        first: list[datetime] = []
        last: list[datetime] = []
        for period in self._periods:
            row = period.row
            started_at = self._connection.execute(
                _QUERIES.text("first_start_in_period"),
                {"realm_id": row.realm_id, "starts_at": row.starts_at, "ends_at": row.ends_at},
            ).scalar_one()
            # Of a statement without any session in the books, at least its own days are read.
            first.append(row.starts_at if started_at is None else min(started_at, row.starts_at))
            last.append(row.ends_at)
            last += [
                from_micros(watermark.settled_until)
                for watermark in period.checkpoint.cutoff.watermarks
                if watermark.settled_until is not None
            ]
        return min(first).astimezone(UTC).date(), max(last).astimezone(UTC).date()

    def _load(self, first: date, last: date) -> Iterator[Difference]:
        """Load the evidence of some days; yield what is missing or wrong in the archive."""
        records: dict[date, list[ArchiveRecord]] = {}
        for record in archive_records.dropped_archives(self._connection, first, last):
            records.setdefault(record.day, []).append(record)
        for number in range((last - first).days + 1):
            yield from self._load_day(day := first + timedelta(days=number), records.get(day, []))
        self._connection.execute(_QUERIES.text("delete_repeated_sightings"))

    def _load_day(self, day: date, records: Collection[ArchiveRecord]) -> Iterator[Difference]:
        manifests = self._manifests(day, len(records))
        for record in records:
            manifest = manifests.get(record.part)
            if manifest is None:
                yield self._problem(day, record.part, "missing")
            elif manifest.sha256 != record.manifest_sha256:
                yield self._problem(
                    day,
                    record.part,
                    "differs",
                    column="sha256",
                    booked=record.manifest_sha256,
                    recomputed=manifest.sha256,
                )
        realms = {self._names[realm_id]: realm_id for realm_id in self._realm_ids}
        has_problems = len(manifests) < len(records)
        for manifest in manifests.values():
            for problem in load_archive(
                self._connection, self._place, manifest, realms, self._sources(), self._progress
            ):
                has_problems = True
                yield self._problem(day, manifest.part, "differs", column=problem)
            self._result.archived_days += 1
            self._result.archived_reports += manifest.reports
        last = last_positions(manifests.values())
        since, until = day_span(day)
        span: dict[str, Any] = {"since": since, "until": until, "realms": self._realm_ids}
        kept = self._connection.execute(
            _QUERIES.text("add_kept_reports"),
            {
                "sources": list(last),
                "epochs": [epoch for epoch, _ in last.values()],
                "positions": [position for _, position in last.values()],
                **span,
            },
        )
        self._result.kept_reports += kept.rowcount
        self._connection.execute(_QUERIES.text("add_kept_sightings"), span)
        for row in self._connection.execute(
            _QUERIES.text("dropped_but_not_archived"), {"day": day, **span}
        ):
            if not row.is_archived:
                self._incomplete.setdefault(row.realm, day)
            elif not has_problems:  # otherwise they say why
                yield self._problem(
                    day,
                    1,
                    "differs",
                    column=f"reports of source '{row.source}' in realm '{row.realm}'",
                    booked=str(row.dropped),
                    recomputed=str(row.archived),
                )

    def _manifests(self, day: date, known_parts: int) -> dict[int, ArchiveManifest]:
        """The manifests of a day in the place, by part. A part that was dropped may be missing."""
        manifests: dict[int, ArchiveManifest] = {}
        part = 1
        while True:
            manifest = read_archive_manifest(self._place, day, part)
            if manifest is not None:
                manifests[part] = manifest
            elif part > known_parts:
                return manifests
            part += 1

    def _problem(
        self,
        day: date,
        part: int,
        kind: str,
        column: str = "",
        booked: str = "",
        recomputed: str = "",
    ) -> Difference:
        """A difference in an archived day, which all periods of this verification need."""
        row = self._periods[0].row
        location = self._place.location(archive_manifest_name(day, part))
        return Difference(
            realm=self._names[row.realm_id] if len(self._periods) == 1 else "",
            period=row.period,
            what="archive",
            kind=kind,
            starts_at=datetime.combine(day, time(), UTC),
            column=f"{location}: {column}" if column else location,
            booked=booked,
            recomputed=recomputed,
        )

    def _sources(self) -> dict[str, int]:
        return ids_by_former_name(self._connection) | {
            source.source: source.source_id
            for source in source_queries.all_sources(self._connection)
        }

    def _verify(self, period: ClosedPeriod) -> Iterator[Difference]:
        """Recompute a statement from the scratch tables and compare it with its lines."""
        checkpoint = period.checkpoint
        scope = EvidenceScope(
            cutoff=checkpoint.cutoff, realm_ids=[checkpoint.realm_id], schema=ARCHIVED
        )
        # A report that can't be folded is missing in the lines, and verify names it.
        recomputed = recompute_sessions(
            self._connection, self._rules, scope, on_set_aside=lambda _: None
        )
        sessions = 0
        while batch := list(islice(recomputed, SESSIONS_PER_BATCH)):
            sessions += len(batch)
            self._progress(sessions, doing="recomputing sessions")
            hours = (
                hour
                for item in batch
                for hour in item.hours
                if checkpoint.starts_at <= hour.starts_at < checkpoint.ends_at
            )
            recomputed_tables.add_period_hours(self._connection, hours)
        lines = self._counted(comparison.compare_statement(self._connection, period.row))
        yield from check_lines(self._differences, period, lines)
        self._result.statements += 1

    def _counted(self, lines: Iterator[LineComparison]) -> Iterator[LineComparison]:
        for line in lines:
            self._result.lines += 1
            yield line
