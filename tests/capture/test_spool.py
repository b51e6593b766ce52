"""The spool as the collector and the loader use it."""

import sqlite3
import subprocess
import sys
from itertools import pairwise
from pathlib import Path
from random import randbytes

import pytest
from hypothesis import given
from hypothesis import strategies as st

from accounting.capture.spool.file import spool_path
from accounting.capture.spool.pruning import prune
from accounting.capture.spool.records import CaptureMode, Message, MessageOrigin, RawKeySighting
from accounting.capture.spool.spool import Spool
from accounting.errors import SpoolError
from tests.support.collectors import stored_messages


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return spool_path(tmp_path, "test")


def message(received_at: int, payload: bytes = b"p") -> Message:
    return received_at, 0, b"c", payload


def test_a_new_spool_has_one_epoch_and_no_checkpoint(path: Path) -> None:
    with Spool.open(path, "test", clock=lambda: 5) as spool:
        state, epochs = spool.state(), spool.epochs()
    assert (state.source, state.captured_until, state.captured_epoch) == ("test", None, 1)
    assert (state.captured_position, state.loaded_epoch, state.loaded_position) == (0, 0, 0)
    assert [(epoch.number, epoch.started_at, epoch.cause) for epoch in epochs] == [(1, 5, "first")]
    assert len(epochs[0].token) == 32


def test_messages_are_read_back_in_order_after_a_position(path: Path) -> None:
    with Spool.open(path, "test") as spool:
        spool.append([(7, 3, b"\x00\xff", b""), (8, 0, b"", b"\r\n")], captured_until=7)
        first, second = stored_messages(spool)
        assert first == (1, 3, False, 1, 7, b"\x00\xff", b"")
        assert second == (1, 0, False, 2, 8, b"", b"\r\n")
        assert [row[1:] for row in spool.read_messages(1, 1, 10)] == [second[3:]]
        assert [row[1:] for row in spool.read_messages(0, 0, 1)] == [first[3:]]
        assert spool.state().captured_until == 7


@pytest.mark.parametrize(("mode", "database"), [("replication", 3), ("subscribe", 0)])
def test_status_keys_have_the_database_of_their_messages(
    path: Path, mode: CaptureMode, database: int
) -> None:
    """A subscription shows none: with another one, a key would confirm no session."""
    with Spool.open(path, "test") as spool:
        spool.set_mode(mode)
        spool.append([message(10)])
        spool.add_sightings([RawKeySighting(11, 12, 3, b"key", 4)])
        assert spool.sightings() == [RawKeySighting(11, 12, database, b"key", 4, 1, 1, 1)]


@pytest.mark.parametrize("count", [499, 500, 501, 1250])
def test_a_batch_of_any_size_is_stored_completely(path: Path, count: int) -> None:
    """A chunk has at most 500 messages."""
    with Spool.open(path, "test") as spool:
        spool.append([message(10, b"%d" % n) for n in range(count)], estimated_count=count - 1)
        rows = stored_messages(spool)
        assert [(row.position, row.payload) for row in rows] == [
            (n + 1, b"%d" % n) for n in range(count)
        ]
        assert [row.estimated for row in rows] == [True] * (count - 1) + [False]


def test_receipt_times_never_fall_nor_precede_the_last_checkpoint(path: Path) -> None:
    with Spool.open(path, "test") as spool:
        spool.append([message(10), message(4)], captured_until=15)
        spool.append([message(3), message(20)])
        spool.checkpoint(2)
        assert [row.received_at for row in stored_messages(spool)] == [10, 10, 15, 20]
        assert spool.state().captured_until == 15


@given(st.lists(st.lists(st.integers(0, 50), max_size=5), max_size=5))
def test_any_split_into_batches_gives_the_same_rows(
    tmp_path_factory: pytest.TempPathFactory, batches: list[list[int]]
) -> None:
    home = tmp_path_factory.mktemp("spool")
    with Spool.open(home / "one", "test") as single, Spool.open(home / "many", "test") as many:
        single.append([message(at) for batch in batches for at in batch])
        for batch in batches:
            many.append([message(at) for at in batch])
        rows = stored_messages(many)
        assert rows == stored_messages(single)
    assert [row.position for row in rows] == list(range(1, len(rows) + 1))
    assert all(a.received_at <= b.received_at for a, b in pairwise(rows))


def test_messages_and_their_checkpoint_are_one_transaction(path: Path) -> None:
    with Spool.open(path, "test") as spool:
        spool.append([message(1)], captured_until=1)
        invalid: list[Message] = [message(2), (3, 0, b"c", None)]  # type: ignore[list-item]
        with pytest.raises(TypeError):
            spool.append(invalid, captured_until=3)
        assert len(spool.read_messages(0, 0, 9)) == 1
        assert (spool.state().captured_until, spool.state().captured_position) == (1, 1)


