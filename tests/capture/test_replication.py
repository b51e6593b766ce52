"""Capture from the replication stream on real servers: what the backlog holds is never lost."""

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import redis
from structlog.testing import capture_logs

from accounting.capture.clock import wall_clock
from accounting.capture.pubsub.source import PubSubSource
from accounting.capture.replication.offset_poller import OffsetPoller
from accounting.capture.replication.source import ReplicationSource
from accounting.capture.spool.file import spool_path
from accounting.capture.spool.spool import Spool
from accounting.capture.spool.takeover import take_over_position
from benchmarks.capture_burst import burst
from benchmarks.capture_burst import publish as publish_burst
from tests.capture.conftest import SERVER_CLASSES
from tests.capture.test_collector import HOSTILE_USERS
from tests.support.collectors import (
    CHANNEL,
    CollectorProcess,
    CollectorThread,
    Proxy,
    Publisher,
    Sentinel,
    SpooledMessage,
    TlsRedisServer,
    TlsSentinel,
    publish,
    stored_messages,
)
from tests.support.servers import RedisServer, ValkeyServer, free_port, wait_until

# A server waits 5 s for other replicas that may want a snapshot too, unless it is told not to.
PROMPT_SYNC = {"repl-diskless-sync-delay": "0"}


@pytest.fixture(params=SERVER_CLASSES)
def master(request: pytest.FixtureRequest) -> Iterator[RedisServer]:
    with request.param(PROMPT_SYNC) as running:
        yield running


@pytest.fixture
def valkey_master() -> Iterator[ValkeyServer]:
    """For rules that do not depend on the server's kind."""
    with ValkeyServer(PROMPT_SYNC) as running:
        yield running


def replication_collector(url: str, data_dir: Path, **more: Any) -> CollectorThread:
    return CollectorThread(url, data_dir, source_class=ReplicationSource, **more)


@contextmanager
def connect(server: RedisServer, database: int = 0) -> Iterator["redis.Redis"]:
    with redis.Redis(port=server.port, db=database) as client:
        yield client


def kill_replicas(server: RedisServer) -> None:
    with connect(server) as client:
        client.client_kill_filter(_type="replica")


def set_user(client: "redis.Redis", name: str, *rights: str) -> None:
    client.acl_setuser(
        name,
        enabled=True,
        passwords=["+hush"],
        commands=[*rights],
    )


def payload_numbers(rows: list[SpooledMessage]) -> list[int]:
    return [int(row.payload) for row in rows]


def assert_complete(spool: Spool, sent: dict[int, tuple[int, int]]) -> None:
    """From the first number on every one is stored, once and in order, and there is no gap."""
    rows = stored_messages(spool)
    assert payload_numbers(rows) == list(range(int(rows[0].payload), max(sent) + 1))
    assert spool.gaps() == []
    assert {row.epoch for row in rows} == {1}
    assert all(a.position < b.position for a, b in pairwise(rows))
    assert all(a.received_at <= b.received_at for a, b in pairwise(rows))


def test_hostile_channels_arrive_byte_for_byte_with_the_number_of_their_database(
    master: RedisServer, tmp_path: Path
) -> None:
    prefixes = [b"turn/realm/r/user/", b"turn/user/"]
    suffix = b"/allocation/001000000000000001/status"
    channels = [prefix + user + suffix for prefix in prefixes for user in HOSTILE_USERS]
    with replication_collector(master.url, tmp_path) as collector:
        collector.await_attached(master)
        for number, name in enumerate(channels):
            with connect(master, number % 4) as client:
                client.publish(name, b"%d\r\n\x00\xff" % number)
        collector.await_checkpoint()
        rows = stored_messages(collector.spool)
        assert [(row.database, row.channel, row.payload) for row in rows] == [
            (number % 4, name, b"%d\r\n\x00\xff" % number) for number, name in enumerate(channels)
        ]
        assert {(row.epoch, row.estimated) for row in rows} == {(1, False)}
        state = collector.spool.state()
        assert (state.mode, state.stream_database) == ("replication", (len(channels) - 1) % 4)


