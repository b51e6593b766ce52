"""FAILOVER, REPLICAOF and sentinels beside a collector that replicates, on real servers.

A collector is a replica to its master, and must never be promoted: nothing follows it.
"""

from pathlib import Path
from typing import Any

import pytest
import redis
from structlog.testing import capture_logs

from accounting.capture.clock import wall_clock
from accounting.capture.redis.address import Endpoint
from accounting.capture.redis.connection import connect
from accounting.capture.replication.failover import FailoverGuard
from accounting.capture.replication.offset_poller import OffsetPoller
from accounting.capture.source import SourceLost
from tests.support.collectors import (
    CHANNEL,
    PROMPT_SYNC,
    CollectorThread,
    Publisher,
    assert_losses_in_gaps,
    payload_numbers,
    publish,
    redis_client,
    replication_collector,
    stored_messages,
)
from tests.support.redis_proxy import Proxy
from tests.support.sentinels import replica_of, sentinel_of
from tests.support.servers import RedisServer, ValkeyServer, free_port, wait_until

FORCED_FAILOVER = ("FAILOVER", "TO", "127.0.0.1", "0", "FORCE", "TIMEOUT", "1")


def replication_info(server: RedisServer) -> dict[str, Any]:
    with redis_client(server) as client:
        info: dict[str, Any] = client.info("replication")
        return info


def is_idle_and_in_sync(server: RedisServer) -> bool:
    """Whether the last ack of the collector, the only replica, covers all but one byte."""
    info = replication_info(server)
    replica = info.get("slave0", {})
    expected: int = max(1, info["master_repl_offset"] - 1)
    return (replica.get("state"), replica.get("offset")) == ("online", expected)


def is_stuck(server: RedisServer) -> bool:
    state: str = replication_info(server)["master_failover_state"]
    return state != "no-failover"


def assert_failover_ends_without_loss(
    collector: CollectorThread, master: RedisServer, proxy: Proxy
) -> None:
    """The master stays one, goes on with PUBLISH, and the collector has every message."""
    wait_until(lambda: not is_stuck(master))
    with Publisher(proxy) as publisher:
        publisher.await_more(50)
        publisher.stop()
        wait_until(lambda: len(stored_messages(collector.spool)) == len(publisher.sent))
    assert replication_info(master)["role"] == "master"
    assert collector.spool.gaps() == []


@pytest.mark.parametrize("command", ["FAILOVER", "FAILOVER TIMEOUT 600000"])
@pytest.mark.parametrize("stream", ["without a byte", "with commands"])
def test_a_failover_without_a_real_replica_is_aborted_and_promotes_nobody(
    master: RedisServer, tmp_path: Path, command: str, stream: str
) -> None:
    with Proxy(master) as proxy, replication_collector(proxy.url, tmp_path) as collector:
        collector.await_attached(master)
        if stream == "with commands":
            with redis_client(master) as client:
                client.set("k", "v")
        wait_until(lambda: is_idle_and_in_sync(master))
        with redis_client(master) as client:
            client.execute_command(*command.split())
        assert_failover_ends_without_loss(collector, master, proxy)


def test_a_forced_failover_to_the_collector_is_aborted_and_the_stream_goes_on(
    master: RedisServer, tmp_path: Path
) -> None:
    """FORCE makes the master a replica of port 0 for a while, and so begins another history."""
    with replication_collector(master.url, tmp_path) as collector:
        collector.await_attached(master)
        wait_until(lambda: is_idle_and_in_sync(master))
        # Another replica, so that the collector leaves the failover alone until it is forced.
        with replica_of(master), redis_client(master) as client:
            client.execute_command(*FORCED_FAILOVER)
            gap = collector.await_gap(1)
            wait_until(lambda: not is_stuck(master))
            assert replication_info(master)["role"] == "master"
            client.publish(CHANNEL, b"1")
            wait_until(lambda: len(stored_messages(collector.spool)) == 1)
            assert gap.cause in ("failover", "redis_restarted")


