"""The rate limit of a source: above any real traffic, and below an overflow of sums."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from accounting.domain.coturn_messages import MAX_COUNTER, MessageRejected
from accounting.domain.rate_limit import BURST_BYTES, BYTES_PER_SECOND, SECOND, RateLimit

REPORTS = st.lists(st.tuples(st.integers(-10, 10**6 * SECOND), st.integers(0, MAX_COUNTER)))


@given(reports=REPORTS)
def test_the_allowed_bytes_are_bounded_by_the_elapsed_time(reports: list[tuple[int, int]]) -> None:
    """For any reports and any changes of the clock."""
    allowance, allowed, now, latest = RateLimit(), 0, 0, 0
    for step, count in reports:
        now += step
        latest = max(latest, now)
        try:
            allowance.drain(now)
            allowance.consume(count)
        except MessageRejected:
            continue
        allowed += count
    assert allowed <= BURST_BYTES + latest * BYTES_PER_SECOND // SECOND + len(reports)


def test_a_month_at_the_limit_is_far_below_63_bits() -> None:
    assert BURST_BYTES + 31 * 86_400 * BYTES_PER_SECOND < 2**59


def test_the_largest_counter_is_allowed_and_the_limit_refills() -> None:
    allowance = RateLimit()
    for _ in range(4):
        allowance.consume(MAX_COUNTER)
    with pytest.raises(MessageRejected, match="more traffic"):
        allowance.consume(2**40)
    allowance.drain(60 * SECOND)
    allowance.consume(2**40)
