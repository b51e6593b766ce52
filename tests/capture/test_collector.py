"""The collector on real servers: every loss is in a gap, and a gap is recorded once."""

import threading
from itertools import pairwise
from pathlib import Path
from random import randbytes

import pytest
import redis

from accounting.capture.clock import wall_clock
from accounting.capture.collector import run_collector
from accounting.capture.pubsub.source import PubSubSource
from accounting.capture.replication.source import ReplicationSource
from accounting.capture.spool.collector_lock import lock_spool
from accounting.capture.spool.file import spool_path
from accounting.capture.spool.records import Gap
from accounting.capture.spool.spool import Spool
from accounting.config import Settings
from accounting.errors import ConfigurationError, SpoolError
from tests.support.collectors import (
    CollectorProcess,
    CollectorThread,
    Publisher,
    assert_losses_in_gaps,
    await_subscribed,
    kill_subscribers,
    publish,
    stored_messages,
)
from tests.support.server_params import EACH_SERVER_IN_LONG
from tests.support.servers import RedisServer, ValkeyServer, wait_until


def test_the_first_start_of_a_spool_is_not_a_gap_even_when_redis_starts_later(
    tmp_path: Path,
) -> None:
    server = ValkeyServer()
    with CollectorThread(server.url, tmp_path) as collector, server:
        collector.await_attached(server)
        assert collector.spool.gaps() == []
        assert [epoch.cause for epoch in collector.spool.epochs()] == ["first"]


def test_a_killed_connection_is_one_gap_that_covers_every_loss(
    server: RedisServer, tmp_path: Path
) -> None:
    with CollectorThread(server.url, tmp_path) as collector, Publisher(server) as publisher:
        collector.await_attached(server)
        publisher.await_more(50)
        for number in range(1, 4):
            before = collector.await_checkpoint()
            publisher.await_more(20)
            kill_subscribers(server)
            gap = collector.await_gap(number)
            assert (gap.cause, gap.epoch) == ("disconnected", 1)
            assert before <= gap.from_at < (gap.to_at or 0)
            publisher.await_more(50)
        collector.await_checkpoint()
        collector.stop()
        first = int(stored_messages(collector.spool)[0].payload)
        sent = {number: times for number, times in publisher.sent.items() if number >= first}
        until = collector.spool.state().captured_until or 0
        assert_losses_in_gaps(
            collector.spool, {number: (a, b) for number, (a, b) in sent.items() if b < until}
        )
        assert len(collector.spool.gaps()) == 3


def test_a_killed_and_restarted_redis_is_one_gap_and_a_new_epoch(
    server: RedisServer, tmp_path: Path
) -> None:
    with CollectorThread(server.url, tmp_path) as collector:
        collector.await_attached(server)
        publish(server, b"1", b"2")
        proven = collector.await_checkpoint()
        down_from = wall_clock()
        server.kill()
        wait_until(collector.spool.current_gap, message="no gap was opened")
        opened = collector.spool.current_gap()
        assert opened is not None
        assert (opened.cause, opened.to_at) == ("disconnected", None)
        down_to = wall_clock()
        server.start()
        gap = collector.await_gap(1)
        publish(server, b"3")
        collector.await_checkpoint()
        assert proven <= gap.from_at <= down_from
        assert down_to <= (gap.to_at or 0)
        assert (gap.cause, gap.epoch, gap.position) == ("redis_restarted", 1, 2)
        assert "disconnected" in gap.detail
        assert [epoch.cause for epoch in collector.spool.epochs()] == ["first", "redis_restarted"]
        places = [
            (row.epoch, row.position, row.payload) for row in stored_messages(collector.spool)
        ]
        assert places == [(1, 1, b"1"), (1, 2, b"2"), (2, 1, b"3")]
        assert len(collector.spool.gaps()) == 1


def test_a_restart_of_redis_while_no_collector_ran_is_detected(
    valkey: ValkeyServer, tmp_path: Path
) -> None:
    with CollectorThread(valkey.url, tmp_path) as collector:
        collector.await_attached(valkey)
    valkey.restart()
    with CollectorThread(valkey.url, tmp_path) as collector:
        gap = collector.await_gap(1)
        assert gap.cause == "redis_restarted"
        assert "collector_restarted" in gap.detail
        assert collector.spool.state().captured_epoch == 2


