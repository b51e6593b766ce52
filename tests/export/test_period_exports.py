"""Exports of closed periods: refused before the close, final afterwards, safe against crashes."""

import csv
import hashlib
import io
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest

from accounting.billing.adjust import adjust
from accounting.billing.close_period import close_periods
from accounting.errors import ConnectionLost, NotYet
from accounting.export.export import export_to_directory, export_to_stream
from accounting.export.manifest import check_export
from accounting.export.selection import ExportFormat, ExportKind, Selection
from accounting.reporting.reader import DatabaseReader
from tests.support.billing_scenarios import (
    DAY,
    DECEMBER,
    NOVEMBER,
    close_november_without_late_source,
    receive_late_source,
    receive_november,
)
from tests.support.books import READER, WRITER, Books
from tests.support.command import turn_accounting
from tests.support.coturn_messages import FakeAllocation
from tests.support.crash_injection import CrashInjector, SimulatedCrash


def export_rows(
    reader: DatabaseReader, kind: ExportKind, period: Any = NOVEMBER
) -> list[dict[str, str]]:
    out = io.BytesIO()
    selection = Selection(kind=kind, realm="example.org", period=period)
    export_to_stream(reader, selection, ExportFormat.CSV, out)
    return list(csv.DictReader(io.StringIO(out.getvalue().decode(), newline="")))


@pytest.mark.parametrize("kind", list(ExportKind))
def test_a_period_that_is_not_closed_is_not_exported(books: Books, kind: ExportKind) -> None:
    receive_november(books)
    books.advance_clock(2 * DAY)
    books.run_jobs()
    assert close_periods(books.engine) == 0
    with pytest.raises(NotYet, match="it waits for its end"):
        export_rows(books.reader, kind)


def test_a_closed_period_exports_its_lines_days_and_sessions(november_books: Books) -> None:
    lines = export_rows(november_books.reader, ExportKind.STATEMENTS)
    days = export_rows(november_books.reader, ExportKind.USAGE)
    sessions = export_rows(november_books.reader, ExportKind.SESSIONS)
    assert {row["user_id"]: row["received_bytes"] for row in lines} == {
        "alice": "100",
        "bob": "500",
    }
    for rows in (days, sessions):
        assert sum(int(row["received_bytes"]) for row in rows) == 600
    assert export_rows(november_books.reader, ExportKind.ADJUSTMENTS) == []


def test_late_usage_does_not_change_exported_statements(books: Books, tmp_path: Path) -> None:
    close_november_without_late_source(books)
    selection = Selection(kind=ExportKind.STATEMENTS, period=NOVEMBER)

    def export(into: str) -> list[tuple[str, bytes]]:
        for format_ in ExportFormat:
            export_to_directory(books.reader, selection, format_, tmp_path / into)
        return [(path.name, path.read_bytes()) for path in sorted((tmp_path / into).iterdir())]

    before = export("before")
    assert len(before) == 6
    receive_late_source(books)
    books.run_jobs()
    assert adjust(books.engine) == 2
    assert export("after") == before
    with pytest.raises(NotYet):  # they are posted in December, which is open
        export_rows(books.reader, ExportKind.ADJUSTMENTS, DECEMBER)
    everything = io.BytesIO()
    export_to_stream(
        books.reader, Selection(kind=ExportKind.ADJUSTMENTS), ExportFormat.CSV, everything
    )
    rows = list(csv.DictReader(io.StringIO(everything.getvalue().decode())))
    assert {row["received_bytes"] for row in rows} == {"700", "10"}


def test_statements_are_ordered_as_people_read_them_with_cutoffs_in_the_manifest(
    books: Books, tmp_path: Path
) -> None:
    """By realm, user and period; the cutoff is the same in all rows of a period."""
    names = ["zoe", "Bob", "alice", "\u00e9va"]
    for number, (name, day) in enumerate((name, day) for day in (0, 31) for name in names):
        allocation = FakeAllocation(books, user=name, allocation=number + 1)
        allocation.new(day * DAY + number)
        allocation.close(day * DAY + 100 + number, (1, 1, 1, 1), (0, 0, 0, 0))
    books.advance_clock(62 * DAY)
    books.run_jobs()
    assert close_periods(books.engine) == 2
    file = export_to_directory(
        books.reader, Selection(kind=ExportKind.STATEMENTS), ExportFormat.CSV, tmp_path
    )
    with file.path.open(newline="", encoding="utf-8") as rows:
        exported = list(csv.DictReader(rows))
    assert [(row["user_id"], row["period"]) for row in exported] == [
        (name, period) for name in sorted(names) for period in ("2026-11-01", "2026-12-01")
    ]
    lines = books.rows("statements", order="period")
    assert {row["digest"] for row in exported} == {row["digest"] for row in lines}
    assert "cutoff" not in exported[0]
    cutoffs = {(row["realm"], str(row["period"])): json.loads(row["cutoff"]) for row in lines}
    assert json.loads(file.manifest_path.read_text())["cutoffs"] == [
        {"realm": realm, "period": period, "cutoff": cutoff}
        for (realm, period), cutoff in cutoffs.items()
    ]
    assert len(cutoffs) == 2


