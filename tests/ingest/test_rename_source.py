"""Renaming a source: everything of it keeps its ids, and the old name stays reserved."""

from pathlib import Path

import pytest

from accounting.audit.verify import verify
from accounting.billing.close_period import close_periods
from accounting.capture.spool.file import spool_path
from accounting.capture.spool.rename import rename_spool
from accounting.capture.spool.spool import Spool
from accounting.errors import SourceConflict, SpoolError, UsageError
from accounting.ingest.loader import Loader
from accounting.ingest.source_lease import acquire_lease
from accounting.sources.rename import rename_source
from tests.support.billing_scenarios import receive_november
from tests.support.books import WRITER, Books
from tests.support.command import CommandResult, turn_accounting
from tests.support.coturn_messages import FakeAllocation
from tests.support.source_identity import stop_collecting


def rename(books: Books, old: str, new: str) -> CommandResult:
    return turn_accounting(
        "source", "rename", old, new,
        database_url=books.url(WRITER), data_dir=str(books.directory),
    )  # fmt: skip


def test_a_renamed_source_keeps_its_history_its_statements_and_its_sessions_ids(
    november_books: Books,
) -> None:
    sessions = november_books.rows("sessions", "session_id", "received_bytes")
    statements = november_books.rows("statements")
    assert rename(november_books, "default", "berlin").code == 0
    assert november_books.rows("sessions", "session_id", "received_bytes") == sessions
    assert {row["source"] for row in november_books.rows("sessions")} == {"berlin"}
    assert november_books.rows("statements") == statements
    assert list(verify(november_books.engine)) == []
    # A year later it may have its old name again.
    rename_source(november_books.engine, "berlin", "default")
    assert list(verify(november_books.engine)) == []
    assert close_periods(november_books.engine) == 0


def test_the_spool_goes_with_the_name_and_loads_on_where_it_was(books: Books) -> None:
    path = spool_path(books.directory, "old")
    with Spool.open(path, "old") as spool:
        books._spools["old"] = spool
        receive_november(books, source="old")
        books.load(source="old", limit=3)
        books._loaders.clear()
        del books._spools["old"]
    spool_path(books.directory, "new").touch()  # a collector was started with the new name before
    result = rename(books, "old", "new")
    assert (result.code, result.err) == (
        0, "turn-accounting: renamed source 'old' to 'new': set ACCOUNTING_SOURCE=new\n",
    )  # fmt: skip
    assert not path.exists()
    with Spool.open(spool_path(books.directory, "new"), "new") as spool:
        books._spools["new"] = spool
        books.run_jobs()
        del books._spools["new"]
    assert len(books.rows("sessions")) == 2
    assert books.rows("capture_gaps") == []
    assert list(verify(books.engine)) == []


@pytest.mark.parametrize("crash", ["before the file moved", "not at all"])
def test_a_spool_is_renamed_once_however_often_it_is_tried(tmp_path: Path, crash: str) -> None:
    with Spool.open(spool_path(tmp_path, "old"), "old") as spool:
        spool.append([(1, 0, b"c", b"p")])
        if crash == "before the file moved":
            spool.set_source("new")
    assert rename_spool(tmp_path, "old", "new")
    assert not rename_spool(tmp_path, "old", "new")
    with Spool.open(spool_path(tmp_path, "new"), "new") as spool:
        assert spool.last_position(1) == 1


def test_a_spool_in_use_and_one_that_has_captured_are_left_alone(tmp_path: Path) -> None:
    with Spool.open(spool_path(tmp_path, "old"), "old"), pytest.raises(SpoolError, match="in use"):
        rename_spool(tmp_path, "old", "new")
    with Spool.open(spool_path(tmp_path, "new"), "new") as spool:
        spool.checkpoint(1)
    with Spool.open(spool_path(tmp_path, "old"), "new"):
        pass
    assert not rename_spool(tmp_path, "old", "new")


def test_wrong_renames_are_refused_in_one_line(books: Books) -> None:
    for source in ("a", "b"):
        FakeAllocation(books, source=source).new(0)
    books.run_jobs()
    acquire_lease(books.engine, books.spool("a"), 60.0)
    running = rename(books, "a", "c")
    assert (running.code, "stop its collector first" in running.error_line) == (2, True)
    stop_collecting(books, "a")
    wrong = rename(books, "a", "x/y")
    assert wrong.code == 2
    assert "expected 1 to 63 printable characters" in wrong.error_line
    for old, new, words in (
        ("a", "b", "source 'b' exists already"),
        ("aa", "c", "no source 'aa' is known"),
    ):
        with pytest.raises(UsageError, match=words):
            rename_source(books.engine, old, new)
    rename_source(books.engine, "a", "c")
    with pytest.raises(UsageError, match="was the name of another source"):
        rename_source(books.engine, "b", "a")


def test_a_collector_with_the_former_name_is_refused(books: Books) -> None:
    """It runs where nobody has set the new name."""
    FakeAllocation(books, source="old").new(0)
    books.run_jobs()
    rename_source(books.engine, "old", "new")
    with pytest.raises(SourceConflict, match="was renamed to 'new': set ACCOUNTING_SOURCE=new"):
        acquire_lease(books.engine, books.spool("old"), 60.0)
    FakeAllocation(books, source="old").new(10)
    with pytest.raises(SourceConflict, match="was renamed to 'new'"):
        books.load(source="old")
    assert [row["source"] for row in books.rows("sources")] == ["new"]


def test_after_a_restore_from_before_the_rename_nothing_is_loaded_twice(books: Books) -> None:
    """The collector has the new name, the restored database only the old one."""
    data_dir = books.directory
    with Spool.open(spool_path(data_dir, "old"), "old") as spool:
        books._spools["old"] = spool
        receive_november(books, source="old")
        books.load(source="old")
        del books._spools["old"]
    assert rename_spool(data_dir, "old", "new")
    with Spool.open(spool_path(data_dir, "new"), "new") as spool:
        loader = Loader(books.engine, spool, books.rule)
        hint = "was loaded as source 'old': run `turn-accounting source rename old new` first"
        with pytest.raises(SourceConflict, match=hint):
            loader.load()
        with pytest.raises(SourceConflict, match=hint):
            acquire_lease(books.engine, spool, 60.0)
        assert rename(books, "old", "new").code == 0
        assert loader.load() == 0
    assert [row["source"] for row in books.rows("sources")] == ["new"]
