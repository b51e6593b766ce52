"""The check after a round: compares each published message and all usage with the books.

It collects all errors instead of stopping at the first.
"""

import time
from collections import defaultdict, deque
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any, Final

from accounting.domain.counters import COUNTERS
from accounting.domain.text_escaping import escape
from tests.chaos.allocations import (
    ZERO_BOUNDS,
    Bounds,
    Counters,
    Fate,
    Message,
    MessageKey,
    expected,
    record_arrival,
)
from tests.chaos.deployment import PACE, POLL_SECONDS, Deployment
from tests.chaos.front_checker import FrontChecker

SUMS: Final = ", ".join(f"coalesce(sum({name}), 0)::text AS {name}" for name in COUNTERS)
REPORTS: Final = """
SELECT epoch, position, received_at, time_estimated, database, realm, username,
    allocation_id::bigint AS allocation_id, event AS word, '' AS side, lifetime,
    0 AS received_packets, 0 AS received_bytes, 0 AS sent_packets, 0 AS sent_bytes
FROM reporting.allocation_events WHERE (epoch, position) > (%s, %s)
UNION ALL
SELECT epoch, position, received_at, time_estimated, database, realm, username,
    allocation_id::bigint, report, side, NULL, received_packets, received_bytes, sent_packets,
    sent_bytes
FROM reporting.traffic_reports WHERE (epoch, position) > (%s, %s)
ORDER BY epoch, position
"""
ROLLUP_TIMEOUT_SECONDS: Final = 10.0
SHOWN_PER_KIND: Final = 5
"""The number of errors shown of each kind."""

TimeSpan = tuple[float, float]


@dataclass(slots=True)
class Tally:
    """The counts of a run so far."""

    published: int = 0
    unknown: int = 0
    unsent: int = 0
    loaded: int = 0
    estimated: int = 0
    lost_within_gaps: int = 0
    lost: int = 0
    doubled: int = 0
    gaps: int = 0
    gap_seconds: float = 0.0
    forwarded: int = 0
    """Events in the feeds of the fronts."""
    closed: int = 0
    """Billing periods that the fronts have closed."""
    errors: list[str] = field(default_factory=list)

    def add(self, other: "Tally") -> None:
        """Add another deployment's figures."""
        for name in (entry.name for entry in fields(self) if entry.name != "errors"):
            setattr(self, name, getattr(self, name) + getattr(other, name))
        self.errors += other.errors


