"""Exports: complete, exact, reproducible, and safe to open in a spreadsheet."""

import csv
import io
import json
import re
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any, Final

import pyarrow.parquet
import pytest

from accounting.domain.counters import COUNTERS
from accounting.errors import NotYet, UsageError
from accounting.export.export import export_to_directory, export_to_stream
from accounting.export.manifest import check_export, file_name
from accounting.export.selection import ExportFormat, ExportKind, Selection
from accounting.reporting.reader import DatabaseReader
from tests.support.books import READER, Books, sum_counters
from tests.support.coturn_messages import FakeAllocation

DAY_START: Final = datetime(2026, 11, 2, tzinfo=UTC)
DAY_END: Final = datetime(2026, 11, 3, tzinfo=UTC)
HOSTILE_NAMES: Final = (
    "alice", "=cmd|' /C calc'!A0", "-2+3", "+1", "@sum", "'quoted", "tab\there", "\tx", "\r\nx",
    'quo"te,comma', "", "null", "\\N", "\\.", "\x01\x02\x7f", "\u00fcn\u00ef", "\uff1d1",
    "a;=1+1", ";;'\t-1", "a\n=1", "\t'", "x;y", "a;'b", "\r\n+1",
)  # fmt: skip


@pytest.fixture
def reader(books: Books) -> Any:
    reader = DatabaseReader(books.url(READER))
    yield reader
    reader.close()


@pytest.fixture
def hostile_names(books: Books) -> Books:
    """Books with ended sessions of users with hostile names, for a complete day."""
    for number, name in enumerate(HOSTILE_NAMES):
        allocation = FakeAllocation(books, user=name.replace("/", "%"), allocation=number + 1)
        allocation.new(number)
        allocation.interim(number + 1, number, 100 * number, 1, 7)
        allocation.close(number + 2, (number, 100 * number, 1, 7), (0, 0, 0, 0))
    books.advance_clock(90_000)
    books.run_jobs()
    return books


def unescaped(cell: str) -> str:
    return re.sub(r"(^|[;\t\r\n])'", r"\1", cell)


def csv_text(value: object) -> str:
    match value:
        case None:
            return ""
        case bool():
            return str(value).lower()
        case datetime():
            return value.isoformat()
        case _:
            return str(value)


@pytest.mark.parametrize("kind", [ExportKind.USAGE, ExportKind.SESSIONS])
def test_csv_has_exactly_the_rows_of_the_view(
    hostile_names: Books, reader: DatabaseReader, tmp_path: Path, kind: ExportKind
) -> None:
    selection = Selection(kind=kind, realm="example.org", since=DAY_START, until=DAY_END)
    exported = export_to_directory(reader, selection, ExportFormat.CSV, tmp_path / "out")
    view = "user_usage_daily" if kind is ExportKind.USAGE else "sessions"
    order = "starts_at, user_key" if kind is ExportKind.USAGE else "ended_at, session_id"
    expected = [
        {name: csv_text(value) for name, value in row.items()}
        for row in hostile_names.rows(view, order=order)
    ]
    with exported.path.open(newline="", encoding="utf-8") as file:
        exported_rows = [
            {
                name: unescaped(cell) if name in {"username", "user_id"} else cell
                for name, cell in row.items()
            }
            for row in csv.DictReader(file)
        ]
    assert exported_rows == expected
    assert exported.rows == len(expected) == len(HOSTILE_NAMES)


@pytest.mark.usefixtures("hostile_names")
def test_no_cell_begins_with_a_formula(reader: DatabaseReader) -> None:
    out = io.BytesIO()
    export_to_stream(
        reader,
        Selection(kind=ExportKind.SESSIONS, since=DAY_START, until=DAY_END),
        ExportFormat.CSV,
        out,
    )
    rows = list(csv.DictReader(io.StringIO(out.getvalue().decode(), newline="")))
    assert len(rows) == len(HOSTILE_NAMES)
    assert all(row["username"][:1] not in set("=+-@\t\r\n\uff1d\uff0b\uff0d\uff20") for row in rows)
    usernames = {row["username"] for row in rows}
    assert {"'-2+3", "''quoted", "alice", "a;'=1+1", "a\n'=1", "x;y"} <= usernames
    formula_after_separator = re.compile(r"[;\t\r\n][=+\-@\t\r\n\uff1d\uff0b\uff0d\uff20]")
    assert not any(formula_after_separator.search(row["username"]) for row in rows)


