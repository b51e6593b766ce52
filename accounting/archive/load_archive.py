"""Load an archived day into scratch tables, as rows that the database could have had.

Realms and sources get this database's numbers again. Rows of other realms are left out.
"""

from collections.abc import Iterable, Mapping
from io import BytesIO
from typing import TYPE_CHECKING, Any, Final

from sqlalchemy import Connection

from accounting.archive.archive_columns import (
    KEY_SIGHTINGS,
    KINDS,
    REPORT_COLUMNS,
    REPORTS,
    SIDES,
    SIGHTING_COLUMNS,
)
from accounting.archive.archive_manifest import ArchiveManifest
from accounting.archive.day_contents import SourceContents
from accounting.archive.read_archive import check_archive
from accounting.db.engine import psycopg_connection
from accounting.db.queries import Queries
from accounting.errors import AccountingError
from accounting.export.place import Place
from accounting.progress import Progress, no_progress

if TYPE_CHECKING:
    import pyarrow as pa

_QUERIES: Final = Queries("accounting.archive")
_COLUMNS: Final = {REPORTS: REPORT_COLUMNS, KEY_SIGHTINGS: SIGHTING_COLUMNS}
_STATEMENTS: Final = {REPORTS: "load_reports", KEY_SIGHTINGS: "load_key_sightings"}


def load_archive(
    connection: Connection,
    place: Place,
    manifest: ArchiveManifest,
    realms: Mapping[str, int],
    sources: Mapping[str, int],
    progress: Progress = no_progress,
) -> list[str]:
    """Load the rows of some realms into ``pg_temp.reports`` and ``pg_temp.key_sightings``.

    ``realms``: the number of each by name; ``sources``: likewise, former names included. Returns
    how the archive differs from its manifest, as messages. Raises AccountingError for an archive of
    another installation.
    """
    for source in manifest.contents:
        if sources.get(source.source) != source.source_id:
            raise AccountingError(
                f"the archive of {manifest.day} is of another installation: source"
                f" '{source.source}' has number {source.source_id} there"
            )

    def load(table: str, source: SourceContents, batch: "pa.RecordBatch") -> None:
        rows = _stored_rows(table, source.source_id, batch, realms)
        if rows:
            _copy(connection, table, rows)

    return check_archive(place, manifest, progress, load)


def _stored_rows(
    table: str, source_id: int, batch: "pa.RecordBatch", realms: Mapping[str, int]
) -> bytes:
    """The rows of a batch as CSV, in the columns of the stored table."""
    import pyarrow as pa  # noqa: PLC0415  # an extra
    import pyarrow.compute as pc  # noqa: PLC0415
    import pyarrow.csv  # noqa: PLC0415

    found = pc.index_in(batch.column("realm"), value_set=pa.array(list(realms), pa.string()))
    wanted = pc.is_valid(found)
    columns: dict[str, Any] = {column.name: batch.column(column.name) for column in _COLUMNS[table]}
    columns["realm"] = pa.array(list(realms.values()), pa.int32()).take(found)
    if table == REPORTS:
        kinds = pc.index_in(columns["kind"], value_set=pa.array(KINDS))
        columns["kind"] = pc.add(kinds, 1)
        columns["side"] = pc.index_in(columns["side"], value_set=pa.array(SIDES))
    rows = pa.table({"source_id": pa.repeat(source_id, batch.num_rows), **columns}).filter(wanted)
    if not rows.num_rows:
        return b""
    out = BytesIO()
    pyarrow.csv.write_csv(rows, out, pyarrow.csv.WriteOptions(include_header=False))
    return out.getvalue()


def _copy(connection: Connection, table: str, rows: bytes) -> None:
    with psycopg_connection(connection).cursor() as cursor:
        statement = _QUERIES.driver(_STATEMENTS[table])
        with cursor.copy(statement) as copy:
            copy.write(rows)


def last_positions(manifests: Iterable[ArchiveManifest]) -> dict[int, tuple[int, int]]:
    """The last archived (epoch, position) of each source."""
    last: dict[int, tuple[int, int]] = {}
    for manifest in manifests:
        for source in manifest.contents:
            for epoch in source.epochs:
                position = (epoch.epoch, epoch.last_position)
                last[source.source_id] = max(position, last.get(source.source_id, position))
    return last
