"""The manifest beside an exported file: what it holds, its size and its SHA-256."""

import hashlib
import json
from collections.abc import Sequence
from datetime import UTC, datetime
from datetime import time as datetime_time
from decimal import Decimal
from pathlib import Path
from typing import Any, Final
from urllib.parse import quote

from accounting.errors import UsageError
from accounting.export.atomic_file import HashingWriter
from accounting.export.export_query import RowTotals, StatementCutoffText
from accounting.export.selection import ExportKind, Selection
from accounting.plurals import counted

MAX_REALM_BYTES: Final = 120
"""Bytes of a realm in a file's name; a longer one is cut, and gets a digest to stay unique."""


def file_name(selection: Selection, extension: str) -> str:
    """The name of an export's file: its kind, its realm, its period or span."""
    parts = [selection.kind.value]
    if selection.kind is ExportKind.USAGE:
        parts[0] += f"-{selection.subject}-{selection.granularity}"
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


def manifest_path(path: Path) -> Path:
    """The path of a file's manifest."""
    return path.with_name(path.name + ".manifest.json")


def manifest_text(
    path: Path,
    selection: Selection,
    extension: str,
    totals: RowTotals,
    written: HashingWriter,
    *,
    late_usage: RowTotals | None,
    cutoffs: Sequence[StatementCutoffText] | None,
    focus: dict[str, Any] | None,
) -> str:
    """The manifest of a file that was just written.

    ``late_usage``: for the books of a closed period, how they differ from its statement.
    ``cutoffs``: for statements, what each was computed from. ``focus``: the metadata of FOCUS.
    """
    manifest: dict[str, Any] = {
        "file": path.name,
        "export": selection.kind.value,
        "format": extension,
    }
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
    manifest |= {"bytes": written.size, "sha256": written.hexdigest()}
    return json.dumps(manifest, indent=2, ensure_ascii=True) + "\n"


def _exact(sums: dict[str, Decimal]) -> dict[str, int | str]:
    """Values that JSON keeps exactly: integers, and fractions as text."""
    return {
        name: int(value) if value == value.to_integral_value() else format(value, "f")
        for name, value in sums.items()
    }


def check_export(manifest: Path) -> str | None:
    """How a file differs from its manifest, as a message; None when it doesn't."""
    try:
        fields = json.loads(manifest.read_text())
        name, size, digest = fields["file"], fields["bytes"], fields["sha256"]
    except OSError as error:
        raise UsageError(f"{manifest}: {error.strerror}") from None
    except (ValueError, KeyError, TypeError):
        return f"{manifest}: not a manifest of an export"
    path = manifest.with_name(str(name))
    if Path(str(name)).name != name or not path.is_file():
        return f"{path}: missing"
    with path.open("rb") as file:
        actual = hashlib.file_digest(file, "sha256").hexdigest()
    if path.stat().st_size != size:
        return f"{path}: {counted(path.stat().st_size, 'byte')}, expected {size:,}"
    if actual != digest:
        return f"{path}: SHA-256 is {actual}, expected {digest}"
    return None