def test_data_of_other_programs_never_reaches_the_disk_or_a_log(
    master: RedisServer, tmp_path: Path
) -> None:
    canary = "canary-0123456789"
    with (
        capture_logs() as logs,
        replication_collector(master.url, tmp_path, scans=True) as collector,
    ):
        with connect(master) as client:
            client.set(f"turn/realm/r/user/u/key/{canary}", canary)
            collector.await_attached(master)
            client.set(f"turn/realm/r/user/{canary}/key", canary)
            client.hset("turn/realm/r/secret", mapping={canary: canary})
            client.eval("redis.call('SET', KEYS[1], ARGV[1]); return 1", 1, "k", canary)
            client.publish("turn/realm/r/user/u/oauth", canary)
            client.publish(f"other/allocation/{canary}", canary)
            client.publish("__XXX__", canary)
            client.eval("return redis.call('PUBLISH', KEYS[1], ARGV[1])", 1, "other", canary)
            client.mset({"k": canary, f"turn/{canary}": f"\r\n*3\r\n$7\r\nPUBLISH\r\n{canary}"})
            client.set("turn/realm/r/user/u/key", canary, ex=60)
            client.spublish(CHANNEL.decode(), canary)
            client.set("large", canary * 1_000_000)
            with client.pipeline(transaction=True) as pipeline:
                pipeline.set("k", canary)
                pipeline.publish(CHANNEL, b"new lifetime=600")
                pipeline.set("turn/realm/r/user/u/allocation/1/status", f"new {canary}")
                pipeline.execute()
            client.acl_setuser("someone", enabled=True, passwords=[f"+{canary}"])
            client.function_load(
                f"#!lua name=f\nredis.register_function('f', function() return '{canary}' end)"
            )
        collector.await_checkpoint()
        assert [row.payload for row in stored_messages(collector.spool)] == [b"new lifetime=600"]
        kill_replicas(master)
        collector.await_checkpoint()
        files = [path for path in tmp_path.rglob("*") if path.is_file()]
        assert len(files) >= 2
        assert [path.name for path in files if canary.encode() in path.read_bytes()] == []
    assert canary not in repr(logs)


def test_no_ack_is_sent_while_the_server_delays_a_diskless_snapshot(
    tmp_path: Path,
) -> None:
    """As servers are by default. A word of ours would begin the wait anew, for ever."""
    with (
        ValkeyServer({"repl-diskless-sync-delay": "2"}) as server,
        replication_collector(server.url, tmp_path) as collector,
    ):
        collector.await_attached(server)
        publish(server, b"1")
        collector.await_checkpoint()
        assert payload_numbers(stored_messages(collector.spool)) == [1]


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


def assert_spool_complete(data_dir: Path, publisher: Publisher) -> None:
    """What a collector that ended after its publisher has left behind, or another one finds."""
    with Spool.open(spool_path(data_dir, "test"), "test") as spool:
        assert_complete(spool, publisher.sent)


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
    with connect(master) as client:
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
    with connect(master) as client:
        client.config_set("save", "3600 1")
    master.options["save"] = "3600 1"
    with replication_collector(master.url, tmp_path) as collector:
        collector.await_attached(master)
        with connect(master, 3) as client:
            client.publish(CHANNEL, b"1")
        collector.await_checkpoint()
        history = collector.spool.state().replication_id
        master.restart()
        gap = collector.await_gap(1)
        with connect(master, 3) as client:
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


def test_the_selected_database_belongs_to_the_resume_point(master: RedisServer, tmp_path: Path) -> None:
    """After it goes on, a server does not select again what was selected before."""
    with connect(master, 5) as client:
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


@pytest.mark.parametrize("diskless", ["yes", "no"])
def test_a_snapshot_with_data_is_skipped(
    master: RedisServer, tmp_path: Path, diskless: str
) -> None:
    """As from servers before Redis 7, which send it with the data."""
    with connect(master) as client:
        client.config_set("repl-diskless-sync", diskless)
        for number in range(10):
            client.set(f"canary{number}", b"canary" * 100_000)
    alter = (b"rdb-filter-only", b"rdb-filter-nope")
    with (
        Proxy(master, alter=alter) as proxy,
        replication_collector(proxy.url, tmp_path) as collector,
    ):
        collector.await_attached(master)
        publish(master, b"1", b"2")
        collector.await_checkpoint()
        assert [row.payload for row in stored_messages(collector.spool)] == [b"1", b"2"]


