"""Two servers on one key: the same user, realm and allocation id at the same time.

Source: docs/coturn.md#shared-key.

Owns the order in which the two tell of it, which the rules leave no doubt about: both begin before
either closes, and nothing of one's close comes between the other's.
"""

from collections.abc import Callable, Iterator
from typing import Final

from accounting.simulator.allocation import SECOND, Allocation

SHORTEST_PAIR_US: Final = 3 * SECOND
BEGINS_AFTER_US: Final = SECOND // 20


def two_on_one_key(
    first: Allocation, second: Allocation, *, alone: Callable[[], None]
) -> Iterator[int]:
    """Play both lives: yields when to be woken next, in virtual microseconds.

    ``alone`` is called at the moments whose order against the other server matters. Lasts at
    least :data:`SHORTEST_PAIR_US`; does not heed the death of a server.
    """
    quiet_us = first.quiet_us = second.quiet_us = second.ends_us - SECOND * 3 // 2
    now = first.begins_us
    first.begin(now)
    alone()
    yield (now := now + BEGINS_AFTER_US)
    second.begin(now)
    alone()
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
    first.say_goodbye(quiet_us)
    second.say_goodbye(quiet_us)
    yield quiet_us + SECOND
    first.close(quiet_us + SECOND)
    alone()
    yield second.ends_us
    second.close(second.ends_us)
    alone()