def test_a_user_without_failover_is_told_what_to_grant(
    valkey_master: ValkeyServer, tmp_path: Path
) -> None:
    url = f"redis://limited:hush@127.0.0.1:{valkey_master.port}"
    with redis_client(valkey_master) as client, capture_logs() as logs:
        rights = ["+psync", "+replconf", "+ping", "+info"]
        client.acl_setuser("limited", enabled=True, passwords=["+hush"], commands=rights)
        with replication_collector(url, tmp_path) as collector:
            collector.await_attached(valkey_master)
            wait_until(lambda: is_idle_and_in_sync(valkey_master))
            client.execute_command("FAILOVER")
            wait_until(lambda: any("+failover|abort" in e.get("advice", "") for e in logs))
            assert is_stuck(valkey_master)
            client.acl_setuser("limited", enabled=True, commands=["+failover|abort"])
            wait_until(lambda: not is_stuck(valkey_master))
            assert collector.spool.gaps() == []
    assert sum("+failover|abort" in entry.get("advice", "") for entry in logs) == 1


def assert_follows_promotion(
    collector: CollectorThread, proxy: Proxy, replica: RedisServer, publisher: Publisher
) -> None:
    """The replica was promoted, and the collector continues there with a gap."""
    wait_until(lambda: replication_info(replica)["role"] == "master")
    proxy.retarget(replica)
    gap = collector.await_gap(1)
    assert gap.cause in ("failover", "backlog_overrun")
    publisher.await_more(50)
    publisher.stop()
    wait_until(
        lambda: payload_numbers(stored_messages(collector.spool))[-1:] == [max(publisher.sent)]
    )
    assert_losses_in_gaps(collector.spool, publisher.sent)


@pytest.mark.parametrize(
    "command",
    ["FAILOVER", "FAILOVER TIMEOUT 60000", "FAILOVER TO 127.0.0.1 {} TIMEOUT 60000"],
)
def test_a_failover_promotes_the_real_replica_beside_the_collector(
    master: RedisServer, tmp_path: Path, command: str
) -> None:
    """The collector attaches first, so that the master looks at it first."""
    with Proxy(master) as proxy, replication_collector(proxy.url, tmp_path) as collector:
        collector.await_attached(master)
        with replica_of(master) as replica, Publisher(proxy) as publisher:
            publisher.await_more(50)
            with redis_client(master) as client:
                client.execute_command(*command.format(replica.port).split())
            assert_follows_promotion(collector, proxy, replica, publisher)


def test_a_failover_between_servers_with_dual_channel_replication_spares_the_collector(
    tmp_path: Path,
) -> None:
    options = {"dual-channel-replication-enabled": "yes", "repl-diskless-sync": "yes"}
    with (
        ValkeyServer({**PROMPT_SYNC, **options}) as master,
        Proxy(master) as proxy,
        replication_collector(proxy.url, tmp_path) as collector,
    ):
        collector.await_attached(master)
        with replica_of(master, **options) as replica, Publisher(proxy) as publisher:
            assert "dual channel" in master.log_text()
            publisher.await_more(50)
            with redis_client(master) as client:
                client.execute_command("FAILOVER")
            assert_follows_promotion(collector, proxy, replica, publisher)


def test_sentinels_promote_the_real_replica_while_the_master_still_runs(
    master: RedisServer, tmp_path: Path
) -> None:
    with (
        replica_of(master) as replica,
        replication_collector(master.url, tmp_path / "listed") as listed,
        sentinel_of(master, replicas=2) as sentinel,
        replication_collector(
            f"redis+sentinel://127.0.0.1:{sentinel.port}/turn", tmp_path
        ) as collector,
        Publisher(master) as publisher,
        redis_client(sentinel) as client,
    ):
        listed.await_attached(master)
        collector.await_attached(master)
        publisher.await_more(50)
        # The sentinel knows what the replica is like only after it has asked it.
        wait_until(lambda: can_execute(client, "SENTINEL", "FAILOVER", "turn"))
        wait_until(lambda: replication_info(replica)["role"] == "master")
        gap = collector.await_gap(1)
        publisher.stop()
        last = max(publisher.sent) + 1
        publish(replica, b"%d" % last)
        wait_until(lambda: payload_numbers(stored_messages(collector.spool))[-1:] == [last])
        # The publisher stays with the old master: what that one published as a replica is in
        # no stream. All of it was published after the gap had begun.
        stored = payload_numbers(stored_messages(collector.spool))
        lost = set(range(stored[0], max(publisher.sent) + 1)) - set(stored)
        assert all(publisher.sent[number][1] >= gap.from_at for number in lost)