def test_a_reopened_spool_continues_after_its_last_message(path: Path) -> None:
    with Spool.open(path, "test") as spool:
        spool.append([message(1)], captured_until=1)
        spool.set_server_run_id("run")
        before, epochs = spool.state(), spool.epochs()
    with Spool.open(path, "test") as spool:
        assert (spool.state(), spool.epochs()) == (before, epochs)
        spool.append([message(2)])
        assert [row.position for row in stored_messages(spool)] == [1, 2]


def test_a_new_epoch_has_its_own_token_and_counts_from_one(path: Path) -> None:
    with Spool.open(path, "test", clock=lambda: 3) as spool:
        spool.append([message(9)])
        assert spool.start_epoch("redis_restarted") == 2
        spool.append([message(10)])
        places = [(row.epoch, row.position) for row in stored_messages(spool)]
        assert places == [(1, 1), (2, 1)]
        assert [
            MessageOrigin.unpack(origin).epoch for origin, *_ in spool.read_messages(1, 1, 9)
        ] == [2]
        first, second = spool.epochs()
        assert (second.started_at, second.cause) == (9, "redis_restarted")
        assert first.token != second.token


def test_an_epoch_with_a_replaced_token_keeps_its_messages(path: Path) -> None:
    with Spool.open(path, "test") as spool:
        spool.append([message(9)])
        old = spool.epochs()[0].token
        new = spool.replace_token(1, "restored", 7)
        assert new != old
        (epoch,) = spool.epochs()
        assert (epoch.token, epoch.cause, epoch.started_at) == (new, "restored", 7)
        assert len(spool.read_messages(0, 0, 9)) == 1


def test_a_gap_stays_open_across_a_reopening_and_closes_once(path: Path) -> None:
    with Spool.open(path, "test") as spool:
        spool.append([message(5)], captured_until=4)
        gap = spool.open_gap(4, "disconnected", "why")
    with Spool.open(path, "test") as spool:
        open_gap = spool.current_gap()
        assert open_gap is not None
        assert (open_gap.number, open_gap.epoch, open_gap.position) == (gap, 1, 1)
        assert (open_gap.from_at, open_gap.to_at, open_gap.cause) == (4, None, "disconnected")
        spool.close_gap(gap, 9)
        assert spool.current_gap() is None
        assert [closed.to_at for closed in spool.gaps()] == [9]
        assert spool.gaps(after=gap) == []
        with pytest.raises(ValueError, match="not open"):
            spool.close_gap(gap, 10)


def test_a_gap_is_never_empty_even_when_the_clock_steps_back(path: Path) -> None:
    with Spool.open(path, "test") as spool:
        spool.close_gap(spool.open_gap(100, "disconnected"), 7)
        spool.append([message(200)])
        spool.close_gap(spool.open_gap(100, "disconnected"), 7)
        assert [(gap.from_at, gap.to_at) for gap in spool.gaps()] == [(100, 101), (100, 200)]


