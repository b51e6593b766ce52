"""Computes what the books must show of a history: usage by month, statements and adjustments.

The ledger gets what each allocation published and which of it was lost, and applies
docs/session-rules.md to that, once with all of it and once with what was known when a period was
closed. The books must compute the same from the messages alone.
"""

from bisect import bisect_right
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import date
from typing import Final, NamedTuple

from accounting.domain.counters import COUNTERS, PEER_MODULUS
from accounting.domain.text_escaping import escape
from accounting.simulator.oracle import ZERO_COUNTERS, Counters, add_counters
from accounting.simulator.population import SimulatedUser

SECOND: Final = 1_000_000
ASSUMED_LIFETIME: Final = 3600 * SECOND
"""Of a session none of whose statuses was captured."""
GRACE_SECONDS: Final = 60
"""Of all realms: a session expires so long after its lifetime, a period closes after its end."""
GRACE: Final = GRACE_SECONDS * SECOND
CLOSING_DELAY: Final = 5 * SECOND
FINAL_AFTER: Final = 3 * ASSUMED_LIFETIME
"""A session without messages for so long has ended, whatever its lifetime."""


class Record(NamedTuple):
    """What an allocation published at a time: both sides of traffic are one record.

    ``kind``: new, refreshed, release (refreshed with lifetime 0), deleted, traffic, total_traffic.
    """

    at: int
    kind: str
    counters: Counters


@dataclass(frozen=True, slots=True, kw_only=True)
class HistoryRealm:
    """A realm of a history. ``borders``: when its months begin, from the first one on."""

    name: str
    time_zone: str
    is_rest: bool
    borders: tuple[int, ...]
    first_days: tuple[date, ...]
    until: int

    @property
    def closings(self) -> list[int]:
        """When each closed period is closed, in order: soon after it was due."""
        due = [border + GRACE for border in self.borders[1:] if border + GRACE < self.until]
        return [min(time + CLOSING_DELAY, self.until) for time in due]

    def period_at(self, time: int) -> int:
        """The index of the month of a time."""
        return bisect_right(self.borders, time) - 1


class LineKey(NamedTuple):
    """A user's line of a period, as the views name it."""

    realm: str
    period: date
    user_id: str


