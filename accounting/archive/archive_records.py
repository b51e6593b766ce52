"""SQL for table ``report_archives``: which days were archived where, and which of them dropped."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date, datetime
from typing import Any

from sqlalchemy import Connection, func, select, update
from sqlalchemy.dialects.postgresql import insert

from accounting.archive.archive_manifest import ArchiveManifest
from accounting.db.schema import report_archives


@dataclass(frozen=True, slots=True, kw_only=True)
class ArchiveRecord:
    """An archived day. ``dropped_at``: when its reports left the database; None: they did not."""

    day: date
    part: int
    place: str
    manifest_sha256: str
    reports: int
    sightings: int
    checked_at: datetime
    dropped_at: datetime | None


def next_part(connection: Connection, day: date) -> int:
    """The number of the archive of what the database has of a day: 1 until it was dropped once."""
    query = (
        select(func.count())
        .select_from(report_archives)
        .where(report_archives.c.day == day, report_archives.c.dropped_at.is_not(None))
    )
    return connection.execute(query).scalar_one() + 1


def record_archive(connection: Connection, place: str, manifest: ArchiveManifest) -> None:
    """Record that a day was archived and checked now."""
    values: dict[str, Any] = {
        "place": place,
        "manifest_sha256": manifest.sha256,
        "reports": manifest.reports,
        "sightings": manifest.sightings,
        "checked_at": func.now(),
    }
    connection.execute(
        insert(report_archives)
        .values(day=manifest.day, part=manifest.part, **values)
        .on_conflict_do_update(index_elements=["day", "part"], set_=values)
    )


def record_drop(connection: Connection, manifest: ArchiveManifest) -> None:
    """Record that an archived day is dropped now."""
    result = connection.execute(
        update(report_archives)
        .where(
            report_archives.c.day == manifest.day,
            report_archives.c.part == manifest.part,
            report_archives.c.manifest_sha256 == manifest.sha256,
        )
        .values(dropped_at=func.now())
    )
    assert result.rowcount == 1, manifest


def dropped_archives(connection: Connection, first: date, last: date) -> Sequence[ArchiveRecord]:
    """The archives of days between two, those included, that were dropped; in order."""
    columns = [column for column in report_archives.c if column.name != "archived_at"]
    rows = connection.execute(
        select(*columns)
        .where(
            report_archives.c.day.between(first, last), report_archives.c.dropped_at.is_not(None)
        )
        .order_by(report_archives.c.day, report_archives.c.part)
    )
    return [ArchiveRecord(**row) for row in rows.mappings()]
