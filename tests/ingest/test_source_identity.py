"""A source is one history of one Redis: two names on one, or one name on two, are errors."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from datetime import timedelta

import pytest

from accounting.audit.verify import verify
from accounting.capture.clock import wall_clock
from accounting.capture.redis.server_watch import WatchedServer
from accounting.capture.spool.records import RawKeySighting
from accounting.domain.server_identity import ServerIdentity
from accounting.errors import LeaseHeld, SourceConflict
from accounting.ingest.source_lease import acquire_lease
from accounting.ops.doctor import Level
from accounting.ops.doctor.source_identity import check_identity
from accounting.ops.lease_keeper import LeaseKeeper
from accounting.ops.monitoring.health import evaluate
from accounting.sources.retire import retire_source
from tests.support.books import READER, WRITER, Books, channel, status_payload
from tests.support.collectors import PROMPT_SYNC, redis_client, replication_collector
from tests.support.command import turn_accounting
from tests.support.monitoring import metrics_of, read_snapshot, settings_for
from tests.support.restored_database import back_up, restore_database
from tests.support.servers import SERVER_CLASSES, RedisServer, ValkeyServer, wait_until
from tests.support.source_identity import (
    LEASE_SECONDS,
    follow,
    keeper_of,
    promote,
    start_collecting,
    stop_collecting,
    watch_once,
)


@pytest.fixture(params=SERVER_CLASSES, scope="module")
def first_server(request: pytest.FixtureRequest) -> Iterator[RedisServer]:
    with request.param(PROMPT_SYNC) as running:
        yield running


@contextmanager
def servers_like(server: RedisServer, count: int) -> Iterator[list[RedisServer]]:
    with ExitStack() as stack:
        yield [stack.enter_context(type(server)(PROMPT_SYNC)) for _ in range(count)]


def refusal(books: Books, source: str, watched: WatchedServer) -> str:
    with pytest.raises(SourceConflict) as caught:
        start_collecting(books, source, watched)
    return str(caught.value)


def source_names(books: Books) -> list[str]:
    return [row["source"] for row in books.rows("sources")]


def test_a_second_name_on_one_redis_is_refused_while_the_first_collects(
    books: Books, first_server: RedisServer
) -> None:
    """Another database number and another way to write the address are the same Redis."""
    start_collecting(books, "a", watch_once(first_server))
    for url in (
        first_server.url,
        first_server.url.replace("/0", "/5"),
        first_server.url.replace("127.0.0.1", "localhost"),
    ):
        message = refusal(books, "b", watch_once(first_server, url))
        assert "has the history of source 'a', which" in message
        assert "stop this collector" in message
        assert "\n" not in message
    assert source_names(books) == ["a"]


def test_doctor_says_whose_history_a_redis_has(books: Books) -> None:
    with ValkeyServer() as server:
        identity = watch_once(server).identity
        [new] = check_identity(books.url(WRITER), "a", identity)
        assert new.level is Level.OK
        start_collecting(books, "a", watch_once(server))
        [own] = check_identity(books.url(WRITER), "a", identity)
        assert own.level is Level.OK
        [other] = check_identity(books.url(WRITER), "b", identity)
        assert other.level is Level.ERROR
        assert "has the history of source 'a'" in other.observed
        assert "stop this collector" in other.advice


def test_a_new_name_gets_the_hint_to_rename_while_the_first_is_stopped_or_retired(
    books: Books, first_server: RedisServer
) -> None:
    """The first may come back and resume from the backlog: the history stays its own."""
    start_collecting(books, "berlin", watch_once(first_server))
    stop_collecting(books, "berlin")
    hint = "`turn-accounting source rename berlin berln`"
    assert hint in refusal(books, "berln", watch_once(first_server))
    retire_source(books.engine, "berlin")
    assert hint in refusal(books, "berln", watch_once(first_server))
    start_collecting(books, "berlin", watch_once(first_server))


def test_replicas_of_a_master_have_its_history(books: Books, first_server: RedisServer) -> None:
    """A subscriber at a replica, also of a replica, gets what is published on the master."""
    with servers_like(first_server, 2) as (replica, chained):
        follow(replica, first_server)
        follow(chained, replica)
        start_collecting(books, "a", watch_once(first_server))
        for server in (replica, chained):
            assert "source 'a'" in refusal(books, "b", watch_once(server))
            start_collecting(books, "a", watch_once(server))


def test_two_sources_that_a_failover_merges_are_refused_until_they_are_apart_again(
    books: Books, first_server: RedisServer
) -> None:
    with (
        servers_like(first_server, 1) as (second,),
        keeper_of(books, "a", first_server, lease_seconds=4),
        keeper_of(books, "b", second) as keeper,
    ):
        assert keeper.other_holder == ""
        follow(second, first_server)
        wait_until(lambda: keeper_error(keeper) is not None)
        assert "has the history of source 'a'" in str(keeper_error(keeper))
        [conflict] = books.query("SELECT * FROM reporting.source_notices()")
        assert (conflict["source"], conflict["is_error"]) == ("a", True)
        promote(second)
        with keeper_of(books, "b", second) as again:
            assert again.other_holder == ""
            wait_until(lambda: not books.query("SELECT * FROM reporting.source_notices()"))


def keeper_error(keeper: LeaseKeeper) -> SourceConflict | None:
    try:
        _ = keeper.other_holder
    except SourceConflict as conflict:
        return conflict
    return None


def test_a_replica_that_was_promoted_beside_its_master_begins_a_history_of_its_own(
    books: Books, first_server: RedisServer
) -> None:
    """But while nobody collects the master, it may be the master's successor."""
    with servers_like(first_server, 1) as (replica,):
        follow(replica, first_server)
        start_collecting(books, "a", watch_once(first_server))
        promote(replica)
        promoted = watch_once(replica)
        stop_collecting(books, "a")
        assert "source 'a'" in refusal(books, "b", promoted)
        start_collecting(books, "a", watch_once(first_server))
        start_collecting(books, "b", promoted)
        stop_collecting(books, "a")
        start_collecting(books, "b", watch_once(replica))