def test_a_stalled_stream_is_replaced_when_the_offset_advances_and_nothing_is_lost(
    valkey_master: ValkeyServer, tmp_path: Path
) -> None:
    with (
        Proxy(valkey_master) as proxy,
        replication_collector(proxy.url, tmp_path, silence_seconds=0.5) as collector,
        capture_logs() as logs,
    ):
        collector.await_attached(valkey_master)
        proxy.hold_streams()
        publish(valkey_master, b"1")
        wait_until(lambda: any("stands still" in entry.get("error", "") for entry in logs))
        proxy.release_streams()
        wait_until(lambda: len(stored_messages(collector.spool)) == 1)
        assert collector.spool.gaps() == []


def test_a_paused_server_is_not_a_gap(master: RedisServer, tmp_path: Path) -> None:
    with replication_collector(master.url, tmp_path, silence_seconds=0.3) as collector:
        collector.await_attached(master)
        publish(master, b"1")
        master.pause()
        paused_at = wall_clock()
        wait_until(lambda: wall_clock() - paused_at > 900_000)
        assert (collector.spool.state().captured_until or 0) <= paused_at
        master.resume()
        publish(master, b"2")
        wait_until(lambda: payload_numbers(stored_messages(collector.spool)) == [1, 2])
        collector.await_checkpoint()
        assert collector.spool.gaps() == []


def test_everything_published_before_a_checkpoint_is_stored(master: RedisServer, tmp_path: Path) -> None:
    with replication_collector(master.url, tmp_path) as collector, Publisher(master) as publisher:
        collector.await_attached(master)
        for _ in range(10):
            captured_until = collector.await_checkpoint()
            seen = set(payload_numbers(stored_messages(collector.spool)))
            first = min(seen, default=0)
            sent = dict(publisher.sent)
            due = {n for n, (_, after) in sent.items() if n >= first and after < captured_until}
            assert due <= seen


def test_acks_cover_only_durable_messages_and_come_soon(
    master: RedisServer, tmp_path: Path
) -> None:
    with replication_collector(master.url, tmp_path) as collector, connect(master) as client:
        collector.await_attached(master)
        blocker = Spool.open(collector.path, "test")
        client.publish(CHANNEL, b"1")
        client.set("k", "v")
        assert client.wait(1, 20_000) == 1
        with blocker.transaction():  # nothing can be stored while another has the lock
            client.publish(CHANNEL, b"2")
            client.set("k", "w")
            assert client.wait(1, 1_500) == 0
        assert client.wait(1, 20_000) == 1
        blocker.close()
        assert payload_numbers(stored_messages(collector.spool)) == [1, 2]


def test_a_stop_stores_everything_published_before_it(
    master: RedisServer, tmp_path: Path
) -> None:
    with replication_collector(master.url, tmp_path) as collector:
        collector.await_attached(master)
        publish(master, *[b"%d" % number for number in range(20_000)])
        published_at = wall_clock()
        collector.stop()
        assert payload_numbers(stored_messages(collector.spool)) == list(range(20_000))
        assert (collector.spool.state().captured_until or 0) >= published_at


@pytest.mark.timeout(120)
def test_a_burst_of_two_hundred_thousand_is_captured_completely_and_in_order(
    master: RedisServer, tmp_path: Path
) -> None:
    messages = 200_000
    path = spool_path(tmp_path, "test")
    with CollectorProcess(master.url, tmp_path, capture="replication") as collector:
        wait_until(path.exists)
        with Spool.open(path, "test") as spool:
            wait_until(lambda: spool.state().captured_until)
        publish_burst(master.port, burst(messages))
        code, text = collector.terminate()
    assert code == 0, text
    with Spool.open(path, "test") as spool:
        found = [int(row.payload[5 : row.payload.index(b",")]) for row in stored_messages(spool)]
        assert found == list(range(messages))
        assert spool.gaps() == []


