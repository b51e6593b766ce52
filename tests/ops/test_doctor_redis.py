"""The findings of doctor on Redis and Valkey: on real servers with wrong settings, and on facts."""

from collections.abc import Iterator
from dataclasses import replace
from typing import Final

import pytest
import redis

from accounting.capture.pubsub.protocol import CHANNEL_PATTERNS
from accounting.capture.redis.address import Endpoint
from accounting.capture.redis.connection import connect
from accounting.capture.source import SourceLost
from accounting.ops.doctor.clock import ClockOffset, check_clock
from accounting.ops.doctor.coturn_login import RefusalFacts, check_coturn_login
from accounting.ops.doctor.findings import Finding, Level
from accounting.ops.doctor.redis_probe import probe_redis
from accounting.ops.doctor.redis_server import (
    CaptureMode,
    RedisFacts,
    Unreachable,
    check_redis,
    needed_backlog_bytes,
)
from tests.support.coturn_server import TurnServer
from tests.support.sentinels import TlsRedisServer
from tests.support.servers import RedisServer, ValkeyServer, free_port, wait_until

MIN_RIGHTS: Final = "+psync +replconf +ping +info +client|setname"
"""Those of docs/redis.md for replication, without those of the key scan."""
GOOD_FACTS: Final = RedisFacts(
    address="redis://redis.example:6379",
    version="7.0.15",
    role="master",
    settings={
        "timeout": "0",
        "tcp-keepalive": "60",
        "repl-backlog-size": str(64 << 20),
        "repl-backlog-ttl": "3600",
        "client-output-buffer-limit": "normal 0 0 0 slave 268435456 67108864 60 "
        "pubsub 33554432 8388608 60",
    },
    stream_bytes_per_second=1000.0,
)


@pytest.fixture(scope="module")
def valkey() -> Iterator[ValkeyServer]:
    with ValkeyServer() as server:
        yield server


def check(
    facts: RedisFacts | Unreachable, mode: CaptureMode = "auto", live_sessions: int = 0
) -> dict[str, Finding]:
    return {
        finding.check: finding
        for finding in check_redis(facts, mode=mode, live_sessions=live_sessions)
    }


def levels_of(findings: dict[str, Finding], except_level: Level = Level.OK) -> dict[str, Level]:
    return {
        check: finding.level
        for check, finding in findings.items()
        if finding.level is not except_level
    }


def probe(server: RedisServer, user: str = "", mode: CaptureMode = "auto") -> dict[str, Finding]:
    url = server.url.replace("://", f"://{user}@") if user else server.url
    return check(probe_redis(url, "here")[0], mode)


def make_user(server: RedisServer, name: str, *rights: str) -> str:
    """Make a user with these rights; return its part of a URL."""
    with redis.Redis.from_url(server.url) as client:
        client.execute_command("ACL", "SETUSER", name, "reset", "on", ">secret", *rights)
    return f"{name}:secret"


def with_settings(**changed: str) -> RedisFacts:
    settings = {
        **GOOD_FACTS.settings,
        **{name.replace("_", "-"): at for name, at in changed.items()},
    }
    return replace(GOOD_FACTS, settings=settings)


def test_a_good_server_has_no_findings() -> None:
    assert levels_of(check(GOOD_FACTS, live_sessions=30_000)) == {}


def test_an_unreachable_server_is_one_error_without_the_password() -> None:
    facts, clock = probe_redis(f"redis://:hunter2@127.0.0.1:{free_port()}", "there")
    assert clock is None
    (finding,) = check(facts).values()
    assert (finding.level, finding.check) == (Level.ERROR, "reachable")
    assert "hunter2" not in repr(finding)


def test_a_wrong_password_is_one_error_with_the_reason(valkey: ValkeyServer) -> None:
    make_user(valkey, "one", *MIN_RIGHTS.split())
    (finding,) = probe(valkey, "one:wrong").values()
    assert finding.level is Level.ERROR
    assert "refuses the log-in" in finding.observed
    assert "ACCOUNTING_REDIS_URL" in finding.advice