def test_a_stopped_collector_leaves_a_gap_from_its_last_checkpoint_to_the_next_start(
    valkey: ValkeyServer, tmp_path: Path
) -> None:
    with CollectorThread(valkey.url, tmp_path) as collector:
        collector.await_attached(valkey)
        collector.stop()
        captured_until = collector.spool.state().captured_until
    publish(valkey, b"missed")
    missed_at = wall_clock()
    with CollectorThread(valkey.url, tmp_path) as collector:
        gap = collector.await_gap(1)
        assert (gap.from_at, gap.cause) == (captured_until, "collector_restarted")
        assert (gap.to_at or 0) >= missed_at
        assert collector.spool.state().captured_epoch == 1


def test_an_open_gap_stays_the_only_one_across_failed_attempts_and_restarts(
    valkey: ValkeyServer, tmp_path: Path
) -> None:
    with CollectorThread(valkey.url, tmp_path) as collector:
        collector.await_attached(valkey)
        valkey.kill()
        wait_until(collector.spool.current_gap)
        opened = collector.spool.current_gap()
    with CollectorThread(valkey.url, tmp_path) as collector:
        assert collector.spool.current_gap() == opened
        valkey.start()
        gap = collector.await_gap(1)
        assert gap.from_at == (opened.from_at if opened else None)
        assert len(collector.spool.gaps()) == 1


@pytest.mark.parametrize("server", EACH_SERVER_IN_LONG, indirect=True)
def test_a_collector_killed_at_any_time_duplicates_nothing_and_its_losses_are_in_gaps(
    server: RedisServer, tmp_path: Path
) -> None:
    path = spool_path(tmp_path, "test")
    with Publisher(server) as publisher:
        for run in range(3):
            with CollectorProcess(server.url, tmp_path) as collector:
                await_subscribed(server)
                with Spool.open(path, "test") as spool:
                    seen = spool.state().captured_position
                    wait_until(lambda: spool.state().captured_position > seen + 100 + 77 * run)  # noqa: B023
                collector.kill()
                publisher.await_more(30)
        with CollectorProcess(server.url, tmp_path) as collector:
            await_subscribed(server)
            publisher.await_more(100)
            assert collector.terminate()[0] == 0
        sent = dict(publisher.sent)
    with Spool.open(path, "test") as spool:
        state, gaps = spool.state(), spool.gaps()
        first = int(stored_messages(spool)[0].payload)
        due = {
            number: times
            for number, times in sent.items()
            if number >= first and times[1] < (state.captured_until or 0)
        }
        assert assert_losses_in_gaps(spool, due), (
            "nothing was lost: the kill came too late to prove much"
        )
        assert [gap.cause for gap in gaps] == ["collector_restarted"] * 3
        assert all(gap.to_at for gap in gaps)
        assert all((a.to_at or 0) <= b.from_at for a, b in pairwise(gaps))
        assert state.captured_epoch == 1


def test_receipt_times_never_fall_when_the_clock_steps_back(
    valkey: ValkeyServer, tmp_path: Path
) -> None:
    offset = [0]

    def clock() -> int:
        return wall_clock() + offset[0]

    with CollectorThread(valkey.url, tmp_path, clock=clock) as collector:
        collector.await_attached(valkey)
        publish(valkey, b"1", b"2")
        before = collector.await_checkpoint()
        offset[0] = -3_600_000_000
        publish(valkey, b"3")
        wait_until(lambda: collector.spool.state().captured_position == 3)
        kill_subscribers(valkey)
        gap = collector.await_gap(1)
        publish(valkey, b"4")
        wait_until(lambda: collector.spool.state().captured_position == 4)
        times = [row.received_at for row in stored_messages(collector.spool)]
        assert times == sorted(times)
        assert times[2] >= before
        assert (collector.spool.state().captured_until or 0) >= before
        assert before <= gap.from_at < (gap.to_at or 0)


