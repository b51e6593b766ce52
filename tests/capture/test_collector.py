"""Capture by subscription on real servers: nothing is lost without a gap that says so."""

import sqlite3
import threading
from itertools import pairwise
from pathlib import Path

import pytest
import redis
from structlog.testing import capture_logs

from accounting.capture.clock import wall_clock
from accounting.capture.collector import run_collector
from accounting.capture.pubsub import source as subscriber
from accounting.capture.pubsub.source import PubSubSource
from accounting.capture.replication.source import ReplicationSource
from accounting.capture.spool.collector_lock import lock_spool
from accounting.capture.spool.file import spool_path
from accounting.capture.spool.records import Gap
from accounting.capture.spool.spool import Spool
from accounting.config import Settings
from accounting.errors import ConfigurationError, SpoolError
from benchmarks.capture_burst import burst
from benchmarks.capture_burst import publish as publish_burst
from tests.support.collectors import (
    CHANNEL,
    CollectorProcess,
    CollectorThread,
    Proxy,
    Publisher,
    TlsRedisServer,
    assert_losses_in_gaps,
    await_subscribed,
    publish,
    stored_messages,
)
from tests.support.servers import RedisServer, ValkeyServer, free_port, wait_until

HOSTILE_USERS = [
    b"",
    b"x/allocation/000000000000000009/status",
    b"a*b?c[d]e=f,g:h",
    b"\x00\x01\x7f\xff\xfe\x80",
    b"\r\n*2\r\n$4\r\npong\r\n$0\r\n\r\n",
    b"$-1\r\n:1\r\n-ERR no\r\n+OK\r\n",
    b"u" * 512,
]


def kill_subscribers(server: RedisServer) -> None:
    with redis.Redis.from_url(server.url) as client:
        client.client_kill_filter(_type="pubsub")


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
    """Whoever may publish can say it; batches are bounded by their count."""
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


def test_the_first_start_of_a_spool_is_not_a_gap_even_when_redis_starts_later(tmp_path: Path) -> None:
    server = ValkeyServer()
    with CollectorThread(server.url, tmp_path) as collector, server:
        collector.await_attached(server)
        assert collector.spool.gaps() == []
        assert [epoch.cause for epoch in collector.spool.epochs()] == ["first"]


def test_everything_published_before_a_checkpoint_is_stored(server: RedisServer, tmp_path: Path) -> None:
    with CollectorThread(server.url, tmp_path) as collector, Publisher(server) as publisher:
        collector.await_attached(server)
        for _ in range(10):
            captured_until = collector.await_checkpoint()
            numbers = {int(row.payload) for row in stored_messages(collector.spool)}
            first = min(numbers, default=0)
            sent = dict(publisher.sent)
            due = {n for n, (_, after) in sent.items() if n >= first and after < captured_until}
            assert due <= numbers


def test_a_checkpoint_is_the_time_when_its_ping_was_sent(valkey: ValkeyServer, tmp_path: Path) -> None:
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
        pattern = subscriber.CHANNEL_PATTERNS[0]
        proxy.inject(b"*3\r\n$10\r\npsubscribe\r\n$%d\r\n%b\r\n:1\r\n" % (len(pattern), pattern))
        gap = collector.await_gap(1)
        assert gap.cause == "resubscribed"
        assert gap.from_at >= proven
        publish(valkey, b"2")
        collector.await_checkpoint()
        assert [row.payload for row in stored_messages(collector.spool)] == [b"1", b"2"]


def test_an_unexpected_reply_ends_the_connection(
    valkey: ValkeyServer, tmp_path: Path
) -> None:
    with Proxy(valkey) as proxy, CollectorThread(proxy.url, tmp_path) as collector:
        for number, nonsense in enumerate(
            [b"*2\r\n$4\r\npong\r\n$1\r\nx\r\n", b":1\r\n", b"garbage\r\n"], 1
        ):
            collector.await_attached(valkey)
            collector.await_checkpoint()
            proxy.inject(nonsense)
            assert collector.await_gap(number).cause == "disconnected"


def test_a_stop_stores_everything_published_before_it(
    server: RedisServer, tmp_path: Path
) -> None:
    with CollectorThread(server.url, tmp_path) as collector:
        collector.await_attached(server)
        publish(server, *[b"%d" % number for number in range(20_000)])
        published_at = wall_clock()
        collector.stop()
        rows = stored_messages(collector.spool)
        assert [int(row.payload) for row in rows] == list(range(20_000))
        assert (collector.spool.state().captured_until or 0) >= published_at
        assert collector.spool.gaps() == []


def test_a_stopped_collector_leaves_a_gap_from_its_last_checkpoint_to_the_next_start(
    valkey: ValkeyServer, tmp_path: Path
) -> None:
    with CollectorThread(valkey.url, tmp_path) as collector:
        collector.await_attached(valkey)
        collector.stop()
        captured_until = collector.spool.state().captured_until
    publish(valkey, b"nobody hears this")
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


def test_the_queue_is_bounded_and_messages_that_redis_then_drops_are_in_a_gap(
    server: RedisServer, tmp_path: Path
) -> None:
    with redis.Redis.from_url(server.url) as client:
        client.config_set("client-output-buffer-limit", "pubsub 1mb 512kb 5")
    with CollectorThread(server.url, tmp_path, queue_bytes=1 << 16) as collector:
        collector.await_attached(server)
        # The loader's side holds the lock, and nothing can be stored.
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


