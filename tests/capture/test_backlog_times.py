"""Estimated times of messages from the backlog."""

from datetime import UTC, datetime
from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from accounting.capture.replication.backlog_times import OffsetTime, estimate_times

SECOND = 1_000_000
MIDNIGHT = int(datetime(2026, 12, 1, tzinfo=UTC).timestamp()) * SECOND


@given(
    st.lists(st.integers(1, 10_000)),
    st.lists(st.integers(0, 11_000)),
    st.integers(-1000, 10**12),
    st.integers(1, 10_000),
)
def test_times_never_fall_and_stay_between_the_known_ends(
    positions: list[int], keepalives: list[int], length: int, size: int
) -> None:
    times = estimate_times(
        sorted(positions), sorted(keepalives), OffsetTime(5, 0), OffsetTime(5 + length, size)
    )
    assert len(times) == len(positions)
    assert all(5 <= time <= max(5, 5 + length) for time in times)
    assert all(a <= b for a, b in pairwise(times))


def test_without_keepalives_time_is_proportional_to_the_bytes() -> None:
    times = estimate_times([100, 150, 200], [], OffsetTime(0, 100), OffsetTime(10, 200))
    assert times == [0, 5, 10]


def test_keepalives_keep_a_burst_of_bytes_within_its_interval() -> None:
    """20 s, 4 keepalives: the first 5 s had nearly all the bytes."""
    keepalives = [9_000, 9_100, 9_200]
    times = estimate_times(
        [8_999, 9_050, 9_250], keepalives, OffsetTime(0, 0), OffsetTime(20 * SECOND, 9_300)
    )
    assert [round(time / SECOND, 1) for time in times] == [5.0, 7.5, 17.5]


def test_keepalives_put_messages_on_the_right_side_of_midnight() -> None:
    """An outage of 30 s around midnight with the keepalives of two relay threads."""
    begin, end = OffsetTime(MIDNIGHT - 20 * SECOND, 0), OffsetTime(MIDNIGHT + 10 * SECOND, 130_000)
    # 100 kB in the first five seconds, then 30 kB.
    keepalives = [100_000 + 2_000 * beat + 10 * thread for beat in range(5) for thread in (0, 1)]
    before = [50_000, 99_000, 103_000]
    after = [109_000, 129_000]
    times = estimate_times([*before, *after], keepalives, begin, end)
    assert [time < MIDNIGHT for time in times] == [True] * 3 + [False] * 2
    by_bytes = estimate_times([103_000], [], begin, end)
    assert by_bytes[0] > MIDNIGHT, "the bytes alone would be wrong"


def test_too_few_keepalives_are_ignored() -> None:
    begin, end = OffsetTime(0, 0), OffsetTime(100 * SECOND, 1000)
    assert estimate_times([500], [10, 20], begin, end) == [50 * SECOND]


def test_a_clock_that_stepped_back_gives_the_last_known_time() -> None:
    assert estimate_times([1, 2], [], OffsetTime(100, 0), OffsetTime(50, 9)) == [100, 100]