def test_a_missed_burst_is_read_completely_from_the_backlog(
    valkey_master: ValkeyServer, tmp_path: Path
) -> None:
    with connect(valkey_master) as client:
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
    """Thirty seconds, with the keepalives of one relay thread; a burst in the first five."""
    midnight = int(datetime(2026, 12, 1, tzinfo=UTC).timestamp()) * 1_000_000
    now = [midnight - 15_000_000]
    with replication_collector(valkey_master.url, tmp_path, clock=lambda: now[0]) as collector:
        collector.await_attached(valkey_master)
        collector.stop()
    with connect(valkey_master) as client:
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
    """By two sentinels' worth of truth: the master that they name is asked at each attachment."""
    with replica_of(master) as replica, sentinel_of(master) as sentinel:
        url = f"redis+sentinel://127.0.0.1:1,127.0.0.1:{sentinel.port}/turn"
        with replication_collector(url, tmp_path) as collector:
            collector.await_attached(master)
            with connect(master, 2) as client:
                client.publish(CHANNEL, b"1")
                client.wait(2, 10_000)
            collector.await_checkpoint()
            master.kill()
            gap = collector.await_gap(1)
            assert gap.cause == "failover"
            with connect(replica, 2) as client:
                client.publish(CHANNEL, b"2")
            collector.await_checkpoint()
            rows = stored_messages(collector.spool)
            assert [(row.epoch, row.database, row.payload) for row in rows] == [
                (1, 2, b"1"),
                (2, 2, b"2"),
            ]
            assert len(collector.spool.gaps()) == 1


@contextmanager
def replica_of(master: RedisServer) -> Iterator[RedisServer]:
    with type(master)({**PROMPT_SYNC, "replicaof": f"127.0.0.1 {master.port}"}) as replica:
        with connect(replica) as client:
            wait_until(lambda: client.info("replication")["master_link_status"] == "up")
            # It counts its age in whole seconds: young, it can't be told from one that restarted.
            wait_until(lambda: client.info("server")["uptime_in_seconds"] > 1)
        yield replica


@contextmanager
def sentinel_of(master: RedisServer) -> Iterator[RedisServer]:
    sentinel = Sentinel(master)
    with sentinel:
        with connect(sentinel) as client:
            wait_until(lambda: client.info("sentinel")["master0"]["slaves"] == 1)
        yield sentinel


def test_the_minimal_permissions_are_enough(master: RedisServer, tmp_path: Path) -> None:
    rights = ["+psync", "+replconf", "+ping", "+info"]
    with connect(master) as client:
        set_user(client, "accounting", *rights)
    url = f"redis://accounting:hush@127.0.0.1:{master.port}"
    with replication_collector(url, tmp_path) as collector:
        collector.await_attached(master)
        publish(master, b"1")
        collector.await_checkpoint()
        assert payload_numbers(stored_messages(collector.spool)) == [1]


@pytest.mark.parametrize("lacking", ["psync", "replconf", "info"])
def test_without_a_permission_the_advice_names_it(
    valkey_master: ValkeyServer, tmp_path: Path, lacking: str
) -> None:
    url = f"redis://limited:hush@127.0.0.1:{valkey_master.port}"
    with connect(valkey_master) as client, capture_logs() as logs:
        set_user(client, "limited", "+psync", "+replconf", "+ping", "+info", f"-{lacking}")
        with replication_collector(url, tmp_path) as collector:
            wait_until(lambda: any(entry["log_level"] == "error" for entry in logs))
            error = next(entry for entry in logs if entry["log_level"] == "error")
            assert lacking in error["advice"]
            set_user(client, "limited", f"+{lacking}")
            collector.await_attached(valkey_master)
    assert "hush" not in repr(logs)


