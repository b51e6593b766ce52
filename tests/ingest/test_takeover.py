"""Take-over: where another collector continues when the loader was behind the lost spool."""

import pytest

from accounting.audit.verify import verify
from accounting.capture.clock import wall_clock
from accounting.capture.spool.records import RawKeySighting, ResumePoint
from accounting.capture.spool.spool import Spool
from accounting.domain.calendar import from_micros
from accounting.errors import LeaseHeld
from accounting.ingest.loader import Loader
from accounting.ingest.source_lease import BooksPosition, acquire_lease, is_behind, take_over
from tests.support.books import Books, channel, status_payload


def position_after_loading(books: Books, limit: int) -> BooksPosition:
    """Load so many messages; return the position that the spool's collector gets."""
    spool = books.spool()
    Loader(books.engine, spool, books.rule).load(limit)
    position = acquire_lease(books.engine, spool, 60.0)
    assert position is not None
    return position


def test_a_takeover_continues_from_the_loaded_not_the_captured_position(books: Books) -> None:
    """Messages captured after it are lost with the spool: the gap must include them."""
    for second in range(10):
        books.receive(second, channel("status"), status_payload("refreshed"))
    books.advance_clock(20)
    position = position_after_loading(books, 4)
    with books.spool("other") as other:
        take_over(other, position)
        assert other.state().captured_until == books.micros_at(3)


def test_the_gap_of_a_takeover_excludes_all_that_is_loaded(books: Books) -> None:
    books.receive(1, channel("status"), status_payload("new"))
    books.advance_clock(20)
    position = position_after_loading(books, 4)
    assert position.captured_until == books.micros_at(20)


def test_an_offset_of_an_earlier_stream_is_not_used_in_the_current_one(books: Books) -> None:
    """It counts the bytes of another history, and may be valid in the current backlog."""
    spool = books.spool()
    spool.set_mode("replication")
    for history, offset in (("a", 5_000), ("b", 9_000)):
        resume = ResumePoint(replication_id=history * 40, offset=offset + 100, database=3)
        message = books.micros_at(offset), 3, channel("status"), status_payload("refreshed")
        spool.append([message], books.micros_at(offset), positions=[offset], resume_point=resume)
        if history == "a":
            spool.start_epoch("redis_restarted")
    early = position_after_loading(books, 1)
    assert (early.position, early.replication_id, early.stream_database) == (5_000, None, None)
    late = position_after_loading(books, 9)
    assert (late.position, late.replication_id, late.stream_database) == (9_100, "b" * 40, 3)


def test_a_stream_that_advanced_without_messages_before_a_restart_is_not_a_restored_spool(
    books: Books,
) -> None:
    """Regression: the epoch was relabelled, so the collector took over from its own spool."""
    spool = books.spool()
    spool.set_mode("replication")
    tokens = []
    for history, offset in (("a", 5_000), ("b", 90)):
        # Redis' PINGs advance the offset: the loaded position is beyond the last message.
        resume = ResumePoint(replication_id=history * 40, offset=offset + 100, database=3)
        message = books.micros_at(offset), 3, channel("status"), status_payload("refreshed")
        spool.append([message], books.micros_at(offset), positions=[offset], resume_point=resume)
        tokens.append(spool.epochs()[-1].token)
        position = position_after_loading(books, 9)
        assert (position.token, position.position) == (tokens[-1], offset + 100)
        assert not is_behind(spool, position)
        if history == "a":
            spool.start_epoch("redis_restarted")
    assert [epoch.token for epoch in spool.epochs()] == tokens
    assert len(books.rows("allocation_events")) == 2
    assert books.rows("capture_gaps") == []


def test_messages_that_the_first_collector_never_loaded_are_within_a_gap(books: Books) -> None:
    """It got the lease, lost its connection at once, and another collector took over."""
    spool = books.spool()
    acquire_lease(books.engine, spool, 0.0)
    books.receive_all([(wall_clock(), 0, channel("status"), status_payload("new"))])
    with Spool.open(books.directory / "elsewhere.sqlite3", "default") as other:
        acquire_lease(books.engine, other, 60.0)
        attached_at = wall_clock()
        other.checkpoint(attached_at)
        Loader(books.engine, other, books.rule).load()
    (gap,) = books.rows("capture_gaps", "cause", "from_at", "to_at")
    began_at = spool.epochs()[0].started_at
    assert gap == {
        "cause": "spool_lost",
        "from_at": from_micros(began_at),
        "to_at": from_micros(attached_at),
    }


def test_sightings_by_two_collectors_at_one_position_are_all_settled(
    books: Books,
) -> None:
    """The second continues at the first's position and scans the keys again.

    Its sightings are numbered from 1 too, and count as well.
    """
    spool = books.spool()
    spool.set_mode("replication")
    for allocation in (1, 2):
        message = (
            books.micros_at(0),
            0,
            channel("status", allocation=allocation),
            status_payload("new", 600),
        )
        resume = ResumePoint(replication_id="a" * 40, offset=100 * allocation, database=0)
        spool.append(
            [message], books.micros_at(1), positions=[90 * allocation], resume_point=resume
        )
    acquire_lease(books.engine, spool, 0.0)
    spool.add_sightings([key_sighting(books, 1, at=300), key_sighting(books, 1, at=301)])
    first = Loader(books.engine, spool, books.rule)
    assert first.load() == 2
    books.settle()
    with Spool.open(books.directory / "elsewhere.sqlite3", "default") as other:
        position = acquire_lease(books.engine, other, 60.0)
        assert position is not None
        take_over(other, position)
        other.add_sightings([key_sighting(books, 2, at=400)])
        other.checkpoint(books.micros_at(900))
        for _ in range(2):
            Loader(books.engine, other, books.rule).load()
            books.settle()
    until = {row["allocation_id"][-1]: row["last_seen_at"] for row in books.rows("sessions")}
    assert until == {"1": from_micros(books.micros_at(301)), "2": from_micros(books.micros_at(400))}
    assert len(books.query("SELECT * FROM accounting.key_sightings")) == 3
    assert list(verify(books.engine)) == []


def key_sighting(books: Books, allocation: int, *, at: float) -> RawKeySighting:
    """A key that was set a second before a scan saw it."""
    return RawKeySighting(
        scan_started_at=books.micros_at(at),
        seen_at=books.micros_at(at + 1),
        database=0,
        key=channel("status", allocation=allocation),
        idle_seconds=1,
    )


def test_a_loader_does_not_renew_the_lease_of_a_hung_collector(books: Books) -> None:
    spool = books.spool()
    acquire_lease(books.engine, spool, 0.0)
    books.receive(1, channel("status"), status_payload("new"))
    loader = Loader(books.engine, spool, books.rule)
    assert loader.load() == 1
    with Spool.open(books.directory / "elsewhere.sqlite3", "default") as other:
        assert acquire_lease(books.engine, other, 60.0) is not None
    books.receive(2, channel("status"), status_payload("refreshed"))
    with pytest.raises(LeaseHeld):
        loader.load()
