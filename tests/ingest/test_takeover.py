"""Where another collector goes on while the books lag behind the spool of the one that died."""

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


def place_after_loading(books: Books, limit: int) -> BooksPosition:
    """Load so many messages, then ask as the collector of the same spool does."""
    spool = books.spool()
    Loader(books.engine, spool, books.rule).load(limit)
    place = acquire_lease(books.engine, spool, 60.0)
    assert place is not None
    return place


def test_a_takeover_begins_where_loading_had_come_not_capture(books: Books) -> None:
    """What was captured after that and not loaded is lost with the spool: the gap must hold it."""
    for second in range(10):
        books.receive(second, channel("status"), status_payload("refreshed"))
    books.advance_clock(20)
    place = place_after_loading(books, 4)
    with books.spool("other") as other:
        take_over(other, place)
        assert other.state().captured_until == books.micros_at(3)


def test_all_that_is_loaded_is_no_part_of_the_gap_of_a_takeover(books: Books) -> None:
    books.receive(1, channel("status"), status_payload("new"))
    books.advance_clock(20)
    place = place_after_loading(books, 4)
    assert place.captured_until == books.micros_at(20)


def test_a_place_in_an_earlier_stream_is_not_asked_for_in_the_present_one(books: Books) -> None:
    """Its offsets count the bytes of another history, and may well be in this one's backlog."""
    spool = books.spool()
    spool.set_mode("replication")
    for history, offset in (("a", 5_000), ("b", 9_000)):
        resume = ResumePoint(replication_id=history * 40, offset=offset + 100, database=3)
        message = books.micros_at(offset), 3, channel("status"), status_payload("refreshed")
        spool.append([message], books.micros_at(offset), positions=[offset], resume_point=resume)
        if history == "a":
            spool.start_epoch("redis_restarted")
    early = place_after_loading(books, 1)
    assert (early.position, early.replication_id, early.stream_database) == (5_000, None, None)
    late = place_after_loading(books, 9)
    assert (late.position, late.replication_id, late.stream_database) == (9_100, "b" * 40, 3)


def test_a_stream_that_went_on_in_silence_before_redis_restarted_is_no_older_spool(
    books: Books,
) -> None:
    """Seen: the epoch was relabelled, so the collector took its own spool over and lost events."""
    spool = books.spool()
    spool.set_mode("replication")
    tokens = []
    for history, offset in (("a", 5_000), ("b", 90)):
        # Redis' PINGs count in the stream: the books stand beyond the last message.
        resume = ResumePoint(replication_id=history * 40, offset=offset + 100, database=3)
        message = books.micros_at(offset), 3, channel("status"), status_payload("refreshed")
        spool.append([message], books.micros_at(offset), positions=[offset], resume_point=resume)
        tokens.append(spool.epochs()[-1].token)
        place = place_after_loading(books, 9)
        assert (place.token, place.position) == (tokens[-1], offset + 100)
        assert not is_behind(spool, place)
        if history == "a":
            spool.start_epoch("redis_restarted")
    assert [epoch.token for epoch in spool.epochs()] == tokens
    assert len(books.rows("allocation_events")) == 2
    assert books.rows("capture_gaps") == []


def test_what_the_first_collector_captured_and_never_loaded_is_within_a_gap(books: Books) -> None:
    """It had its turn, was cut off from the database at once, and another one took over."""
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


def test_what_two_collectors_saw_of_the_keys_at_one_place_is_taken_in_and_proved(
    books: Books,
) -> None:
    """The second goes on where the first was before anything more is said, and looks at the keys
    again: its own numbers begin anew, and are as good.
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
    spool.add_sightings([seen_key(books, 1, at=300), seen_key(books, 1, at=301)])
    first = Loader(books.engine, spool, books.rule)
    assert first.load() == 2
    books.settle()
    with Spool.open(books.directory / "elsewhere.sqlite3", "default") as other:
        place = acquire_lease(books.engine, other, 60.0)
        assert place is not None
        take_over(other, place)
        other.add_sightings([seen_key(books, 2, at=400)])
        other.checkpoint(books.micros_at(900))
        for _ in range(2):
            Loader(books.engine, other, books.rule).load()
            books.settle()
    until = {row["allocation_id"][-1]: row["last_seen_at"] for row in books.rows("sessions")}
    assert until == {"1": from_micros(books.micros_at(301)), "2": from_micros(books.micros_at(400))}
    assert len(books.query("SELECT * FROM accounting.key_sightings")) == 3
    assert list(verify(books.engine)) == []


def seen_key(books: Books, allocation: int, *, at: float) -> RawKeySighting:
    """A key that was set a second before a scan came by."""
    return RawKeySighting(
        scan_started_at=books.micros_at(at),
        seen_at=books.micros_at(at + 1),
        database=0,
        key=channel("status", allocation=allocation),
        idle_seconds=1,
    )


def test_a_loader_does_not_keep_the_turn_of_a_collector_that_hangs(books: Books) -> None:
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
