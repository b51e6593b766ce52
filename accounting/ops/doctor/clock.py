"""The clocks of Redis and Postgres, compared with this machine's.

The database's clock judges all others: it corrects receipt times, and closes periods.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from accounting.ops.doctor.findings import Finding, ok, warning

MAX_SKEW_SECONDS: Final = 2.0


@dataclass(frozen=True, slots=True, kw_only=True)
class ClockOffset:
    """How far a clock is ahead of this machine's, give or take ``uncertain_seconds``."""

    ahead_seconds: float
    uncertain_seconds: float


def measure_clock(read_clock: Callable[[], float | None]) -> ClockOffset | None:
    """Compare with a clock that returns Unix seconds; None when it returns none."""
    started_at, local_seconds = time.monotonic(), time.time()
    remote_seconds = read_clock()
    round_trip_seconds = time.monotonic() - started_at
    if remote_seconds is None:
        return None
    uncertain_seconds = round_trip_seconds / 2
    return ClockOffset(
        ahead_seconds=remote_seconds - (local_seconds + uncertain_seconds),
        uncertain_seconds=uncertain_seconds,
    )


def check_clock(component: str, offset: ClockOffset | None) -> Finding:
    """Check the clock of ``redis`` or ``postgres`` against this machine's."""
    if offset is None:
        return ok(component, "clock", "can't be compared with this machine's")
    ahead_seconds = offset.ahead_seconds
    side = "ahead of" if ahead_seconds > 0 else "behind"
    observed = f"{abs(ahead_seconds):.2f} s {side} this machine's"
    if abs(ahead_seconds) - offset.uncertain_seconds > MAX_SKEW_SECONDS:
        return warning(
            component,
            "clock",
            observed,
            "synchronize the clocks of all machines by NTP: usage counts in the hour of its "
            "receipt",
        )
    return ok(component, "clock", observed)
