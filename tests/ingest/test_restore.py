"""A spool or database that was lost, restored from a copy, or shared by two loaders.

Each message is counted once or lies within a gap that says so.
"""

import shutil
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from accounting.audit.verify import verify
from accounting.capture.redis.server_watch import WatchedServer
from accounting.capture.spool.pruning import prune
from accounting.capture.spool.records import ResumePoint
from accounting.capture.spool.spool import Spool
from accounting.domain.server_identity import ServerIdentity
from accounting.errors import LeaseHeld, SpoolLacksMessages
from accounting.ingest.loader import Loader
from accounting.ingest.source_lease import (
    acquire_lease,
    is_behind,
    must_take_over,
    release_lease,
    take_over,
)
from tests.support.books import Books, channel, status_payload, traffic_payload
from tests.support.collectors import (
    PROMPT_SYNC,
    CollectorThread,
    publish,
    replication_collector,
)
from tests.support.restored_database import back_up, restore_database
from tests.support.servers import ValkeyServer
from tests.support.source_identity import watch_once


def receive(books: Books, *numbers: int, user: str = "alice") -> None:
    """Receive an interim at second n with n received bytes, for each number n."""
    for number in numbers:
        books.receive(number, channel("traffic", user=user), traffic_payload(1, number, 0, 0))


def loaded(books: Books) -> list[int]:
    """The numbers of the loaded interims, in order of epoch and position."""
    rows = books.rows("traffic_reports", "received_bytes", order="epoch, position")
    return [row["received_bytes"] for row in rows]


def gaps(books: Books) -> list[tuple[str, int, int | None]]:
    """(cause, from, to) of the gaps in seconds, in order of time."""
    rows = books.rows("capture_gaps", order="from_at, cause")

    def seconds(at: Any) -> int | None:
        return None if at is None else round((at - books.start).total_seconds())

    return [(row["cause"], seconds(row["from_at"]) or 0, seconds(row["to_at"])) for row in rows]


class Disk:
    """The files of the spool: deleted, copied and restored."""

    def __init__(self, books: Books) -> None:
        self.books = books
        self.path = books.spool().path

    def stop_processes(self) -> None:
        """Stop collector and loader: the next use of the spool opens its file again."""
        self.books.spool().close()
        self.books._spools.clear()
        self.books._loaders.clear()

    def copy(self, to: Path) -> Path:
        self.stop_processes()
        shutil.copy(self.path, to)
        return to

    def restore(self, copy: Path) -> None:
        self.stop_processes()
        shutil.copy(copy, self.path)

    def lose(self) -> None:
        self.stop_processes()
        for path in self.path.parent.glob(f"{self.path.name}*"):
            path.unlink()


def restart_collector(books: Books, at: float) -> None:
    """Start a collector: it records a gap from its last checkpoint until now."""
    spool = books.spool()
    until = spool.state().captured_until
    if until is not None:
        if spool.current_gap() is None:
            spool.open_gap(until, "collector_restarted")
        gap = spool.current_gap()
        assert gap is not None
        spool.close_gap(gap.number, books.micros_at(at))
    spool.checkpoint(books.micros_at(at))


def test_a_lost_spool_is_a_new_epoch_and_a_gap_that_ends(books: Books) -> None:
    receive(books, 1, 2)
    books.advance_clock(3)
    books.load()
    Disk(books).lose()
    books.spool()
    books.load()
    assert gaps(books) == [("spool_lost", 3, None)]
    restart_collector(books, 10)
    receive(books, 11, 12)
    books.advance_clock(13)
    books.load()
    assert loaded(books) == [1, 2, 11, 12]
    assert gaps(books) == [("spool_lost", 3, 10)]
    (source,) = books.rows("sources")
    assert (source["epoch"], source["position"]) == (2, 2)


