"""Collectors of sources without their processes: what they see of their Redis, and their leases."""

from collections.abc import Iterator
from contextlib import contextmanager

from accounting.capture.clock import wall_clock
from accounting.capture.redis.address import parse_address
from accounting.capture.redis.server_watch import ServerWatch, WatchedServer
from accounting.ingest.source_lease import acquire_lease, release_lease
from accounting.ops.lease_keeper import LeaseKeeper
from tests.support.books import Books
from tests.support.collectors import redis_client
from tests.support.servers import RedisServer, wait_until

LEASE_SECONDS = 60.0


def watch_once(server: RedisServer, url: str | None = None) -> WatchedServer:
    """What a collector sees of a server."""
    watch = ServerWatch(parse_address(url or server.url), poll_seconds=60, clock=wall_clock)
    with watch.running():
        watch.wait_for_first_poll(10)
        assert watch.latest is not None
        return watch.latest


def start_collecting(books: Books, source: str, watched: WatchedServer) -> None:
    """Acquire the lease of a source, as the collector of its spool."""
    acquire_lease(books.engine, books.spool(source), LEASE_SECONDS, watched=watched)


def stop_collecting(books: Books, source: str) -> None:
    release_lease(books.engine, books.spool(source), LEASE_SECONDS)


@contextmanager
def keeper_of(
    books: Books, source: str, server: RedisServer, *, lease_seconds: float = 0.4
) -> Iterator[LeaseKeeper]:
    """The thread of a collector that acquires its lease and watches its Redis."""
    watch = ServerWatch(parse_address(server.url), poll_seconds=lease_seconds / 4, clock=wall_clock)
    keeper = LeaseKeeper(books.engine, books.spool(source), lease_seconds, watch=watch)
    with watch.running(), keeper.running():
        keeper.wait_for_first_answer(10)
        yield keeper


def follow(replica: RedisServer, master: RedisServer) -> None:
    """Make a server the replica of another, and wait until it is in sync."""
    with redis_client(replica) as client:
        client.execute_command("REPLICAOF", "127.0.0.1", str(master.port))
        wait_until(lambda: client.info("replication")["master_link_status"] == "up")


def promote(replica: RedisServer) -> None:
    with redis_client(replica) as client:
        client.execute_command("REPLICAOF", "NO", "ONE")