def test_a_stream_over_tls_is_complete_and_resumes(
    tls_redis: TlsRedisServer, tmp_path: Path
) -> None:
    with redis.Redis(port=tls_redis.port) as client:
        client.config_set("repl-diskless-sync-delay", 0)
    with replication_collector(tls_redis.tls_url, tmp_path) as collector:
        collector.await_attached(tls_redis)
        publish(tls_redis, *[b"%d" % number for number in range(20_000)])
        collector.await_checkpoint()
        kill_replicas(tls_redis)
        publish(tls_redis, b"20000")
        wait_until(lambda: len(stored_messages(collector.spool)) == 20_001)
        assert payload_numbers(stored_messages(collector.spool)) == list(range(20_001))
        assert collector.spool.gaps() == []


def test_sentinels_and_their_master_may_have_different_passwords_over_tls(
    tls_redis: TlsRedisServer, tmp_path: Path
) -> None:
    with redis.Redis(port=tls_redis.port) as client:
        client.config_set("repl-diskless-sync-delay", 0)
        set_user(client, "accounting", "+psync", "+replconf", "+ping", "+info")
    with TlsSentinel(tls_redis) as sentinel, capture_logs() as logs:
        url = (
            f"rediss+sentinel://accounting:hush@127.0.0.1:{sentinel.options['tls-port']}/turn"
            f"?ssl_ca_certs={tls_redis.home / 'certificate.pem'}&sentinel_password="
        )
        with replication_collector(f"{url}hush%26more", tmp_path / "one") as collector:
            collector.await_attached(tls_redis)
            publish(tls_redis, b"1")
            collector.await_checkpoint()
            assert payload_numbers(stored_messages(collector.spool)) == [1]
        with replication_collector(f"{url}wrong", tmp_path / "two"):
            wait_until(lambda: any("advice" in entry for entry in logs))
    assert "sentinel_password" in next(e["advice"] for e in logs if "advice" in e)
    assert "hush" not in repr(logs)


def test_a_clock_set_back_as_the_stream_begins_delays_nothing(
    valkey_master: ValkeyServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    behind = [0]
    ask_now = OffsetPoller.poll_now

    def step(ticker: OffsetPoller) -> None:
        behind[0] = 3600_000_000
        ask_now(ticker)

    monkeypatch.setattr(OffsetPoller, "poll_now", step)
    clock = lambda: wall_clock() - behind[0]  # noqa: E731
    with replication_collector(valkey_master.url, tmp_path, clock=clock) as collector:
        wait_until(lambda: behind[0])
        publish(valkey_master, b"1", b"2")
        wait_until(lambda: len(stored_messages(collector.spool)) == 2)


def test_a_stop_does_not_wait_for_a_server_that_hangs(
    valkey_master: ValkeyServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Longer than for the last tick: the question that is never answered is given up."""
    monkeypatch.setattr("accounting.capture.redis.batching.STOP_TIMEOUT_SECONDS", 0.5)
    with replication_collector(valkey_master.url, tmp_path, silence_seconds=120) as collector:
        collector.await_attached(valkey_master)
        valkey_master.pause()
        collector.stop()  # within the 30 s that it has


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
            replication_id=state.replication_id,
            stream_database=loaded.database,
            cause="taken_over",
        )
    with second:
        wait_until(lambda: len(stored_messages(second.spool)) == 2)
        assert [row.payload for row in stored_messages(second.spool)] == [b"3", b"4"]
        assert stored_messages(second.spool)[0].position > loaded.position
        assert [one.token for one in second.spool.epochs()][-1] == epoch.token
        assert second.spool.gaps() == []


def test_only_a_master_is_replicated(tmp_path: Path) -> None:
    with ValkeyServer({"cluster-enabled": "yes"}) as cluster, capture_logs() as logs:
        with replication_collector(cluster.url, tmp_path / "cluster"):
            wait_until(lambda: any(entry["log_level"] == "error" for entry in logs))
        assert "cluster" in next(e for e in logs if e["log_level"] == "error")["advice"]
    options = {**PROMPT_SYNC, "replicaof": f"127.0.0.1 {free_port()}"}
    with ValkeyServer(options) as replica, capture_logs() as logs:
        with replication_collector(replica.url, tmp_path / "replica"):
            wait_until(lambda: any(entry["log_level"] == "error" for entry in logs))
        assert "master" in next(e for e in logs if e["log_level"] == "error")["advice"]