def test_a_spool_lost_twice_is_two_gaps(books: Books) -> None:
    disk = Disk(books)
    for start in (0, 10, 20):
        restart_collector(books, start)
        receive(books, start + 1)
        books.advance_clock(start + 2)
        books.load()
        disk.lose()
    assert loaded(books) == [1, 11, 21]
    assert gaps(books) == [("spool_lost", 2, 10), ("spool_lost", 12, 20)]


def test_unloaded_messages_of_a_lost_spool_are_within_the_gap(books: Books) -> None:
    receive(books, 1, 2)
    books.advance_clock(3)
    books.load()
    receive(books, 4, 5, 6)
    books.advance_clock(7)
    # The disk is lost before the rest of the backlog is loaded.
    assert books._loaders["default"].load(1) == 1
    Disk(books).lose()
    restart_collector(books, 20)
    books.load()
    assert gaps(books) == [("spool_lost", 4, 20)]


def test_a_lost_spool_that_is_restored_counts_nothing_twice(books: Books, tmp_path: Path) -> None:
    disk = Disk(books)
    receive(books, 1, 2)
    books.advance_clock(3)
    books.load()
    copy = disk.copy(tmp_path / "copy")
    disk.lose()
    books.spool()
    books.load()
    restart_collector(books, 10)
    receive(books, 11)
    books.advance_clock(12)
    books.load()
    disk.restore(copy)
    restart_collector(books, 20)
    receive(books, 21)
    books.advance_clock(22)
    books.load()
    assert loaded(books) == [1, 2, 11, 21]
    assert gaps(books) == [("collector_restarted", 3, 20), ("spool_lost", 3, 10)]


def test_a_restored_copy_of_the_spool_is_a_new_epoch_and_counts_nothing_twice(
    books: Books, tmp_path: Path
) -> None:
    disk = Disk(books)
    receive(books, 1, 2)
    books.advance_clock(3)
    books.load()
    copy = disk.copy(tmp_path / "copy")
    receive(books, 4, 5, 6)
    books.advance_clock(7)
    books.load()
    disk.restore(copy)
    restart_collector(books, 10)
    receive(books, 11)
    books.advance_clock(12)
    books.load()
    receive(books, 13, 14, 15, 16)
    books.load()
    assert loaded(books) == [1, 2, 4, 5, 6, 11, 13, 14, 15, 16]
    assert gaps(books) == [("collector_restarted", 3, 10)]
    (source,) = books.rows("sources")
    assert (source["epoch"], source["position"]) == (2, 7)
    books.load()
    assert len(loaded(books)) == 10


def test_a_restored_copy_beyond_the_loaded_position_is_detected(
    books: Books, tmp_path: Path
) -> None:
    """Its positions are past the database's, so that its messages look like the next ones."""
    disk = Disk(books)
    receive(books, 1, 2)
    books.advance_clock(3)
    books.load()
    copy = disk.copy(tmp_path / "copy")
    receive(books, 4, 5)
    books.advance_clock(6)
    books.load()
    disk.restore(copy)
    restart_collector(books, 10)
    receive(books, 11, 12, 13, 14)
    books.advance_clock(15)
    books.load()
    assert loaded(books) == [1, 2, 4, 5, 11, 12, 13, 14]


def test_a_restored_copy_from_before_the_last_epoch_counts_nothing_twice(
    books: Books, tmp_path: Path
) -> None:
    disk = Disk(books)
    receive(books, 1, 2)
    books.advance_clock(3)
    books.load()
    copy = disk.copy(tmp_path / "copy")
    books.spool().start_epoch("redis_restarted")
    receive(books, 4, 5)
    books.advance_clock(6)
    books.load()
    disk.restore(copy)
    receive(books, 11)
    books.spool().start_epoch("redis_restarted")
    receive(books, 12, 13)
    books.advance_clock(14)
    books.load()
    assert loaded(books) == [1, 2, 4, 5, 11, 12, 13]
    (source,) = books.rows("sources")
    assert (source["epoch"], source["position"]) == (4, 2)


