"""A resumed replication stream on real servers: what the backlog holds is never lost."""

from datetime import UTC, datetime
from itertools import pairwise
from pathlib import Path

import pytest

from accounting.capture.clock import wall_clock
from accounting.capture.spool.file import spool_path
from accounting.capture.spool.spool import Spool
from accounting.capture.spool.takeover import take_over_position
from tests.support.collectors import (
    CHANNEL,
    CollectorProcess,
    Publisher,
    kill_replicas,
    payload_numbers,
    publish,
    redis_client,
    replication_collector,
    stored_messages,
)
from tests.support.redis_proxy import Proxy
from tests.support.sentinels import replica_of, sentinel_of
from tests.support.server_params import EACH_SERVER_IN_LONG
from tests.support.servers import RedisServer, ValkeyServer, wait_until


def assert_complete(spool: Spool, sent: dict[int, tuple[int, int]]) -> None:
    """Assert that every number from the first on is stored once, in order, without a gap."""
    rows = stored_messages(spool)
    assert payload_numbers(rows) == list(range(int(rows[0].payload), max(sent) + 1))
    assert spool.gaps() == []
    assert {row.epoch for row in rows} == {1}
    assert all(a.position < b.position for a, b in pairwise(rows))
    assert all(a.received_at <= b.received_at for a, b in pairwise(rows))


def assert_spool_complete(data_dir: Path, publisher: Publisher) -> None:
    """The same for the spool of a collector that ended after its publisher."""
    with Spool.open(spool_path(data_dir, "test"), "test") as spool:
        assert_complete(spool, publisher.sent)


def test_a_killed_connection_loses_nothing_and_is_not_a_gap(
    master: RedisServer, tmp_path: Path
) -> None:
    with replication_collector(master.url, tmp_path) as collector, Publisher(master) as publisher:
        collector.await_attached(master)
        for _ in range(3):
            publisher.await_more(50)
            kill_replicas(master)
        publisher.await_more(50)
        publisher.stop()
        wait_until(
            lambda: payload_numbers(stored_messages(collector.spool))[-1:] == [max(publisher.sent)]
        )
    assert_spool_complete(tmp_path, publisher)


def test_a_network_failure_loses_nothing_and_backlog_messages_have_estimated_times(
    master: RedisServer, tmp_path: Path
) -> None:
    with Proxy(master) as proxy, replication_collector(proxy.url, tmp_path) as collector:
        collector.await_attached(master)
        publish(master, b"0")
        before = collector.await_checkpoint()
        proxy.cut()
        publish(master, b"1", b"2", b"3")
        away_until = wall_clock()
        assert collector.spool.current_gap() is None
        proxy.mend()
        wait_until(lambda: (collector.spool.state().captured_until or 0) > away_until)
        publish(master, b"4")
        collector.await_checkpoint()
        rows = stored_messages(collector.spool)
        assert [(int(row.payload), row.estimated) for row in rows] == [
            (0, False),
            (1, True),
            (2, True),
            (3, True),
            (4, False),
        ]
        assert all(before <= row.received_at for row in rows[1:])
        assert collector.spool.gaps() == []


@pytest.mark.parametrize("master", EACH_SERVER_IN_LONG, indirect=True)
def test_a_collector_killed_at_any_time_loses_and_duplicates_nothing(
    master: RedisServer, tmp_path: Path
) -> None:
    path = spool_path(tmp_path, "test")
    with Publisher(master) as publisher:
        for run in range(3):
            with CollectorProcess(master.url, tmp_path, capture="replication") as collector:
                wait_until(path.exists)
                with Spool.open(path, "test") as spool:
                    seen = len(stored_messages(spool))
                    wait_until(lambda: len(stored_messages(spool)) > seen + 100 + 77 * run)  # noqa: B023
                collector.kill()
                publisher.await_more(30)
        with CollectorProcess(master.url, tmp_path, capture="replication") as collector:
            with Spool.open(path, "test") as spool:
                reached = len(publisher.sent)
                wait_until(lambda: int(stored_messages(spool)[-1].payload) > reached)
            publisher.stop()
            assert collector.terminate()[0] == 0
    assert_spool_complete(tmp_path, publisher)


