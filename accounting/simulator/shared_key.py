"""Simulates two servers on one key: the same user, realm and allocation id at the same time.

See docs/coturn.md#shared-key. The order of their messages is one for which the rules are certain:
both start before either closes, and the messages of their closes do not interleave.
"""

from collections.abc import Callable, Iterator
from typing import Final

from accounting.simulator.allocation import SECOND, Allocation

MIN_DURATION_US: Final = 3 * SECOND
SECOND_START_US: Final = SECOND // 20


def play_shared_key(
    first: Allocation, second: Allocation, *, serialize: Callable[[], None]
) -> Iterator[int]:
    """Simulate both allocations; yields when to continue, in virtual microseconds.

    Calls ``serialize`` at the moments whose order against the other server matters. Lasts at least
    :data:`MIN_DURATION_US`. Goes on after a server is killed.
    """
    quiet_us = first.last_report_us = second.last_report_us = second.ends_us - SECOND * 3 // 2
    now = first.begins_us
    first.begin(now)
    serialize()
    yield (now := now + SECOND_START_US)
    second.begin(now)
    serialize()
    report_every, refresh_every = first.report_interval(), first.refresh_interval()
    report_at, refresh_at = now + report_every, now + refresh_every
    while (now := min(report_at, refresh_at)) < quiet_us:
        yield now
        if now == report_at:
            first.interim(now)
            second.interim(now)
            report_at += report_every
        else:
            first.refresh(now)
            second.refresh(now)
            refresh_at += refresh_every
    yield quiet_us
    first.release(quiet_us)
    second.release(quiet_us)
    yield quiet_us + SECOND
    first.close(quiet_us + SECOND)
    serialize()
    yield second.ends_us
    second.close(second.ends_us)
    serialize()