def test_a_loader_killed_after_relabelling_a_copy_continues_with_its_new_token(
    books: Books, tmp_path: Path
) -> None:
    disk = Disk(books)
    receive(books, 1, 2)
    books.advance_clock(3)
    books.load()
    copy = disk.copy(tmp_path / "copy")
    receive(books, 4)
    books.load()
    disk.restore(copy)
    receive(books, 11, 12)
    books.spool().replace_token(1, "spool_older", books.micros_at(4))
    books.load()
    assert loaded(books) == [1, 2, 4, 11, 12]
    (source,) = books.rows("sources")
    assert (source["epoch"], source["position"]) == (2, 4)


def test_a_restored_copy_records_no_gap_twice(books: Books, tmp_path: Path) -> None:
    disk = Disk(books)
    receive(books, 1)
    books.advance_clock(2)
    restart_collector(books, 5)
    books.load()
    copy = disk.copy(tmp_path / "copy")
    receive(books, 6)
    books.advance_clock(7)
    restart_collector(books, 8)
    books.load()
    disk.restore(copy)
    restart_collector(books, 10)
    books.load()
    receive(books, 11)
    books.advance_clock(12)
    books.load()
    assert loaded(books) == [1, 6, 11]
    assert gaps(books) == [
        ("collector_restarted", 2, 5),
        # To the restored copy the two gaps have no message between them.
        ("collector_restarted", 2, 10),
        ("collector_restarted", 7, 8),
    ]


@pytest.mark.parametrize("loader_keeps_running", [False, True])
def test_a_restored_database_is_loaded_again_from_the_spool(
    books: Books, loader_keeps_running: bool
) -> None:
    books.receive(0, channel("status"), status_payload("new"))
    receive(books, 1, 2)
    restart_collector(books, 3)
    books.run_jobs()
    back_up(books)
    books.receive(4, channel("status", user="bob"), status_payload("new"))
    receive(books, 5, 6, user="bob")
    restart_collector(books, 7)
    receive(books, 8)
    books.advance_clock(9)
    books.run_jobs()
    before = contents(books)
    if not loader_keeps_running:
        Disk(books).stop_processes()
        books.spool()
    restore_database(books)
    assert loaded(books) == [1, 2]
    books.run_jobs()
    receive(books, 10)
    books.run_jobs()
    assert loaded(books) == [1, 2, 5, 6, 8, 10]
    after = contents(books)
    assert [row["username"] for row in after["sessions"]] == ["alice", "bob"]
    assert after["capture_gaps"] == before["capture_gaps"]
    assert len(after["capture_gaps"]) == 1
    books.assert_conserved()


def test_messages_that_a_restored_database_lacks_and_the_spool_pruned_are_a_gap(
    books: Books,
) -> None:
    receive(books, 1, 2)
    books.advance_clock(3)
    books.run_jobs()
    back_up(books)
    receive(books, 4, 5, 6, 7)
    books.advance_clock(8)
    books.run_jobs()
    assert prune(books.spool(), books.micros_at(6)) == 4
    restore_database(books)
    Disk(books).stop_processes()
    books.load()
    receive(books, 9)
    books.advance_clock(10)
    books.load()
    assert loaded(books) == [1, 2, 6, 7, 9]
    assert gaps(books) == [("spool_pruned", 3, 5)]


def test_after_a_restore_a_loader_leaves_the_source_to_the_lease_of_the_backup(
    books: Books,
) -> None:
    """Found by `make chaos`: another collector had taken over since the backup.

    Its spool does not reach back to the backup. That of the lease's holder does.
    """
    holder = books.spool()
    holder.set_mode("replication")
    receive_in_stream(books, holder, 1, 2)
    books.load()
    acquire_lease(books.engine, holder, 0.0)
    back_up(books)
    receive_in_stream(books, holder, 3, 4)
    books.load()
    receive_in_stream(books, holder, 5)
    books.follow_capture()
    with Spool.open(books.directory / "elsewhere.sqlite3", "default") as other:
        position = acquire_lease(books.engine, other, 60.0)
        assert position is not None
        take_over(other, position)
        receive_in_stream(books, other, 5)
        loader = Loader(books.engine, other, books.rule)
        assert loader.load() == 1
        restore_database(books)
        with pytest.raises(LeaseHeld):
            loader.load()
        receive_in_stream(books, holder, 6)
        acquire_lease(books.engine, holder, 60.0)
        books.load()
    assert loaded(books) == [1, 2, 3, 4, 5, 6]
    assert gaps(books) == []


