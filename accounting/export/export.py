"""Export: rows of the books as a file beside its manifest, or as a stream.

A file appears whole or not at all: it is written under another name, synced, and renamed; then its
manifest, in the same way. So whoever finds a manifest finds the file that it describes. Owns files
and manifests; which rows belong to a selection is the business of ``export.export_query``.
"""

import fcntl
import hashlib
import json
import os
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from decimal import Decimal
from enum import StrEnum
from pathlib import Path
from typing import Any, BinaryIO, Final, Protocol
from urllib.parse import quote

from sqlalchemy import Engine

from accounting.db.engine import lost_connections, psycopg_connection
from accounting.errors import AccountingError, NotYet, UsageError
from accounting.export import parquet
from accounting.export.export_query import CopyFormat, ExportKind, ExportQuery, Selection
from accounting.progress import Progress, no_progress

MAX_REALM_BYTES: Final = 120
"""Bytes of a realm in the name of a file; longer ones are cut, and told apart by a digest."""


class ByteSink(Protocol):
    """Where bytes go."""

    def write(self, data: bytes, /) -> int: ...

    def flush(self) -> None: ...


class ExportFormat(StrEnum):
    """The form of an export."""

    CSV = "csv"
    JSON_LINES = "jsonl"
    PARQUET = "parquet"


