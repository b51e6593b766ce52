"""The clocks of Redis and Postgres, compared with this machine's.

The database's clock judges all others: it corrects receipt times, and closes periods.
"""

import time
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Final

from accounting.ops.doctor.findings import Finding, error, ok, warning
from accounting.ops.monitoring.health import format_duration

MAX_SKEW_SECONDS: Final = 2.0
MAX_ROW_AGE_SECONDS: Final = 86_400
"""A service that runs writes rows every second."""


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


@dataclass(frozen=True, slots=True, kw_only=True)
class DatabaseClock:
    """The database's now, and the latest time of rows that were written by its clock."""

    now: datetime
    newest_row_at: datetime | None


def check_database_clock(
    clock: DatabaseClock, collectors_ahead_seconds: Collection[float]
) -> Iterator[Finding]:
    """Check the database's clock against its own past, and against the collectors' clocks."""
    if clock.newest_row_at is not None:
        row_age_seconds = (clock.now - clock.newest_row_at).total_seconds()
        shown = f"it shows {_text(clock.now)}, the newest row is of {_text(clock.newest_row_at)}"
        if row_age_seconds < -MAX_SKEW_SECONDS:
            yield error(
                "postgres",
                "clock",
                f"it stepped back by {format_duration(-row_age_seconds)}: {shown}",
                "set it by NTP; if it is right now, it was ahead before: look at the periods that "
                "closed meanwhile. Until it reaches the newest row, times stand still",
            )
        elif row_age_seconds > MAX_ROW_AGE_SECONDS:
            yield warning(
                "postgres",
                "clock",
                f"{shown}, {format_duration(row_age_seconds)} before",
                "if the service ran since, the clock stepped ahead: set it by NTP. Periods close "
                "when their end has passed on it and on a collector's clock",
            )
    aheads = sorted(collectors_ahead_seconds)
    if len(aheads) > 1 and aheads[-1] - aheads[0] <= MAX_SKEW_SECONDS < min(map(abs, aheads)):
        size = format_duration(min(map(abs, aheads)))
        side = "ahead of" if aheads[0] < 0 else "behind"
        yield error(
            "postgres",
            "clock",
            f"it is {size} {side} the clocks of all {len(aheads)} collectors, which agree",
            "set the clock of the database's machine by NTP, not those of the collectors",
        )


def _text(time_: datetime) -> str:
    return f"{time_.astimezone(UTC):%Y-%m-%d %H:%M:%SZ}"
