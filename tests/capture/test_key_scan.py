"""The key scan on real servers."""

from pathlib import Path

import redis
from structlog.testing import capture_logs

from accounting.capture.clock import wall_clock
from accounting.capture.replication.source import ReplicationSource
from tests.support.collectors import CHANNEL, PROMPT_SYNC, CollectorThread, publish, stored_messages
from tests.support.servers import RedisServer, ValkeyServer, wait_until

STATUS_KEY = b"turn/realm/north/user/ann/allocation/001000000000000001/status"
HOSTILE_KEY = b"turn/user/\r\n*?[\x00\xff/allocation/2/status"


def fill(server: RedisServer) -> None:
    for database, key in ((0, STATUS_KEY), (0, HOSTILE_KEY), (3, STATUS_KEY)):
        with redis.Redis(port=server.port, db=database) as client:
            client.set(key, "new lifetime=600")
            client.set("turn/realm/north/user/ann/key", "secret")
            client.set("allocation/status", "another program's")
            client.mset({f"foreign{number}": "x" for number in range(2000)})


def test_status_keys_are_scanned_at_the_start_in_every_database(
    master: RedisServer,
    tmp_path: Path,
) -> None:
    fill(master)
    began_at = wall_clock()
    with redis.Redis(port=master.port) as client, redis.Redis(port=master.port, db=3) as last:
        wait_until(lambda: last.object("IDLETIME", STATUS_KEY) >= 1)
        commands = client.info("commandstats")
    with CollectorThread(
        master.url, tmp_path, source_class=ReplicationSource, with_key_scan=True
    ) as collector:
        wait_until(lambda: len(collector.spool.sightings()) == 3)
        sightings = collector.spool.sightings()
        assert sorted((seen.database, seen.key) for seen in sightings) == sorted(
            [(0, STATUS_KEY), (0, HOSTILE_KEY), (3, STATUS_KEY)]
        )
        assert {seen.epoch for seen in sightings} == {1}
        state = collector.spool.state()
        assert all(seen.position <= state.captured_position for seen in sightings)
        assert all(began_at <= seen.scan_started_at <= seen.seen_at for seen in sightings)
        assert all(1 <= seen.idle_seconds < 60 for seen in sightings)
        assert collector.spool.sightings(after=sightings[1].number) == sightings[2:]
    with redis.Redis(port=master.port) as client:
        used = client.info("commandstats")
        assert client.object("IDLETIME", STATUS_KEY) >= 1, "the scan must not reset idle times"
    assert {name for name in used if used[name] != commands.get(name)} & {
        "cmdstat_keys",
        "cmdstat_get",
    } == set()


def test_keys_are_scanned_again_only_after_a_gap(
    valkey_master: ValkeyServer,
    tmp_path: Path,
) -> None:
    with redis.Redis(port=valkey_master.port) as client:
        client.set(STATUS_KEY, "new lifetime=600")
        with CollectorThread(valkey_master.url, tmp_path, with_key_scan=True) as collector:
            wait_until(lambda: len(collector.spool.sightings()) == 1)
            client.client_kill_filter(_type="pubsub")
            wait_until(lambda: len(collector.spool.sightings()) == 2)
            first, second = collector.spool.sightings()
            gap = collector.spool.gaps()[0]
            assert first.seen_at <= gap.from_at + 5_000_000
            assert second.scan_started_at >= (gap.to_at or 0)
        with CollectorThread(
            valkey_master.url, tmp_path, source_class=ReplicationSource, with_key_scan=True
        ) as collector:
            wait_until(lambda: len(collector.spool.sightings()) == 3)
            for number in range(3):  # each reconnect resumes without a gap
                client.client_kill_filter(_type="replica")
                publish(valkey_master, b"%d" % number)
                wait_until(lambda: len(stored_messages(collector.spool)) == number + 1)  # noqa: B023
            collector.await_checkpoint()
            assert len(collector.spool.sightings()) == 3


def test_without_idle_times_there_is_no_scan_and_one_warning(
    tmp_path: Path,
) -> None:
    options = {**PROMPT_SYNC, "maxmemory-policy": "allkeys-lfu"}
    with ValkeyServer(options) as server, capture_logs() as logs:
        fill(server)
        with CollectorThread(
            server.url, tmp_path, source_class=ReplicationSource, with_key_scan=True
        ) as collector:
            collector.await_attached(server)
            wait_until(lambda: any("not scanned" in entry["event"] for entry in logs))
            publish(server, b"1")
            wait_until(lambda: len(stored_messages(collector.spool)) == 1)
            assert collector.spool.sightings() == []
    assert sum("not scanned" in entry["event"] for entry in logs) == 1


def test_without_permission_to_scan_capture_still_works(
    valkey_master: ValkeyServer,
    tmp_path: Path,
) -> None:
    fill(valkey_master)
    least = ["+psync", "+replconf", "+ping", "+info"]
    more = ["+scan", "+object|idletime", "+select"]
    url = f"redis://limited:pw@127.0.0.1:{valkey_master.port}"
    with redis.Redis(port=valkey_master.port) as client:
        client.acl_setuser("limited", enabled=True, passwords=["+pw"], commands=least)
        with (
            capture_logs() as logs,
            CollectorThread(
                url, tmp_path, source_class=ReplicationSource, with_key_scan=True
            ) as collector,
        ):
            wait_until(lambda: any("not scanned" in entry["event"] for entry in logs))
            publish(valkey_master, b"1", to=CHANNEL)
            wait_until(lambda: len(stored_messages(collector.spool)) == 1)
        *allowed, select = more
        client.acl_setuser("limited", enabled=True, keys=["turn/*"], commands=allowed)
        with (
            capture_logs() as logs,
            CollectorThread(
                url, tmp_path, source_class=ReplicationSource, with_key_scan=True
            ) as collector,
        ):
            wait_until(lambda: any("select" in entry.get("reason", "") for entry in logs))
            collector.await_checkpoint()
            assert len(collector.spool.sightings()) == 2, "without SELECT, those of database 0"
        client.acl_setuser("limited", enabled=True, keys=["turn/*"], commands=[select])
        with CollectorThread(
            url, tmp_path, source_class=ReplicationSource, with_key_scan=True
        ) as collector:
            wait_until(lambda: len(collector.spool.sightings()) == 5)