def test_json_lines_have_exactly_the_rows_of_the_view(
    hostile_names: Books, reader: DatabaseReader
) -> None:
    out = io.BytesIO()
    export_to_stream(
        reader,
        Selection(kind=ExportKind.USAGE, since=DAY_START, until=DAY_END),
        ExportFormat.JSON_LINES,
        out,
    )
    exported_rows = [
        json.loads(line, parse_float=Decimal) for line in out.getvalue().decode().split("\n")[:-1]
    ]
    expected = hostile_names.rows("user_usage_daily", order="starts_at, user_key")
    assert exported_rows == [
        {
            name: value
            if isinstance(value, int | Decimal | str)
            else value.isoformat()
            if isinstance(value, datetime)
            else str(value)
            for name, value in row.items()
        }
        for row in expected
    ]
    assert [type(row["session_seconds"]) for row in exported_rows] == [Decimal] * len(HOSTILE_NAMES)


@pytest.mark.parametrize("kind", [ExportKind.USAGE, ExportKind.SESSIONS])
def test_parquet_has_the_rows_of_the_view_with_their_types(
    hostile_names: Books, reader: DatabaseReader, tmp_path: Path, kind: ExportKind
) -> None:
    selection = Selection(kind=kind, since=DAY_START, until=DAY_END)
    exported = export_to_directory(reader, selection, ExportFormat.PARQUET, tmp_path)
    table = pyarrow.parquet.read_table(exported.path)
    view = "user_usage_daily" if kind is ExportKind.USAGE else "sessions"
    order = "starts_at, user_key" if kind is ExportKind.USAGE else "ended_at, session_id"
    expected = [
        {
            name: value if isinstance(value, int | str | Decimal | datetime | None) else str(value)
            for name, value in row.items()
        }
        for row in hostile_names.rows(view, order=order)
    ]
    assert table.to_pylist() == expected


@pytest.mark.parametrize("format_", list(ExportFormat))
def test_the_same_books_give_the_same_bytes_and_manifest(
    hostile_names: Books, reader: DatabaseReader, tmp_path: Path, format_: ExportFormat
) -> None:
    selection = Selection(
        kind=ExportKind.SESSIONS, realm="example.org", since=DAY_START, until=DAY_END
    )
    first = export_to_directory(reader, selection, format_, tmp_path / "one")
    second = export_to_directory(reader, selection, format_, tmp_path / "two")
    repeated = export_to_directory(reader, selection, format_, tmp_path / "two")
    assert first.path.read_bytes() == second.path.read_bytes() == repeated.path.read_bytes()
    assert first.manifest_path.read_bytes() == second.manifest_path.read_bytes()
    assert sorted(path.name for path in (tmp_path / "two").iterdir()) == [
        repeated.path.name,
        repeated.manifest_path.name,
    ]
    manifest = json.loads(first.manifest_path.read_text())
    sums = sum_counters(hostile_names.rows("sessions"))
    assert manifest["rows"] == len(HOSTILE_NAMES)
    assert {name: manifest["sums"][name] for name in COUNTERS} == sums
    assert check_export(str(first.manifest_path)) == []


