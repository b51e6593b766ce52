"""Capture by subscription on real servers."""

import sqlite3
import threading
from pathlib import Path

import pytest
import redis

from accounting.capture.clock import wall_clock
from accounting.capture.pubsub.protocol import CHANNEL_PATTERNS
from accounting.capture.pubsub.source import PubSubSource
from accounting.capture.replication.source import ReplicationSource
from accounting.capture.spool.file import spool_path
from accounting.capture.spool.spool import Spool
from benchmarks.capture_burst import burst_commands
from benchmarks.capture_burst import publish as publish_burst
from tests.support.collectors import (
    CHANNEL,
    HOSTILE_USERS,
    PROMPT_SYNC,
    CollectorProcess,
    CollectorThread,
    Publisher,
    await_subscribed,
    publish,
    stored_messages,
)
from tests.support.redis_proxy import Proxy
from tests.support.server_params import EACH_SERVER_IN_LONG
from tests.support.servers import RedisServer, ValkeyServer, wait_until
from tests.support.source_identity import follow, watch_once


def test_hostile_channels_and_payloads_arrive_byte_for_byte(
    server: RedisServer, tmp_path: Path
) -> None:
    prefixes = [b"turn/realm/r/user/", b"turn/user/"]
    channels = [
        prefix + user + b"/allocation/001000000000000001/status"
        for prefix in prefixes
        for user in HOSTILE_USERS
    ]
    with CollectorThread(server.url, tmp_path) as collector:
        collector.await_attached(server)
        for number, name in enumerate(channels):
            publish(server, b"%d\r\n\x00\xff" % number, to=name)
        collector.await_checkpoint()
        rows = stored_messages(collector.spool)
        assert [(row.channel, row.payload) for row in rows] == [
            (name, b"%d\r\n\x00\xff" % number) for number, name in enumerate(channels)
        ]
        assert {(row.epoch, row.database, row.estimated) for row in rows} == {(1, 0, False)}
        assert [row.position for row in rows] == list(range(1, len(rows) + 1))


def test_only_allocation_channels_are_kept(valkey: ValkeyServer, tmp_path: Path) -> None:
    with CollectorThread(valkey.url, tmp_path) as collector:
        collector.await_attached(valkey)
        for name in (b"__XXX__", b"turn/secret", b"other", b"turn/user/u/allocation/1/status"):
            publish(valkey, b"p", to=name)
        collector.await_checkpoint()
        kept = [row.channel for row in stored_messages(collector.spool)]
        assert kept == [b"turn/user/u/allocation/1/status"]


@pytest.mark.parametrize("kind", [PubSubSource, ReplicationSource])
def test_messages_too_large_for_coturn_are_dropped(
    valkey: ValkeyServer, tmp_path: Path, kind: type[PubSubSource | ReplicationSource]
) -> None:
    """Any client that may publish can send them, and a batch is bounded only by its count."""
    with redis.Redis(port=valkey.port) as client:
        client.config_set("repl-diskless-sync-delay", 0)
    with CollectorThread(valkey.url, tmp_path, source_class=kind) as collector:
        collector.await_attached(valkey)
        sizes = [9_000, 7_000, 70_000, 3 << 20]
        publish(valkey, *[b"x" * size for size in sizes])
        publish(valkey, b"1", to=CHANNEL + b"x" * 9_000)
        publish(valkey, b"2")
        collector.await_checkpoint()
        assert [len(row.payload) for row in stored_messages(collector.spool)] == [7_000, 1]


def test_everything_published_before_a_checkpoint_is_stored(
    server: RedisServer, tmp_path: Path
) -> None:
    with CollectorThread(server.url, tmp_path) as collector, Publisher(server) as publisher:
        collector.await_attached(server)
        for _ in range(10):
            captured_until = collector.await_checkpoint()
            numbers = {int(row.payload) for row in stored_messages(collector.spool)}
            first = min(numbers, default=0)
            sent = dict(publisher.sent)
            due = {n for n, (_, after) in sent.items() if n >= first and after < captured_until}
            assert due <= numbers