def receive_in_stream(books: Books, spool: Spool, *numbers: int) -> None:
    """Receive interims by replication: number n at offset 100 n and second n."""
    for number in numbers:
        spool.append(
            [(books.micros_at(number), 0, channel("traffic"), traffic_payload(1, number, 0, 0))],
            books.micros_at(number),
            positions=[100 * number],
            resume_point=ResumePoint(replication_id="a" * 40, offset=100 * number, database=0),
        )


def test_the_gap_of_a_spool_that_took_over_holds_all_that_was_loaded_before(
    books: Books,
) -> None:
    """The last message was loaded before a checkpoint proved that it was the last one."""
    holder = books.spool()
    holder.set_mode("replication")
    receive_in_stream(books, holder, 1, 2)
    books.load()
    back_up(books)
    receive_in_stream(books, holder, 3)
    holder.append(
        [(books.micros_at(5), 0, channel("traffic"), traffic_payload(1, 5, 0, 0))], positions=[500]
    )
    books.load()
    with Spool.open(books.directory / "elsewhere.sqlite3", "default") as other:
        position = acquire_lease(books.engine, other, 60.0)
        assert position is not None
        take_over(other, position)
        assert other.state().captured_until == books.micros_at(3)
        restore_database(books)
        acquire_lease(books.engine, other, 60.0)
        receive_in_stream(books, other, 6)
        books.follow_capture()
        Loader(books.engine, other, books.rule, lease_seconds=0.0).load()
    assert loaded(books) == [1, 2, 6]
    assert gaps(books) == [("spool_pruned", 2, 5)]


def test_what_a_spool_lacks_after_a_restore_comes_from_the_backlog_again(
    books: Books, tmp_path: Path
) -> None:
    """Its former holder's spool has it too, but that collector is gone."""
    books.set_database_clock(ahead=timedelta())
    with ValkeyServer(PROMPT_SYNC) as server:

        def capture(collector: CollectorThread, *numbers: int) -> None:
            """Capture and load."""
            with collector:
                collector.await_attached(server)
                for number in numbers:
                    payload = traffic_payload(1, number, 0, 0)
                    publish(server, payload, to=channel("traffic"))
                collector.await_checkpoint()
                load(collector)

        def load(collector: CollectorThread) -> None:
            with Spool.open(collector.path, "test") as spool:
                acquire_lease(books.engine, spool, 60.0)
                Loader(books.engine, spool, books.rule).load()
                release_lease(books.engine, spool, 60.0)

        def goes_on(collector: CollectorThread) -> bool:
            """Take over, as the collector's process does; returns whether it was necessary."""
            with Spool.open(collector.path, "test") as spool:
                position = acquire_lease(books.engine, spool, 60.0)
                assert position is not None
                watched = watch_once(server)
                is_necessary = must_take_over(spool, position, watched)
                if is_necessary:
                    if not is_behind(spool, position):
                        shorter = watched._replace(backlog_from=position.position + 1)
                        assert not must_take_over(spool, position, shorter)
                    take_over(spool, position)
                return is_necessary

        first = replication_collector(server.url, tmp_path / "first")
        second = replication_collector(server.url, tmp_path / "second")
        capture(first, 1, 2)
        back_up(books)
        capture(replication_collector(server.url, tmp_path / "first"), 3, 4)
        assert goes_on(second)
        capture(second, 5)
        assert loaded(books) == [1, 2, 3, 4, 5]
        restore_database(books)
        second = replication_collector(server.url, tmp_path / "second")
        with pytest.raises(SpoolLacksMessages):
            load(second)
        assert loaded(books) == [1, 2]
        assert goes_on(second)
        assert not goes_on(second)
        capture(second, 6)
    assert loaded(books) == [1, 2, 3, 4, 5, 6]
    assert gaps(books) == []