_COPY_FORMATS: Final = {
    ExportFormat.CSV: CopyFormat.CSV,
    ExportFormat.JSON_LINES: CopyFormat.JSON_LINES,
    ExportFormat.PARQUET: CopyFormat.RAW_CSV,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class ExportedFile:
    """A file that was written, or one that the same rows were in already."""

    path: Path
    manifest_path: Path
    rows: int


def export_to_directory(
    engine: Engine,
    selection: Selection,
    format_: ExportFormat,
    directory: Path,
    progress: Progress = no_progress,
) -> ExportedFile:
    """Write the selected rows and their manifest into a directory, which is made.

    Raises NotYet while anything of it may still come, UsageError for what nobody knows, and
    ConnectionLost; then whatever stood there before stands there still.
    """
    if format_ is ExportFormat.PARQUET:
        parquet.require_pyarrow()
    path = directory / file_name(selection, format_)
    manifest = path.with_name(path.name + ".manifest.json")
    with _disk(path), _selected(engine, selection) as rows:
        directory.mkdir(parents=True, exist_ok=True)
        totals = rows.totals()
        with _beside(path) as (draft, file):
            digest = _Digest(file)
            written = _write(rows, format_, digest, progress, totals.rows)
            if written != totals.rows:
                raise AssertionError(f"{written} rows written of {totals.rows} in one snapshot")
            file.flush()
            os.fsync(file.fileno())
            described = {
                "file": path.name,
                **_described(selection, format_),
                "rows": totals.rows,
                "sums": {name: _number(value) for name, value in totals.sums.items()},
                **_late_usage(rows, selection),
                "bytes": digest.size,
                "sha256": digest.hexdigest(),
            }
            text = json.dumps(described, indent=2, ensure_ascii=True) + "\n"
            with _beside(manifest) as (manifest_draft, manifest_file):
                manifest_file.write(text.encode())
                manifest_file.flush()
                os.fsync(manifest_file.fileno())
                if not (manifest.exists() and manifest.read_text() == text):
                    # Between the two renames no manifest may speak of another file.
                    manifest.unlink(missing_ok=True)
                    _sync_directory(directory)
                draft.rename(path)
                _sync_directory(directory)
                manifest_draft.rename(manifest)
                _sync_directory(directory)
    return ExportedFile(path=path, manifest_path=manifest, rows=totals.rows)


def export_to_stream(
    engine: Engine,
    selection: Selection,
    format_: ExportFormat,
    stream: ByteSink,
    progress: Progress = no_progress,
) -> int:
    """Write the selected rows to a stream; returns how many. Raises as the other does."""
    if format_ is ExportFormat.PARQUET:
        parquet.require_pyarrow()
    with _selected(engine, selection) as rows:
        total = None if progress is no_progress else rows.totals().rows  # counting takes long
        return _write(rows, format_, _Digest(stream), progress, total)


def check_export(manifest: Path) -> str | None:
    """What is wrong with the file that a manifest describes, in words; None when nothing is."""
    try:
        described = json.loads(manifest.read_text())
        name, size, digest = described["file"], described["bytes"], described["sha256"]
    except OSError as error:
        raise UsageError(f"{manifest}: {error.strerror}") from None
    except (ValueError, KeyError, TypeError):
        return f"{manifest}: not a manifest of an export"
    path = manifest.with_name(str(name))
    if Path(str(name)).name != name or not path.is_file():
        return f"{path}: missing"
    with path.open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if path.stat().st_size != size:
        return f"{path}: {path.stat().st_size} bytes, expected {size}"
    if found != digest:
        return f"{path}: SHA-256 is {found}, expected {digest}"
    return None


def file_name(selection: Selection, format_: ExportFormat) -> str:
    """The name of an export's file: what it holds, of whom, of when."""
    parts = [selection.kind.value]
    if selection.kind is ExportKind.USAGE:
        parts[0] += f"-{selection.subject}-{selection.granularity}"
    if selection.realm is not None:
        parts.append(_in_name(selection.realm))
    if selection.period is not None:
        parts.append(selection.period.isoformat())
    elif selection.since is not None or selection.until is not None:
        bounds = (selection.since, selection.until)
        parts.append("--".join("" if at is None else f"{at:%Y%m%dT%H%M%S.%fZ}" for at in bounds))
    return "_".join(parts) + f".{format_.value}"


def _in_name(realm: str) -> str:
    name = quote(realm, safe="").replace("_", "%5F")
    if len(name) <= MAX_REALM_BYTES:
        return name
    return f"{name[:MAX_REALM_BYTES]}~{hashlib.sha256(realm.encode()).hexdigest()[:16]}"


@contextmanager
def _selected(engine: Engine, selection: Selection) -> Iterator[ExportQuery]:
    with lost_connections(), engine.begin() as connection:
        rows = ExportQuery(psycopg_connection(connection), selection)
        _require_complete(rows, selection)
        yield rows


def _require_complete(rows: ExportQuery, selection: Selection) -> None:
    """Raise NotYet where rows of the selection may still come or change."""
    if selection.realm is not None and not rows.realm_exists():
        raise UsageError(f"no realm '{selection.realm}' is known, or nothing was used in it")
    if selection.period is not None or selection.kind is ExportKind.STATEMENTS:
        periods = rows.periods()
        if selection.period is not None and not periods:
            of = "any realm" if selection.realm is None else f"realm '{selection.realm}'"
            raise UsageError(
                f"no period {selection.period} of {of}: `turn-accounting period list` names them"
            )
        bounded = selection.period is not None or selection.until is not None
        for one in periods:
            if bounded and one.state != "closed":
                waits = f": it waits for {one.waits_for}" if one.waits_for else ""
                raise NotYet(f"period {one.period} of realm '{one.realm}' is {one.state}{waits}")
    elif selection.until is not None:
        waits_for = rows.waits_for()
        if waits_for is not None:
            raise NotYet(f"not all before {selection.until.isoformat()} is there yet: {waits_for}")


def _write(
    rows: ExportQuery, format_: ExportFormat, out: "_Digest", progress: Progress, total: int | None
) -> int:
    # Closed before the transaction ends: a COPY that is left half read keeps its connection, and a
    # rollback would wait for it for ever.
    with closing(rows.copy(_COPY_FORMATS[format_])) as chunks:
        watched = _watched(chunks, progress, total)
        if format_ is ExportFormat.PARQUET:
            return parquet.write_parquet(rows.columns, watched, out)
        for chunk in watched:
            out.write(chunk)
        return rows.rows_copied


def _watched(chunks: Iterator[bytes], progress: Progress, total: int | None) -> Iterator[bytes]:
    """The chunks; reports their lines as progress, at most ``total``: a name may hold line ends."""
    lines = 0
    for chunk in chunks:
        lines += chunk.count(b"\n")
        progress(lines if total is None else min(lines, total), total)
        yield chunk


def _described(selection: Selection, format_: ExportFormat) -> dict[str, Any]:
    described: dict[str, Any] = {"export": selection.kind.value, "format": format_.value}
    if selection.kind is ExportKind.USAGE:
        described |= {"by": selection.subject, "per": selection.granularity}
    described["realm"] = selection.realm
    described["period"] = None if selection.period is None else selection.period.isoformat()
    for name, at in (("since", selection.since), ("until", selection.until)):
        described[name] = None if at is None else at.isoformat()
    return described


def _late_usage(rows: ExportQuery, selection: Selection) -> dict[str, Any]:
    """How the books of a closed period differ from its statement, for exports of those books."""
    if selection.period is None or selection.kind not in {ExportKind.USAGE, ExportKind.SESSIONS}:
        return {}
    late = rows.late_usage()
    sums = {name: _number(value) for name, value in late.sums.items()}
    return {"late_usage": {"adjustments": late.rows, "sums": sums}}


def _number(value: Decimal) -> int | str:
    """Exact in JSON, whoever reads it: fractions as text."""
    return int(value) if value == value.to_integral_value() else format(value, "f")


class _Digest:
    """A stream that knows the size and SHA-256 of what went through it."""

    closed = False

    def __init__(self, stream: ByteSink) -> None:
        self._stream = stream
        self._sha256 = hashlib.sha256()
        self.size = 0

    def write(self, data: bytes) -> int:
        self._sha256.update(data)
        self._stream.write(data)
        self.size += len(data)
        return len(data)

    def tell(self) -> int:
        return self.size

    def flush(self) -> None:
        self._stream.flush()

    def close(self) -> None:
        """The stream is its owner's to close."""

    def hexdigest(self) -> str:
        return self._sha256.hexdigest()


@contextmanager
def _beside(path: Path) -> Iterator[tuple[Path, BinaryIO]]:
    """A draft of a file, ours alone: another export of the same is refused meanwhile.

    It is gone afterwards unless it was renamed; one that a killed export left is written over.
    """
    draft = path.with_name(f".{path.name}.draft")
    while True:
        file = draft.open("ab")
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.close()
            raise AccountingError(f"{path}: another export writes it now") from None
        if _is_at(draft, file):
            break
        file.close()  # the one who had it renamed or removed it
    with file:
        file.truncate(0)
        try:
            yield draft, file
        finally:
            if _is_at(draft, file):
                draft.unlink()


def _is_at(path: Path, file: BinaryIO) -> bool:
    try:
        return path.stat().st_ino == os.fstat(file.fileno()).st_ino
    except FileNotFoundError:
        return False


def _sync_directory(directory: Path) -> None:
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def _disk(path: Path) -> Iterator[None]:
    """A full or forbidden disk, as one line for who runs it."""
    try:
        yield
    except OSError as error:
        raise AccountingError(f"{path}: can't be written: {error.strerror or error}") from error
