"""Takeover: what a spool continues with, and what it deletes."""

from pathlib import Path

import pytest

from accounting.capture.spool.file import spool_path
from accounting.capture.spool.pruning import prune
from accounting.capture.spool.records import RawKeySighting, ResumePoint
from accounting.capture.spool.spool import Spool
from accounting.capture.spool.takeover import take_over_position
from tests.support.collectors import stored_messages

RESUME_POINT = ResumePoint(replication_id="a" * 40, offset=300, database=2)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return spool_path(tmp_path, "test")


def sighting_at(at: int) -> RawKeySighting:
    return RawKeySighting(scan_started_at=at, seen_at=at, database=0, key=b"k", idle_seconds=1)


def fill(spool: Spool) -> None:
    """Messages up to 300 in replication, loaded up to 200; a sighting after each; an open gap."""
    spool.set_mode("replication")
    spool.set_server_run_id("run")
    for at in (100, 200, 300):
        spool.append(
            [(at, 2, b"c", b"%d" % at)],
            captured_until=at,
            positions=[at],
            resume_point=ResumePoint(replication_id="a" * 40, offset=at, database=2),
        )
        spool.add_sightings([sighting_at(at)])
    spool.mark_loaded(1, 200)
    spool.close_gap(spool.open_gap(150, "failover"), 160)
    spool.open_gap(300, "why")


def take_over(spool: Spool, token: str | None, position: int = 200) -> None:
    take_over_position(
        spool,
        token=token,
        position=position,
        captured_until=250,
        last_received_at=None,
        replication_id="b" * 40 if token else None,
        stream_database=7 if token else None,
        cause="taken_over",
    )


def test_positions_and_the_resume_point_are_stored_with_the_messages(path: Path) -> None:
    with Spool.open(path, "test") as spool:
        spool.set_mode("replication")
        spool.append(
            [(5, 2, b"c", b"1"), (6, 2, b"c", b"2")],
            captured_until=6,
            positions=[120, 250],
            resume_point=RESUME_POINT,
            estimated_count=1,
        )
        assert [(row.position, row.estimated) for row in stored_messages(spool)] == [
            (120, True),
            (250, False),
        ]
        assert spool.state().resume_point == RESUME_POINT
        # The position advances without messages: other commands count too.
        spool.append(
            (),
            7,
            positions=(),
            resume_point=ResumePoint(replication_id="x", offset=999, database=3),
        )
        state = spool.state()
        assert (state.captured_position, state.stream_database) == (999, 3)
        spool.set_mode("subscribe")
        assert spool.state().resume_point is None


def test_a_known_epoch_continues_after_the_last_loaded_message(path: Path) -> None:
    with Spool.open(path, "test") as spool:
        fill(spool)
        epoch = spool.epochs()[0]
        holder = spool.state().holder
        take_over(spool, epoch.token)
        state = spool.state()
        assert state.resume_point == ResumePoint(replication_id="b" * 40, offset=200, database=7)
        assert (state.captured_epoch, state.captured_until) == (1, 250)
        assert (state.loaded_epoch, state.loaded_position) == (1, 200)
        assert (state.server_run_id, state.holder) == (None, holder)
        assert [row.position for row in stored_messages(spool)] == [100, 200]
        assert [sighting.position for sighting in spool.sightings()] == [100, 200]
        assert spool.current_gap() is None
        spool.append([(1, 0, b"c", b"p")], positions=[300])
        assert [row[2] for row in spool.read_messages(1, 200, 9)] == [250]


def test_an_unknown_epoch_is_added_under_its_token(path: Path) -> None:
    with Spool.open(path, "test") as spool:
        fill(spool)
        take_over(spool, "another", 5000)
        assert (spool.epochs()[-1].token, spool.epochs()[-1].cause) == ("another", "taken_over")
        state = spool.state()
        assert (state.captured_epoch, state.captured_position) == (2, 5000)
        assert (state.loaded_epoch, state.loaded_position) == (2, 5000)
        assert [row.position for row in stored_messages(spool)] == [100, 200]
        assert (state.pruned_epoch, state.pruned_position) == (2, 5000)


def test_messages_and_epochs_after_the_loaded_position_are_deleted(path: Path) -> None:
    with Spool.open(path, "test") as spool:
        fill(spool)
        token = spool.epochs()[0].token
        spool.start_epoch("redis_restarted")
        spool.append([(400, 0, b"c", b"p")], positions=[10])
        take_over(spool, token, 100)
        assert len(spool.epochs()) == 1
        assert [row.position for row in stored_messages(spool)] == [100]


def test_taking_over_a_subscription_starts_an_epoch(path: Path) -> None:
    with Spool.open(path, "test") as spool:
        fill(spool)
        take_over(spool, None)
        state = spool.state()
        assert (state.captured_epoch, state.captured_position, state.mode) == (2, 0, "subscribe")
        assert (state.captured_until, state.resume_point) == (250, None)
        assert spool.epochs()[-1].cause == "taken_over"


def test_gaps_of_files_that_share_a_token_have_distinct_numbers(tmp_path: Path) -> None:
    numbers = []
    for name in ("one", "two", "three"):
        with Spool.open(tmp_path / name, "test") as spool:
            for cause in ("why", "another"):  # gaps of one cause would be one
                take_over(spool, "same")
                numbers += [spool.open_gap(300, cause)]
                spool.close_gap(numbers[-1], 400)
    assert len(set(numbers)) == len(numbers)
    assert max(numbers) < 1 << 31


def test_sightings_follow_the_captured_messages_and_are_pruned_with_them(path: Path) -> None:
    with Spool.open(path, "test") as spool:
        fill(spool)
        first, second, third = spool.sightings()
        assert (first.epoch, first.position, first.key, first.idle_seconds) == (1, 100, b"k", 1)
        assert spool.sightings(after=second.number) == [third]
        prune(spool, 150)
        assert spool.sightings() == [second, third]


def test_each_spool_has_its_own_holder(tmp_path: Path) -> None:
    with Spool.open(tmp_path / "a", "test") as first, Spool.open(tmp_path / "b", "test") as second:
        assert first.state().holder != second.state().holder
