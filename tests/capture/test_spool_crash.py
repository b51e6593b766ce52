"""A spool whose process or machine stops at any write: every transaction is there, or none of it.

SQLite appends to the write-ahead log, so a stop at any write leaves a beginning of that file. The
tests open every beginning that ends at a page, or within one.
"""

import shutil
import sqlite3
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from random import Random

import pytest

from accounting.capture.spool import upgrade
from accounting.capture.spool.file import spool_path
from accounting.capture.spool.pruning import prune
from accounting.capture.spool.records import MessageOrigin
from accounting.capture.spool.spool import Spool
from accounting.capture.spool.status import read_status
from accounting.capture.spool.takeover import take_over_position
from accounting.errors import SpoolError
from tests.support.collectors import SpooledMessage, stored_messages

LOG_HEADER_BYTES = 32
PAGE_BYTES = 8192 + 24

OLD_SPOOLS = Path(__file__).parents[1] / "data" / "spools"


def write_old_spool(path: Path, version: int) -> list[SpooledMessage]:
    """A spool that an earlier version wrote, which had a row for each message; its messages."""
    path.parent.mkdir(parents=True, exist_ok=True)
    connection = sqlite3.connect(path)
    connection.executescript((OLD_SPOOLS / f"format_{version}.sql").read_text())
    rows = connection.execute(
        "SELECT (epoch << 35) | (database << 1) | estimated, position, received_at, channel,"
        " payload FROM messages ORDER BY epoch, position"
    ).fetchall()
    connection.close()
    return [SpooledMessage._make((*MessageOrigin.unpack(row[0]), *row[1:])) for row in rows]


def beginnings(path: Path, home: Path) -> Iterator[tuple[int, Path]]:
    """Copies of an open spool as a stop at each write would leave it, and their log's length."""
    log = path.with_name(f"{path.name}-wal").read_bytes()
    ends = range(LOG_HEADER_BYTES, len(log) + 1, PAGE_BYTES)
    for length in [0, 7, *ends, *(end + PAGE_BYTES // 3 for end in ends[:-1])]:
        copy = home / f"{length}.sqlite3"
        shutil.copy(path, copy)
        copy.with_name(f"{copy.name}-wal").write_bytes(log[:length])
        yield length, copy


def append(spool: Spool) -> None:
    at = spool.state().last_received_at
    payloads = [Random(at + n).randbytes(40).hex().encode() for n in range(600)]
    spool.append([(at + n, n % 2, b"c", payload) for n, payload in enumerate(payloads)], at + 600)


def set_back(spool: Spool) -> None:
    take_over_position(
        spool,
        token=spool.epochs()[0].token,
        position=700,
        captured_until=None,
        last_received_at=None,
        replication_id=None,
        stream_database=None,
        cause="taken_over",
    )


OPERATIONS: list[Callable[[Spool], object]] = [
    append,
    append,
    lambda spool: spool.shift_times(-50, after=300),
    lambda spool: spool.mark_loaded(1, 550),
    lambda spool: prune(spool, 400),
    set_back,
    append,
    lambda spool: spool.discard_epoch(1),
    append,
]


def test_a_stop_at_any_write_leaves_whole_transactions(tmp_path: Path) -> None:
    path = tmp_path / "spool"
    log = tmp_path / "spool-wal"
    with Spool.open(path, "test") as spool:
        commits = [(log.stat().st_size, stored_messages(spool), spool.state())]
        for operation in OPERATIONS:
            operation(spool)
            commits.append((log.stat().st_size, stored_messages(spool), spool.state()))
        for length, copy in beginnings(path, tmp_path):
            committed = [commit for commit in commits if commit[0] <= length]
            if not committed:
                continue  # the file is being created
            with Spool.open(copy, "test") as reopened:
                found = stored_messages(reopened), reopened.state()
            assert found == committed[-1][1:]


@pytest.mark.parametrize("version", upgrade.CONVERTIBLE)
def test_a_spool_of_an_earlier_version_is_taken_over(tmp_path: Path, version: int) -> None:
    path = spool_path(tmp_path, "test")
    messages = write_old_spool(path, version)
    with pytest.raises(SpoolError, match="is converted when the collector starts"):
        read_status(tmp_path, "test")
    with Spool.open(path, "test") as spool:
        assert stored_messages(spool) == messages
        state = spool.state()
        assert (state.captured_from, state.captured_until, state.captured_epoch) == (1010, 2100, 2)
        assert (state.loaded_position, state.pruned_position, state.boot) == (2, 1, None)
        assert state.resume_point is not None
        assert [(gap.position, gap.cause) for gap in spool.gaps()] == [
            (4, "mode_changed"),
            (3600, "disconnected"),
        ]
        assert [sighting.position for sighting in spool.sightings()] == [3600]
        assert [epoch.cause for epoch in spool.epochs()] == ["first", "mode_changed"]
        spool.append([(9_000, 0, b"c", b"p")], positions=[4_000])
        assert [row.position for row in stored_messages(spool)[-2:]] == [3_400, 4_000]
    status = read_status(tmp_path, "test")
    assert status is not None
    assert status.backlog.messages == len(messages)  # without the loaded one, with the new one


def test_a_conversion_that_stops_at_any_write_is_continued(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(upgrade, "STEP_ROWS", 7)
    path = tmp_path / "spool"
    messages = write_old_spool(path, 3)
    with Spool.open(path, "test") as spool:
        assert stored_messages(spool) == messages
        for _, copy in beginnings(path, tmp_path):
            with Spool.open(copy, "test") as reopened:
                assert stored_messages(reopened) == messages
                assert upgrade.is_complete(reopened._connection)


OPEN = """
import sys
from pathlib import Path
from accounting.capture.spool import upgrade
from accounting.capture.spool.spool import Spool
upgrade.STEP_ROWS = 1
with Spool.open(Path(sys.argv[1]), "test") as spool:
    print(len(spool.read_messages(0, 0, 1000)))
"""


def test_processes_that_start_together_convert_a_spool_together(tmp_path: Path) -> None:
    """As the collector and the loader do."""
    path = tmp_path / "spool"
    messages = write_old_spool(path, 3)
    command = [sys.executable, "-c", OPEN, str(path)]
    processes = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    counts = [process.communicate(timeout=60)[0] for process in processes]
    assert [int(count.split()[-1]) for count in counts] == [len(messages)] * 2
    with Spool.open(path, "test") as spool:
        assert stored_messages(spool) == messages