def test_a_wrong_password_is_retried_with_advice_and_never_logged(tmp_path: Path) -> None:
    with (
        ValkeyServer({"requirepass": "right-one"}) as server,
        redis.Redis.from_url(server.url) as client,
        capture_logs() as logs,
        CollectorThread(server.url.replace("right-one", "wrong-one"), tmp_path) as collector,
    ):
        wait_until(lambda: any(entry["log_level"] == "error" for entry in logs))
        client.config_set("requirepass", "wrong-one")
        wait_until(collector.is_captured_now)
        error = next(entry for entry in logs if entry["log_level"] == "error")
        assert "ACCOUNTING_REDIS_URL" in error["advice"]
        assert "wrong-one" not in repr(logs)


def test_without_permission_for_the_channels_the_advice_names_them(
    server: RedisServer, tmp_path: Path
) -> None:
    user = ["ACL", "SETUSER", "limited", "on", ">pw", "resetkeys", "resetchannels"]
    with (
        redis.Redis.from_url(server.url) as client,
        capture_logs() as logs,
    ):
        client.execute_command(*user, "+psubscribe", "+ping")
        url = server.url.replace("redis://", "redis://limited:pw@")
        with CollectorThread(url, tmp_path) as collector:
            wait_until(lambda: any(entry["log_level"] == "error" for entry in logs))
            advice = next(e for e in logs if e["log_level"] == "error")["advice"]
            assert all(pattern.decode() in advice for pattern in subscriber.CHANNEL_PATTERNS)
            client.execute_command(
                *user,
                "+psubscribe",
                "+ping",
                *(f"&{p.decode()}" for p in subscriber.CHANNEL_PATTERNS),
            )
            collector.await_attached(server)
            # INFO was refused: capture works, a restart of Redis just can't be told from a cut.
            assert collector.spool.state().server_run_id is None


def test_capture_works_over_a_unix_socket(tmp_path: Path) -> None:
    server = ValkeyServer()
    server.options["unixsocket"] = str(server.home / "s")
    with server, CollectorThread(f"unix://{server.home}/s", tmp_path) as collector:
        collector.await_attached(server)
        publish(server, b"1")
        collector.await_checkpoint()
        assert [row.payload for row in stored_messages(collector.spool)] == [b"1"]


def test_a_burst_over_tls_is_captured_completely(tls_redis: TlsRedisServer, tmp_path: Path) -> None:
    with CollectorThread(tls_redis.tls_url, tmp_path) as collector:
        collector.await_attached(tls_redis)
        publish(tls_redis, *[b"%d" % number for number in range(20_000)])
        collector.await_checkpoint()
        numbers = [int(row.payload) for row in stored_messages(collector.spool)]
        assert numbers == list(range(20_000))
        kill_subscribers(tls_redis)
        assert collector.await_gap(1).cause == "disconnected"


def test_an_untrusted_certificate_is_refused_with_advice(
    tls_redis: TlsRedisServer, tmp_path: Path
) -> None:
    url = tls_redis.tls_url.partition("?")[0]
    with capture_logs() as logs, CollectorThread(url, tmp_path):
        wait_until(lambda: any(entry["log_level"] == "error" for entry in logs))
    assert "TLS" in next(e for e in logs if e["log_level"] == "error")["advice"]


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


@pytest.mark.parametrize("capture", ["subscribe", "replication"])
def test_a_full_disk_ends_the_collector_and_the_next_start_records_the_gap(
    valkey: ValkeyServer, tmp_path: Path, capture: str
) -> None:
    """With replication too, when the backlog does not reach back to where the disk was full."""
    path = spool_path(tmp_path, "test")
    with redis.Redis(port=valkey.port) as client:
        client.config_set("repl-diskless-sync-delay", 0)
        client.config_set("repl-backlog-size", 1 << 14)
    with CollectorProcess(
        valkey.url, tmp_path, max_file_bytes=3 << 20, capture=capture
    ) as collector:
        wait_until(lambda: path.exists() and read_captured_until(path) is not None)
        publish(valkey, *[b"%d %s" % (number, b"x" * 1000) for number in range(20_000)])
        code, text = collector.wait()
    assert code == 1
    assert "SpoolDiskError: the spool" in text
    assert "Traceback" not in text
    with CollectorProcess(valkey.url, tmp_path, capture=capture) as collector:
        wait_until(lambda: [gap.to_at is None for gap in read_gaps(path)] == [False])
        publish(valkey, b"20000 after")
        assert collector.terminate()[0] == 0
    assert [gap.cause for gap in read_gaps(path)] == ["disk_full"]
    with lock_spool(path) as end:
        assert not end.disk_failed, "it is told once"
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


def test_an_unreachable_redis_is_retried_until_a_stop(tmp_path: Path) -> None:
    url = f"redis://u:hush@127.0.0.1:{free_port()}"
    with capture_logs() as logs, CollectorThread(url, tmp_path) as collector:
        wait_until(lambda: sum(entry["event"] == "not capturing" for entry in logs) > 3)
        assert collector.spool.gaps() == []
    assert "hush" not in repr(logs)


@pytest.mark.timeout(120)
def test_a_burst_of_two_hundred_thousand_is_captured_completely_and_in_order(
    server: RedisServer, tmp_path: Path
) -> None:
    messages = 200_000
    pieces = burst(messages)
    with CollectorProcess(server.url, tmp_path) as collector:
        await_subscribed(server)
        publish_burst(server.port, pieces)
        code, text = collector.terminate()
    assert code == 0, text
    with Spool.open(spool_path(tmp_path, "test"), "test") as spool:
        numbers = [int(row.payload[5 : row.payload.index(b",")]) for row in stored_messages(spool)]
        assert numbers == list(range(messages))
        assert spool.gaps() == []
