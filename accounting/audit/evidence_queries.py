"""Reads the evidence: reports, key sightings and carried sessions, key by key, up to a cutoff.

Reads no table that settling derives from it.
"""

from collections.abc import Collection, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from heapq import merge
from operator import itemgetter
from typing import Any, Final
from uuid import UUID

from sqlalchemy import Connection, select

from accounting.db.binary_copy import binary_server_cursor
from accounting.db.engine import psycopg_connection
from accounting.db.queries import Queries
from accounting.db.schema import capture_gaps
from accounting.domain import statements
from accounting.domain.calendar import from_micros
from accounting.domain.session_fold import (
    AllocationKey,
    Report,
    SessionState,
    StatusKeySighting,
)
from accounting.sessions.session_rows import session_from_row
from accounting.sources import source_queries, watermark_queries
from accounting.sources.rename import ids_by_former_name
from accounting.sources.watermark_queries import Watermark

_QUERIES: Final = Queries("accounting.audit")

_ROWS_PER_FETCH: Final = 5_000

STORED: Final = "accounting"
ARCHIVED: Final = "pg_temp"
"""The schemas that evidence is in: the stored one, and that of an archive."""

Evidence = SessionState | Report | StatusKeySighting
"""Of each key first its carried sessions, then its reports and sightings in order."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Cutoff:
    """How far the evidence is read: the watermark of each source, and the gaps known by then.

    ``highest_gap``: the last gap_id that counts; None for all.
    """

    watermarks: tuple[Watermark, ...]
    highest_gap: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class EvidenceScope:
    """Which evidence to read: that of some realms, up to a cutoff.

    ``username_keys``: only of these. ``day``: (start, end) in microseconds: only reports received
    before its end, and only carried sessions whose keys have a report in it or a sighting up to the
    cutoff, or that may expire.
    ``schema``: STORED or ARCHIVED.
    """

    cutoff: Cutoff
    realm_ids: Collection[int]
    username_keys: Sequence[bytes] | None = None
    day: tuple[int, int] | None = None
    schema: str = STORED

    def parameters(self) -> dict[str, Any]:
        """The parameters of the statements that read it."""
        keys = self.username_keys
        since, until = (None, None) if self.day is None else map(from_micros, self.day)
        return {
            **_cutoff_parameters(self.cutoff),
            "realms": list(self.realm_ids),
            "usernames": None if keys is None else [UUID(bytes=key) for key in keys],
            "since": since,
            "until": until,
        }


def settled_cutoff(connection: Connection) -> Cutoff:
    """The cutoff that settling has reached."""
    return Cutoff(
        watermarks=tuple(
            watermark_queries.read_watermark(connection, source.source_id)
            for source in source_queries.all_sources(connection)
        )
    )


def parse_cutoff(connection: Connection, text: str) -> Cutoff:
    """The cutoff that a closed period keeps as text."""
    parsed = statements.StatementCutoff.from_text(text)
    source_ids = ids_by_former_name(connection) | {
        source.source: source.source_id for source in source_queries.all_sources(connection)
    }
    return Cutoff(
        watermarks=tuple(
            Watermark(
                source_id=source_ids[name],
                epoch=source.epoch,
                position=source.position,
                received_at=None,
                settled_until=source.settled_until,
                last_sighting=source.last_sighting,
            )
            for name, source in parsed.sources.items()
        ),
        highest_gap=parsed.highest_gap_id,
    )


def source_names(connection: Connection) -> dict[int, str]:
    """The name of each source, by source_id."""
    return {source.source_id: source.source for source in source_queries.all_sources(connection)}


def gap_positions(connection: Connection, source_id: int, cutoff: Cutoff) -> list[tuple[int, int]]:
    """The (epoch, position) after which each gap within the cutoff lies, in order."""
    query = select(capture_gaps.c.epoch, capture_gaps.c.position).where(
        capture_gaps.c.source_id == source_id
    )
    if cutoff.highest_gap is not None:
        query = query.where(capture_gaps.c.gap_id <= cutoff.highest_gap)
    ordered = query.order_by(capture_gaps.c.epoch, capture_gaps.c.position)
    return [(epoch, position) for epoch, position in connection.execute(ordered)]


def has_out_of_order_evidence(connection: Connection, cutoff: Cutoff) -> bool:
    """Whether evidence within the cutoff follows some beyond it, or a gap became known later."""
    parameters = {**_cutoff_parameters(cutoff), "highest_gap": cutoff.highest_gap}
    result: bool = connection.execute(
        _QUERIES.text("find_out_of_order_evidence"), parameters
    ).scalar_one()
    return result


def _cutoff_parameters(cutoff: Cutoff) -> dict[str, list[int]]:
    watermarks = cutoff.watermarks
    return {
        "sources": [watermark.source_id for watermark in watermarks],
        "epochs": [watermark.epoch for watermark in watermarks],
        "positions": [watermark.position for watermark in watermarks],
        "last_sighting_epochs": [watermark.last_sighting[0] for watermark in watermarks],
        "last_sighting_positions": [watermark.last_sighting[1] for watermark in watermarks],
        "last_sightings": [watermark.last_sighting[2] for watermark in watermarks],
    }


def read_evidence(
    connection: Connection, scope: EvidenceScope
) -> Iterator[tuple[AllocationKey, Evidence]]:
    """All evidence within the scope, in order of key.

    Memory does not grow with it: Postgres sorts on its disk.
    """
    return merge(
        _read_carried_sessions(connection, scope),
        _read_reports_and_sightings(connection, scope),
        key=itemgetter(0),
    )


def _read_carried_sessions(
    connection: Connection, scope: EvidenceScope
) -> Iterator[tuple[AllocationKey, SessionState]]:
    driver = psycopg_connection(connection)
    with closing(binary_server_cursor(driver, "carried_sessions", _ROWS_PER_FETCH)) as cursor:
        cursor.execute(_QUERIES.driver("read_carried", evidence=scope.schema), scope.parameters())
        for *fields, numbers in cursor:
            key, session = session_from_row(fields)
            session.hourly_usage = {
                numbers[index]: list(numbers[index + 1 : index + 9])
                for index in range(0, len(numbers), 9)
            }
            yield key, session


def _read_reports_and_sightings(
    connection: Connection, scope: EvidenceScope
) -> Iterator[tuple[AllocationKey, Report | StatusKeySighting]]:
    driver = psycopg_connection(connection)
    with closing(binary_server_cursor(driver, "evidence", _ROWS_PER_FETCH)) as cursor:
        cursor.execute(_QUERIES.driver("read_evidence", evidence=scope.schema), scope.parameters())
        for source_id, sighting, scan_started_at, idle_seconds, *fields in cursor:
            report = Report._make(fields)
            key = AllocationKey(
                source_id, report.database, report.username_key, report.allocation_id
            )
            if sighting is None:
                yield key, report
            else:
                yield (
                    key,
                    StatusKeySighting(
                        epoch=report.epoch,
                        position=report.position,
                        number=sighting,
                        database=report.database,
                        realm_id=report.realm_id,
                        username_key=report.username_key,
                        user_key=report.user_key,
                        allocation_id=report.allocation_id,
                        scan_started_at=scan_started_at,
                        seen_at=report.received_at,
                        idle_seconds=idle_seconds,
                    ),
                )