def test_the_manifest_of_a_periods_usage_has_its_late_usage(books: Books, tmp_path: Path) -> None:
    close_november_without_late_source(books)
    selection = Selection(kind=ExportKind.USAGE, period=NOVEMBER, granularity="hour")

    def export(into: str) -> tuple[dict[str, Any], bytes]:
        file = export_to_directory(books.reader, selection, ExportFormat.CSV, tmp_path / into)
        return json.loads(file.manifest_path.read_text()), file.path.read_bytes()

    before = export("before")
    assert export("again") == before
    assert before[0]["late_usage"]["adjustments"] == 0
    receive_late_source(books)
    books.run_jobs()
    assert adjust(books.engine) == 2
    after, _ = export("after")
    late = after["late_usage"]
    assert (late["adjustments"], late["sums"]["received_bytes"]) == (2, 710)
    billed = books.view_sums("statements")
    assert {name: after["sums"][name] - late["sums"][name] for name in billed} == billed
    assert {name: before[0]["sums"][name] for name in billed} == billed


@contextmanager
def crashing_disk(injector: "DiskCrashInjector") -> Iterator[None]:
    """Crash before and after any sync, rename and unlink."""
    names = ("fsync", "rename", "unlink")
    originals = {name: getattr(os, name) for name in names}

    def crashing(name: str) -> Any:
        def call(*arguments: Any, **options: Any) -> Any:
            injector.count_down_disk()
            returned = originals[name](*arguments, **options)
            injector.count_down_disk()
            return returned

        return call

    for name in names:
        setattr(os, name, crashing(name))
    try:
        yield
    finally:
        for name in names:
            setattr(os, name, originals[name])


class DiskCrashInjector(CrashInjector):
    def count_down_disk(self) -> None:
        self.moments_left -= 1
        if self.moments_left == 0:
            raise SimulatedCrash


@pytest.mark.parametrize("format_", list(ExportFormat))
def test_after_a_crash_at_any_moment_a_manifest_describes_its_file(
    november_books: Books, tmp_path: Path, format_: ExportFormat
) -> None:
    """A repeated export then gives the files of an uninterrupted one."""
    selection = Selection(kind=ExportKind.STATEMENTS, period=NOVEMBER)
    uninterrupted = export_to_directory(
        november_books.reader, selection, format_, tmp_path / "uninterrupted"
    )
    expected = {path.name: path.read_bytes() for path in uninterrupted.path.parent.iterdir()}
    injector = DiskCrashInjector()
    moment, finished = 0, False
    with closing(DatabaseReader(november_books.url(WRITER))) as reader:
        while not finished:
            moment += 1
            directory = tmp_path / f"{moment:03d}"
            old = export_to_directory(november_books.reader, selection, format_, directory)
            old.path.write_bytes(b"older")
            manifest = json.loads(old.manifest_path.read_text())
            manifest |= {"bytes": 5, "sha256": hashlib.sha256(b"older").hexdigest()}
            old.manifest_path.write_text(json.dumps(manifest))
            with reader.transaction() as connection:
                connection.cursor_factory = injector.cursor_class()
            injector.arm(moment)
            with suppress(SimulatedCrash, ConnectionLost), crashing_disk(injector):
                export_to_directory(reader, selection, format_, directory)
                finished = injector.moments_left > 0
            injector.moments_left = 0
            if old.manifest_path.exists():
                assert check_export(str(old.manifest_path)) == [], moment
            export_to_directory(november_books.reader, selection, format_, directory)
            assert {path.name: path.read_bytes() for path in directory.iterdir()} == expected, (
                moment
            )
    assert moment > 15


