"""The times that APScheduler plans a job for: none that has passed, whatever the clock did."""

from datetime import UTC, datetime, timedelta

import pytest

from accounting.ops.scheduler import NextInterval

PREVIOUS = datetime(2026, 11, 28, 12, 0, 0, tzinfo=UTC)
INTERVAL = timedelta(seconds=0.3)


@pytest.mark.parametrize("late", [timedelta(0), INTERVAL / 3])
def test_a_job_that_starts_late_keeps_its_times(late: timedelta) -> None:
    assert next_time(PREVIOUS + late) == PREVIOUS + INTERVAL


@pytest.mark.parametrize("late", [INTERVAL, timedelta(hours=1), timedelta(days=31)])
def test_after_a_step_ahead_no_missed_run_is_planned(late: timedelta) -> None:
    now = PREVIOUS + late
    assert next_time(now) == now + INTERVAL


def next_time(now: datetime) -> datetime:
    trigger = NextInterval(seconds=INTERVAL.total_seconds(), timezone=UTC)
    return trigger.get_next_fire_time(PREVIOUS, now)