@pytest.mark.parametrize("format_", list(ExportFormat))
def test_a_manifest_catches_a_flipped_bit(
    hostile_names: Books, reader: DatabaseReader, tmp_path: Path, format_: ExportFormat
) -> None:
    exported = export_to_directory(
        reader, Selection(kind=ExportKind.USAGE, since=DAY_START, until=DAY_END), format_, tmp_path
    )
    content = bytearray(exported.path.read_bytes())
    for offset in (0, len(content) // 2, len(content) - 1):
        content[offset] ^= 1
        exported.path.write_bytes(content)
        assert "SHA-256" in check_export(str(exported.manifest_path))[0]
        content[offset] ^= 1
    exported.path.write_bytes(content[:-1])
    assert "bytes, expected" in check_export(str(exported.manifest_path))[0]
    exported.path.unlink()
    assert "missing" in check_export(str(exported.manifest_path))[0]
    assert hostile_names.rows("sessions")


@pytest.mark.parametrize("format_", list(ExportFormat))
def test_a_selection_without_rows_is_an_empty_export(
    hostile_names: Books, reader: DatabaseReader, tmp_path: Path, format_: ExportFormat
) -> None:
    selection = Selection(
        kind=ExportKind.SESSIONS,
        since=datetime(2020, 1, 1, tzinfo=UTC),
        until=datetime(2020, 1, 2, tzinfo=UTC),
    )
    exported = export_to_directory(reader, selection, format_, tmp_path)
    assert exported.rows == json.loads(exported.manifest_path.read_text())["rows"] == 0
    if format_ is ExportFormat.PARQUET:
        assert pyarrow.parquet.read_table(exported.path).num_rows == 0
    assert hostile_names.rows("sessions")


def test_an_incomplete_span_is_refused(books: Books, reader: DatabaseReader) -> None:
    selection = Selection(
        kind=ExportKind.SESSIONS, realm="example.org", since=DAY_START, until=DAY_END
    )
    alice = FakeAllocation(books)
    alice.new(0, 100_000)
    books.advance_clock(50)
    books.run_jobs()
    with pytest.raises(NotYet, match="source 'default' is settled only until 20"):
        export_to_stream(reader, selection, ExportFormat.CSV, io.BytesIO())
    books.advance_clock(90_000)
    books.load()
    books.settle()
    with pytest.raises(NotYet, match="open sessions may have ended in it"):
        export_to_stream(reader, selection, ExportFormat.CSV, io.BytesIO())
    alice.deleted(90_010)
    books.advance_clock(90_020)
    books.load()
    books.settle()
    with pytest.raises(NotYet, match="the roll-up has not counted all of it"):
        export_to_stream(reader, selection, ExportFormat.CSV, io.BytesIO())
    books.rollup()
    assert export_to_stream(reader, selection, ExportFormat.CSV, io.BytesIO()) == 0


def test_an_unknown_realm_or_period_is_refused(
    hostile_names: Books, reader: DatabaseReader
) -> None:
    for selection in (
        Selection(kind=ExportKind.USAGE, realm="exmaple.org"),
        Selection(kind=ExportKind.STATEMENTS, period=DAY_START.date()),
    ):
        with pytest.raises(UsageError):
            export_to_stream(reader, selection, ExportFormat.CSV, io.BytesIO())
    assert hostile_names.rows("sessions")


@pytest.mark.parametrize(
    ("realm", "name"),
    [
        ("example.org", "statements_example.org_2026-11-01.csv"),
        ("", "statements__2026-11-01.csv"),
        ("../a_b", "statements_..%2Fa%5Fb_2026-11-01.csv"),
        (None, "statements_2026-11-01.csv"),
    ],
)
def test_file_names_are_distinct_and_stay_in_the_directory(realm: str | None, name: str) -> None:
    selection = Selection(
        kind=ExportKind.STATEMENTS, realm=realm, period=datetime(2026, 11, 1, tzinfo=UTC).date()
    )
    assert file_name(selection, ExportFormat.CSV) == name
    spans = {
        (DAY_START, DAY_END): "sessions_2026-11-02--2026-11-03.csv",
        (DAY_START, None): "sessions_since-2026-11-02.csv",
        (None, DAY_END.replace(hour=1)): "sessions_until-20261103T010000Z.csv",
        (DAY_START.replace(microsecond=1), None): "sessions_since-20261102T000000.000001Z.csv",
    }
    for (since, until), name_of_span in spans.items():
        span = Selection(kind=ExportKind.SESSIONS, since=since, until=until)
        assert file_name(span, ExportFormat.CSV) == name_of_span
    long = Selection(kind=ExportKind.SESSIONS, realm="\u00fc" * 127)
    assert len(file_name(long, ExportFormat.CSV)) < 200
