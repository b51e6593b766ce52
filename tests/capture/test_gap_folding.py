"""A connection that breaks again and again is one gap while nothing is published."""

from pathlib import Path
from typing import Final

import pytest

from accounting.capture.spool.spool import GAP_FOLD_MICROSECONDS, Spool
from accounting.capture.spool.takeover import take_over_position

SECOND: Final = 1_000_000


def flap(spool: Spool, times: int, pause: int = SECOND, cause: str = "disconnected") -> None:
    """Lose the connection that many times, for half of the pause each."""
    start = spool.state().captured_until or 0
    for number in range(times):
        gap = spool.open_gap(start + number * pause, cause)
        end = start + number * pause + pause // 2
        spool.close_gap(gap, end)
        spool.checkpoint(end)


@pytest.fixture
def spool(tmp_path: Path) -> Spool:
    spool = Spool.open(tmp_path / "spool.sqlite3", "default")
    spool.append([(SECOND, 0, b"channel", b"payload")], captured_until=2 * SECOND)
    return spool


def test_a_storm_of_gaps_is_one_row(spool: Spool) -> None:
    flap(spool, 500)
    [gap] = spool.gaps()
    assert (gap.position, gap.from_at, gap.to_at) == (1, 2 * SECOND, 501 * SECOND + SECOND // 2)


def test_a_gap_that_opens_again_is_the_current_one(spool: Spool) -> None:
    flap(spool, 1)
    number = spool.open_gap(3 * SECOND, "disconnected", "again")
    gap = spool.current_gap()
    assert gap is not None
    assert (gap.number, gap.from_at, gap.detail) == (number, 2 * SECOND, "again")


def test_gaps_with_a_message_between_them_stay_apart(spool: Spool) -> None:
    """A session that began between the two has only the second within it."""
    flap(spool, 2)
    spool.append([(4 * SECOND, 0, b"channel", b"payload")], captured_until=4 * SECOND)
    flap(spool, 2)
    assert [gap.position for gap in spool.gaps()] == [1, 2]


def test_gaps_of_another_cause_or_long_after_stay_apart(spool: Spool) -> None:
    flap(spool, 2, GAP_FOLD_MICROSECONDS * 2)
    flap(spool, 2, cause="redis_unreachable")
    assert [gap.cause for gap in spool.gaps()] == [
        "disconnected", "disconnected", "redis_unreachable",
    ]  # fmt: skip


def test_a_gap_that_begins_before_the_former_one_is_not_folded(spool: Spool) -> None:
    """Found by `make chaos`: what a restored database lacked before the former gap was in no row.

    The collector takes over at a position that another one had loaded long before that gap.
    """
    spool.close_gap(spool.open_gap(50 * SECOND, "backlog_overrun"), 60 * SECOND)
    spool.mark_loaded(1, 1)
    take_over_position(
        spool,
        token="another",
        position=40,
        captured_until=20 * SECOND,
        last_received_at=20 * SECOND,
        replication_id="a" * 40,
        stream_database=0,
        cause="takeover",
    )
    spool.close_gap(spool.open_gap(20 * SECOND, "backlog_overrun"), 70 * SECOND)
    assert [(gap.from_at, gap.to_at) for gap in spool.gaps()] == [
        (50 * SECOND, 60 * SECOND), (20 * SECOND, 70 * SECOND),
    ]  # fmt: skip


def test_gaps_in_empty_epochs_are_one_row(spool: Spool) -> None:
    for number in range(100):
        gap = spool.open_gap((2 + number) * SECOND, "redis_restarted")
        spool.start_epoch("redis_restarted")
        spool.close_gap(gap, (2 + number) * SECOND + 1)
    assert [(gap.epoch, gap.position) for gap in spool.gaps()] == [(1, 1)]
