"""Read archived files and check them: bytes against their digest, rows against the manifest.

A file is copied to the local disk while its digest is computed, and read from there: so what was
checked is what is read, and object stores need no other way in.
"""

import tempfile
from collections.abc import Callable, Iterator
from dataclasses import replace
from hashlib import sha256
from typing import IO, TYPE_CHECKING, Any

from accounting.archive.archive_columns import KEY_SIGHTINGS, REPORTS, SUMMED
from accounting.archive.archive_manifest import ArchiveManifest
from accounting.archive.day_contents import EpochContents, SourceContents
from accounting.errors import AccountingError
from accounting.export.manifest import FileEntry
from accounting.export.place import Place
from accounting.plurals import counted
from accounting.progress import Progress, no_progress

if TYPE_CHECKING:
    import pyarrow as pa

BatchConsumer = Callable[[str, SourceContents, "pa.RecordBatch"], object]
"""Gets each batch of rows, with its table and source."""


class ArchiveProblem(AccountingError):
    """A file of an archive is missing, has other bytes than its manifest says, or other rows."""


def check_archive(
    place: Place,
    manifest: ArchiveManifest,
    progress: Progress = no_progress,
    consumer: BatchConsumer = lambda *_: None,
) -> list[str]:
    """How an archived day differs from its manifest, as messages.

    ``consumer`` gets the rows of each file whose bytes are right.
    """
    problems = []
    total = manifest.reports + manifest.sightings
    done = 0
    described = set()
    for source in manifest.contents:
        for table, expected_rows in ((REPORTS, source.reports), (KEY_SIGHTINGS, source.sightings)):
            file = manifest.file(table, source)
            if file is None:
                if expected_rows:
                    problems.append(f"{table} of source '{source.source}': not in the manifest")
                continue
            described.add(file.name)
            try:
                _check_file(
                    place, file, table, source, _with_progress(consumer, progress, done, total)
                )
            except ArchiveProblem as problem:
                problems.append(str(problem))
            done += expected_rows
    problems += [
        f"{place.location(file.name)}: of no source in the manifest"
        for file in manifest.files
        if file.name not in described
    ]
    return problems


def _with_progress(
    consumer: BatchConsumer, progress: Progress, done: int, total: int
) -> BatchConsumer:
    def consume(table: str, source: SourceContents, batch: "pa.RecordBatch") -> None:
        nonlocal done
        done += batch.num_rows
        progress(min(done, total), total, doing="reading the archive")
        consumer(table, source, batch)

    return consume


def _check_file(
    place: Place, file: FileEntry, table: str, source: SourceContents, consumer: BatchConsumer
) -> None:
    """Raise ArchiveProblem unless the file has the bytes and rows that the manifest describes."""
    location = place.location(file.name)
    with tempfile.TemporaryFile() as local:
        _fetch(place, file, local, location)
        counts = _Counts(table, location)
        for batch in _batches(local, location):
            counts.add(batch)
            consumer(table, source, batch)
    if table == REPORTS:
        read: SourceContents = replace(source, epochs=counts.epochs())
    else:
        read = replace(source, sightings=counts.rows)
    if read != source or counts.rows != file.rows:
        raise ArchiveProblem(
            f"{location}: {counted(counts.rows, 'row')}, or their positions or sums, are not those"
            " of the manifest"
        )


def _fetch(place: Place, file: FileEntry, local: IO[bytes], location: str) -> None:
    size, digest = 0, sha256()
    try:
        for chunk in place.chunks(file.name):
            size += len(chunk)
            digest.update(chunk)
            local.write(chunk)
    except FileNotFoundError:
        raise ArchiveProblem(f"{location}: missing") from None
    except OSError as error:
        raise AccountingError(f"{tempfile.gettempdir()}: {error.strerror or error}") from error
    if size != file.size:
        raise ArchiveProblem(f"{location}: {counted(size, 'byte')}, expected {file.size:,}")
    if digest.hexdigest() != file.sha256:
        raise ArchiveProblem(f"{location}: SHA-256 is {digest.hexdigest()}, expected {file.sha256}")
    local.seek(0)


def _batches(local: IO[bytes], location: str) -> Iterator["pa.RecordBatch"]:
    import pyarrow as pa  # noqa: PLC0415  # an extra
    import pyarrow.parquet  # noqa: PLC0415

    try:
        with pyarrow.parquet.ParquetFile(pa.PythonFile(local, mode="r")) as parquet_file:
            # iter_batches() would keep all row groups in memory.
            for number in range(parquet_file.num_row_groups):
                yield from parquet_file.read_row_group(number, use_threads=False).to_batches()
    except pa.ArrowException as error:
        raise ArchiveProblem(f"{location}: not readable as Parquet: {error}") from error


class _Counts:
    """Counts the rows of a file, by epoch, and finds rows that are not in order."""

    def __init__(self, table: str, location: str) -> None:
        self._table = table
        self._location = location
        self._epochs: dict[int, EpochContents] = {}
        self._last: tuple[Any, ...] = ()
        self.rows = 0

    def add(self, batch: "pa.RecordBatch") -> None:
        """Count a batch."""
        self.rows += batch.num_rows
        if self._table != REPORTS or not batch.num_rows:
            return
        for epoch, part in _by_epoch(batch):
            self._add_reports(epoch, part)

    def _add_reports(self, epoch: int, batch: "pa.RecordBatch") -> None:
        import pyarrow as pa  # noqa: PLC0415  # an extra
        import pyarrow.compute as pc  # noqa: PLC0415

        positions = batch.column("position")
        first, last = positions[0].as_py(), positions[-1].as_py()
        rising = pc.all(pc.greater(positions[1:], positions[:-1])).as_py() is not False
        if not rising or self._last >= (epoch, first):
            raise ArchiveProblem(f"{self._location}: reports are repeated or out of order")
        self._last = (epoch, last)
        # As decimals: a sum of counters may be above 2^63.
        sums = {
            name: int(pc.sum(batch.column(name).cast(pa.decimal128(38, 0))).as_py())
            for name in SUMMED
        }
        known = self._epochs.get(epoch)
        if known is not None:
            first = known.first_position
            sums = {name: known.sums[name] + value for name, value in sums.items()}
        self._epochs[epoch] = EpochContents(
            epoch=epoch,
            reports=batch.num_rows + (0 if known is None else known.reports),
            first_position=first,
            last_position=last,
            sums=sums,
        )

    def epochs(self) -> list[EpochContents]:
        """What was counted."""
        return list(self._epochs.values())


def _by_epoch(batch: "pa.RecordBatch") -> Iterator[tuple[int, "pa.RecordBatch"]]:
    """The rows of a batch, cut where the epoch changes."""
    import pyarrow.compute as pc  # noqa: PLC0415  # an extra

    epochs = batch.column("epoch")
    if epochs[0].equals(epochs[-1]) and pc.count_distinct(epochs).as_py() == 1:
        yield epochs[0].as_py(), batch
        return
    for epoch in sorted(pc.unique(epochs).to_pylist()):
        yield epoch, batch.filter(pc.equal(epochs, epoch))