class Checker:
    """Compares the books of a deployment with what was published, after each round."""

    def __init__(self, deployment: Deployment) -> None:
        self._deployment = deployment
        self._checked_position = (0, 0)
        self._checked_rows = 0
        self._gaps: set[int] = set()
        self._spans: list[TimeSpan] = []
        self._traceback_count = 0
        self._front = None
        if deployment.front is not None:
            self._front = FrontChecker(deployment, deployment.front)
        self.tally = Tally()

    def check(
        self, messages: Sequence[Message], spans: Sequence[TimeSpan], *, may_lose: bool
    ) -> None:
        """Check the messages since the last check, and all usage.

        ``spans``: the times, in seconds, in which events may be lost. A gap may become known after
        its round, when it was in the spool of a machine that was cut off.
        """
        self._spans += spans
        if self._front is not None:
            self._front.run_jobs_of_cell()  # its scheduler forwards meanwhile
        gaps = self._deployment.query("SELECT * FROM reporting.capture_gaps ORDER BY gap_id")
        self._check_gaps(gaps)
        lost = self._check_reports(messages)
        for message in lost:
            if may_lose and any(is_within(message, gap) for gap in gaps):
                self.tally.lost_within_gaps += 1
            else:
                self.tally.lost += 1
                self._add_error(
                    "lost without a gap", message.key, message.sent_after, message.sent_before
                )
        self._check_usage()
        self._check_sums()
        if self._front is not None:
            for line in self._front.check():
                self._add_error("front", line)
            self.tally.forwarded = self._front.event_count
            self.tally.closed = self._front.closed_count
        for difference in self._deployment.verify():
            self._add_error("verify found a difference", difference)
        for row in self._deployment.query("SELECT * FROM reporting.rejected_messages"):
            self._add_error("rejected", row)
        sources = [
            row["source"] for row in self._deployment.query("SELECT * FROM reporting.sources")
        ]
        if sources != ["default"]:
            self._add_error("sources", sources)
        complaints = self._deployment.tracebacks()
        for line in complaints[self._traceback_count :]:
            self._add_error("a traceback in a log", line)
        self._traceback_count = len(complaints)

    def _add_error(self, kind: str, *values: object) -> None:
        if sum(error.startswith(kind) for error in self.tally.errors) < SHOWN_PER_KIND:
            self.tally.errors.append(f"{kind}: {' '.join(map(str, values))}")

    def _check_gaps(self, gaps: Iterable[Mapping[str, Any]]) -> None:
        """Each gap is closed and overlaps a time in which events may be lost."""
        for gap in gaps:
            if gap["gap_id"] in self._gaps:
                continue
            self._gaps.add(gap["gap_id"])
            self.tally.gaps += 1
            if gap["to_at"] is None:
                self._add_error("a gap is open", gap)
                continue
            begins, ends = gap["from_at"].timestamp(), gap["to_at"].timestamp()
            self.tally.gap_seconds += ends - begins
            if not any(begins <= until and ends >= since for since, until in self._spans):
                self._add_error("a gap without a cause", gap)

    def _check_reports(self, messages: Sequence[Message]) -> list[Message]:
        """Match reports with messages; returns the published messages without a report."""
        waiting: defaultdict[MessageKey, deque[Message]] = defaultdict(deque)
        for message in messages:
            if message.fate in {Fate.PUBLISHED, Fate.UNKNOWN}:
                waiting[message.key].append(message)
            self.tally.published += message.fate is Fate.PUBLISHED
            self.tally.unknown += message.fate is Fate.UNKNOWN
            self.tally.unsent += message.fate in {Fate.UNSENT, Fate.REFUSED}
        last: dict[int, int] = {}
        for row in self._deployment.query(
            REPORTS, (*self._checked_position, *self._checked_position)
        ):
            self._checked_position = row["epoch"], row["position"]
            self._checked_rows += 1
            self.tally.loaded += 1
            self.tally.estimated += row["time_estimated"]
            found = waiting.get(row_key(row))
            if not found:
                self.tally.doubled += 1
                self._add_error("doubled", row)
                continue
            message = found.popleft()
            record_arrival(message)
            if message.index < last.get(row["database"], 0):
                self._add_error("out of order", row)
            last[row["database"]] = message.index
            if (
                not row["time_estimated"]
                and row["received_at"].timestamp() < message.sent_after / 1e6
            ):
                self._add_error("received before it was sent", row, message.sent_after)
        (count,) = self._deployment.query("SELECT count(*) AS rows FROM accounting.reports")
        if count["rows"] != self._checked_rows:
            self.tally.doubled += count["rows"] - self._checked_rows
            self._add_error(
                "reports appeared below the checked position", count["rows"], self._checked_rows
            )
            self._checked_rows = count["rows"]
        return [
            message
            for left in waiting.values()
            for message in left
            if message.fate is Fate.PUBLISHED
        ]

    def _check_usage(self) -> None:
        """The usage of each user, and the unattributed usage, are within their bounds."""
        usage: defaultdict[tuple[str, str], Bounds] = defaultdict(lambda: ZERO_BOUNDS)
        unattributed: defaultdict[tuple[str, str], Bounds] = defaultdict(lambda: ZERO_BOUNDS)
        for coturn in self._deployment.publisher.coturns:
            for user in coturn.all_users:
                user_usage, user_unattributed = expected(user)
                realm = escape(user.realm)
                billed, named = (realm, escape(user.user_id)), (realm, escape(user.username))
                usage[billed] = usage[billed].plus(user_usage)
                unattributed[named] = unattributed[named].plus(user_unattributed)
        for view, name, bounds in (
            ("user_usage_monthly", "user_id", usage),
            ("unattributed_usage", "username", unattributed),
        ):
            rows = self._deployment.query(
                f"SELECT realm, {name} AS who, {SUMS} FROM reporting.{view} GROUP BY 1, 2"  # noqa: S608
            )
            found = {(row["realm"], row["who"]): row_counters(row) for row in rows}
            for who in found.keys() | bounds.keys():
                has = found.get(who, ZERO_BOUNDS.low)
                if not bounds[who].contain(has):
                    self._add_error(f"wrong {view}", who, "has", has, "should", bounds[who])

    def _check_sums(self) -> None:
        """Sessions = hours = days = months, in one snapshot in which no roll-up is due.

        A key that the collector saw after a gap may confirm a session later than the reports.
        """
        views = [
            f"{subject}_usage_{length}"
            for subject in ("user", "realm")
            for length in ("hourly", "daily", "monthly")
        ]
        due = "(SELECT count(*) FROM accounting.usage_deltas) AS due"
        query = " UNION ALL ".join(
            f"SELECT '{view}' AS view, {due}, {SUMS} FROM reporting.{view}"  # noqa: S608
            for view in ("sessions", *views)
        )
        rows = self._deployment.query(query)
        deadline = time.monotonic() + ROLLUP_TIMEOUT_SECONDS
        while rows[0]["due"] and time.monotonic() < deadline:
            PACE.wait(POLL_SECONDS)
            rows = self._deployment.query(query)
        sums = {row["view"]: row_counters(row) for row in rows}
        if len(set(sums.values())) != 1:
            self._add_error("sessions, hours, days and months differ", sums)


def row_counters(row: Mapping[str, Any]) -> Counters:
    return tuple(int(row[name]) for name in COUNTERS)


def row_key(row: Mapping[str, Any]) -> MessageKey:
    values: tuple[int, ...] = ()
    if row["side"]:
        values = tuple(row[name] for name in COUNTERS[:4])
    elif row["lifetime"] is not None:
        values = (row["lifetime"],)
    return MessageKey(
        row["database"],
        row["realm"],
        row["username"],
        row["allocation_id"],
        row["word"],
        row["side"],
        values,
    )


def is_within(message: Message, gap: Mapping[str, Any]) -> bool:
    """Whether the time in which a message was sent overlaps the gap."""
    if gap["to_at"] is None:
        return False
    before, after = message.sent_after / 1e6, message.sent_before / 1e6
    return bool(before <= gap["to_at"].timestamp() and after >= gap["from_at"].timestamp())