def test_an_overrun_of_the_backlog_is_a_gap_and_a_new_epoch(
    master: RedisServer, tmp_path: Path
) -> None:
    with redis_client(master) as client:
        client.config_set("repl-backlog-size", 1 << 14)
    with replication_collector(master.url, tmp_path) as collector:
        collector.await_attached(master)
        publish(master, b"1")
        collector.stop()
        until = collector.spool.state().captured_until
    publish(master, *[b"lost %d" % number + b"x" * 1000 for number in range(100)])
    lost_until = wall_clock()
    with replication_collector(master.url, tmp_path) as collector:
        gap = collector.await_gap(1)
        assert (gap.cause, gap.epoch, gap.from_at) == ("backlog_overrun", 1, until)
        assert (gap.to_at or 0) >= lost_until
        publish(master, b"2")
        collector.await_checkpoint()
        assert [(row.epoch, row.payload) for row in stored_messages(collector.spool)] == [
            (1, b"1"),
            (2, b"2"),
        ]
        causes = [epoch.cause for epoch in collector.spool.epochs()]
        assert causes == ["first", "backlog_overrun"]
        assert len(collector.spool.gaps()) == 1


def test_a_crash_of_redis_is_a_gap_and_a_new_epoch(master: RedisServer, tmp_path: Path) -> None:
    with replication_collector(master.url, tmp_path) as collector:
        collector.await_attached(master)
        publish(master, b"1")
        proven = collector.await_checkpoint()
        down_from = wall_clock()
        master.kill()
        master.start()
        gap = collector.await_gap(1)
        publish(master, b"2")
        collector.await_checkpoint()
        assert (gap.cause, gap.epoch) == ("redis_restarted", 1)
        assert proven <= gap.from_at <= down_from < (gap.to_at or 0)
        assert [(row.epoch, row.payload) for row in stored_messages(collector.spool)] == [
            (1, b"1"),
            (2, b"2"),
        ]
        assert len(collector.spool.gaps()) == 1


def test_a_stream_resumed_after_a_clean_restart_is_still_a_gap(
    master: RedisServer, tmp_path: Path
) -> None:
    with redis_client(master) as client:
        client.config_set("save", "3600 1")
    master.options["save"] = "3600 1"
    with replication_collector(master.url, tmp_path) as collector:
        collector.await_attached(master)
        with redis_client(master, 3) as client:
            client.publish(CHANNEL, b"1")
        collector.await_checkpoint()
        history = collector.spool.state().replication_id
        master.restart()
        gap = collector.await_gap(1)
        with redis_client(master, 3) as client:
            client.publish(CHANNEL, b"2")
        collector.await_checkpoint()
        assert (gap.cause, gap.epoch) == ("redis_restarted", 1)
        assert [
            (row.epoch, row.database, row.payload) for row in stored_messages(collector.spool)
        ] == [
            (1, 3, b"1"),
            (2, 3, b"2"),
        ]
        assert len(collector.spool.gaps()) == 1
        assert collector.spool.state().replication_id != history


def test_the_selected_database_belongs_to_the_resume_point(
    master: RedisServer, tmp_path: Path
) -> None:
    """A server that resumes a stream does not repeat the last SELECT."""
    with redis_client(master, 5) as client:
        with replication_collector(master.url, tmp_path) as collector:
            collector.await_attached(master)
            client.publish(CHANNEL, b"1")
            collector.await_checkpoint()
        client.publish(CHANNEL, b"2")
        with replication_collector(master.url, tmp_path) as collector:
            wait_until(lambda: len(stored_messages(collector.spool)) == 2)
            assert [(row.database, row.estimated) for row in stored_messages(collector.spool)] == [
                (5, False),
                (5, True),
            ]


def test_a_missed_burst_is_read_completely_from_the_backlog(
    valkey_master: ValkeyServer, tmp_path: Path
) -> None:
    with redis_client(valkey_master) as client:
        client.config_set("repl-backlog-size", 64 << 20)
    with replication_collector(valkey_master.url, tmp_path) as collector:
        collector.await_attached(valkey_master)
        publish(valkey_master, b"0")
        collector.await_checkpoint()
    publish(valkey_master, *[b"%d" % number for number in range(1, 30_001)])
    with replication_collector(valkey_master.url, tmp_path) as collector:
        wait_until(lambda: len(stored_messages(collector.spool)) > 30_000)
        rows = stored_messages(collector.spool)
        assert payload_numbers(rows) == list(range(30_001))
        assert {row.estimated for row in rows[1:]} == {True}
        assert collector.spool.gaps() == []