@pytest.mark.needs_redis
def test_the_default_keepalive_of_redis_is_a_warning() -> None:
    with RedisServer() as server:
        findings = probe(server)
    assert levels_of(findings) == {"tcp-keepalive": Level.WARNING, "backlog": Level.WARNING}
    assert findings["version"].observed.startswith("Redis 7.")
    assert "mode" in findings


def test_wrong_settings_of_a_real_server_are_found() -> None:
    options = {
        "timeout": "300",
        "tcp-keepalive": "0",
        "repl-backlog-size": "1mb",
        "repl-backlog-ttl": "60",
        "client-output-buffer-limit": "slave 1mb 1mb 10",
    }
    with ValkeyServer(options) as server:
        findings = probe(server)
    assert levels_of(findings) == {
        "timeout": Level.ERROR,
        "tcp-keepalive": Level.WARNING,
        "backlog": Level.WARNING,
        "backlog ttl": Level.WARNING,
        "replica buffer": Level.WARNING,
    }
    assert findings["timeout"].advice == "CONFIG SET timeout 0, and the same in redis.conf"


def test_the_probe_starts_no_synchronization(valkey: ValkeyServer) -> None:
    """A collector may run, and a snapshot costs a fork."""
    with redis.Redis.from_url(valkey.url) as client:
        before = client.info("stats")["sync_full"], client.info("replication")["connected_slaves"]
        probe(valkey)
        after = client.info("stats")["sync_full"], client.info("replication")["connected_slaves"]
    assert before == after == (0, 0)


def test_the_minimum_rights_are_sufficient_for_replication(valkey: ValkeyServer) -> None:
    user = make_user(valkey, "least", *MIN_RIGHTS.split())
    findings = probe(valkey, user, "replication")
    assert findings["mode"].level is Level.OK
    assert Level.ERROR not in levels_of(findings).values()
    assert "CONFIG" not in findings["rights"].observed
    assert "SELECT" in findings["rights"].observed
    assert findings["settings"].level is Level.WARNING
    assert findings["backlog"].observed.startswith("repl-backlog-size 10.5 MB")


def test_without_psync_auto_falls_back_and_replication_fails(valkey: ValkeyServer) -> None:
    channels = [f"&{pattern.decode()}" for pattern in CHANNEL_PATTERNS]
    user = make_user(valkey, "hears", "+psubscribe", "+ping", "+info", *channels)
    assert probe(valkey, user, "auto")["mode"].level is Level.WARNING
    refused = probe(valkey, user, "replication")["mode"]
    assert refused.level is Level.ERROR
    assert "psync" in refused.advice
    assert probe(valkey, user, "subscribe")["mode"].level is Level.OK


def test_a_user_without_rights_is_an_error_in_every_mode(valkey: ValkeyServer) -> None:
    user = make_user(valkey, "nobody", "+ping", "+info", "resetchannels")
    modes: tuple[CaptureMode, ...] = ("auto", "replication", "subscribe")
    assert [probe(valkey, user, mode)["mode"].level for mode in modes] == [Level.ERROR] * 3


def test_a_user_who_may_subscribe_only_to_other_channels_is_an_error(
    valkey: ValkeyServer,
) -> None:
    """Redis compares patterns as texts: a wider one doesn't cover a narrower one."""
    for channels in ("&other/*", "&turn/*"):
        user = make_user(valkey, "deaf", "+psubscribe", "+ping", "+info", "resetchannels", channels)
        findings = probe(valkey, user, "subscribe")["mode"]
        assert findings.level is Level.ERROR
        assert "&turn/user/*/allocation/*" in findings.advice


