"""Batches that are prepared while the one before is committed."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import psycopg
import pytest
from sqlalchemy import Connection, event

from accounting.audit.rebuild import rebuild
from accounting.audit.verify import verify
from accounting.capture.spool.records import RawKeySighting
from accounting.errors import ConnectionLost
from accounting.identities.erase import erase
from accounting.identities.realm_rules import remove_realm, set_rule
from accounting.ingest.batch import Batch, StaleBatch
from accounting.ingest.loader import Loader
from tests.support.books import Books, channel
from tests.support.coturn_messages import FakeAllocation
from tests.support.crash_injection import CrashInjector, crashing_engine, run_through_crashes
from tests.support.realm_rules import set_realm_rule
from tests.support.scenario_player import all_rows, restarted_loader
from tests.support.truncate import empty_database

HALF, WHOLE = (5, 500, 4, 400), (10, 1000, 8, 800)
DAY = 86_400


def receive_stream(books: Books) -> None:
    """Sessions that go on from batch to batch, and whatever else is not prepared ahead."""
    alice, bob = FakeAllocation(books), FakeAllocation(books, user="bob", allocation=2)
    pending = FakeAllocation(books, user="carol", allocation=3)
    alice.new(0)
    for second in range(1, 7):
        alice.interim(second, *HALF)
    bob.new(8, 600)
    pending.interim(9, *HALF)
    alice.publish(10, "status", b"nonsense")
    bob.interim(11, *HALF)
    alice.close(12, WHOLE, HALF)
    alice.new(13)
    pending.new(14)
    alice.interim(15, *HALF)
    FakeAllocation(books, user="dave", realm="new", allocation=4).new(16)
    bob.interim(17, *HALF)
    books.spool().add_sightings(
        [
            RawKeySighting(
                scan_started_at=books.micros_at(17),
                seen_at=books.micros_at(18),
                database=0,
                key=channel("status", user="bob", allocation=2),
                idle_seconds=1,
            )
        ]
    )
    for second in range(19, 24):
        pending.interim(second, *HALF)
    gap = books.spool().open_gap(books.micros_at(24), "connection_lost")
    books.spool().close_gap(gap, books.micros_at(25))
    bob.interim(26, *HALF)
    alice.interim(27, *HALF)
    for second in range(7):
        pending.interim(DAY + second, *HALF)
    bob.new(DAY + 8)
    alice.interim(DAY + 9, *HALF)
    books.advance_clock(DAY + 1000)


def load_all(loader: Loader, limit: int = 3) -> None:
    while loader.load_ahead(limit):
        pass


@pytest.fixture
def undisturbed(books: Books) -> dict[str, object]:
    """What the stream gives when each batch is loaded in turn. The books are empty again."""
    receive_stream(books)
    loader = restarted_loader(books)
    while loader.load(3):
        pass
    books.run_jobs()
    assert list(verify(books.engine)) == []
    rows = all_rows(books)
    empty_database(books.server, books.name)
    return rows


@pytest.fixture
def again(books: Books, tmp_path: Path) -> Iterator[Books]:
    """The emptied database, with another spool."""
    again = Books(books.server, books.name, tmp_path / "again")
    yield again
    again.close()


def test_batches_prepared_ahead_give_the_same_books(
    undisturbed: dict[str, object], again: Books
) -> None:
    receive_stream(again)
    load_all(restarted_loader(again))
    again.run_jobs()
    assert all_rows(again) == undisturbed


def test_a_sighting_at_the_end_of_the_stream_is_applied_before_sessions_expire(
    books: Books,
) -> None:
    FakeAllocation(books, user="carol", allocation=3).interim(0, *HALF)
    other = FakeAllocation(books)
    other.new(1)
    for second in range(2, 12):
        other.interim(second, *HALF)
    books.spool().add_sightings(
        [
            RawKeySighting(
                scan_started_at=books.micros_at(3000),
                seen_at=books.micros_at(3001),
                database=0,
                key=channel("status", user="carol", allocation=3),
                idle_seconds=1,
            )
        ]
    )
    books.advance_clock(3 * 3600)
    load_all(restarted_loader(books))
    books.run_jobs()
    assert list(verify(books.engine)) == []
    assert books.rows("unattributed_usage") == []
    assert {row["user_id"] for row in books.rows("sessions")} == {"alice", "carol"}


@pytest.mark.parametrize("ahead_seconds", [0, DAY])
def test_a_sighting_before_an_epoch_without_messages_is_loaded(
    books: Books, ahead_seconds: int
) -> None:
    """Found by a random history: the loader took the end of the stream for where it started.

    ``ahead_seconds``: of the time of the sighting, which is then held back.
    """
    spool = books.spool()
    FakeAllocation(books).new(1)
    books.advance_clock(10)
    books.load()
    seen_at = 20 + ahead_seconds
    spool.start_epoch("connection_lost")
    key = channel("status")
    spool.add_sightings(
        [RawKeySighting(books.micros_at(seen_at), books.micros_at(seen_at), 0, key, 1)]
    )
    spool.start_epoch("connection_lost")
    books.advance_clock(30)
    books.load()
    if ahead_seconds:
        assert books.query("SELECT * FROM accounting.key_sightings") == []
        books.advance_clock(2 * DAY)
        books.load()
    (row,) = books.query("SELECT seen_at FROM accounting.key_sightings")
    assert row["seen_at"].timestamp() * 1e6 == books.micros_at(seen_at)
    restarted_loader(books).load()
    assert len(books.query("SELECT * FROM accounting.key_sightings")) == 1


@pytest.mark.parametrize("step", [9, pytest.param(3, marks=pytest.mark.long)])
def test_a_loader_killed_in_either_thread_leaves_whole_batches(
    undisturbed: dict[str, object], again: Books, step: int
) -> None:
    receive_stream(again)
    death = CrashInjector()
    with crashing_engine(again, death) as engine:
        deaths = run_through_crashes(
            again, death, lambda: load_all(restarted_loader(again, engine=engine), 6), step=step
        )
    assert deaths > 60 // step
    again.run_jobs()
    assert all_rows(again) == undisturbed


@contextmanager
def lost_answers_to_commit(books: Books) -> Iterator[list[int]]:
    """The connection breaks once after each third COMMIT; yields the count of these."""
    lost: list[int] = []
    commits = 0

    def commit(connection: Connection) -> None:
        nonlocal commits
        driver = connection.connection.driver_connection
        assert isinstance(driver, psycopg.Connection)
        driver.commit()
        commits += 1
        if commits % 3 == 0:
            lost.append(commits)
            driver.close()
            raise psycopg.OperationalError("the server closed the connection")

    event.listen(books.engine, "commit", commit)
    yield lost
    event.remove(books.engine, "commit", commit)


def test_a_loader_goes_on_after_lost_answers_to_commit(
    undisturbed: dict[str, object], again: Books
) -> None:
    receive_stream(again)
    loader = restarted_loader(again)
    with lost_answers_to_commit(again) as lost:
        is_loaded = False
        while not is_loaded:
            try:
                is_loaded = not loader.load_ahead(3)
            except ConnectionLost:
                continue
    assert len(lost) > 3
    again.run_jobs()
    assert all_rows(again) == undisturbed


def erase_alice(books: Books) -> None:
    erase(books.engine, "example.org", "alice")


def change_grace(books: Books) -> None:
    set_rule(
        books.engine, "example.org", {"grace_seconds": 61}, default=books.rule, holds_from=None
    )


def rebuild_sessions(books: Books) -> None:
    books.query("UPDATE accounting.sessions SET received_bytes = 7 RETURNING 1")
    assert list(rebuild(books.engine, "a test"))


def load_with_another_loader(books: Books) -> None:
    assert restarted_loader(books).load(2) == 2


def remove_unused_realm(books: Books) -> None:
    remove_realm(books.engine, "unused")


def add_gap(books: Books) -> None:
    books.query(
        "INSERT INTO accounting.capture_gaps (source_id, token, gap, epoch, position, from_at,"
        " cause, detail) SELECT source_id, 'x', 9, 1, 1, loaded_until, 'x', 'x'"
        " FROM accounting.sources RETURNING 1"
    )


@pytest.mark.parametrize(
    "change",
    [
        erase_alice,
        change_grace,
        rebuild_sessions,
        load_with_another_loader,
        remove_unused_realm,
        add_gap,
    ],
)
def test_a_batch_is_dropped_when_what_it_was_folded_against_has_changed(
    books: Books, change: Callable[[Books], object]
) -> None:
    set_realm_rule(books, "unused", grace_seconds=5)
    alice = FakeAllocation(books)
    alice.new(0)
    for second in range(1, 12):
        alice.interim(second, *HALF)
    loader = restarted_loader(books)
    assert loader.load(3) == 3
    batch = prepare(loader, books)
    assert batch.message_count == 3
    change(books)
    before = books.rows("sessions"), books.rows("traffic_reports")
    with pytest.raises(StaleBatch):
        loader._commit(batch, loader._expected_version)
    assert (books.rows("sessions"), books.rows("traffic_reports")) == before
    load_all(restarted_loader(books))
    books.run_jobs()
    assert books.rows("sessions", "received_bytes") == [{"received_bytes": 11 * 500}]
    assert list(verify(books.engine)) == []


def prepare(loader: Loader, books: Books) -> Batch:
    with books.engine.connect() as connection:
        batch = loader._prepare_ahead(connection, loader._end, 3)
    assert batch is not None
    return batch


def test_a_stale_batch_is_loaded_again(books: Books) -> None:
    """Others change the version of the sessions while batches are prepared and committed."""
    alice = FakeAllocation(books)
    alice.new(0)
    for second in range(1, 40):
        alice.interim(second, *HALF)
    loader = restarted_loader(books)
    begins = 0

    def change_version(_: Connection) -> None:
        nonlocal begins
        begins += 1
        if begins % 5 == 0:
            with psycopg.connect(books.url(), autocommit=True) as other:
                other.execute("UPDATE accounting.settle_watermarks SET version = version + 1")

    event.listen(books.engine, "begin", change_version)
    load_all(loader)
    event.remove(books.engine, "begin", change_version)
    books.run_jobs()
    assert books.rows("sessions", "received_bytes") == [{"received_bytes": 39 * 500}]
    assert list(verify(books.engine)) == []


def test_reports_are_not_loaded_where_another_loader_has_moved_the_source(books: Books) -> None:
    """No key prevents a report from being there twice: the source's position does."""
    FakeAllocation(books).new(0)
    with psycopg.connect(books.url(), autocommit=True) as connection:
        connection.execute(
            "CREATE FUNCTION public.move_source() RETURNS trigger LANGUAGE plpgsql AS"
            " 'BEGIN UPDATE accounting.sources SET position = position + 1; RETURN NULL; END'"
        )
        connection.execute(
            "CREATE TRIGGER moves AFTER INSERT ON accounting.reports"
            " EXECUTE FUNCTION public.move_source()"
        )
        with pytest.raises(ConnectionLost, match="moved while loading"):
            restarted_loader(books).load()
        connection.execute("DROP TRIGGER moves ON accounting.reports")
    assert books.rows("allocation_events") == []
    load_all(restarted_loader(books))
    load_all(restarted_loader(books))
    assert len(books.rows("allocation_events")) == 1


def test_a_chunk_that_is_damaged_when_it_is_read_ahead_is_a_gap(books: Books) -> None:
    alice = FakeAllocation(books)
    alice.new(0)
    for second in range(1, 30):
        alice.interim(second, *HALF)
    spool = books.spool()
    with spool.transaction():
        spool.execute("UPDATE chunks SET content = zeroblob(length(content)) WHERE number = 14")
    load_all(restarted_loader(books))
    assert len(books.rows("capture_gaps")) == 1
    assert books.rows("sessions", "received_bytes") == [{"received_bytes": 28 * 500}]
    books.run_jobs()
    assert list(verify(books.engine)) == []
