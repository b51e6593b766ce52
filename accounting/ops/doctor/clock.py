"""The clocks: a receipt time is of this machine's, a lease of the database's.

Owns reading another machine's clock over a network, and the judgement on the difference.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from accounting.ops.doctor.findings import Finding, ok, warning

MAX_SKEW_SECONDS: Final = 2.0


@dataclass(frozen=True, slots=True, kw_only=True)
class ClockOffset:
    """How far a clock is ahead of this machine's, and by how much that may be wrong, seconds."""

    ahead_seconds: float
    uncertain_seconds: float


def measure_clock(ask: Callable[[], float | None]) -> ClockOffset | None:
    """Compare with a clock that answers in Unix seconds; None when it doesn't answer."""
    began, before = time.monotonic(), time.time()
    told = ask()
    took = time.monotonic() - began
    if told is None:
        return None
    return ClockOffset(ahead_seconds=told - (before + took / 2), uncertain_seconds=took / 2)


def check_clock(component: str, clock: ClockOffset | None) -> Finding:
    """Judge the clock of ``redis`` or ``postgres`` beside this machine's."""
    if clock is None:
        return ok(component, "clock", "can't be compared with this machine's")
    ahead = clock.ahead_seconds
    side = "ahead of" if ahead > 0 else "behind"
    seen = f"{abs(ahead):.2f} s {side} this machine's"
    if abs(ahead) - clock.uncertain_seconds > MAX_SKEW_SECONDS:
        return warning(
            component,
            "clock",
            seen,
            "let NTP keep the clocks of all machines: usage stands in the hour of its receipt",
        )
    return ok(component, "clock", seen)
