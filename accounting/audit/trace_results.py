"""What a trace finds: lines, sessions and reports, each with what it contributed."""

from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import date
from typing import Final
from uuid import UUID

from accounting.audit.statement_check import (
    PartlyDroppedPeriod,
)
from accounting.billing.statement_queries import BilledLine
from accounting.domain.session_fold import (
    Report,
    SessionState,
)

Numbers = tuple[int, ...]
"""The eight counters and session microseconds."""
NO_COUNTERS: Final = (0,) * 8


@dataclass(frozen=True, slots=True, kw_only=True)
class TracedReport:
    """A report, and what it contributed to the period.

    ``counters``: the eight, signed; all zero for a status, and for a total when nothing was
    missing. ``late``: it was settled after the statement's cutoff.
    """

    source: str
    report: Report
    counters: Numbers
    late: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class TracedSession:
    """A session with usage in the period: its numbers there, and all of its reports.

    ``dropped_counters``: the eight counters of its dropped reports; None where all are kept.
    """

    session: SessionState
    source: str
    allocation_id: int
    numbers: Numbers
    dropped_counters: Numbers | None = None
    reports: list[TracedReport] = field(default_factory=list)

    @property
    def adds_up(self) -> bool:
        """Whether its reports add up to its numbers."""
        reported = (report.counters for report in self.reports)
        return self.numbers[:8] == sum_numbers((self.dropped_counters or NO_COUNTERS, *reported), 8)


@dataclass(frozen=True, slots=True, kw_only=True)
class Trace:
    """What was billed for a user's period, and the sessions that it came from.

    ``partly_dropped``: set where reports of the period were dropped.
    """

    realm: str
    period: date
    user_key: UUID
    lines: list[BilledLine]
    sessions: list[TracedSession]
    partly_dropped: PartlyDroppedPeriod | None = None

    @property
    def billed(self) -> Numbers:
        """The sum of the statement's line and the adjustments for late usage."""
        return sum_numbers(line.numbers for line in self.lines if not line.manual)

    @property
    def traced(self) -> Numbers:
        """The sum over the sessions."""
        return sum_numbers(session.numbers for session in self.sessions)

    @property
    def adds_up(self) -> bool:
        """Whether the sessions add up to the bill, and the reports of each to the session."""
        return self.billed == self.traced and all(session.adds_up for session in self.sessions)


@dataclass(frozen=True, slots=True, kw_only=True)
class PeriodPart:
    """What a period has of a session."""

    period: date
    is_closed: bool
    numbers: Numbers


@dataclass(frozen=True, slots=True, kw_only=True)
class SessionTrace:
    """A session with all that it has, and its part in each period.

    ``user_id`` is empty when absent or erased. ``stored``: its eight counters in the books.
    """

    realm: str
    user_id: str
    user_key: UUID
    session: TracedSession
    parts: list[PeriodPart]
    stored: Numbers

    @property
    def adds_up(self) -> bool:
        """Whether the reports add up to the session in the books."""
        return self.stored == self.session.numbers[:8] and self.session.adds_up


def sum_numbers(rows: Iterable[Numbers], length: int = 9) -> Numbers:
    """The sums of rows of numbers of this length."""
    sums = [0] * length
    for numbers in rows:
        sums = [a + b for a, b in zip(sums, numbers, strict=True)]
    return tuple(sums)