def test_pruning_deletes_only_old_loaded_messages(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("accounting.capture.spool.pruning.BATCH_CHUNKS", 1)
    with Spool.open(path, "test") as spool:
        spool.append([message(at) for at in range(1, 11)])
        assert prune(spool, 100) == 0
        spool.mark_loaded(1, 8)
        assert prune(spool, 8) == 7
        assert [row.position for row in stored_messages(spool)] == [8, 9, 10]
        spool.start_epoch("again")
        spool.append([message(11)])
        spool.mark_loaded(2, 0)
        assert prune(spool, 100) == 3
        assert [(row.epoch, row.position) for row in stored_messages(spool)] == [(2, 1)]
        assert prune(spool, 100) == 0


def test_the_loader_reads_and_prunes_while_the_collector_writes(path: Path) -> None:
    with Spool.open(path, "test") as collector, Spool.open(path, "test") as loader:
        for number in range(1, 20):
            collector.append([message(number)], captured_until=number)
            assert [row[1] for row in loader.read_messages(1, number - 1, 9)] == [number]
            loader.mark_loaded(1, number)
            assert prune(loader, number) <= 1
        assert collector.state() == loader.state()


def test_only_the_owner_can_read_the_files(path: Path) -> None:
    with Spool.open(path, "test") as spool:
        spool.append([message(1)])
        modes = {file.name: file.stat().st_mode & 0o777 for file in path.parent.iterdir()}
    assert len(modes) == 3  # the database, its -wal and its -shm
    assert set(modes.values()) == {0o600}
    assert path.parent.stat().st_mode & 0o777 == 0o700


def test_every_source_has_its_own_file_whatever_its_name(tmp_path: Path) -> None:
    names = ["a", "a b", "a%20b", "..", "ä", "A*"]
    paths = {spool_path(tmp_path, name) for name in names}
    assert len(paths) == len(names)
    assert {path.parent for path in paths} == {tmp_path / "spool"}


def test_a_spool_deleted_or_replaced_in_use_refuses_checkpoints(path: Path) -> None:
    with Spool.open(path, "test") as spool:
        spool.append([message(1)], captured_until=2)
        path.rename(path.with_name("elsewhere"))
        with pytest.raises(SpoolError, match="was moved or deleted"):
            spool.append([message(3)], captured_until=4)
        with Spool.open(path, "test"), pytest.raises(SpoolError, match="was moved or deleted"):
            spool.checkpoint(5)


def test_a_spool_of_another_source_is_refused(path: Path) -> None:
    Spool.open(path, "test").close()
    with pytest.raises(SpoolError, match="belongs to source 'test', not 'other'"):
        Spool.open(path, "other")


def test_another_programs_database_is_refused_and_unchanged(path: Path) -> None:
    path.parent.mkdir()
    with sqlite3.connect(path) as other_database:
        other_database.execute("CREATE TABLE precious (thing)")
    other_database.close()
    with pytest.raises(SpoolError, match="not a spool"):
        Spool.open(path, "test")
    other_database = sqlite3.connect(path)
    assert other_database.execute("SELECT name FROM sqlite_schema").fetchall() == [("precious",)]
    other_database.close()


def test_a_spool_of_a_later_version_is_refused(path: Path) -> None:
    with Spool.open(path, "test") as spool:
        spool._connection.execute("PRAGMA user_version = 99")
    with pytest.raises(SpoolError, match="format 99"):
        Spool.open(path, "test")


def test_a_file_that_is_not_a_database_is_refused_with_advice(path: Path) -> None:
    path.parent.mkdir()
    path.write_bytes(b"not a database, " * 1000)
    with pytest.raises(SpoolError, match="move it away"):
        Spool.open(path, "test")


def test_a_damaged_page_is_an_error_and_never_wrong_messages(path: Path) -> None:
    with Spool.open(path, "test") as spool:
        spool.append([message(at, randbytes(1000)) for at in range(1000)])
    content = bytearray(path.read_bytes())
    middle = len(content) // 2 // 8192 * 8192
    content[middle : middle + 8192] = b"\xa5" * 8192
    path.write_bytes(content)
    with Spool.open(path, "test") as spool, pytest.raises(SpoolError, match="damaged"):
        spool.read_messages(0, 0, 1000)


def test_a_full_disk_rolls_back_the_append(path: Path) -> None:
    with Spool.open(path, "test") as spool:
        spool.append([message(1)], captured_until=1)
        pages = spool._connection.execute("PRAGMA page_count").fetchone()[0]
        spool._connection.execute(f"PRAGMA max_page_count = {pages}")
        with pytest.raises(SpoolError, match="full; make room"):
            spool.append([message(2, randbytes(100_000))], captured_until=2)
        assert [row.received_at for row in stored_messages(spool)] == [1]
        assert spool.state().captured_until == 1
        spool._connection.execute("PRAGMA max_page_count = 1000000")
        spool.append([message(3)], captured_until=3)
        assert [(row.position, row.received_at) for row in stored_messages(spool)] == [
            (1, 1),
            (2, 3),
        ]


FILL = """
import resource, sys
from random import randbytes
from pathlib import Path
from accounting.capture.spool.spool import Spool
from accounting.errors import SpoolError
resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[2]),) * 2)
with Spool.open(Path(sys.argv[1]), "test") as spool:
    for number in range(1, 1_000_000):
        try:
            messages = [(number, 0, b"c", randbytes(1000)) for _ in range(50)]
            spool.append(messages, captured_until=number)
        except SpoolError as error:
            print(error)
            break
        print(number, flush=True)
"""


def test_a_failed_write_loses_no_committed_message(path: Path) -> None:
    run = subprocess.run(
        [sys.executable, "-c", FILL, str(path), str(4 << 20)],
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    *acknowledged, last = run.stdout.splitlines()
    assert "can't be written" in last
    assert "disk" in last
    with Spool.open(path, "test") as spool:
        rows = spool.read_messages(0, 0, 1_000_000)
        assert len(rows) == 50 * len(acknowledged)
        assert spool.state().captured_until == len(acknowledged)
        assert spool._connection.execute("PRAGMA integrity_check").fetchone() == ("ok",)
        spool.append([message(10**9)])
