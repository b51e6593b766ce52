"""The clocks of capture: whole microseconds since the Unix epoch.

Receipt times come from a steady clock, which counts from the start of the machine, so that a step
of the machine's clock does not reach them. The database's clock sets the steady clock: see
:class:`CaptureClock`.
"""

import time
from collections import deque
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Final, NamedTuple

from accounting.capture.spool.records import SpoolState

MAX_CLOCK_ERROR: Final = 2_000_000
"""Microseconds. A clock that is off by more is reported, and receipt times are corrected at once.
A smaller error of receipt times is removed gradually."""

MAX_UNCERTAINTY: Final = 1_000_000
"""A reading of the database's clock that is less certain than this, in microseconds, is dropped."""

STEP_READINGS: Final = 3
"""Consecutive readings that must agree with one another before they correct receipt times: the
database's clock may be wrong for a moment too."""

SLEW_DIVISOR: Final = 20
"""Small errors are removed by making the clock faster or slower by one part in this many."""

_STEADY: Final = getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC)
"""Also counts while the machine sleeps, where the system has such a clock."""


def wall_clock() -> int:
    """The machine's time of day, in microseconds since the epoch. It may be wrong, and step."""
    return time.time_ns() // 1_000


def steady_clock() -> int:
    """Microseconds since the machine started. Never steps."""
    return time.clock_gettime_ns(_STEADY) // 1_000


@cache
def this_boot() -> str:
    """The id of this machine's start; '' where the system has none."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return ""


def capture_time(state: SpoolState) -> int:
    """The time now by the clock that times the messages of a spool, for ages of what it stores."""
    offset = _valid_offset(state)
    return wall_clock() if offset is None else steady_clock() + offset


def clock_ahead(state: SpoolState) -> int | None:
    """How far the machine's time of day is ahead of the clock of a spool, in microseconds.

    None while that was not compared with the database's clock since the machine started.
    """
    offset = _valid_offset(state)
    if offset is None or state.unconfirmed_from is not None:
        return None
    return wall_clock() - (steady_clock() + offset)


def _valid_offset(state: SpoolState) -> int | None:
    """The offset from the steady clock in a spool; None if the machine was started again since."""
    return state.clock_offset if state.boot == this_boot() != "" else None


class ClockReading(NamedTuple):
    """The database's clock was ``offset`` ahead of the steady clock when that was at ``steady``.

    Give or take ``uncertainty``: half a round trip. The machine's time of day was ``wall_ahead``
    of the database's clock. All in microseconds.
    """

    steady: int
    offset: int
    uncertainty: int
    wall_ahead: int


class _Slew(NamedTuple):
    """The capture clock's offset from the steady clock, on its way from one value to another."""

    begins_at: int
    begin: int
    end: int

    def offset_at(self, steady: int) -> int:
        limit = max(0, steady - self.begins_at) // SLEW_DIVISOR
        return self.begin + max(-limit, min(limit, self.end - self.begin))


class CaptureClock:
    """The time of receipt: the machine's steady clock, set by the database's clock.

    A call returns the time. Its timeline never steps, so that the times within one process are
    comparable. A correction by more than MAX_CLOCK_ERROR is added where a time is stored:
    ``correction``. The thread of the lease calls :meth:`observe`, the thread of capture the rest.
    ``boot`` identifies the start of the machine that the steady clock counts from. ``wall_ahead``:
    how far the machine's time of day was ahead of the database's clock at the last reading, in
    microseconds; ``wall_is_off``: by more than MAX_CLOCK_ERROR.
    """

    def __init__(
        self,
        *,
        wall: Callable[[], int] = wall_clock,
        steady: Callable[[], int] = steady_clock,
        boot: str | None = None,
    ) -> None:
        self.boot = this_boot() if boot is None else boot
        self._wall = wall
        self._steady = steady
        self._slew = self._from_wall()
        self._readings: deque[ClockReading] = deque(maxlen=STEP_READINGS)
        self._differing: list[ClockReading] = []
        self.correction = 0
        self.wall_ahead = 0
        self.wall_is_off = False

    def __call__(self) -> int:
        """The time on this process' timeline."""
        steady = self._steady()
        return steady + self._slew.offset_at(steady)

    def now(self) -> int:
        """The time, corrected."""
        return self() + self.correction

    def wall(self) -> int:
        """The machine's time of day."""
        return self._wall()

    def steady(self) -> int:
        """The machine's steady clock."""
        return self._steady()

    @property
    def offset(self) -> int:
        """How far the corrected time is ahead of the steady clock."""
        return self._slew.offset_at(self._steady()) + self.correction

    def observe(self, reading: ClockReading) -> None:
        """Note a reading of the database's clock; :meth:`next_error` evaluates it."""
        self.wall_ahead = reading.wall_ahead
        self.wall_is_off = abs(reading.wall_ahead) - reading.uncertainty > MAX_CLOCK_ERROR
        if reading.uncertainty <= MAX_UNCERTAINTY:
            self._readings.append(reading)

    def start(self, offset: int | None, not_before: int) -> None:
        """Begin a timeline: at that offset from the steady clock, else at the machine's time.

        It begins at ``not_before`` or later.
        """
        slew = self._from_wall()
        begin = max(slew.begin if offset is None else offset, not_before - slew.begins_at)
        self._slew = _Slew(slew.begins_at, begin, begin)
        self.correction = 0
        self._differing.clear()

    def next_error(self) -> "ClockError | None":
        """Evaluate the next reading; None when there is none.

        A small error is also removed, gradually.
        """
        if not self._readings:
            return None
        reading = self._readings.popleft()
        error = reading.offset - self._slew.offset_at(reading.steady) - self.correction
        beyond = max(0, abs(error) - reading.uncertainty)
        if beyond <= MAX_CLOCK_ERROR:
            self._differing.clear()
            steady = self._steady()
            offset = self._slew.offset_at(steady)
            self._slew = _Slew(steady, offset, offset + (beyond if error > 0 else -beyond))
            return ClockError(0, is_certain=True)
        self._differing = [
            other
            for other in self._differing
            if abs(other.offset - reading.offset)
            <= other.uncertainty + reading.uncertainty + MAX_CLOCK_ERROR // 2
        ]
        self._differing.append(reading)
        return ClockError(error, is_certain=len(self._differing) >= STEP_READINGS)

    def correct(self, error: int) -> None:
        """Step the corrected time by ``error``."""
        self.correction += error
        self._differing.clear()

    def _from_wall(self) -> _Slew:
        steady = self._steady()
        offset = self._wall() - steady
        return _Slew(steady, offset, offset)


class ClockError(NamedTuple):
    """By how much the database's clock is ahead of the corrected time; 0 for small errors.

    ``is_certain``: enough readings agree on it.
    """

    error: int
    is_certain: bool
