"""Write a day to a place: its files, then the manifest; then read all of it back.

Rows are read an hour at a time, so that no sort grows with the day: the times of a source rise with
its positions. The whole day comes from one snapshot. Memory stays constant.
"""

from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import closing
from datetime import date, datetime, timedelta
from typing import Final

from sqlalchemy import Connection, Engine, text

from accounting.archive import archive_records
from accounting.archive.archive_columns import (
    KEY_SIGHTINGS,
    REPORT_COLUMNS,
    REPORTS,
    SIGHTING_COLUMNS,
)
from accounting.archive.archive_manifest import (
    ArchiveManifest,
    archive_manifest_name,
    archive_manifest_text,
    archived_file_name,
    read_archive_manifest,
)
from accounting.archive.day_contents import (
    SourceContents,
    day_contents,
    day_span,
    sources_before,
)
from accounting.archive.read_archive import check_archive
from accounting.db.engine import lost_connections, psycopg_connection
from accounting.db.queries import Queries
from accounting.errors import AccountingError, NotYet
from accounting.export import parquet
from accounting.export.atomic_file import HashingWriter
from accounting.export.copy_format import Column
from accounting.export.manifest import FileEntry
from accounting.export.place import Place
from accounting.export.place_address import absolute_address, open_place
from accounting.progress import Progress, no_progress

_QUERIES: Final = Queries("accounting.archive")
_SLICE: Final = timedelta(hours=1)
_CHUNK_BYTES: Final = 1 << 20
"""COPY sends a message for each row; chunks of this size are written."""
_TABLES: Final[Mapping[str, tuple[str, Sequence[Column]]]] = {
    REPORTS: ("archived_reports", REPORT_COLUMNS),
    KEY_SIGHTINGS: ("archived_key_sightings", SIGHTING_COLUMNS),
}
"""The statement that reads each table, and its columns."""


def archive_day(
    engine: Engine, address: str, day: date, progress: Progress = no_progress
) -> ArchiveManifest | None:
    """Archive a day in a place, check what was written, and record it; None for an empty day.

    ``address``: the place's path or URL. An archive that already has the day's rows is only
    checked. Raises NotYet while a source may bring more reports of the day, ConfigurationError
    without pyarrow, ConnectionLost, and AccountingError where the place refuses something, gives
    back something else, or has the day of another database.
    """
    parquet.require_pyarrow()
    place = open_place(address)
    with (
        lost_connections(),
        engine.connect().execution_options(isolation_level="REPEATABLE READ") as connection,
        connection.begin(),
    ):
        connection.execute(text("SET LOCAL TimeZone = 'UTC'"))
        connection.execute(text("SET LOCAL DateStyle = 'ISO'"))
        _require_settled(connection, day)
        contents = day_contents(connection, day)
        if not contents:
            return None
        part = archive_records.next_part(connection, day)
        manifest = read_archive_manifest(place, day, part)
        if manifest is None or manifest.contents != contents:
            if manifest is not None:
                _require_own(connection, place, manifest)
            _write_day(connection, place, day, part, contents, progress)
    manifest = read_archive_manifest(place, day, part)
    location = place.location(archive_manifest_name(day, part))
    if manifest is None or manifest.contents != contents:
        raise AccountingError(f"{location}: not as it was written: another export wrote it too")
    if problems := check_archive(place, manifest, progress):
        raise AccountingError("; ".join(problems))
    with lost_connections(), engine.begin() as connection:
        archive_records.record_archive(connection, absolute_address(address), manifest)
    return manifest


def _require_settled(connection: Connection, day: date) -> None:
    _, until = day_span(day)
    for source, settled_until in sources_before(connection, until):
        reached = "not settled yet" if settled_until is None else f"settled until {settled_until}"
        raise NotYet(f"source '{source}' may bring more reports of {day} (UTC): it is {reached}")


def _require_own(connection: Connection, place: Place, manifest: ArchiveManifest) -> None:
    """Raise AccountingError for an archive of another database, which would be replaced."""
    own = set(connection.execute(_QUERIES.text("source_ids")).scalars())
    for source in manifest.contents:
        if source.source_id not in own:
            name = place.location(archive_manifest_name(manifest.day, manifest.part))
            raise AccountingError(
                f"{name}: the archive of another database, with source '{source.source}': give "
                "each database a place of its own"
            )


def _write_day(
    connection: Connection,
    place: Place,
    day: date,
    part: int,
    contents: Sequence[SourceContents],
    progress: Progress,
) -> None:
    """Write all files, and then the manifest. An earlier manifest is removed first."""
    total = sum(source.reports + source.sightings for source in contents)
    name = archive_manifest_name(day, part)
    files: list[FileEntry] = []
    with place.draft(name) as manifest_draft:
        place.remove(name)
        for source in contents:
            for table, (statement, columns) in _TABLES.items():
                rows = source.reports if table == REPORTS else source.sightings
                if not rows:
                    continue
                file = archived_file_name(table, day, source.source, part)
                with place.draft(file) as draft:
                    writer = HashingWriter(draft)
                    done = sum(entry.rows for entry in files)
                    slices = _slices(connection, statement, source.source_id, day)
                    with closing(slices):
                        written = parquet.write_parquet(
                            columns, _with_progress(slices, progress, done, total), writer
                        )
                    if written != rows:
                        raise AssertionError(f"{written} rows of {rows} in one snapshot")
                    draft.finish()
                    draft.publish()
                files.append(
                    FileEntry(name=file, size=writer.size, sha256=writer.hexdigest(), rows=rows)
                )
        manifest_draft.write(archive_manifest_text(day, part, contents, files))
        manifest_draft.finish()
        manifest_draft.publish()


def _slices(connection: Connection, statement: str, source_id: int, day: date) -> Generator[bytes]:
    """A source's rows of a day as CSV, in order of position."""
    since, end = day_span(day)
    while since < end:
        until = since + _SLICE
        yield from _copy(connection, statement, source_id, since, until)
        since = until


def _copy(
    connection: Connection, statement: str, source_id: int, since: datetime, until: datetime
) -> Iterator[bytes]:
    query = b"COPY (" + _QUERIES.driver(statement) + b") TO STDOUT (FORMAT csv)"
    parameters = {"source_id": source_id, "since": since, "until": until}
    with (
        psycopg_connection(connection).cursor() as cursor,
        cursor.copy(query, parameters) as copy,
    ):
        chunk: list[bytes] = []
        size = 0
        for row in copy:
            chunk.append(bytes(row))
            size += len(row)
            if size >= _CHUNK_BYTES:
                yield b"".join(chunk)
                chunk, size = [], 0
        if chunk:
            yield b"".join(chunk)


def _with_progress(
    chunks: Iterator[bytes], progress: Progress, done: int, total: int
) -> Iterator[bytes]:
    for chunk in chunks:
        done += chunk.count(b"\n")
        progress(min(done, total), total, doing="archiving rows")
        yield chunk
