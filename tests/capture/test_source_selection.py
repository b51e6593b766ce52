"""Which source ``auto`` selects: replication where it is allowed, else subscription."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import redis
from structlog.testing import capture_logs

from accounting.capture.clock import wall_clock
from accounting.capture.source_selection import make_source
from tests.support.collectors import (
    PROMPT_SYNC,
    CollectorThread,
    await_subscribed,
    kill_subscribers,
    publish,
    stored_messages,
)
from tests.support.redis_proxy import Proxy
from tests.support.sentinels import Sentinel
from tests.support.servers import RedisServer, ValkeyServer, free_port, wait_until


@contextmanager
def auto_collector(url: str, data_dir: Path) -> Iterator[CollectorThread]:
    source = make_source("auto", url, queue_bytes=16 << 20, clock=wall_clock)
    with CollectorThread(url, data_dir, source=source) as collector:
        yield collector


def assert_falls_back(server: RedisServer, url: str, data_dir: Path, reason: str) -> None:
    """Assert that capture subscribes, and logs that once, also when it attaches again."""
    with capture_logs() as logs, auto_collector(url, data_dir) as collector:
        await_subscribed(server)
        publish(server, b"1")
        wait_until(lambda: len(stored_messages(collector.spool)) == 1)
        kill_subscribers(server)
        collector.await_gap(1)
        assert collector.spool.state().mode == "subscribe"
    selections = [entry for entry in logs if entry["event"] == "capturing by subscription"]
    assert len(selections) == 1
    assert reason in selections[0]["reason"]


def test_replication_is_selected_where_it_is_allowed(tmp_path: Path) -> None:
    with ValkeyServer(PROMPT_SYNC) as server, auto_collector(server.url, tmp_path) as collector:
        wait_until(collector.is_captured_now)
        publish(server, b"1")
        wait_until(lambda: len(stored_messages(collector.spool)) == 1)
        assert collector.spool.state().mode == "replication"


def test_an_unreachable_redis_leaves_the_selection_open(tmp_path: Path) -> None:
    server = ValkeyServer(PROMPT_SYNC)
    with capture_logs() as logs, auto_collector(server.url, tmp_path) as collector:
        wait_until(lambda: sum(entry["event"] == "not capturing" for entry in logs) > 2)
        with server:
            wait_until(collector.is_captured_now)
            assert collector.spool.state().mode == "replication"


@pytest.mark.parametrize("lacking", ["psync", "replconf", "info"])
def test_without_a_permission_capture_subscribes(tmp_path: Path, lacking: str) -> None:
    with ValkeyServer(PROMPT_SYNC) as server:
        with redis.Redis.from_url(server.url) as client:
            client.acl_setuser(
                "limited",
                enabled=True,
                passwords=["+pw"],
                channels=["*"],
                commands=["+psync", "+replconf", "+info", "+ping", "+psubscribe", f"-{lacking}"],
            )
        url = f"redis://limited:pw@127.0.0.1:{server.port}"
        assert_falls_back(server, url, tmp_path, lacking)


def test_a_server_without_psync_is_subscribed_to(tmp_path: Path) -> None:
    with (
        ValkeyServer(PROMPT_SYNC) as server,
        Proxy(server, alter=(b"PSYNC", b"PSYNX")) as proxy,
    ):
        assert_falls_back(server, proxy.url, tmp_path, "unknown command")


def test_a_cluster_is_subscribed_to(tmp_path: Path) -> None:
    with ValkeyServer({"cluster-enabled": "yes", "cluster-require-full-coverage": "no"}) as server:
        assert_falls_back(server, server.url, tmp_path, "cluster")


def test_a_replica_is_subscribed_to(tmp_path: Path) -> None:
    with ValkeyServer({"replicaof": f"127.0.0.1 {free_port()}"}) as server:
        assert_falls_back(server, server.url, tmp_path, "replica")


def test_sentinels_that_name_a_replica_leave_the_selection_open(tmp_path: Path) -> None:
    """They may in the middle of a failover, and replication must remain possible."""
    with ValkeyServer({**PROMPT_SYNC, "replicaof": f"127.0.0.1 {free_port()}"}) as server:
        sentinel = Sentinel(server)
        with sentinel, capture_logs() as logs:
            url = f"redis+sentinel://127.0.0.1:{sentinel.port}/turn"
            with auto_collector(url, tmp_path) as collector:
                wait_until(lambda: sum(entry["event"] == "not capturing" for entry in logs) > 2)
                with redis.Redis(port=server.port) as client:
                    client.replicaof("NO", "ONE")
                wait_until(collector.is_captured_now)
                assert collector.spool.state().mode == "replication"


def test_a_proxy_that_disconnects_at_psync_is_subscribed_to_after_some_attempts(
    tmp_path: Path,
) -> None:
    with ValkeyServer(PROMPT_SYNC) as server, Proxy(server, close_at=b"PSYNC") as proxy:
        assert_falls_back(server, proxy.url, tmp_path, "no reply to PSYNC")


def test_replication_once_allowed_stays_selected_when_it_is_refused_later(tmp_path: Path) -> None:
    with ValkeyServer(PROMPT_SYNC) as server, redis.Redis.from_url(server.url) as client:
        rights = ["+psync", "+replconf", "+info", "+ping", "+psubscribe"]
        client.acl_setuser("u", enabled=True, passwords=["+pw"], channels=["*"], commands=rights)
        url = f"redis://u:pw@127.0.0.1:{server.port}"
        with capture_logs() as logs, auto_collector(url, tmp_path) as collector:
            wait_until(collector.is_captured_now)
            client.acl_setuser("u", enabled=True, commands=["-psync"])
            client.client_kill_filter(_type="replica")
            wait_until(lambda: any("advice" in entry for entry in logs))
            publish(server, b"1")
            client.acl_setuser("u", enabled=True, commands=["+psync"])
            wait_until(lambda: len(stored_messages(collector.spool)) == 1)
            assert collector.spool.gaps() == []
            assert collector.spool.state().mode == "replication"