def test_a_server_that_waits_for_a_failover_is_an_error() -> None:
    with (
        ValkeyServer() as server,
        ValkeyServer({"replicaof": f"127.0.0.1 {server.port}"}) as replica,
        redis.Redis.from_url(server.url) as client,
        redis.Redis.from_url(replica.url) as follower,
    ):
        assert "failover" not in probe(server)
        wait_until(lambda: follower.info("replication")["master_link_status"] == "up")
        replica.pause()
        client.publish("turn/user/u/allocation/1/status", "new")
        client.execute_command("FAILOVER")
        found = probe(server)["failover"]
    assert found.level is Level.ERROR
    assert "FAILOVER ABORT" in found.advice


def test_a_cluster_is_captured_by_subscription() -> None:
    with ValkeyServer({"cluster-enabled": "yes"}) as server:
        findings = probe(server)
        assert findings["mode"].level is Level.WARNING
        assert "cluster" in findings["mode"].observed
        assert probe(server, mode="replication")["mode"].level is Level.ERROR


def test_a_replica_can_only_be_captured_by_subscription() -> None:
    with ValkeyServer({"replicaof": f"127.0.0.1 {free_port()}"}) as replica:
        findings = probe(replica, mode="replication")["mode"]
        assert findings.level is Level.ERROR
        assert "master" in findings.advice
        assert probe(replica)["mode"].level is Level.WARNING
        assert "backlog" not in probe(replica)


def test_lfu_eviction_prevents_the_key_scan() -> None:
    options = {"maxmemory-policy": "allkeys-lfu", "maxmemory": "100mb"}
    with ValkeyServer(options) as server:
        findings = probe(server)["key scan"]
    assert findings.level is Level.WARNING
    assert "LFU" in findings.advice


def test_the_needed_backlog_depends_on_the_stream_and_the_live_sessions() -> None:
    """Ten minutes of the stream at its rate, in which all sessions close."""
    assert needed_backlog_bytes(0, 0) == 8 << 20
    assert needed_backlog_bytes(100_000, 20_000) == 600 * 100_000 + 20_000 * 1300
    busy = replace(GOOD_FACTS, stream_bytes_per_second=100_000.0)
    assert check(busy, live_sessions=20_000)["backlog"].level is Level.WARNING
    assert "repl-backlog-size 128mb" in check(busy, live_sessions=20_000)["backlog"].advice
    assert check(busy, live_sessions=1000)["backlog"].level is Level.OK


def test_the_rate_of_the_stream_is_measured() -> None:
    with ValkeyServer({"repl-diskless-sync-delay": "0"}) as server, ValkeyServer() as copy:
        with redis.Redis.from_url(copy.url) as replica_client:
            replica_client.execute_command("REPLICAOF", "127.0.0.1", server.port)
            wait_until(lambda: replica_client.info("replication")["master_link_status"] == "up")
        with redis.Redis.from_url(server.url) as client:
            client.publish("turn/realm/r/user/u/allocation/1/status", b"x" * 1000)
        facts, _ = probe_redis(server.url, "here")
    assert isinstance(facts, RedisFacts)
    assert facts.stream_bytes_per_second is not None
    assert facts.stream_bytes_per_second >= 0


def test_the_needed_pubsub_buffer_depends_on_the_live_sessions() -> None:
    few = check(GOOD_FACTS, "subscribe", live_sessions=30_000)
    assert "backlog" not in few
    assert few["pubsub buffer"].level is Level.OK
    assert (
        check(GOOD_FACTS, "subscribe", live_sessions=50_000)["pubsub buffer"].level is Level.WARNING
    )
    unlimited = with_settings(client_output_buffer_limit="pubsub 0 0 0")
    assert check(unlimited, "subscribe", 50_000)["pubsub buffer"].level is Level.OK


def test_a_subscription_where_replication_is_possible_is_a_warning() -> None:
    assert check(GOOD_FACTS, "subscribe")["mode"].level is Level.WARNING