def make_settings(data_dir: Path, **more: object) -> Settings:
    given: dict[str, object] = {"redis_url": "redis://127.0.0.1:1", "data_dir": data_dir, **more}
    return Settings.model_validate(given)


@pytest.mark.parametrize(
    ("given", "named"),
    [
        ({"redis_url": None}, "ACCOUNTING_REDIS_URL"),
        ({"redis_url": "redis://u:hush@h?no_such_option=1"}, "ACCOUNTING_REDIS_URL"),
    ],
)
def test_settings_that_cannot_work_are_refused_in_one_line_without_secrets(
    tmp_path: Path, given: dict[str, object], named: str
) -> None:
    with pytest.raises(ConfigurationError) as refused:
        run_collector(make_settings(tmp_path, **given), threading.Event())
    assert str(refused.value).startswith(named)
    assert "hush" not in str(refused.value)
    assert "\n" not in str(refused.value)


def test_one_spool_has_one_collector(tmp_path: Path) -> None:
    stop = threading.Event()
    stop.set()
    with lock_spool(spool_path(tmp_path, "default")), pytest.raises(SpoolError, match="another"):
        run_collector(make_settings(tmp_path), stop)
    run_collector(make_settings(tmp_path), stop)


@pytest.mark.parametrize(
    "capture", ["subscribe", pytest.param("replication", marks=pytest.mark.long)]
)
def test_a_full_disk_ends_the_collector_and_the_next_start_records_the_gap(
    valkey: ValkeyServer, tmp_path: Path, capture: str
) -> None:
    """In replication the backlog is too short here to reach back to the last stored message."""
    path = spool_path(tmp_path, "test")
    with redis.Redis(port=valkey.port) as client:
        client.config_set("repl-diskless-sync-delay", 0)
        client.config_set("repl-backlog-size", 1 << 14)
    with CollectorProcess(
        valkey.url, tmp_path, max_file_bytes=3 << 20, capture=capture
    ) as collector:
        wait_until(lambda: path.exists() and read_captured_until(path) is not None)
        publish(valkey, *[b"%d %s" % (number, randbytes(999)) for number in range(20_000)])
        code, text = collector.wait()
    assert code == 1
    assert "SpoolDiskError: the spool" in text
    assert "Traceback" not in text
    with CollectorProcess(valkey.url, tmp_path, capture=capture) as collector:
        wait_until(lambda: [gap.to_at is None for gap in read_gaps(path)] == [False])
        publish(valkey, b"20000 after")
        assert collector.terminate()[0] == 0
    assert [gap.cause for gap in read_gaps(path)] == ["disk_full"]
    with lock_spool(path) as last_exit:
        assert not last_exit.disk_failed, "the record is cleared"
    with Spool.open(path, "test") as spool:
        *kept, last = [int(row.payload.split()[0]) for row in stored_messages(spool)]
    assert kept == list(range(len(kept)))
    assert last == 20_000


def read_captured_until(path: Path) -> int | None:
    with Spool.open(path, "test") as spool:
        return spool.state().captured_until


def read_gaps(path: Path) -> list[Gap]:
    with Spool.open(path, "test") as spool:
        return spool.gaps()


def test_a_change_of_mode_is_a_gap_and_a_new_epoch(
    valkey_master: ValkeyServer, tmp_path: Path
) -> None:
    source_classes: list[type[ReplicationSource | PubSubSource]] = [
        PubSubSource,
        ReplicationSource,
        PubSubSource,
    ]
    for number, source_class in enumerate(source_classes):
        with CollectorThread(valkey_master.url, tmp_path, source_class=source_class) as collector:
            if number:
                assert collector.await_gap(number).cause == "mode_changed"
            collector.await_attached(valkey_master)
            publish(valkey_master, b"%d" % number)
            collector.await_checkpoint()
            assert [(row.epoch, row.payload) for row in stored_messages(collector.spool)] == [
                (turn + 1, b"%d" % turn) for turn in range(number + 1)
            ]
            assert collector.spool.state().mode == (
                "replication" if source_class is ReplicationSource else "subscribe"
            )