def can_execute(client: "redis.Redis", *command: str) -> bool:
    try:
        client.execute_command(*command)  # type: ignore[no-untyped-call]
    except redis.ResponseError:
        return False
    return True


def test_what_a_master_publishes_while_it_is_a_replica_lies_in_a_gap(
    master: RedisServer, tmp_path: Path
) -> None:
    with replica_of(master) as other, replication_collector(master.url, tmp_path) as collector:
        collector.await_attached(master)
        publish(master, b"1")
        proven = collector.await_checkpoint()
        with redis_client(master) as client, redis_client(other) as other_client:
            other_client.execute_command("REPLICAOF", "NO", "ONE")
            client.execute_command("REPLICAOF", "127.0.0.1", str(other.port))
            lost_at = wall_clock()
            client.publish(CHANNEL, b"2")
            client.execute_command("REPLICAOF", "NO", "ONE")
        gap = collector.await_gap(1)
        publish(master, b"3")
        wait_until(lambda: len(stored_messages(collector.spool)) == 2)
        assert [row.payload for row in stored_messages(collector.spool)] == [b"1", b"3"]
        assert proven <= gap.from_at <= lost_at < (gap.to_at or 0)


def test_an_offset_of_another_history_is_no_checkpoint(master: RedisServer) -> None:
    """The master was a replica between two polls; run id and role are the same again."""
    connection = Endpoint(master.url).new_connection()
    connect(connection)
    history = replication_info(master)["master_replid"]
    poller = OffsetPoller(
        connection,
        server_run_id=redis_client(master).info("server")["run_id"],
        replication_id=history,
        failover_guard=FailoverGuard(),
        poll_seconds=600,
        clock=wall_clock,
    )
    try:
        wait_until(poller.drain)
        with redis_client(master) as client:
            client.execute_command("REPLICAOF", "127.0.0.1", str(free_port()))
            client.execute_command("REPLICAOF", "NO", "ONE")
        poller.poll_now()
        with pytest.raises(SourceLost, match="history"):
            wait_until(poller.drain)
    finally:
        poller.stop()
        connection.disconnect()  # type: ignore[no-untyped-call]


def test_the_collector_counts_for_wait_and_min_replicas(
    master: RedisServer, tmp_path: Path
) -> None:
    with redis_client(master) as client:
        client.config_set("min-replicas-to-write", 1)
        client.config_set("min-replicas-max-lag", 10)
        with pytest.raises(redis.ResponseError, match="NOREPLICAS"):
            client.set("k", "v")
        with replication_collector(master.url, tmp_path) as collector:
            collector.await_attached(master)
            wait_until(lambda: replication_info(master).get("min_slaves_good_slaves") == 1)
            for number in range(20):
                client.set("k", number)
                assert client.wait(1, 20_000) == 1


def test_a_server_that_shuts_down_gets_the_exact_offset(
    master: RedisServer, tmp_path: Path
) -> None:
    """It waits for its replicas for up to ``shutdown-timeout``."""
    with redis_client(master) as client:
        client.config_set("shutdown-timeout", 600)
    with replication_collector(master.url, tmp_path) as collector:
        collector.await_attached(master)
        publish(master, b"1")
        wait_until(lambda: is_idle_and_in_sync(master))
        master.stop()
    assert "1 of 1 replicas are in sync when shutting down" in master.log_text()
