"""Export a selection to a place, as a file and its manifest, or to a stream.

The file is complete before it gets its name, and its manifest follows. So a reader that finds a
manifest finds the files that it describes, even after a crash.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from accounting.domain.periods import describe_wait
from accounting.errors import (
    AccountingError,
    NotYet,
    not_closed,
    preview_command,
    unknown_name,
    unknown_period,
)
from accounting.export import parquet
from accounting.export.atomic_file import ByteSink, HashingWriter
from accounting.export.copy_format import Column, CopyFormat
from accounting.export.export_query import ExportQuery, Partition, RowTotals
from accounting.export.focus_schema import focus_metadata
from accounting.export.focus_terms import FocusTerms
from accounting.export.local_directory import LocalDirectory
from accounting.export.manifest import (
    FileEntry,
    described_names,
    digest_file,
    file_name,
    manifest_name,
    manifest_text,
    table_name,
)
from accounting.export.partition_path import partition_path
from accounting.export.place import Draft, Place, read_file
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
class Exported:
    """The files of an export and their manifest, as paths or URLs."""

    locations: Sequence[str]
    manifest_location: str
    rows: int

    @property
    def path(self) -> Path:
        """The only file of an export to a local directory."""
        [location] = self.locations
        return Path(location)

    @property
    def manifest_path(self) -> Path:
        """The manifest in a local directory."""
        return Path(self.manifest_location)


def export_to_directory(
    reader: DatabaseReader,
    selection: Selection,
    format_: ExportFormat,
    directory: Path,
    progress: Progress = no_progress,
) -> Exported:
    """As :func:`export_to_place`, into a directory of this machine."""
    return export_to_place(reader, selection, format_, LocalDirectory(directory), progress)


def export_to_place(
    reader: DatabaseReader,
    selection: Selection,
    format_: ExportFormat,
    place: Place,
    progress: Progress = no_progress,
) -> Exported:
    """Write the selected rows and their manifest to a place.

    Raises NotYet while a row of the selection may still change, UsageError for an unknown realm or
    period, and ConnectionLost; the files of an earlier export then stay as they are, but for
    partitions that were already replaced: their manifest is then removed.
    """
    if format_ is ExportFormat.PARQUET:
        parquet.require_pyarrow()
    manifest = manifest_name(selection, format_)
    with _open_query(reader, selection) as query:
        progress(0, doing="counting rows")
        writing = _Writing(query, selection, format_, place, progress, query.totals())
        if selection.is_partitioned:
            with place.draft(manifest) as draft:
                writing.replace_partitions(manifest, draft)
        else:
            writing.replace_file(manifest)
    return Exported(
        locations=[place.location(file.name) for file in writing.files],
        manifest_location=place.location(manifest),
        rows=sum(file.rows for file in writing.files),
    )


class _Writing:
    """An export that is being written."""

    def __init__(
        self,
        query: ExportQuery,
        selection: Selection,
        format_: ExportFormat,
        place: Place,
        progress: Progress,
        totals: RowTotals,
    ) -> None:
        self._query = query
        self._selection = selection
        self._format = format_
        self._place = place
        self._progress = progress
        self._totals = totals
        self.files: list[FileEntry] = []
        self._stamps: list[object] = []

    def replace_file(self, manifest: str) -> None:
        """Write the one file, and then its manifest."""
        name = file_name(self._selection, self._format)
        with self._place.draft(name) as draft, self._place.draft(manifest) as manifest_draft:
            self.files.append(self._write(name, draft, None))
            text = self._manifest_text()
            if read_file(self._place, manifest) != text:
                # Until the new one is there, the old manifest would describe the new file.
                self._place.remove(manifest)
            self._publish(name, draft)
            self._publish_manifest(manifest, manifest_draft, text)

    def replace_partitions(self, manifest: str, manifest_draft: Draft) -> None:
        """Write the file of each partition, and then the manifest of them all."""
        partitions = self._query.partitions()
        columns = self._selection.partition_columns
        table = table_name(self._selection)
        names = {
            f"{table}/{partition_path(columns, partition)}/{table}.{self._format}": partition
            for partition in partitions
        }
        earlier = described_names(read_file(self._place, manifest) or b"{}")
        self._place.remove(manifest)
        for name in sorted(earlier - names.keys()):
            self._place.remove(name)
        for name, partition in names.items():
            with self._place.draft(name) as draft:
                self.files.append(self._write(name, draft, partition))
                self._publish(name, draft)
        self._publish_manifest(manifest, manifest_draft, self._manifest_text())

    def _write(self, name: str, draft: Draft, partition: Partition | None) -> FileEntry:
        writer = HashingWriter(draft)
        done = sum(file.rows for file in self.files)
        rows = _write(
            self._query,
            self._format,
            writer,
            lambda count, total=None, **words: self._progress(done + count, total, **words),
            self._totals.rows,
            partition=partition,
        )
        draft.finish()
        return FileEntry(name=name, size=writer.size, sha256=writer.hexdigest(), rows=rows)

    def _manifest_text(self) -> bytes:
        selection, query = self._selection, self._query
        written = sum(file.rows for file in self.files)
        if written != self._totals.rows:
            raise AssertionError(f"{written} rows written of {self._totals.rows} in one snapshot")
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
        return manifest_text(
            selection,
            self._format,
            self._totals,
            self.files,
            late_usage=late_usage,
            cutoffs=cutoffs,
            focus=focus,
        ).encode()

    def _publish(self, name: str, draft: Draft) -> None:
        draft.publish()
        self._stamps.append(self._place.stamp(name))

    def _publish_manifest(self, manifest: str, draft: Draft, text: bytes) -> None:
        """Publish the manifest, unless another export has replaced a file meanwhile.

        That is looked for afterwards: the export whose manifest came last then sees all files.
        """
        draft.write(text)
        draft.finish()
        draft.publish()
        for file, stamp in zip(self.files, self._stamps, strict=True):
            if self._place.stamp(file.name) == stamp:
                continue
            try:
                if digest_file(self._place, file.name) == (file.size, file.sha256):
                    continue
            except FileNotFoundError:
                pass
            if read_file(self._place, manifest) == text:
                self._place.remove(manifest)
            raise AccountingError(
                f"{self._place.location(file.name)}: another export wrote it at the same time:"
                " export it again"
            )


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
    partition: Partition | None = None,
) -> int:
    # Closed before the transaction ends: a COPY that is not read to its end keeps the connection,
    # and a rollback would wait for it for ever.
    with closing(query.copy(_COPY_FORMATS[format_], partition)) as copied:
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