def test_a_killed_process_leaves_only_drafts(november_books: Books, tmp_path: Path) -> None:
    """SIGKILL before the first sync leaves no file and no manifest; the next run writes both."""
    target = tmp_path / "out"
    program = (
        "import os, signal, sys\n"
        "os.fsync = lambda _: os.kill(os.getpid(), signal.SIGKILL)\n"
        "from accounting.cli.main import main\n"
        "sys.argv = ['turn-accounting', *sys.argv[1:]]\n"
        "main()\n"
    )
    arguments = ["export", "statements", "--period", "2026-11-01", "--output", str(target)]
    killed = subprocess.run(
        [sys.executable, "-c", program, *arguments],
        env={**os.environ, "ACCOUNTING_DATABASE_URL": november_books.url(READER)},
        cwd=Path(__file__).resolve().parents[2],
        check=False,
        timeout=60,
    )
    assert killed.returncode == -9
    assert [path.name[0] for path in target.iterdir()] != []
    assert all(path.name.startswith(".") for path in target.iterdir())
    result = turn_accounting(*arguments, database_url=november_books.url(READER))
    paths = sorted(map(str, target.iterdir()))
    assert result == (0, "".join(f"{path}\n" for path in paths), "")
    assert paths == [
        str(target / f"statements_2026-11-01.csv{suffix}") for suffix in ("", ".manifest.json")
    ]
    assert turn_accounting("export", "check", paths[1]) == (0, "", "")


def test_a_span_without_an_end_is_marked_as_incomplete(
    november_books: Books, tmp_path: Path
) -> None:
    since, url = ("usage", "--since", "2026-11"), november_books.url(READER)
    streamed = turn_accounting("export", *since, database_url=url)
    listed = turn_accounting("usage", "--per", "day", "--csv", database_url=url)
    assert (streamed.code, streamed.out.splitlines()[0]) == (0, listed.out.splitlines()[0])
    assert sorted(streamed.out.splitlines()) == sorted(listed.out.splitlines())
    assert streamed.err == (
        "turn-accounting: incomplete: rows may be added or change, since the span has no --until\n"
    )
    written = turn_accounting("export", *since, "--output", str(tmp_path), database_url=url)
    assert (written.code, written.err) == (0, streamed.err)
    assert "usage-user-day_since-2026-11-01.csv\n" in written.out
    manifest = json.loads(Path(written.out.splitlines()[1]).read_text())
    assert manifest["complete"] is False


def test_the_command_exits_with_3_before_the_close(books: Books, tmp_path: Path) -> None:
    receive_november(books)
    books.advance_clock(2 * DAY)
    books.run_jobs()
    close_periods(books.engine)
    target = tmp_path / "out"
    arguments = ("export", "statements", "--realm", "example.org", "--period", "2026-11-01")
    early = turn_accounting(*arguments, "--output", str(target), database_url=books.url(READER))
    assert early.code == 3
    assert "period 2026-11-01 of realm 'example.org' is not closed yet" in early.error_line
    assert early.error_line.endswith("statement example.org 2026-11-01 --preview`")
    assert not target.exists()


@pytest.mark.parametrize("format_", list(ExportFormat))
def test_a_full_output_ends_the_export(november_books: Books, format_: ExportFormat) -> None:
    arguments = ("export", "statements", "--period", "2026-11-01", "--format", format_.value)
    full = turn_accounting(*arguments, output="/dev/full", database_url=november_books.url(READER))
    assert full.code == 1
    assert "can't write to standard output" in full.error_line


def test_the_command_writes_to_standard_output(november_books: Books) -> None:
    database = {"database_url": november_books.url(READER)}
    result = turn_accounting(
        "export", "statements", "--period", "2026-11-01", "--format", "jsonl", **database
    )
    assert (result.code, result.err) == (0, "")
    assert {row["user_id"]: row["sent_bytes"] for row in result.rows} == {"alice": 200, "bob": 600}


@pytest.mark.parametrize(
    "arguments",
    [
        ("usage", "--period", "November"),
        ("usage", "--period", "2026-11-01", "--since", "2026-11-01"),
        ("usage", "--period", "2026-11-01", "--per", "month"),
        ("usage", "--by", "nobody"),
        ("usage", "--per", "year"),
        ("sessions", "--since", "2026-11-02", "--until", "2026-11-01"),
        ("sessions", "--until", "tomorrow"),
        ("sessions", "--since", "today", "--until", "yesterday"),
        ("statements", "--period", "1999-01-01"),
        ("adjustments", "--format", "xml"),
        ("statements", "--realm", "nobody.example"),
        ("check", "no-such-manifest.json"),
    ],
)
def test_a_usage_error_is_one_line(books: Books, arguments: tuple[str, ...]) -> None:
    result = turn_accounting("export", *arguments, database_url=books.url(READER))
    assert result.code == 2
    assert result.error_line
