"""Export a selection to a directory, as a file and its manifest, or to a stream.

The file is complete before it gets its name, and its manifest follows. So a reader that finds a
manifest finds the file that it describes, even after a crash.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from accounting.domain.periods import describe_wait
from accounting.errors import (
    NotYet,
    not_closed,
    preview_command,
    unknown_name,
    unknown_period,
)
from accounting.export import parquet
from accounting.export.atomic_file import (
    ByteSink,
    HashingWriter,
    disk_errors,
    locked_draft,
    sync_directory,
    sync_file,
)
from accounting.export.copy_format import Column, CopyFormat
from accounting.export.export_query import ExportQuery
from accounting.export.focus_schema import focus_metadata
from accounting.export.focus_terms import FocusTerms
from accounting.export.manifest import file_name, manifest_path, manifest_text
from accounting.export.selection import ExportFormat, ExportKind, Selection
from accounting.progress import Progress, no_progress
from accounting.reporting.reader import DatabaseReader

_COPY_FORMATS: Final = {
    ExportFormat.CSV: CopyFormat.CSV,
    ExportFormat.JSON_LINES: CopyFormat.JSON_LINES,
    ExportFormat.PARQUET: CopyFormat.RAW_CSV,
}
ParquetWriter = Callable[[Sequence[Column], Iterator[bytes], HashingWriter], int | None]
"""Writes CSV as Parquet; the number of rows if it counts them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ExportedFile:
    """A file and its manifest."""

    path: Path
    manifest_path: Path
    rows: int


def export_to_directory(
    reader: DatabaseReader,
    selection: Selection,
    format_: ExportFormat,
    directory: Path,
    progress: Progress = no_progress,
) -> ExportedFile:
    """Write the selected rows and their manifest into a directory, creating it if necessary.

    Raises NotYet while a row of the selection may still change, UsageError for an unknown realm or
    period, and ConnectionLost; the files of an earlier export then stay as they are.
    """
    if format_ is ExportFormat.PARQUET:
        parquet.require_pyarrow()
    path = directory / file_name(selection, format_)
    with disk_errors(path), _open_query(reader, selection) as query:
        directory.mkdir(parents=True, exist_ok=True)
        progress(0, doing="counting rows")
        totals = query.totals()
        with locked_draft(path) as (draft, file):
            writer = HashingWriter(file)
            written = _write(query, format_, writer, progress, totals.rows)
            if written != totals.rows:
                raise AssertionError(f"{written} rows written of {totals.rows} in one snapshot")
            sync_file(file)
            # Usage and sessions of a closed period include late usage; its statement does not.
            late_usage = (
                query.late_usage()
                if selection.period is not None
                and selection.kind in {ExportKind.USAGE, ExportKind.SESSIONS}
                else None
            )
            focus = (
                focus_metadata(selection.focus or FocusTerms(), query.columns)
                if selection.kind is ExportKind.FOCUS
                else None
            )
            cutoffs = query.cutoffs() if selection.kind is ExportKind.STATEMENTS else None
            manifest = manifest_text(
                path,
                selection,
                format_,
                totals,
                writer,
                late_usage=late_usage,
                cutoffs=cutoffs,
                focus=focus,
            )
            _replace_files(path, draft, manifest)
    return ExportedFile(path=path, manifest_path=manifest_path(path), rows=totals.rows)


def _replace_files(path: Path, draft: Path, manifest: str) -> None:
    """Rename a draft to its path, then write its manifest."""
    directory, target = path.parent, manifest_path(path)
    with locked_draft(target) as (manifest_draft, file):
        file.write(manifest.encode())
        sync_file(file)
        if not (target.exists() and target.read_text() == manifest):
            # Between the two renames the old manifest would describe the new file.
            target.unlink(missing_ok=True)
            sync_directory(directory)
        draft.rename(path)
        sync_directory(directory)
        manifest_draft.rename(target)
        sync_directory(directory)


def export_to_stream(
    reader: DatabaseReader,
    selection: Selection,
    format_: ExportFormat,
    stream: ByteSink,
    progress: Progress = no_progress,
    *,
    write_parquet: ParquetWriter = parquet.write_parquet,
) -> int:
    """Write the selected rows to a stream; returns how many. Raises as export_to_directory.

    ``write_parquet``: see also :mod:`accounting.export.parquet_process`.
    """
    if format_ is ExportFormat.PARQUET:
        parquet.require_pyarrow()
    with _open_query(reader, selection) as query:
        progress(0, doing="counting rows")
        total = None if progress is no_progress else query.totals().rows  # counting takes long
        return _write(query, format_, HashingWriter(stream), progress, total, write_parquet)


@contextmanager
def _open_query(reader: DatabaseReader, selection: Selection) -> Iterator[ExportQuery]:
    with reader.transaction(is_snapshot=True) as connection:
        query = ExportQuery(connection, selection)
        _require_complete(query, selection)
        yield query


def _require_complete(query: ExportQuery, selection: Selection) -> None:
    """Raise NotYet where rows of the selection may still be added or change."""
    if selection.realm is not None and selection.realm not in (known := query.known_realms()):
        raise unknown_name("realm", selection.realm, known)
    if selection.period is not None or selection.is_of_periods:
        periods = query.periods()
        if selection.period is not None and not periods:
            raise unknown_period(selection.realm, selection.period, query.known_periods())
        for row in periods:
            if selection.has_end and row.state != "closed":
                waits = describe_wait(row.waits_for, row.ends_at, row.time_zone)
                preview = preview_command(row.realm, row.period)
                raise not_closed(row.realm, row.period, waits, f"as it is now: `{preview}`")
    elif selection.until is not None:
        waits_for = query.span_waits_for()
        if waits_for is not None:
            raise NotYet(
                f"not all before {selection.until.isoformat()} is there yet: {waits_for}; "
                "without --until it exports what is there"
            )


def _write(
    query: ExportQuery,
    format_: ExportFormat,
    writer: HashingWriter,
    progress: Progress,
    total: int | None,
    write_parquet: ParquetWriter = parquet.write_parquet,
) -> int:
    # Closed before the transaction ends: a COPY that is not read to its end keeps the connection,
    # and a rollback would wait for it for ever.
    with closing(query.copy(_COPY_FORMATS[format_])) as copied:
        chunks = _with_progress(copied, progress, total)
        if format_ is ExportFormat.PARQUET:
            written = write_parquet(query.columns, chunks, writer)
            return query.rows_copied if written is None else written
        for chunk in chunks:
            writer.write(chunk)
        return query.rows_copied


def _with_progress(
    chunks: Iterator[bytes], progress: Progress, total: int | None
) -> Iterator[bytes]:
    """Report the chunks' lines, at most ``total``: a name may hold line ends."""
    lines = 0
    for chunk in chunks:
        lines += chunk.count(b"\n")
        progress(lines if total is None else min(lines, total), total, doing="writing rows")
        yield chunk