@pytest.mark.parametrize(
    ("kind", "version", "level"),
    [
        ("Redis", "5.0.14", Level.ERROR),
        ("Redis", "6.0.0", Level.OK),
        ("Redis", "10.1", Level.OK),
        ("Valkey", "7.2.4", Level.OK),
        ("Redis", "", Level.WARNING),
    ],
)
def test_an_old_version_is_an_error(kind: str, version: str, level: Level) -> None:
    facts = replace(GOOD_FACTS, kind=kind, version=version)  # type: ignore[arg-type]
    assert check(facts)["version"].level is level


def test_clocks_may_differ_by_two_seconds_and_the_round_trip() -> None:
    def level(ahead: float, uncertain: float = 0.01) -> Level:
        clock = ClockOffset(ahead_seconds=ahead, uncertain_seconds=uncertain)
        return check_clock("redis", clock).level

    assert level(1.9) is Level.OK
    assert level(2.1) is Level.WARNING
    assert level(-2.1) is Level.WARNING
    assert level(-2.1, uncertain=1.0) is Level.OK
    assert check_clock("redis", None).level is Level.OK


def test_the_clock_of_a_server_is_measured(valkey: ValkeyServer) -> None:
    _, clock = probe_redis(valkey.url, "here")
    assert clock is not None
    assert abs(clock.ahead_seconds) < 1


@pytest.mark.needs_redis
def test_a_scheme_that_does_not_fit_the_port_is_named() -> None:
    with TlsRedisServer() as server:
        tls_address = server.tls_url.partition("://")[2].partition("?")[0]
        for url, reason in (
            (f"rediss://127.0.0.1:{server.port}", "Redis speaks no TLS at this port"),
            (f"redis://{tls_address}", "Redis expects TLS at this port"),
        ):
            with pytest.raises(SourceLost, match=reason) as raised:
                connect(Endpoint(url).new_connection(timeout_seconds=0.2))
            assert "ACCOUNTING_REDIS_URL" in raised.value.advice


@pytest.mark.needs_coturn
@pytest.mark.parametrize("password", ["wrong", ""])
def test_a_coturn_that_fails_to_log_in_is_found(password: str) -> None:
    """With a wrong password by ACL LOG, or without that right by the counts of INFO."""
    with ValkeyServer({"requirepass": "right"}) as server:
        user = make_user(server, "plain", *MIN_RIGHTS.split())
        with (
            TurnServer(server.port, users={"alice": "secret"}, redis_password=password),
            redis.Redis.from_url(server.url) as client,
        ):
            wait_until(lambda: client.info("errorstats"))
            facts, _ = probe_redis(server.url, "here")
            without_log, _ = probe_redis(server.url.replace("://:right@", f"://{user}@"), "here")
    for probed in (facts, without_log):
        [finding] = [
            finding
            for finding in check_redis(probed, mode="auto", live_sessions=0, has_events=False)
            if finding.check == "coturn"
        ]
        assert finding.level is not Level.OK
        assert "password=" in finding.advice
    assert isinstance(facts, RedisFacts)
    if password:
        [entry] = facts.refusals.log or ()
        assert (entry.user, entry.reason, entry.address) == ("default", "auth", "127.0.0.1")


@pytest.mark.parametrize(
    ("facts", "observed"),
    [
        (RefusalFacts(log=[]), "no client is refused"),
        (RefusalFacts(), "no client is refused"),
        (
            RefusalFacts(has_counts=False),
            "whether clients are refused can't be seen without the right to acl|log",
        ),
        (
            RefusalFacts(totals={"NOAUTH": 7, "WRONGPASS": 0}, recent={"NOAUTH": 2}),
            "clients are being refused: 2 NOAUTH within a second",
        ),
    ],
)
def test_doctor_claims_no_more_than_it_sees_of_refused_clients(
    facts: RefusalFacts, observed: str
) -> None:
    [finding] = check_coturn_login("redis", facts, has_events=True)
    assert finding.observed == observed
    assert (finding.level is Level.OK) == (not facts.recent)