def test_nodes_of_one_cluster_are_one_redis(books: Books) -> None:
    """What is published on one of them is passed on to all subscribers, without replication."""
    options = {"cluster-enabled": "yes"}
    with ValkeyServer(options) as one, ValkeyServer(options) as other:
        with redis_client(one) as client:
            ports = (str(other.port), other.options["cluster-port"])
            client.execute_command("CLUSTER", "MEET", "127.0.0.1", *ports)
            wait_until(lambda: len(watch_once(other).identity.node_ids) == 2)
            wait_until(lambda: len(watch_once(one).identity.node_ids) == 2)
        start_collecting(books, "a", watch_once(one))
        assert "source 'a'" in refusal(books, "b", watch_once(other))


def test_the_same_source_keeps_its_name_over_restarts_and_another_redis(books: Books) -> None:
    with ValkeyServer() as server, ValkeyServer() as replacement:
        start_collecting(books, "a", watch_once(server))
        server.restart()
        start_collecting(books, "a", watch_once(server))
        start_collecting(books, "a", watch_once(replacement))
    assert len(books.query("SELECT * FROM accounting.source_histories")) == 6


def server_text(number: int) -> ServerIdentity:
    return ServerIdentity(run_id=f"{number:040x}", replication_id=f"{number + 1000:040x}")


def test_a_source_keeps_a_bounded_number_of_histories(books: Books) -> None:
    for number in range(1, 80):
        start_collecting(books, "a", WatchedServer(server_text(number), 0.0, 0.0))
    kept = {
        row["history"] for row in books.query("SELECT history FROM accounting.source_histories")
    }
    assert len(kept) == 64
    assert server_text(79).histories <= kept


def capture_into(books: Books, source: str, server: ServerIdentity, *seconds: float) -> None:
    """Capture messages of another epoch from a server, before the database is asked."""
    spool = books.spool(source)
    if spool.state().captured_from is not None:
        spool.start_epoch("failover")
    spool.set_server(server)
    for second in seconds:
        books.receive(second, channel("status", user=source), status_payload("new"), source=source)
    books.advance_clock(seconds[-1], source=source)


def test_messages_from_another_sources_redis_are_not_loaded_and_that_time_is_a_gap(
    books: Books,
) -> None:
    """The database was away, or a failover led the collector there before anyone could notice."""
    own, others = server_text(1), server_text(2)
    capture_into(books, "a", others, 1, 2)
    assert books.load(source="a") == 2
    capture_into(books, "b", own, 1)
    capture_into(books, "b", others, 2, 3)
    with pytest.raises(SourceConflict):  # after the message before it
        books.load(source="b")
    [row] = [row for row in books.rows("sources") if row["source"] == "b"]
    assert row["captured_until"] is None or row["captured_until"] <= books.start + timedelta(
        seconds=1
    )
    capture_into(books, "b", own, 4)
    books.load(source="b")
    books.run_jobs()
    counts = [(r["source"], r["received_at"]) for r in books.rows("allocation_events")]
    assert [source for source, _ in counts].count("b") == 2
    [gap] = [gap for gap in books.rows("capture_gaps") if gap["cause"] == "another_redis"]
    assert gap["source"] == "b"
    assert "history of source 'a'" in gap["detail"]
    assert books.spool("b").last_position(2) is None
    assert list(verify(books.engine)) == []


