"""The manifest of an archived day: its files, and what they hold.

``export check`` understands it as that of a partitioned table.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date
from hashlib import sha256
from typing import Any, Final

from accounting.archive.archive_columns import KEY_SIGHTINGS, REPORTS, SUMMED
from accounting.archive.day_contents import EpochContents, SourceContents
from accounting.errors import AccountingError
from accounting.export.manifest import FileEntry
from accounting.export.partition_path import partition_value
from accounting.export.place import Place, read_file

FORMAT_VERSION: Final = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class ArchiveManifest:
    """What the manifest of a day says. ``sha256``: of the manifest itself.

    ``part``: 1, or higher where reports came after the day was dropped, and were dropped in turn.
    """

    day: date
    part: int
    contents: Sequence[SourceContents]
    files: Sequence[FileEntry]
    sha256: str

    @property
    def reports(self) -> int:
        return sum(source.reports for source in self.contents)

    @property
    def sightings(self) -> int:
        return sum(source.sightings for source in self.contents)

    def file(self, table: str, source: SourceContents) -> FileEntry | None:
        """The file of a table with rows of a source; None if it has no rows."""
        name = archived_file_name(table, self.day, source.source, self.part)
        return next((file for file in self.files if file.name == name), None)


def archived_file_name(table: str, day: date, source: str, part: int) -> str:
    """Where the rows of a source on a day are, below the place."""
    return f"{table}/day={day}/source={partition_value(source)}/{table}{_suffix(part, '-')}.parquet"


def archive_manifest_name(day: date, part: int) -> str:
    """The name of a day's manifest."""
    return f"{REPORTS}_{day}{_suffix(part, '_')}.manifest.json"


def _suffix(part: int, separator: str) -> str:
    return "" if part == 1 else f"{separator}{part}"


def archive_manifest_text(
    day: date, part: int, contents: Sequence[SourceContents], files: Sequence[FileEntry]
) -> bytes:
    """The manifest of files that were just written."""
    epochs = [epoch for source in contents for epoch in source.epochs]
    manifest = {
        "table": REPORTS,
        "partitioned_by": ["day", "source"],
        "export": REPORTS,
        "format": "parquet",
        "version": FORMAT_VERSION,
        "day": day.isoformat(),
        "part": part,
        "complete": True,
        "rows": sum(source.reports for source in contents),
        KEY_SIGHTINGS: sum(source.sightings for source in contents),
        "sums": {name: sum(epoch.sums[name] for epoch in epochs) for name in SUMMED},
        "sources": [
            {
                "source": source.source,
                "source_id": source.source_id,
                KEY_SIGHTINGS: source.sightings,
                "epochs": [
                    {
                        "epoch": epoch.epoch,
                        "rows": epoch.reports,
                        "first_position": epoch.first_position,
                        "last_position": epoch.last_position,
                        "sums": dict(epoch.sums),
                    }
                    for epoch in source.epochs
                ],
            }
            for source in contents
        ],
        "files": [
            {"file": file.name, "rows": file.rows, "bytes": file.size, "sha256": file.sha256}
            for file in files
        ],
    }
    return (json.dumps(manifest, indent=2, ensure_ascii=True) + "\n").encode()


def read_archive_manifest(place: Place, day: date, part: int = 1) -> ArchiveManifest | None:
    """The manifest of a day in a place; None if there is none. Raises AccountingError."""
    name = archive_manifest_name(day, part)
    text = read_file(place, name)
    if text is None:
        return None
    try:
        return _parse(text, day, part)
    except (ValueError, KeyError, TypeError, AttributeError):
        raise AccountingError(
            f"{place.location(name)}: not the manifest of an archived day"
        ) from None


def _parse(text: bytes, day: date, part: int) -> ArchiveManifest:
    manifest: dict[str, Any] = json.loads(text)
    if (manifest["version"], manifest["day"], manifest["part"]) != (FORMAT_VERSION, str(day), part):
        raise ValueError(manifest["version"])
    contents = [
        SourceContents(
            source_id=int(source["source_id"]),
            source=str(source["source"]),
            sightings=int(source[KEY_SIGHTINGS]),
            epochs=[
                EpochContents(
                    epoch=int(epoch["epoch"]),
                    reports=int(epoch["rows"]),
                    first_position=int(epoch["first_position"]),
                    last_position=int(epoch["last_position"]),
                    sums={name: int(epoch["sums"][name]) for name in SUMMED},
                )
                for epoch in source["epochs"]
            ],
        )
        for source in manifest["sources"]
    ]
    files = [
        FileEntry(
            name=str(file["file"]),
            size=int(file["bytes"]),
            sha256=str(file["sha256"]),
            rows=int(file["rows"]),
        )
        for file in manifest["files"]
    ]
    return ArchiveManifest(
        day=day, part=part, contents=contents, files=files, sha256=sha256(text).hexdigest()
    )