def test_a_spool_that_pruned_what_was_loaded_since_the_lease_was_renewed_goes_on(
    books: Books,
) -> None:
    spool = books.spool()
    spool.set_mode("replication")
    receive_in_stream(books, spool, 1)
    books.load()
    position = acquire_lease(books.engine, spool, 60.0)
    assert position is not None
    receive_in_stream(books, spool, 2, 3)
    books.load()
    assert prune(spool, books.micros_at(4)) == 3
    watched = WatchedServer(ServerIdentity(replication_id="a" * 40), 0.0, 0.0, backlog_from=0)
    assert not must_take_over(spool, position, watched)
    assert not must_take_over(spool, acquire_lease(books.engine, spool, 60.0), watched)


def test_a_gap_without_messages_after_it_returns_after_a_restore(books: Books) -> None:
    """The source's position is that of the backup. The loader had written the gap since."""
    receive(books, 1, 2)
    books.advance_clock(3)
    books.load()
    back_up(books)
    restart_collector(books, 5)
    books.load()
    assert gaps(books) == [("collector_restarted", 3, 5)]
    restore_database(books)
    books._loaders["default"].lease_seconds = 0.0  # it looks at the database at once
    books.load()
    assert gaps(books) == [("collector_restarted", 3, 5)]


def test_a_session_that_expired_without_messages_after_it_expires_after_a_restore(
    books: Books,
) -> None:
    """The source's position is that of the backup. To the loader the session had ended since."""
    books.receive(0, channel("status"), status_payload("new", 600))
    receive(books, 1)
    books.advance_clock(3)
    books.run_jobs()
    back_up(books)
    books.advance_clock(20_000)
    books.run_jobs()
    before = contents(books)["sessions"]
    assert before[0]["ended_at"] is not None
    restore_database(books)
    books.advance_clock(20_001)
    books.run_jobs()
    assert contents(books)["sessions"] == before


def contents(books: Books) -> dict[str, list[dict[str, Any]]]:
    views = ("sessions", "user_usage_hourly", "realm_usage_monthly", "capture_gaps")
    return {view: books.rows(view) for view in views}


@pytest.mark.parametrize("messages", [1_000, pytest.param(3_000, marks=pytest.mark.long)])
def test_two_loaders_on_one_spool_load_nothing_twice_and_lose_nothing(
    books: Books, messages: int
) -> None:
    """They run concurrently from the first message, while more are captured."""
    spool = books.spool()
    counts: list[int] = []

    def run() -> None:
        other_books = Books(books.server, books.name, books.directory)
        while sum(counts) < messages:
            counts.append(other_books.load(limit=37))
        other_books.close()

    with ThreadPoolExecutor(3) as executor:
        running = [executor.submit(run) for _ in range(3)]
        for first in range(0, messages, 50):
            # Messages of one read from the socket have one receipt time.
            spool.append(
                [
                    (
                        books.micros_at(first),
                        0,
                        channel("traffic"),
                        traffic_payload(1, number, 0, 0),
                    )
                    for number in range(first, first + 50)
                ]
            )
        for future in running:
            future.result(timeout=60)
    assert sum(counts) == messages
    assert loaded(books) == list(range(messages))
    assert books.view_sums("unattributed_usage")["received_bytes"] == sum(range(messages))
    assert list(verify(books.engine)) == []
    (source,) = books.rows("sources")
    assert (source["epoch"], source["position"]) == (1, messages)
    assert gaps(books) == []