def test_keys_that_were_seen_before_messages_of_another_sources_redis_are_loaded(
    books: Books,
) -> None:
    own, others = server_text(1), server_text(2)
    capture_into(books, "a", others, 1)
    books.load(source="a")
    capture_into(books, "b", own, 1)
    books.load(source="b")
    spool = books.spool("b")
    spool.start_epoch("disconnected")
    spool.set_server(own)
    seen_at = books.micros_at(2)
    key = channel("status", user="b")
    spool.add_sightings([RawKeySighting(seen_at, seen_at, 0, key, 1)])
    capture_into(books, "b", others, 3)
    capture_into(books, "b", own, 4)
    books.load(source="b")
    (row,) = books.query("SELECT seen_at FROM accounting.key_sightings")
    assert row["seen_at"] == books.start + timedelta(seconds=2)


def test_a_loader_claims_the_histories_of_its_source_again_after_a_restore(books: Books) -> None:
    books.advance_clock(0, source="a")
    books.load(source="a")
    back_up(books)
    capture_into(books, "a", server_text(1), 1)
    books.load(source="a")
    restore_database(books)
    capture_into(books, "a", server_text(1), 2)
    books.load(source="a")
    capture_into(books, "b", server_text(1), 3)
    with pytest.raises(SourceConflict):
        books.load(source="b")


def test_a_new_name_that_captured_before_it_could_ask_loads_nothing(books: Books) -> None:
    capture_into(books, "a", server_text(1), 1)
    books.load(source="a")
    capture_into(books, "b", server_text(1), 1)
    with pytest.raises(SourceConflict, match="history of source 'a'"):
        books.load(source="b")
    assert source_names(books) == ["a"]


def test_a_standby_at_another_redis_is_refused_with_both_named_and_a_gap(books: Books) -> None:
    settings_for(books)
    with (
        ValkeyServer() as one,
        ValkeyServer() as other,
        keeper_of(books, "default", one),
        books_at(books, "elsewhere") as second,
    ):
        with keeper_of(second, "default", other) as standby:
            wait_until(lambda: keeper_error(standby) is not None)
            message = str(keeper_error(standby))
        for server in (one, other):
            assert f"127.0.0.1:{server.port}, run id" in message
        [gap] = books.rows("capture_gaps")
        assert (gap["source"], gap["cause"], gap["detail"]) == (
            "default", "another_redis", message,
        )  # fmt: skip
        books.spool().checkpoint(wall_clock())
        books.load()
        snapshot = read_snapshot(books)
        assert any(message in problem for problem in evaluate(snapshot, captures=True).problems)
        assert metrics_of(snapshot)["turn_accounting_source_conflicts", "default"] == 1
        listed = turn_accounting("source", "list", database_url=books.url(READER))
        assert message in listed.err
        # With a name of its own it is captured: the gap lasted until then.
        start_collecting(second, "other", watch_once(other))
        [ended] = books.rows("capture_gaps")
        assert ended["to_at"] > gap["to_at"]
        assert books.query("SELECT * FROM reporting.source_notices()") == []


@contextmanager
def books_at(books: Books, directory: str) -> Iterator[Books]:
    """The same database with the spools of another machine."""
    other = Books(books.server, books.name, books.directory / directory)
    other.directory.mkdir()
    yield other
    other.close()


def test_a_standby_is_no_conflict_while_a_failover_or_a_restart_is_seen_by_one_of_both(
    books: Books, first_server: RedisServer
) -> None:
    with servers_like(first_server, 1) as (replica,), books_at(books, "elsewhere") as second:
        follow(replica, first_server)
        before = watch_once(first_server)
        start_collecting(books, "a", before)
        promote(replica)
        for watched in (watch_once(replica), before):
            with pytest.raises(LeaseHeld) as held:
                start_collecting(second, "a", watched)
            assert held.value.suspected is None
        # A Redis that was restarted has nothing in common with what the holder has last seen.
        with type(first_server)(PROMPT_SYNC) as restarted:
            restarted.kill()
            restarted.start()
            with pytest.raises(LeaseHeld) as held:
                start_collecting(second, "a", watch_once(restarted))
            assert held.value.suspected is None


def test_a_collector_without_the_right_to_info_is_not_compared(books: Books) -> None:
    start_collecting(books, "a", WatchedServer(server_text(1), 0.0, 0.0))
    acquire_lease(books.engine, books.spool("b"), LEASE_SECONDS)
    assert source_names(books) == ["a", "b"]


def test_a_replication_stream_records_the_history_that_it_follows(
    first_server: RedisServer, books: Books
) -> None:
    with replication_collector(first_server.url, books.directory) as collector:
        collector.await_attached(first_server)
        server = collector.spool.epochs()[-1].server
        with redis_client(first_server) as client:
            assert server.replication_id == client.info("replication")["master_replid"]
            assert server.run_id == client.info("server")["run_id"]


def test_the_identity_of_a_server_without_valid_ids_is_unknown() -> None:
    assert ServerIdentity.from_text(ServerIdentity(address="x:1").to_text()) == ServerIdentity()
    assert ServerIdentity.from_text(server_text(3).to_text()) == server_text(3)
