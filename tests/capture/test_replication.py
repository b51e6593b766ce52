"""Capture by replication on real servers."""

import time
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from accounting.capture.clock import wall_clock
from accounting.capture.spool.file import spool_path
from accounting.capture.spool.spool import Spool
from benchmarks.capture_burst import burst_commands
from benchmarks.capture_burst import publish as publish_burst
from tests.support.collectors import (
    CHANNEL,
    HOSTILE_USERS,
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
from tests.support.server_params import EACH_SERVER_IN_LONG
from tests.support.servers import RedisServer, ValkeyServer, wait_until


def test_hostile_channels_arrive_byte_for_byte_with_the_number_of_their_database(
    master: RedisServer, tmp_path: Path
) -> None:
    prefixes = [b"turn/realm/r/user/", b"turn/user/"]
    suffix = b"/allocation/001000000000000001/status"
    channels = [prefix + user + suffix for prefix in prefixes for user in HOSTILE_USERS]
    with replication_collector(master.url, tmp_path) as collector:
        collector.await_attached(master)
        for number, name in enumerate(channels):
            with redis_client(master, number % 4) as client:
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
        replication_collector(master.url, tmp_path, with_key_scan=True) as collector,
    ):
        with redis_client(master) as client:
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
    """A server does so by default, and starts the delay again at each ack."""
    with (
        ValkeyServer({"repl-diskless-sync-delay": "2"}) as server,
        replication_collector(server.url, tmp_path) as collector,
    ):
        collector.await_attached(server)
        publish(server, b"1")
        collector.await_checkpoint()
        assert payload_numbers(stored_messages(collector.spool)) == [1]


@pytest.mark.parametrize("diskless", ["yes", "no"])
def test_a_snapshot_with_data_is_skipped(
    master: RedisServer, tmp_path: Path, diskless: str
) -> None:
    """Redis before 7 ignores the filter and sends the data."""
    with redis_client(master) as client:
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
        wait_until(lambda: any("stands still" in entry.get("error", "") for entry in logs), 60)
        proxy.release_streams()
        wait_until(lambda: len(stored_messages(collector.spool)) == 1, 60)
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


def test_everything_published_before_a_checkpoint_is_stored(
    master: RedisServer, tmp_path: Path
) -> None:
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
    with replication_collector(master.url, tmp_path) as collector, redis_client(master) as client:
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


def test_a_stop_stores_everything_published_before_it(master: RedisServer, tmp_path: Path) -> None:
    with replication_collector(master.url, tmp_path) as collector:
        collector.await_attached(master)
        publish(master, *[b"%d" % number for number in range(20_000)])
        published_at = wall_clock()
        collector.stop()
        assert payload_numbers(stored_messages(collector.spool)) == list(range(20_000))
        assert (collector.spool.state().captured_until or 0) >= published_at


@pytest.mark.timeout(120)
@pytest.mark.parametrize("master", EACH_SERVER_IN_LONG, indirect=True)
def test_a_burst_of_two_hundred_thousand_is_captured_completely_and_in_order(
    master: RedisServer, tmp_path: Path
) -> None:
    messages = 200_000
    path = spool_path(tmp_path, "test")
    with CollectorProcess(master.url, tmp_path, capture="replication") as collector:
        wait_until(path.exists)
        with Spool.open(path, "test") as spool:
            wait_until(lambda: spool.state().captured_until)
        publish_burst(master.port, burst_commands(messages))
        code, text = collector.terminate()
    assert code == 0, text
    with Spool.open(path, "test") as spool:
        numbers = [int(row.payload[5 : row.payload.index(b",")]) for row in stored_messages(spool)]
        assert numbers == list(range(messages))
        assert spool.gaps() == []


def test_a_clock_set_back_as_the_stream_begins_delays_nothing(
    valkey_master: ValkeyServer, tmp_path: Path
) -> None:
    """The clock goes back after the stream began, before any poll that started later returns."""
    set_back = 0

    def clock() -> int:
        return wall_clock() - set_back

    with Proxy(valkey_master) as proxy, redis_client(valkey_master) as client:
        proxy.hold_polls()
        with replication_collector(proxy.url, tmp_path, clock=clock) as collector:
            wait_until(
                lambda: client.info("replication").get("slave0", {}).get("state") == "online"
            )
            set_back = 3600_000_000
            proxy.release_polls()
            publish(valkey_master, b"1", b"2")
            wait_until(lambda: len(stored_messages(collector.spool)) == 2)


def test_a_stop_does_not_wait_for_a_server_that_hangs(
    valkey_master: ValkeyServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The stop waits for the last checkpoint only for a while, and cuts off the poll."""
    monkeypatch.setattr("accounting.capture.redis.batching.STOP_TIMEOUT_SECONDS", 0.5)
    with replication_collector(valkey_master.url, tmp_path, silence_seconds=120) as collector:
        collector.await_attached(valkey_master)
        valkey_master.pause()
        stopped_at = time.monotonic()
        collector.stop()
        assert 0.5 <= time.monotonic() - stopped_at < 60  # it is silent for 120 s
