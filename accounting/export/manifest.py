"""The manifest beside exported files: what they hold, their sizes and their SHA-256."""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from datetime import time as datetime_time
from decimal import Decimal
from pathlib import PurePosixPath
from typing import Any, Final
from urllib.parse import quote

from accounting.errors import UsageError
from accounting.export.export_query import RowTotals, StatementCutoffText
from accounting.export.place import Place, read_file
from accounting.export.place_address import split_location
from accounting.export.selection import ExportKind, Selection
from accounting.plurals import counted

MAX_REALM_BYTES: Final = 120
"""Bytes of a realm in a file's name; a longer one is cut, and gets a digest to stay unique."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FileEntry:
    """An exported file, as its manifest describes it. ``rows``: of a partition."""

    name: str
    size: int
    sha256: str
    rows: int


def table_name(selection: Selection) -> str:
    """What the rows of an export are: its kind, and whose usage by how long a bucket."""
    if selection.kind is ExportKind.USAGE:
        return f"{selection.kind}-{selection.subject}-{selection.granularity}"
    return selection.kind.value


def file_name(selection: Selection, extension: str) -> str:
    """The name of an export's file: its kind, its realm, its period or span."""
    parts = [table_name(selection)]
    if selection.realm is not None:
        parts.append(_realm_in_name(selection.realm))
    if selection.period is not None:
        parts.append(selection.period.isoformat())
    elif selection.since is not None or selection.until is not None:
        parts.append(_span_in_name(selection.since, selection.until))
    return "_".join(parts) + f".{extension}"


def _span_in_name(since: datetime | None, until: datetime | None) -> str:
    match since, until:
        case datetime(), datetime():
            return f"{_time_in_name(since)}--{_time_in_name(until)}"
        case datetime(), None:
            return f"since-{_time_in_name(since)}"
        case None, datetime():
            return f"until-{_time_in_name(until)}"
        case _:
            raise AssertionError((since, until))


def _time_in_name(time: datetime) -> str:
    """A time in UTC as its day if it is midnight, and with microseconds only if it has any."""
    time = time.astimezone(UTC)
    if time.timetz() == datetime_time(tzinfo=UTC):
        return f"{time:%Y-%m-%d}"
    return f"{time:%Y%m%dT%H%M%S.%fZ}".replace(".000000Z", "Z")


def _realm_in_name(realm: str) -> str:
    name = quote(realm, safe="").replace("_", "%5F")
    if len(name) <= MAX_REALM_BYTES:
        return name
    return f"{name[:MAX_REALM_BYTES]}~{hashlib.sha256(realm.encode()).hexdigest()[:16]}"


def manifest_name(selection: Selection, extension: str) -> str:
    """The name of the manifest: of the file, or of all partitions of the table."""
    extension = "partitions" if selection.is_partitioned else extension
    return f"{file_name(selection, extension)}.manifest.json"


def manifest_text(
    selection: Selection,
    extension: str,
    totals: RowTotals,
    files: Sequence[FileEntry],
    *,
    late_usage: RowTotals | None,
    cutoffs: Sequence[StatementCutoffText] | None,
    focus: dict[str, Any] | None,
) -> str:
    """The manifest of files that were just written: of one, or of the partitions of a table.

    ``late_usage``: for the books of a closed period, how they differ from its statement.
    ``cutoffs``: for statements, what each was computed from. ``focus``: the metadata of FOCUS.
    """
    manifest: dict[str, Any] = (
        {"table": table_name(selection), "partitioned_by": list(selection.partition_columns)}
        if selection.is_partitioned
        else {"file": files[0].name}
    )
    manifest |= {"export": selection.kind.value, "format": extension}
    if selection.kind is ExportKind.USAGE:
        manifest |= {"by": selection.subject, "per": selection.granularity}
    manifest["realm"] = selection.realm
    manifest["period"] = None if selection.period is None else selection.period.isoformat()
    for name, time in (("since", selection.since), ("until", selection.until)):
        manifest[name] = None if time is None else time.isoformat()
    manifest |= {"complete": selection.has_end}
    manifest |= {"rows": totals.rows, "sums": _exact(totals.sums)}
    if late_usage is not None:
        manifest["late_usage"] = {
            "adjustments": late_usage.rows,
            "sums": _exact(late_usage.sums),
        }
    if cutoffs is not None:
        manifest["cutoffs"] = [
            {
                "realm": statement.realm,
                "period": statement.period.isoformat(),
                "cutoff": json.loads(statement.cutoff),
            }
            for statement in cutoffs
        ]
    if focus is not None:
        manifest["focus"] = focus
    if selection.is_partitioned:
        manifest["files"] = [
            {"file": file.name, "rows": file.rows, "bytes": file.size, "sha256": file.sha256}
            for file in files
        ]
    else:
        manifest |= {"bytes": files[0].size, "sha256": files[0].sha256}
    return json.dumps(manifest, indent=2, ensure_ascii=True) + "\n"


def _exact(sums: dict[str, Decimal]) -> dict[str, int | str]:
    """Values that JSON keeps exactly: integers, and fractions as text."""
    return {
        name: int(value) if value == value.to_integral_value() else format(value, "f")
        for name, value in sums.items()
    }


def check_export(manifest: str) -> list[str]:
    """How files differ from their manifest, as messages. ``manifest``: its path or URL."""
    place, name = split_location(manifest)
    content = read_file(place, name)
    if content is None:
        raise UsageError(f"{manifest}: No such file or directory")
    try:
        files = _described_files(json.loads(content))
    except (ValueError, KeyError, TypeError):
        return [f"{manifest}: not a manifest of an export"]
    return [problem for file in files if (problem := _check_file(place, *file))]


def described_names(content: bytes) -> set[str]:
    """The names of the files that a manifest describes; none of what is not a manifest."""
    try:
        return {name for name, _, _ in _described_files(json.loads(content))}
    except (ValueError, KeyError, TypeError):
        return set()


def _described_files(manifest: Any) -> list[tuple[str, int, str]]:
    files = manifest["files"] if "table" in manifest else [manifest]
    described = [(str(file["file"]), file["bytes"], file["sha256"]) for file in files]
    for name, _, _ in described:
        if PurePosixPath(name).is_absolute() or ".." in PurePosixPath(name).parts:
            raise ValueError(name)
    return described


def _check_file(place: Place, name: str, size: int, sha256: str) -> str | None:
    path = place.location(name)
    try:
        actual_size, digest = digest_file(place, name)
    except FileNotFoundError:
        return f"{path}: missing"
    if actual_size != size:
        return f"{path}: {counted(actual_size, 'byte')}, expected {size:,}"
    if digest != sha256:
        return f"{path}: SHA-256 is {digest}, expected {sha256}"
    return None


def digest_file(place: Place, name: str) -> tuple[int, str]:
    """The size and the SHA-256 of a file. Raises FileNotFoundError."""
    size, digest = 0, hashlib.sha256()
    for chunk in place.chunks(name):
        size += len(chunk)
        digest.update(chunk)
    return size, digest.hexdigest()
