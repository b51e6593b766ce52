"""A partitioned export is one table for engines that read Hive's directories."""

import json
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa
import pyarrow.dataset
import pytest

from accounting.billing.close_period import close_periods
from accounting.export.export import Exported, export_to_directory
from accounting.export.manifest import check_export
from accounting.export.selection import ExportFormat, ExportKind, Selection
from tests.support.billing_scenarios import (
    DAY,
    NOVEMBER,
    close_november_without_late_source,
    receive_late_source,
)
from tests.support.books import READER, Books
from tests.support.command import turn_accounting
from tests.support.coturn_messages import FakeAllocation

REALMS = ("example.org", "", "a/b", "50%", "=x: ?*", "\u00fcber", "123", "q'\"{[^]}", "+ &")


def export(books: Books, kind: ExportKind, directory: Path, **options: Any) -> Exported:
    selection = Selection(kind=kind, is_partitioned=True, **options)
    return export_to_directory(books.reader, selection, ExportFormat.PARQUET, directory)


def read_by_duckdb(table: Path) -> list[dict[str, Any]]:
    """The rows, as a user reads them: the types of the two columns, and the empty realm's NULL."""
    with duckdb.connect() as connection:
        connection.execute("SET TimeZone = 'UTC'")
        read = connection.execute(
            "SELECT * REPLACE (coalesce(realm, '') AS realm) FROM read_parquet($1,"
            " hive_partitioning = true, hive_types = {'realm': VARCHAR, 'period': DATE})",
            [f"{table}/**/*.parquet"],
        )
        names = [column[0] for column in read.description or ()]
        return [dict(zip(names, row, strict=True)) for row in read.fetchall()]


def read_by_pyarrow(table: Path) -> list[dict[str, Any]]:
    columns = pa.schema([("realm", pa.string()), ("period", pa.date32())])
    partitioning = pyarrow.dataset.HivePartitioning(columns)
    rows = pyarrow.dataset.dataset(table, partitioning=partitioning).to_table().to_pylist()
    return [row | {"realm": row["realm"] or ""} for row in rows]


def in_order(rows: list[dict[str, Any]], columns: list[str]) -> list[tuple[Any, ...]]:
    return sorted(tuple(str(row[name]) for name in columns) for row in rows)


def test_duckdb_and_pyarrow_read_the_rows_of_the_view_from_any_realm(
    books: Books, tmp_path: Path
) -> None:
    for day in (0, 31):
        for number, realm in enumerate(REALMS):
            name = realm.replace("/", "%")  # a channel's parts end at slashes
            allocation = FakeAllocation(books, realm=name, allocation=number + 1)
            allocation.new(day * DAY + number)
            allocation.close(day * DAY + 100 + number, (1, 10 + number, 1, 1), (0, 0, 0, 0))
    books.advance_clock(62 * DAY)
    books.run_jobs()
    close_periods(books.engine)
    for kind, view, table in (
        (ExportKind.STATEMENTS, "statements", "statements"),
        (ExportKind.USAGE, "user_usage_daily", "usage-user-day"),
        (ExportKind.SESSIONS, "sessions", "sessions"),
    ):
        exported = export(books, kind, tmp_path)
        columns = [name for name in books.rows(view)[0] if name != "cutoff"]
        comparable = [name for name in columns if not name.endswith(("_at", "session_id"))]
        expected = in_order(books.rows(view), comparable)
        assert len(expected) == exported.rows == len(exported.locations)
        for read in (read_by_duckdb, read_by_pyarrow):
            rows = read(tmp_path / table)
            assert in_order(rows, comparable) == expected
            assert {str(row["period"]) for row in rows} == {"2026-11-01", "2026-12-01"}
        assert check_export(exported.manifest_location) == []
    names = {path.name for path in (tmp_path / "statements").iterdir()}
    assert {"realm=__HIVE_DEFAULT_PARTITION__", "realm=50%25", "realm=\u00fcber"} <= names


def test_a_later_export_of_a_period_replaces_its_partitions_only(
    books: Books, tmp_path: Path
) -> None:
    """Of adjustments the partition is the period in which they were posted."""
    close_november_without_late_source(books)
    first = export(books, ExportKind.USAGE, tmp_path, period=NOVEMBER)
    again = export(books, ExportKind.USAGE, tmp_path, period=NOVEMBER)
    assert again == first
    receive_late_source(books)
    books.run_jobs()
    late = export(books, ExportKind.USAGE, tmp_path, period=NOVEMBER)
    assert late.locations == first.locations
    manifest = json.loads(late.manifest_path.read_text())
    assert manifest["partitioned_by"] == ["realm", "period"]
    assert [file["rows"] for file in manifest["files"]] == [late.rows]
    Path(late.locations[0]).write_bytes(b"flipped")
    assert check_export(late.manifest_location) == [
        f"{late.locations[0]}: 7 bytes, expected {manifest['files'][0]['bytes']:,}"
    ]
    export(books, ExportKind.ADJUSTMENTS, tmp_path)
    assert {path.name.partition("=")[0] for path in tmp_path.glob("adjustments/*/*")} <= {
        "posted_in"
    }


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("--format csv --output x", "--partition writes Parquet, not csv"),
        ("--format parquet --output x --since 2026-11", "--partition writes whole periods"),
        ("--format parquet", "--partition writes several files"),
    ],
)
def test_a_partitioned_export_that_is_no_table_is_refused(options: str, message: str) -> None:
    result = turn_accounting("export", "sessions", "--partition", *options.split())
    assert result.code == 2
    assert message in result.error_line


def test_the_command_prints_each_file_and_the_manifest(
    november_books: Books, tmp_path: Path
) -> None:
    result = turn_accounting(
        "export", "statements", "--period", "2026-11-01", "--partition", "--format", "parquet",
        "--output", str(tmp_path), database_url=november_books.url(READER),
    )  # fmt: skip
    assert (result.code, result.err) == (0, "")
    assert result.out.splitlines() == [
        f"{tmp_path}/statements/realm=example.org/period=2026-11-01/statements.parquet",
        f"{tmp_path}/statements_2026-11-01.partitions.manifest.json",
    ]