def test_times_of_a_backlog_too_large_to_buffer_follow_the_bytes_alone(
    valkey_master: ValkeyServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("accounting.capture.replication.stream.MAX_BUFFERED_BYTES", 1 << 16)
    with replication_collector(valkey_master.url, tmp_path) as collector:
        collector.await_attached(valkey_master)
    publish(valkey_master, *[b"%d" % number for number in range(20_000)])
    with replication_collector(valkey_master.url, tmp_path) as collector:
        wait_until(lambda: len(stored_messages(collector.spool)) == 20_000)
        rows = stored_messages(collector.spool)
        assert payload_numbers(rows) == list(range(20_000))
        assert {row.estimated for row in rows} == {True}
        steps = [b.received_at - a.received_at for a, b in pairwise(rows)]
        assert min(steps) >= 0
        assert max(steps) < (rows[-1].received_at - rows[0].received_at) / 1000


def test_keepalives_split_an_outage_over_midnight(
    valkey_master: ValkeyServer, tmp_path: Path
) -> None:
    """30 s, with the keepalives of one relay thread and a burst in the first 5 s."""
    midnight = int(datetime(2026, 12, 1, tzinfo=UTC).timestamp()) * 1_000_000
    now = [midnight - 15_000_000]
    with replication_collector(valkey_master.url, tmp_path, clock=lambda: now[0]) as collector:
        collector.await_attached(valkey_master)
        collector.stop()
    with redis_client(valkey_master) as client:
        for number in range(1000):
            client.publish(CHANNEL, b"%d" % number)
        for number in range(1000, 1006):
            client.publish("__XXX__", "__YYY__")
            client.publish(CHANNEL, b"%d" % number)
    now[0] = midnight + 15_000_000
    with replication_collector(valkey_master.url, tmp_path, clock=lambda: now[0]) as collector:
        wait_until(lambda: len(stored_messages(collector.spool)) == 1006)
        rows = stored_messages(collector.spool)
    early = [row for row in rows if row.received_at < midnight]
    assert payload_numbers(early) == list(range(1002))
    assert all(row.estimated for row in rows)


def test_a_failover_continues_with_the_promoted_replica_and_is_a_gap(
    master: RedisServer, tmp_path: Path
) -> None:
    """Sentinels are asked for the master at each attachment; the first one here does not reply."""
    with replica_of(master) as replica, sentinel_of(master) as sentinel:
        url = f"redis+sentinel://127.0.0.1:1,127.0.0.1:{sentinel.port}/turn"
        with replication_collector(url, tmp_path) as collector:
            collector.await_attached(master)
            with redis_client(master, 2) as client:
                client.publish(CHANNEL, b"1")
                client.wait(2, 10_000)
            collector.await_checkpoint()
            master.kill()
            gap = collector.await_gap(1)
            assert gap.cause == "failover"
            with redis_client(replica, 2) as client:
                client.publish(CHANNEL, b"2")
            collector.await_checkpoint()
            rows = stored_messages(collector.spool)
            assert [(row.epoch, row.database, row.payload) for row in rows] == [
                (1, 2, b"1"),
                (2, 2, b"2"),
            ]
            assert len(collector.spool.gaps()) == 1


def test_another_collector_continues_after_the_last_loaded_message(
    master: RedisServer, tmp_path: Path
) -> None:
    with replication_collector(master.url, tmp_path / "one") as first:
        first.await_attached(master)
        publish(master, b"1", b"2", b"3")
        wait_until(lambda: len(stored_messages(first.spool)) == 3)
        captured_until = first.spool.state().captured_until
        loaded = stored_messages(first.spool)[1]
        state, epoch = first.spool.state(), first.spool.epochs()[-1]
    publish(master, b"4")
    second = replication_collector(master.url, tmp_path / "two")
    with Spool.open(second.path, "test") as spool:
        take_over_position(
            spool,
            token=epoch.token,
            position=loaded.position,
            captured_until=captured_until,
            last_received_at=None,
            replication_id=state.replication_id,
            stream_database=loaded.database,
            cause="taken_over",
        )
    with second:
        wait_until(lambda: len(stored_messages(second.spool)) == 2)
        assert [row.payload for row in stored_messages(second.spool)] == [b"3", b"4"]
        assert stored_messages(second.spool)[0].position > loaded.position
        assert second.spool.epochs()[-1].token == epoch.token
        assert second.spool.gaps() == []