@dataclass(slots=True)
class Line:
    """What a user's month or statement must show."""

    usage: Counters = ZERO_COUNTERS
    sessions_started: int = 0
    sessions_ended: int = 0
    session_microseconds: int = 0
    estimated_bytes: int = 0

    def numbers(self) -> dict[str, int]:
        """By the names of the views, and ``session_microseconds``."""
        return {
            **dict(zip(COUNTERS, self.usage, strict=True)),
            "sessions_started": self.sessions_started,
            "sessions_ended": self.sessions_ended,
            "session_microseconds": self.session_microseconds,
            "estimated_bytes": self.estimated_bytes,
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class HistoryExpected:
    """What the books must show at the end of a history; without lines that are all zero."""

    published: int
    captured: int
    sessions: int
    sessions_estimated: int
    gaps: int
    months: Mapping[LineKey, Mapping[str, int]]
    """Usage by user and month."""
    closed: Sequence[tuple[str, date]]
    """The closed periods, by realm and first day."""
    statements: Mapping[LineKey, Mapping[str, int]]
    adjustments: Mapping[LineKey, Mapping[str, int]]
    """The sums of what came after a period was closed."""
    unattributed: Mapping[tuple[str, str], Counters]
    """Traffic that nothing confirms, by realm and username."""

    @property
    def usage(self) -> Counters:
        """The billed traffic of all users and months."""
        total = ZERO_COUNTERS
        for line in self.months.values():
            total = add_counters(total, [line[name] for name in COUNTERS])
        return total

    @property
    def all_unattributed(self) -> Counters:
        """The unattributed traffic of all realms."""
        total = ZERO_COUNTERS
        for counters in self.unattributed.values():
            total = add_counters(total, counters)
        return total

    def as_dict(self) -> dict[str, object]:
        """As a JSON object."""
        return {
            "published": self.published,
            "captured": self.captured,
            "sessions": self.sessions,
            "sessions_estimated": self.sessions_estimated,
            "gaps": self.gaps,
            **dict(zip(COUNTERS, self.usage, strict=True)),
            "unattributed": dict(zip(COUNTERS, self.all_unattributed, strict=True)),
            "closed": [
                {"realm": realm, "period": period.isoformat()} for realm, period in self.closed
            ],
            "months": _rows(self.months),
            "statements": _rows(self.statements),
            "adjustments": _rows(self.adjustments),
        }


def _rows(lines: Mapping[LineKey, Mapping[str, int]]) -> list[dict[str, object]]:
    return [
        {"realm": key.realm, "period": key.period.isoformat(), "user_id": key.user_id, **numbers}
        for key, numbers in sorted(lines.items())
    ]


class _Bill:
    """What one allocation is billed after some of its records. Times in microseconds.

    ``usage``: parts with the time at which each counts. ``pending``: what came after the session
    seemed to have expired, which a later status or total confirms.
    """

    def __init__(self, first: Record, lifetime: int) -> None:
        self.started_at = self.last_seen_at = first.at
        self.ended_at: int | None = None
        self.confirmed = self.estimated = False
        self.usage: list[tuple[int, Counters]] = []
        self._pending: list[tuple[int, Counters]] = []
        self._start_known = first.kind == "new"
        self._lifetime = lifetime
        self._lifetime_known = self._expired = False
        self._expires_at = first.at + ASSUMED_LIFETIME

    @property
    def active_until(self) -> int:
        return self.last_seen_at if self.ended_at is None else self.ended_at

    @property
    def unconfirmed(self) -> list[Counters]:
        """What is not billed."""
        parts = self._pending if self.confirmed else self._pending + self.usage
        return [counters for _, counters in parts]

    def add(self, record: Record) -> None:
        """Add the next captured record."""
        at, kind, counters = record
        if self.ended_at is None and at > self._expires_at + GRACE:
            assert self.confirmed, "an unconfirmed session that expires would be two"
            self._expired = True
        if kind != "traffic":
            self._confirm()
        elif self._expired:
            self._pending.append((at, counters))
            return
        else:
            self.usage.append((at, counters))
        self.last_seen_at = at
        if kind in {"new", "refreshed"}:
            self._expires_at, self._lifetime_known = at + self._lifetime, True
        elif not self._lifetime_known:
            self._expires_at = at + ASSUMED_LIFETIME
        if kind == "deleted":
            self.ended_at = at
        elif kind == "total_traffic":
            self._correct(at, counters)

    def finish(self, until: int) -> None:
        """End it if it has expired: nothing else came up to ``until``."""
        if self.ended_at is None and until > self._expires_at + GRACE:
            self.ended_at = self.last_seen_at

    def _confirm(self) -> None:
        """Confirm it; if it seemed to have expired, its refreshes were lost."""
        self.confirmed, self._expired = True, False
        self.usage += self._pending
        self._pending = []

    def _correct(self, at: int, total: Counters) -> None:
        """Add what the interims lack: exactly on the client side, modulo 2^32 on the peer side."""
        sums = ZERO_COUNTERS
        for _, counters in self.usage:
            sums = add_counters(sums, counters)
        client = [total[place] - sums[place] for place in range(4)]
        peer = [(total[place] - sums[place]) % PEER_MODULUS for place in range(4, 8)]
        self.estimated = any(client) or (any(peer) and not self._start_known)
        if self.estimated:
            self.usage.append((at, add_counters((*client, *peer), ZERO_COUNTERS)))


def _bill(captured: Sequence[Record], lifetime: int, until: int) -> _Bill:
    """What an allocation is billed after these records, when nothing else came up to ``until``."""
    bill = _Bill(captured[0], lifetime)
    for record in captured:
        bill.add(record)
    bill.finish(until)
    return bill


class HistoryLedger:
    """Adds up what each allocation is billed, and what was billed of it at each closing."""

    def __init__(
        self, realms: Sequence[HistoryRealm], until: int, outages: Sequence[tuple[int, int]]
    ) -> None:
        self._realms = realms
        self._until = until
        self._outages = sorted(outages)
        self._outage_starts = [from_at for from_at, _ in self._outages]
        self._months: dict[LineKey, Line] = {}
        self._statements: dict[LineKey, Line] = {}
        self._unattributed: dict[tuple[str, str], Counters] = {}
        self._sessions = 0
        self._estimated = 0
        self._captured = 0

    def is_lost(self, at: int) -> bool:
        """Whether what was published at that time was not captured."""
        index = bisect_right(self._outage_starts, at) - 1
        return index >= 0 and at < self._outages[index][1]

    def add_session(
        self, realm: HistoryRealm, user: SimulatedUser, records: Sequence[Record], lifetime: int
    ) -> None:
        """Add everything that an allocation published. No other one has its key."""
        captured = [record for record in records if not self.is_lost(record.at)]
        if not captured:
            return
        self._captured += sum(1 + (record.kind.endswith("traffic")) for record in captured)
        bill = _bill(captured, lifetime, self._until)
        name = escape(user.realm), escape(user.username)
        for counters in bill.unconfirmed:
            self._unattributed[name] = add_counters(
                self._unattributed.get(name, ZERO_COUNTERS), counters
            )
        user_id = escape(user.user_id)
        if bill.confirmed:
            self._sessions += 1
            self._estimated += bill.estimated
            _add_to_lines(self._months, realm, user_id, bill)
        first, last = captured[0].at, captured[-1].at
        for index in range(realm.period_at(first), realm.period_at(last) + 1):
            if index >= len(realm.closings):
                break
            closing = realm.closings[index]
            known = bill
            if last + FINAL_AFTER > closing:
                known = _bill([r for r in captured if r.at <= closing], lifetime, closing)
            if known.confirmed:
                _add_to_lines(self._statements, realm, user_id, known, only=index)

    def expected(self, published: int, gaps: int) -> HistoryExpected:
        months = _numbers(self._months)
        statements = _numbers(self._statements)
        closed = [
            (realm.name, realm.first_days[index])
            for realm in self._realms
            for index in range(len(realm.closings))
        ]
        return HistoryExpected(
            published=published,
            captured=self._captured,
            sessions=self._sessions,
            sessions_estimated=self._estimated,
            gaps=gaps,
            months=months,
            closed=closed,
            statements=statements,
            adjustments=dict(_late_usage(months, statements, set(closed))),
            unattributed=self._unattributed,
        )


def _numbers(lines: Mapping[LineKey, Line]) -> dict[LineKey, dict[str, int]]:
    numbers = {key: line.numbers() for key, line in lines.items()}
    return {key: line for key, line in numbers.items() if any(line.values())}


def _late_usage(
    months: Mapping[LineKey, Mapping[str, int]],
    statements: Mapping[LineKey, Mapping[str, int]],
    closed: set[tuple[str, date]],
) -> Iterator[tuple[LineKey, dict[str, int]]]:
    """What the closed months have in the end, and their statements do not."""
    names = (*COUNTERS, "session_microseconds")
    for key in sorted({*months, *statements}):
        if (key.realm, key.period) in closed:
            now, then = months.get(key, {}), statements.get(key, {})
            late = {name: now.get(name, 0) - then.get(name, 0) for name in names}
            if any(late.values()):
                yield key, late


def _add_to_lines(
    lines: dict[LineKey, Line],
    realm: HistoryRealm,
    user_id: str,
    bill: _Bill,
    *,
    only: int | None = None,
) -> None:
    """Add a bill to a user's lines by month. ``only``: the index of the one month to add to."""

    def line(index: int) -> Line:
        if only is not None and index != only:
            return Line()
        key = LineKey(realm.name, realm.first_days[index], user_id)
        found = lines.get(key)
        if found is None:
            found = lines[key] = Line()
        return found

    for at, counters in bill.usage:
        part = line(realm.period_at(at))
        part.usage = add_counters(part.usage, counters)
        if bill.estimated:
            part.estimated_bytes += counters[1] + counters[3]
    first, last = realm.period_at(bill.started_at), realm.period_at(bill.active_until)
    line(first).sessions_started += 1
    if bill.ended_at is not None:
        line(realm.period_at(bill.ended_at)).sessions_ended += 1
    for index in range(first, last + 1):
        begins = max(bill.started_at, realm.borders[index])
        is_last = index + 1 == len(realm.borders)
        ends = bill.active_until if is_last else min(bill.active_until, realm.borders[index + 1])
        line(index).session_microseconds += ends - begins
