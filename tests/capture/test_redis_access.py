"""Passwords, permissions, TLS, unix sockets and sentinels, on real servers."""

from pathlib import Path

import pytest
import redis
from structlog.testing import capture_logs

from accounting.capture.pubsub.protocol import CHANNEL_PATTERNS
from tests.support.collectors import (
    PROMPT_SYNC,
    CollectorThread,
    kill_replicas,
    kill_subscribers,
    payload_numbers,
    publish,
    redis_client,
    replication_collector,
    stored_messages,
)
from tests.support.sentinels import TlsRedisServer, TlsSentinel
from tests.support.servers import RedisServer, ValkeyServer, free_port, wait_until


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
            assert all(pattern.decode() in advice for pattern in CHANNEL_PATTERNS)
            client.execute_command(
                *user,
                "+psubscribe",
                "+ping",
                *(f"&{p.decode()}" for p in CHANNEL_PATTERNS),
            )
            collector.await_attached(server)
            # Without INFO a restart of Redis looks like a disconnect.
            assert collector.spool.state().server_run_id is None


def test_capture_works_over_a_unix_socket(tmp_path: Path) -> None:
    server = ValkeyServer()
    server.options["unixsocket"] = str(server.directory / "s")
    with server, CollectorThread(f"unix://{server.directory}/s", tmp_path) as collector:
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


def test_an_unreachable_redis_is_retried_until_a_stop(tmp_path: Path) -> None:
    url = f"redis://u:hush@127.0.0.1:{free_port()}"
    with capture_logs() as logs, CollectorThread(url, tmp_path) as collector:
        wait_until(lambda: sum(entry["event"] == "not capturing" for entry in logs) > 3)
        assert collector.spool.gaps() == []
    assert "hush" not in repr(logs)


def set_user(client: "redis.Redis", name: str, *rights: str) -> None:
    client.acl_setuser(
        name,
        enabled=True,
        passwords=["+hush"],
        commands=[*rights],
    )


def test_the_minimal_permissions_are_enough(master: RedisServer, tmp_path: Path) -> None:
    rights = ["+psync", "+replconf", "+ping", "+info"]
    with redis_client(master) as client:
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
    with redis_client(valkey_master) as client, capture_logs() as logs:
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
            f"?ssl_ca_certs={tls_redis.directory / 'certificate.pem'}&sentinel_password="
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


def test_only_a_master_is_replicated(tmp_path: Path) -> None:
    with (
        ValkeyServer({"cluster-enabled": "yes"}) as cluster,
        capture_logs() as logs,
    ):
        with replication_collector(cluster.url, tmp_path / "cluster"):
            wait_until(lambda: any(entry["log_level"] == "error" for entry in logs))
        assert "cluster" in next(e for e in logs if e["log_level"] == "error")["advice"]
    options = {**PROMPT_SYNC, "replicaof": f"127.0.0.1 {free_port()}"}
    with ValkeyServer(options) as replica, capture_logs() as logs:
        with replication_collector(replica.url, tmp_path / "replica"):
            wait_until(lambda: any(entry["log_level"] == "error" for entry in logs))
        assert "master" in next(e for e in logs if e["log_level"] == "error")["advice"]