def test_a_checkpoint_is_the_time_when_its_ping_was_sent(
    valkey: ValkeyServer, tmp_path: Path
) -> None:
    source = PubSubSource(
        valkey.url, queue_bytes=1 << 20, clock=wall_clock, checkpoint_seconds=0.05
    )
    with (
        Spool.open(tmp_path / "s", "test") as spool,
        source.attach(spool.state(), threading.Event()) as stream,
    ):
        pings = stream._pings._in_flight
        wait_until(lambda: len(pings) >= 3)
        sent = [ping.sent_at for ping in list(pings)]
        assert next(stream.batches(threading.Event())).captured_until in sent


def test_a_batch_does_not_wait_for_a_checkpoint(valkey: ValkeyServer, tmp_path: Path) -> None:
    source = PubSubSource(
        valkey.url, queue_bytes=1 << 20, clock=wall_clock, checkpoint_seconds=60.0
    )
    with (
        Spool.open(tmp_path / "s", "test") as spool,
        source.attach(spool.state(), threading.Event()) as stream,
    ):
        publish(valkey, b"1")
        batch = next(stream.batches(threading.Event()))
        assert [message[3] for message in batch.messages] == [b"1"]
        assert batch.captured_until is None


def test_a_silent_redis_is_disconnected_and_the_time_is_a_gap(
    server: RedisServer, tmp_path: Path
) -> None:
    with CollectorThread(server.url, tmp_path, silence_seconds=0.5) as collector:
        collector.await_attached(server)
        server.pause()
        wait_until(collector.spool.current_gap, message="no gap was opened")
        server.resume()
        gap = collector.await_gap(1)
        assert gap.cause == "redis_unreachable"
        assert collector.spool.state().captured_epoch == 1


def test_a_shorter_stall_of_redis_is_not_a_gap(valkey: ValkeyServer, tmp_path: Path) -> None:
    with CollectorThread(valkey.url, tmp_path, silence_seconds=30) as collector:
        collector.await_attached(valkey)
        valkey.pause()
        stalled_at = wall_clock()
        wait_until(lambda: wall_clock() - stalled_at > 400_000)
        assert (collector.spool.state().captured_until or 0) <= stalled_at
        valkey.resume()
        collector.await_checkpoint()
        assert collector.spool.gaps() == []


def test_a_second_acknowledgement_is_a_resubscription_and_a_gap(
    valkey: ValkeyServer, tmp_path: Path
) -> None:
    with Proxy(valkey) as proxy, CollectorThread(proxy.url, tmp_path) as collector:
        collector.await_attached(valkey)
        publish(valkey, b"1")
        proven = collector.await_checkpoint()
        pattern = CHANNEL_PATTERNS[0]
        proxy.inject_into_stream(
            b"*3\r\n$10\r\npsubscribe\r\n$%d\r\n%b\r\n:1\r\n" % (len(pattern), pattern)
        )
        gap = collector.await_gap(1)
        assert gap.cause == "resubscribed"
        assert gap.from_at >= proven
        publish(valkey, b"2")
        collector.await_checkpoint()
        assert [row.payload for row in stored_messages(collector.spool)] == [b"1", b"2"]


def test_an_unexpected_reply_ends_the_connection(valkey: ValkeyServer, tmp_path: Path) -> None:
    with Proxy(valkey) as proxy, CollectorThread(proxy.url, tmp_path) as collector:
        for number, nonsense in enumerate(
            [b"*2\r\n$4\r\npong\r\n$1\r\nx\r\n", b":1\r\n", b"garbage\r\n"], 1
        ):
            collector.await_attached(valkey)
            collector.await_checkpoint()
            proxy.inject_into_stream(nonsense)
            assert collector.await_gap(number).cause == "disconnected"


