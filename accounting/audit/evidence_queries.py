"""What was settled, read again: reports and sightings key by key, up to a cutoff.

Owns no table: it reads the evidence, and never what settling made of it.
"""

from collections.abc import Collection, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
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
    UsageDelta,
)
from accounting.sessions.session_queries import session_from_row
from accounting.sources import source_queries, watermark_queries
from accounting.sources.watermark_queries import Watermark

_QUERIES: Final = Queries("accounting.audit")

ROWS_AT_ONCE: Final = 5_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Cutoff:
    """How far the evidence is taken: a watermark of each source, and the gaps known by then.

    ``highest_gap``: the last gap_id that counts; None for all.
    """

    watermarks: tuple[Watermark, ...]
    highest_gap: int | None = None


def settled_cutoff(connection: Connection) -> Cutoff:
    """The cutoff that settling has reached."""
    found = source_queries.all_sources(connection)
    return Cutoff(
        watermarks=tuple(
            watermark_queries.read_watermark(connection, one.source_id) for one in found
        )
    )


def parse_cutoff(connection: Connection, text: str) -> Cutoff:
    """The cutoff that a closed period keeps as text."""
    found = statements.StatementCutoff.from_text(text)
    ids = {one.source: one.source_id for one in source_queries.all_sources(connection)}
    return Cutoff(
        watermarks=tuple(
            Watermark(
                source_id=ids[name],
                epoch=one.epoch,
                position=one.position,
                received_at=None,
                settled_until=one.settled_until,
                last_sighting=one.last_sighting,
            )
            for name, one in found.sources.items()
        ),
        highest_gap=found.highest_gap_id,
    )


def source_names(connection: Connection) -> dict[int, str]:
    """Every source's name, by id."""
    return {one.source_id: one.source for one in source_queries.all_sources(connection)}


def gap_positions(connection: Connection, source_id: int, cutoff: Cutoff) -> list[tuple[int, int]]:
    """The (epoch, position) after which each gap lies that the cutoff knows, in order."""
    query = select(capture_gaps.c.epoch, capture_gaps.c.position).where(
        capture_gaps.c.source_id == source_id
    )
    if cutoff.highest_gap is not None:
        query = query.where(capture_gaps.c.gap_id <= cutoff.highest_gap)
    ordered = query.order_by(capture_gaps.c.epoch, capture_gaps.c.position)
    return [(epoch, position) for epoch, position in connection.execute(ordered)]


def is_entangled(connection: Connection, cutoff: Cutoff) -> bool:
    """Whether some evidence within the cutoff comes after some without, or a gap came later."""
    found: bool = connection.execute(
        _QUERIES.text("find_entangled"), {**_vectors(cutoff), "highest_gap": cutoff.highest_gap}
    ).scalar_one()
    return found


def _vectors(cutoff: Cutoff) -> dict[str, list[int]]:
    marks = cutoff.watermarks
    return {
        "sources": [mark.source_id for mark in marks],
        "epochs": [mark.epoch for mark in marks],
        "positions": [mark.position for mark in marks],
        "last_sighting_epochs": [mark.last_sighting[0] for mark in marks],
        "last_sighting_positions": [mark.last_sighting[1] for mark in marks],
        "last_sightings": [mark.last_sighting[2] for mark in marks],
    }


def _parameters(
    cutoff: Cutoff,
    realm_ids: Collection[int],
    usernames: Sequence[bytes] | None,
    day: tuple[int, int] | None,
) -> dict[str, Any]:
    since, until = (None, None) if day is None else (from_micros(day[0]), from_micros(day[1]))
    return {
        **_vectors(cutoff),
        "realms": list(realm_ids),
        "usernames": None if usernames is None else [UUID(bytes=key) for key in usernames],
        "since": since,
        "until": until,
    }


def read_carried(
    connection: Connection,
    cutoff: Cutoff,
    realm_ids: Collection[int],
    usernames: Sequence[bytes] | None = None,
    *,
    day: tuple[int, int] | None = None,
) -> Iterator[tuple[AllocationKey, SessionState]]:
    """The lives of those realms that the dropped reports left to later ones, by key.

    With all the usage that they had by then in their entries. ``day``: only those of which
    something was received within it, or that only await their end.
    """
    parameters = _parameters(cutoff, realm_ids, usernames, day)
    driver = psycopg_connection(connection)
    with closing(binary_server_cursor(driver, "carried_sessions", ROWS_AT_ONCE)) as cursor:
        cursor.execute(_QUERIES.driver("read_carried"), parameters)
        for *fields, flat in cursor:
            key, session = session_from_row(fields)
            session.deltas = [UsageDelta._make(flat[at : at + 6]) for at in range(0, len(flat), 6)]
            yield key, session


def read_evidence(
    connection: Connection,
    cutoff: Cutoff,
    realm_ids: Collection[int],
    usernames: Sequence[bytes] | None = None,
    *,
    day: tuple[int, int] | None = None,
) -> Iterator[tuple[AllocationKey, Report | StatusKeySighting]]:
    """Reports and sightings of those realms up to the cutoff: by key, and within each in order.

    ``usernames``: only of these username keys. ``day``: only what was received before its end.
    In constant memory here; Postgres sorts on its disk.
    """
    parameters = _parameters(cutoff, realm_ids, usernames, day)
    driver = psycopg_connection(connection)
    with closing(binary_server_cursor(driver, "replayed_evidence", ROWS_AT_ONCE)) as cursor:
        cursor.execute(_QUERIES.driver("replay_reports"), parameters)
        for source_id, number, began_at, idle_seconds, *fields in cursor:
            report = Report._make(fields)
            key = AllocationKey(
                source_id, report.database, report.username_key, report.allocation_id
            )
            if number is None:
                yield key, report
            else:
                yield (
                    key,
                    StatusKeySighting(
                        epoch=report.epoch,
                        position=report.position,
                        number=number,
                        database=report.database,
                        realm_id=report.realm_id,
                        username_key=report.username_key,
                        user_key=report.user_key,
                        allocation_id=report.allocation_id,
                        scan_started_at=began_at,
                        seen_at=report.received_at,
                        idle_seconds=idle_seconds,
                    ),
                )