def test_a_stop_stores_everything_published_before_it(server: RedisServer, tmp_path: Path) -> None:
    with CollectorThread(server.url, tmp_path) as collector:
        collector.await_attached(server)
        publish(server, *[b"%d" % number for number in range(20_000)])
        published_at = wall_clock()
        collector.stop()
        rows = stored_messages(collector.spool)
        assert [int(row.payload) for row in rows] == list(range(20_000))
        assert (collector.spool.state().captured_until or 0) >= published_at
        assert collector.spool.gaps() == []


def test_the_queue_is_bounded_and_messages_that_redis_then_drops_are_in_a_gap(
    server: RedisServer, tmp_path: Path
) -> None:
    with redis.Redis.from_url(server.url) as client:
        client.config_set("client-output-buffer-limit", "pubsub 1mb 512kb 5")
    with CollectorThread(server.url, tmp_path, queue_bytes=1 << 16) as collector:
        collector.await_attached(server)
        # Another process holds the lock, so that nothing can be stored.
        blocker = sqlite3.connect(collector.path, isolation_level=None)
        blocker.execute("BEGIN IMMEDIATE")
        with Publisher(server) as publisher:
            numbers = 0
            while is_subscribed(server):
                publish(server, *[b"x" * 50_000] * 20, to=CHANNEL)
                numbers += 20
            publisher.await_more(1)
        blocker.execute("ROLLBACK")
        blocker.close()
        gap = collector.await_gap(1)
        assert gap.cause == "overrun"
        assert "65536" in gap.detail
        assert len(stored_messages(collector.spool)) < numbers


def is_subscribed(server: RedisServer) -> bool:
    with redis.Redis.from_url(server.url) as client:
        return bool(client.pubsub_numpat())


def test_a_bug_in_the_receiving_thread_ends_the_process(
    valkey: ValkeyServer, tmp_path: Path
) -> None:
    calls = 0

    def failing_clock() -> int:
        nonlocal calls
        calls += 1
        if calls > 2:
            raise ZeroDivisionError
        return wall_clock()

    with (
        pytest.raises(ZeroDivisionError),
        CollectorThread(valkey.url, tmp_path, clock=failing_clock) as it,
    ):
        wait_until(it._running.done)


@pytest.mark.timeout(120)
@pytest.mark.parametrize("server", EACH_SERVER_IN_LONG, indirect=True)
def test_a_burst_of_two_hundred_thousand_is_captured_completely_and_in_order(
    server: RedisServer, tmp_path: Path
) -> None:
    messages = 200_000
    pieces = burst_commands(messages)
    with CollectorProcess(server.url, tmp_path) as collector:
        await_subscribed(server)
        publish_burst(server.port, pieces)
        code, text = collector.terminate()
    assert code == 0, text
    with Spool.open(spool_path(tmp_path, "test"), "test") as spool:
        numbers = [int(row.payload[5 : row.payload.index(b",")]) for row in stored_messages(spool)]
        assert numbers == list(range(messages))
        assert spool.gaps() == []


def test_a_server_that_becomes_a_replica_ends_the_subscription_and_begins_an_epoch(
    master: RedisServer, tmp_path: Path
) -> None:
    """From then on it also has what is published at its master, which may be another source's."""
    with type(master)(PROMPT_SYNC) as other, CollectorThread(other.url, tmp_path) as collector:
        collector.await_attached(other)
        before = collector.spool.epochs()[-1].server
        follow(other, master)
        gap = collector.await_gap(1)
        assert gap.cause == "failover"
        wait_until(lambda: collector.spool.epochs()[-1].server.is_replica)
        wait_until(
            lambda: watch_once(master).identity.shares_history(collector.spool.epochs()[-1].server)
        )
        assert collector.spool.epochs()[0].server.histories & before.histories


def test_the_first_replica_of_a_server_does_not_disturb_a_subscription(
    master: RedisServer, tmp_path: Path
) -> None:
    """It gives the server another replication id."""
    with CollectorThread(master.url, tmp_path) as collector:
        collector.await_attached(master)
        with type(master)(PROMPT_SYNC) as replica:
            follow(replica, master)
            collector.await_checkpoint()
            collector.await_checkpoint()
        assert collector.spool.gaps() == []
