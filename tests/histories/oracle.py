"""The oracle of the random histories: computes the books from the messages, in the plainest way.

Written from docs/coturn.md, docs/session-rules.md and docs/billing.md. It imports nothing of the
project, reads the whole stream of a key at once, and computes every figure anew from the list of
what was counted when. Times are whole microseconds since the Unix epoch.
"""

import hashlib
from calendar import monthrange
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, timedelta
from functools import cache
from itertools import pairwise
from typing import Final, NamedTuple
from zoneinfo import ZoneInfo, reset_tzpath

reset_tzpath(to=())  # the data of the package tzdata, not the machine's
SECOND: Final = 1_000_000
HOUR: Final = 3600 * SECOND
START_OF_TIME: Final = datetime(1970, 1, 1, tzinfo=UTC)
HEX_DIGITS: Final = frozenset("0123456789abcdefABCDEF")
DEFAULT_LIFETIME_SECONDS: Final = 3600
SUFFIXES: Final = {
    b"/status": ("status", ""),
    b"/traffic": ("interim", "client"),
    b"/traffic/peer": ("interim", "peer"),
    b"/total_traffic": ("total", "client"),
    b"/total_traffic/peer": ("total", "peer"),
}
COUNTERS: Final = (
    "received_packets",
    "received_bytes",
    "sent_packets",
    "sent_bytes",
    "peer_received_packets",
    "peer_received_bytes",
    "peer_sent_packets",
    "peer_sent_bytes",
)
Counts = tuple[int, int, int, int]
NOTHING: Final[Counts] = (0, 0, 0, 0)


def micros(time: datetime) -> int:
    return (time - START_OF_TIME) // timedelta(microseconds=1)


def moment(time: int) -> datetime:
    return START_OF_TIME + timedelta(microseconds=time)


# -- what a history consists of


@dataclass(frozen=True, slots=True, kw_only=True)
class Rule:
    """The rules of a realm from ``holds_from`` on; None: from the beginning."""

    holds_from: int | None = None
    time_zone: str = "UTC"
    anchor_day: int = 1
    grace_seconds: int = 60
    username_rule: str = "auto"
    separator: bytes = b":"


class Message(NamedTuple):
    """A message as its source received it."""

    epoch: int
    position: int
    received_at: int
    estimated: bool
    database: int
    channel: bytes
    payload: bytes


class Gap(NamedTuple):
    """A gap of a source, after the message at (epoch, position)."""

    epoch: int
    position: int
    from_at: int
    to_at: int | None
    cause: str


class Sighting(NamedTuple):
    """A status key that a scan found, after the message at (epoch, position).

    ``number``: 1, 2, 3 among those at the same place. The scan began at ``scan_began_at`` and saw
    the key at ``seen_at``, when it had been idle for ``idle_seconds``.
    """

    epoch: int
    position: int
    number: int
    scan_began_at: int
    seen_at: int
    database: int
    key: bytes
    idle_seconds: int


@dataclass(slots=True)
class Stream:
    """What a source has received so far."""

    messages: list[Message] = field(default_factory=list)
    gaps: list[Gap] = field(default_factory=list)
    sightings: list[Sighting] = field(default_factory=list)
    until: int = 0


# -- the words of the wire


def shown(raw: bytes) -> str:
    """A name as the views show it."""
    text = raw.decode("utf-8", "surrogateescape")
    result = []
    for index, char in enumerate(text):
        if char == "\0" or 0xDC80 <= ord(char) <= 0xDCFF:
            result.append("\\x" + format(ord(char) % 256, "02x"))
        elif char == "\\" and text[index + 1 : index + 2] == "x" and _is_hex(text, index + 2):
            result.append("\\\\")
        else:
            result.append(char)
    return "".join(result)


def _is_hex(text: str, index: int) -> bool:
    return len(text) >= index + 2 and set(text[index : index + 2]) <= HEX_DIGITS


def billed_user(username: bytes, rule: Rule) -> bytes:
    if rule.username_rule == "plain":
        return username
    if rule.username_rule == "rest" and username.isdigit():
        return b""
    if rule.separator in username:
        first, second = username.split(rule.separator, 1)
        if first.isdigit() and not second.isdigit():
            return second
        if second.isdigit() and not first.isdigit():
            return first
    return username


class Report(NamedTuple):
    """A message that could be read. ``kind``: new, refreshed, deleted, interim or total."""

    place: tuple[int, int]
    at: int
    estimated: bool
    database: int
    realm: bytes
    username: bytes
    allocation: str
    kind: str
    side: str
    lifetime: int | None
    addresses: tuple[str, str, str] | None
    counts: Counts


def read(message: Message) -> Report | None:
    """The report in a message; None when it is not one."""
    before, separator, after = message.channel.rpartition(b"/allocation/")
    allocation, suffix = after[:18], after[18:]
    if not separator or suffix not in SUFFIXES or len(allocation) != 18:
        return None
    if not allocation.isdigit():
        return None
    names = _names(before)
    if names is None:
        return None
    kind, side = SUFFIXES[suffix]
    lifetime, addresses, counts = None, None, NOTHING
    if kind == "status":
        status = _status(message.payload)
        if status is None:
            return None
        kind, lifetime, addresses = status
    else:
        read_counts = _counts(message.payload)
        if read_counts is None:
            return None
        counts = read_counts
    return Report(
        (message.epoch, message.position),
        message.received_at,
        message.estimated,
        message.database,
        *names,
        allocation.decode(),
        kind,
        side,
        lifetime,
        addresses,
        counts,
    )


def status_key(key: bytes) -> tuple[bytes, bytes, str] | None:
    """Realm, username and allocation in the name of a status key; None for another key."""
    before, _, after = key.rpartition(b"/allocation/")
    names = _names(before)
    if names is None or after[18:] != b"/status" or not after[:18].isdigit():
        return None
    return *names, after[:18].decode()


def _names(before: bytes) -> tuple[bytes, bytes] | None:
    if before.startswith(b"turn/realm/"):
        realm, user, username = before.removeprefix(b"turn/realm/").partition(b"/user/")
        if user:
            return realm, username
    if before.startswith(b"turn/user/"):
        return b"", before.removeprefix(b"turn/user/")
    return None


def _status(payload: bytes) -> tuple[str, int | None, tuple[str, str, str] | None] | None:
    if payload == b"deleted":
        return "deleted", None, None
    head, *fields = payload.split(b", ")
    kind, _, text = head.partition(b" lifetime=")
    if kind not in (b"new", b"refreshed") or not text.isdigit() or int(text) >= 2**31:
        return None
    if not fields:
        return kind.decode(), int(text), None
    values = []
    for name, entry in zip((b"type=", b"local=", b"remote="), fields, strict=False):
        if not entry.startswith(name):
            return None
        values.append(entry.removeprefix(name).decode("ascii"))
    if len(values) != 3:
        return None
    return kind.decode(), int(text), (values[0], values[1], values[2])


def _counts(payload: bytes) -> Counts | None:
    counts = []
    for name, entry in zip(
        (b"rcvp=", b"rcvb=", b"sentp=", b"sentb="), payload.split(b", "), strict=False
    ):
        text = entry.removeprefix(name)
        if text == entry or not text.isdigit() or int(text) >= 2**53:
            return None
        counts.append(int(text))
    return (counts[0], counts[1], counts[2], counts[3]) if len(counts) == 4 else None


# -- calendars


@cache
def offset(zone: str, time: int) -> int:
    """What the zone's clock is ahead of UTC; microseconds."""
    ahead = moment(time).astimezone(ZoneInfo(zone)).utcoffset()
    assert ahead is not None
    return ahead // timedelta(microseconds=1)


def clock_change(zone: str, start: int, end: int) -> int | None:
    """The instant in (start, end] at which the zone's clock changes; at most one is expected."""
    before = offset(zone, start)
    if offset(zone, end) == before:
        return None
    while end - start > 1:
        middle = (start + end) // 2
        if offset(zone, middle) == before:
            start = middle
        else:
            end = middle
    return end


@cache
def day_begins(zone: str, day: date) -> int:
    """The first instant of a day. Clocks of these years change at a quarter of an hour."""
    midnight = micros(datetime(day.year, day.month, day.day, tzinfo=UTC))
    for quarter in range(-64, 64):
        instant = midnight + quarter * HOUR // 4
        if moment(instant).astimezone(ZoneInfo(zone)).date() >= day:
            return instant
    raise AssertionError(day)


class Bucket(NamedTuple):
    starts_at: int
    ends_at: int
    time_zone: str


class Calendar:
    """The hours, days, months and periods of a realm under its rules."""

    def __init__(self, rules: Sequence[Rule]) -> None:
        self.rules = sorted(rules, key=lambda rule: rule.holds_from or 0)
        self._hours: dict[int, Bucket] = {}

    def rule(self, time: int) -> Rule:
        return [rule for rule in self.rules if (rule.holds_from or 0) <= time][-1]

    def _in_zone(self, time: int, start: int, end: int) -> Bucket:
        """Buckets of every length end where the zone of the realm changes."""
        zone = self.rule(time).time_zone
        for before, after in pairwise(self.rules):
            if before.time_zone != after.time_zone and after.holds_from is not None:
                if after.holds_from <= time:
                    start = max(start, after.holds_from)
                else:
                    end = min(end, after.holds_from)
        return Bucket(start, end, zone)

    def hour(self, time: int) -> Bucket:
        zone = self.rule(time).time_zone
        past = (time + offset(zone, time)) % HOUR
        start, end = time - past, time - past + HOUR
        if (change := clock_change(zone, start, time)) is not None:
            start = change
        if (change := clock_change(zone, time, end - 1)) is not None:
            end = change
        return self._in_zone(time, start, end)

    def day(self, time: int) -> Bucket:
        zone = self.rule(time).time_zone
        today = moment(time).astimezone(ZoneInfo(zone)).date()
        start, end = day_begins(zone, today), day_begins(zone, today + timedelta(days=1))
        return self._in_zone(time, start, end)

    def month(self, time: int) -> Bucket:
        zone = self.rule(time).time_zone
        first = moment(time).astimezone(ZoneInfo(zone)).date().replace(day=1)
        following = (first + timedelta(days=31)).replace(day=1)
        return self._in_zone(time, day_begins(zone, first), day_begins(zone, following))

    def hours_between(self, start: int, end: int) -> Iterator[Bucket]:
        """The hours from that of ``start`` to that of ``end``."""
        hour = self.hour(start)
        while hour.starts_at <= end:
            yield hour
            hour = self.hour(hour.ends_at)

    def periods(self, start: int, end: int) -> "list[Period]":
        """The periods from that of ``start`` to that of ``end``, in order."""
        borders: list[tuple[int, date, str]] = []
        month = moment(start).date().replace(day=1) - timedelta(days=100)
        while micros(datetime(month.year, month.month, 1, tzinfo=UTC)) < end + 70 * 24 * HOUR:
            for rule in self.rules:
                last_day = monthrange(month.year, month.month)[1]
                first_day = month.replace(day=min(rule.anchor_day, last_day))
                instant = day_begins(rule.time_zone, first_day)
                if self.rule(instant) is rule:
                    borders.append((instant, first_day, rule.time_zone))
            month = (month.replace(day=1) + timedelta(days=32)).replace(day=1)
        distinct: list[tuple[int, date, str]] = []
        for border in sorted(borders):
            if not distinct or border[1] > distinct[-1][1]:
                distinct.append(border)
        found = []
        for (starts_at, first_day, zone), (ends_at, _, _) in pairwise(distinct):
            if ends_at > start and starts_at <= end:
                due_at = ends_at + self.rule(ends_at).grace_seconds * SECOND
                found.append(Period(first_day, starts_at, ends_at, zone, due_at))
        return found


class Period(NamedTuple):
    """``due_at``: when every source must be settled beyond it."""

    first_day: date
    starts_at: int
    ends_at: int
    time_zone: str
    due_at: int


# -- sessions


class Counted(NamedTuple):
    """Usage that counts at one moment."""

    at: int
    side: str
    counts: Counts


@dataclass(slots=True)
class Session:
    """A session, or traffic that nothing confirmed."""

    source: str
    first: Report
    start_known: bool = False
    last_seen_at: int = 0
    lifetime_ends_at: int = 0
    has_lifetime: bool = False
    ended_at: int | None = None
    end_cause: str | None = None
    confirmed: bool = False
    addresses: tuple[str, str, str] | None = None
    servers: int = 1
    deleted: int = 0
    client_totals: list[Counts] = field(default_factory=list)
    peer_totals: list[Counts] = field(default_factory=list)
    counted: list[Counted] = field(default_factory=list)
    estimated: bool = False
    disputed: bool = False

    @property
    def active_until(self) -> int:
        return self.last_seen_at if self.ended_at is None else self.ended_at

    @property
    def is_totalled(self) -> bool:
        return len(self.client_totals) >= self.servers

    def sums(self, side: str) -> Counts:
        return _sum(entry.counts for entry in self.counted if entry.side == side)

    def counters(self) -> tuple[int, ...]:
        return self.sums("client") + self.sums("peer")


def _sum(counts: Iterable[Counts]) -> Counts:
    sums = [0, 0, 0, 0]
    for entry in counts:
        sums = [a + b for a, b in zip(sums, entry, strict=True)]
    return (sums[0], sums[1], sums[2], sums[3])


class KeyHistory:
    """Cuts the reports of one key, in order of position, into sessions."""

    def __init__(self, source: str, calendar: Calendar, gaps: Sequence[Gap]) -> None:
        self.source = source
        self.calendar = calendar
        self.gaps = gaps
        self.sessions: list[Session] = []
        self.current: Session | None = None
        self.pending: Session | None = None
        """The interims since the current session expired."""

    def run(
        self, reports: Iterable[Report], sightings: Iterable[Sighting], until: int
    ) -> list[Session]:
        """A sighting comes after the report at its place and before the next."""
        in_order: list[tuple[tuple[int, int, int], Report | Sighting]] = [
            *[((*report.place, 0), report) for report in reports],
            *[((*sighting[:2], sighting.number), sighting) for sighting in sightings],
        ]
        in_order.sort(key=lambda entry: entry[0])
        for _, report in in_order:
            if isinstance(report, Sighting):
                self._sighting(report)
                continue
            self._expire(report.at)
            if report.kind == "interim":
                self._interim(report)
            elif report.kind == "new":
                self._new(report)
            else:
                self._other(report)
        self._expire(until)
        return self.sessions

    def _expire(self, now: int) -> None:
        session = self.current
        if session is None or session.ended_at is not None:
            return
        grace = self.calendar.rule(session.first.at).grace_seconds * SECOND
        if now > session.lifetime_ends_at + grace:
            session.ended_at, session.end_cause = session.last_seen_at, "expired"
            if not session.confirmed:
                self.current = None

    def _sighting(self, sighting: Sighting) -> None:
        """A status key confirms a known session, or keeps it from expiring."""
        session = self.current
        if session is None or session.end_cause == "deleted" or session.is_totalled:
            return
        grace_seconds = self.calendar.rule(session.first.at).grace_seconds
        is_outdated = session.last_seen_at >= sighting.scan_began_at
        if is_outdated or sighting.idle_seconds > DEFAULT_LIFETIME_SECONDS + grace_seconds:
            return
        self._expire(sighting.seen_at)
        written_at = sighting.seen_at - sighting.idle_seconds * SECOND
        is_news = written_at > session.last_seen_at
        if self.current is None or (session.end_cause == "expired" and not is_news):
            return
        self._reopen(session)
        session.confirmed = True
        if is_news:
            session.last_seen_at = written_at
            session.lifetime_ends_at = max(
                session.lifetime_ends_at, written_at + DEFAULT_LIFETIME_SECONDS * SECOND
            )

    def _reopen(self, session: Session) -> None:
        if session.end_cause != "expired":
            return
        session.ended_at = session.end_cause = None
        if self.pending is not None:
            self.sessions.remove(self.pending)
            session.counted += self.pending.counted
            self.pending = None

    def _begin(self, report: Report, *, start_known: bool) -> Session:
        session = Session(self.source, report, start_known)
        session.last_seen_at = report.at
        session.lifetime_ends_at = report.at + DEFAULT_LIFETIME_SECONDS * SECOND
        self.sessions.append(session)
        return session

    def _next(self, report: Report, *, start_known: bool) -> Session:
        """Begin another session; whatever came before can't be reached any more."""
        before = self.current
        if before is not None and before.ended_at is None:
            before.ended_at = before.last_seen_at
            before.end_cause = "superseded" if report.kind == "new" else "expired"
        self.pending = None
        self.current = self._begin(report, start_known=start_known)
        return self.current

    def _sign_of_life(self, session: Session, now: int) -> None:
        if session.ended_at is None:
            session.last_seen_at = now
            if not session.has_lifetime:
                session.lifetime_ends_at = now + DEFAULT_LIFETIME_SECONDS * SECOND

    def _interim(self, report: Report) -> None:
        session = self.current
        if session is None or session.end_cause == "deleted" or session.is_totalled:
            session = self._next(report, start_known=False)
        elif session.end_cause == "expired":
            if self.pending is None:
                self.pending = self._begin(report, start_known=False)
            session = self.pending
        self._sign_of_life(session, report.at)
        session.counted.append(Counted(report.at, report.side, report.counts))

    def _new(self, report: Report) -> None:
        session = self.current
        if (
            session is not None
            and session.ended_at is None
            and not session.is_totalled
            and session.addresses is not None
            and report.addresses is not None
            and session.addresses[1] != report.addresses[1]
        ):
            # Another server on the same key: the session goes on for both.
            session.servers += 1
            session.disputed = True
        else:
            session = self._next(report, start_known=True)
        self._status(session, report)

    def _other(self, report: Report) -> None:
        session = self.current
        if session is None or not self._belongs(session, report):
            session = self._next(report, start_known=False)
        else:
            self._reopen(session)
        session.confirmed = True
        if report.kind == "refreshed":
            self._status(session, report)
        elif report.kind == "deleted":
            self._sign_of_life(session, report.at)
            session.deleted += 1
            if session.deleted >= session.servers:
                session.ended_at, session.end_cause = report.at, "deleted"
        else:
            self._sign_of_life(session, report.at)
            if report.side == "client":
                self._client_total(session, report)
            else:
                self._peer_total(session, report)

    def _belongs(self, session: Session, report: Report) -> bool:
        if report.kind == "total":
            totals = session.client_totals if report.side == "client" else session.peer_totals
            return len(totals) < session.servers
        if session.end_cause == "deleted":
            return False
        return report.kind == "deleted" or not session.is_totalled

    def _status(self, session: Session, report: Report) -> None:
        session.confirmed = True
        if report.lifetime:
            ends_at = report.at + report.lifetime * SECOND
            if session.servers > 1 and session.has_lifetime:
                ends_at = max(ends_at, session.lifetime_ends_at)
            session.lifetime_ends_at, session.has_lifetime = ends_at, True
        self._sign_of_life(session, report.at)
        if session.addresses is None:
            session.addresses = report.addresses

    def _client_total(self, session: Session, report: Report) -> None:
        session.client_totals.append(report.counts)
        counted = session.sums("client")
        missing = [a - b for a, b in zip(_sum(session.client_totals), counted, strict=True)]
        if not session.is_totalled:
            missing = [max(0, count) for count in missing]
        session.estimated |= max(missing) > 0
        session.disputed |= min(missing) < 0
        session.counted.append(
            Counted(report.at, "client", (missing[0], missing[1], missing[2], missing[3]))
        )
        if session.is_totalled and session.ended_at is None:
            session.lifetime_ends_at, session.has_lifetime = report.at, True

    def _peer_total(self, session: Session, report: Report) -> None:
        session.peer_totals.append(report.counts)
        if len(session.peer_totals) < session.servers:
            return
        counted = session.sums("peer")
        missing = [(a - b) % 2**32 for a, b in zip(_sum(session.peer_totals), counted, strict=True)]
        if not any(missing):
            return
        can_be_missing = (
            session.estimated
            or not session.start_known
            or any(
                session.first.place <= (gap.epoch, gap.position) < report.place for gap in self.gaps
            )
        )
        can_be_traffic = all(
            packets < 2**31 and count <= packets * 65535
            for packets, count in (missing[:2], missing[2:])
        )
        if can_be_missing and can_be_traffic:
            session.estimated = True
            session.counted.append(
                Counted(report.at, "peer", (missing[0], missing[1], missing[2], missing[3]))
            )
        else:
            session.disputed = True


# -- books


class Usage(NamedTuple):
    """The figures of a row of usage. ``micros``: of sessions; exact."""

    counters: tuple[int, ...]
    started: int
    ended: int
    micros: int
    estimated_bytes: int


NO_USAGE: Final = Usage((0,) * 8, 0, 0, 0, 0)


def added(a: Usage, b: Usage) -> Usage:
    return Usage(
        tuple(x + y for x, y in zip(a.counters, b.counters, strict=True)),
        a.started + b.started,
        a.ended + b.ended,
        a.micros + b.micros,
        a.estimated_bytes + b.estimated_bytes,
    )


Key = tuple[str, int, bytes, bytes, str]
"""Source, database, realm, username, allocation."""
UserHours = dict[tuple[bytes, bytes, Bucket], Usage]


@dataclass(slots=True)
class Books:
    """Everything that the messages of some streams amount to."""

    streams: Mapping[str, Stream]
    calendars: Mapping[bytes, Calendar]
    sessions: list[Session] = field(init=False)
    reports: list[tuple[str, Report]] = field(init=False, default_factory=list)
    rejected: list[tuple[str, Message]] = field(init=False, default_factory=list)
    hours: UserHours = field(init=False)

    def __post_init__(self) -> None:
        keys: dict[Key, list[Report]] = defaultdict(list)
        sightings: dict[Key, list[Sighting]] = defaultdict(list)
        for source, stream in self.streams.items():
            for message in stream.messages:
                report = read(message)
                if report is None:
                    self.rejected.append((source, message))
                    continue
                self.reports.append((source, report))
                key = source, report.database, report.realm, report.username, report.allocation
                keys[key].append(report)
            for sighting in stream.sightings:
                if (allocation := status_key(sighting.key)) is not None:
                    sightings[source, sighting.database, *allocation].append(sighting)
        self.sessions = []
        for key, reports in keys.items():
            stream = self.streams[key[0]]
            history = KeyHistory(key[0], self.calendars[key[2]], stream.gaps)
            self.sessions += history.run(reports, sightings[key], stream.until)
        self.hours = self._hours()

    def user(self, session: Session) -> bytes:
        """Whom to bill: by the rule at the session's first report."""
        rule = self.calendars[session.first.realm].rule(session.first.at)
        return billed_user(session.first.username, rule)

    @property
    def confirmed(self) -> list[Session]:
        return [session for session in self.sessions if session.confirmed]

    def _hours(self) -> UserHours:
        hours: UserHours = defaultdict(lambda: NO_USAGE)
        for session in self.confirmed:
            realm, user = session.first.realm, self.user(session)
            calendar = self.calendars[realm]
            for entry in session.counted:
                estimated = entry.counts[1] + entry.counts[3] if session.estimated else 0
                is_client = entry.side == "client"
                hours[realm, user, calendar.hour(entry.at)] = added(
                    hours[realm, user, calendar.hour(entry.at)],
                    Usage(
                        entry.counts + NOTHING if is_client else NOTHING + entry.counts,
                        0,
                        0,
                        0,
                        estimated if is_client else 0,
                    ),
                )
            until = session.active_until
            for hour in calendar.hours_between(session.first.at, until):
                first, last = max(hour.starts_at, session.first.at), min(hour.ends_at, until)
                started = hour.starts_at <= session.first.at
                ended = session.ended_at is not None and session.ended_at < hour.ends_at
                hours[realm, user, hour] = added(
                    hours[realm, user, hour],
                    Usage((0,) * 8, int(started), int(ended), last - first, 0),
                )
        return dict(hours)

    def by_user(self, level: str) -> UserHours:
        """The usage of users by ``hour``, ``day`` or ``month``."""
        sums: UserHours = defaultdict(lambda: NO_USAGE)
        for (realm, user, hour), usage in self.hours.items():
            bucket = getattr(self.calendars[realm], level)(hour.starts_at)
            sums[realm, user, bucket] = added(sums[realm, user, bucket], usage)
        return sums

    def by_realm(self, level: str) -> dict[tuple[bytes, Bucket], Usage]:
        sums: dict[tuple[bytes, Bucket], Usage] = defaultdict(lambda: NO_USAGE)
        for (realm, _, bucket), usage in self.by_user(level).items():
            sums[realm, bucket] = added(sums[realm, bucket], usage)
        return sums

    def peaks(self, level: str) -> dict[tuple[bytes, Bucket], int]:
        """The most sessions at once, in the buckets that have any."""
        spans: dict[bytes, list[tuple[int, int]]] = defaultdict(list)
        for session in self.confirmed:
            start, end = session.first.at, session.active_until
            if session.ended_at is None:
                # Nobody knows how long it lasts: it counts to the end of an hour that it reached.
                hour = self.calendars[session.first.realm].hour(end)
                end = end if end == hour.starts_at > start else hour.ends_at
            spans[session.first.realm].append((start, end))
        peaks: dict[tuple[bytes, Bucket], int] = defaultdict(int)
        for realm, of_realm in spans.items():
            calendar = self.calendars[realm]
            moments = {start for start, _ in of_realm}
            for start, end in of_realm:
                moments |= {h.starts_at for h in calendar.hours_between(start, end)} - {end}
            for time in moments:
                count = sum(start <= time < end for start, end in of_realm)
                if count:
                    bucket = getattr(calendar, level)(time)
                    peaks[realm, bucket] = max(peaks[realm, bucket], count)
        return peaks

    def unattributed(self) -> dict[tuple[str, bytes, bytes, Bucket], tuple[int, ...]]:
        """The traffic that nothing confirmed, by source, realm, username and hour."""
        sums: dict[tuple[str, bytes, bytes, Bucket], tuple[int, ...]] = {}
        for session in self.sessions:
            if session.confirmed:
                continue
            realm, username = session.first.realm, session.first.username
            for entry in session.counted:
                hour = self.calendars[realm].hour(entry.at)
                counters = (
                    entry.counts + NOTHING if entry.side == "client" else NOTHING + entry.counts
                )
                key = session.source, realm, username, hour
                before = sums.get(key, (0,) * 8)
                sums[key] = tuple(a + b for a, b in zip(before, counters, strict=True))
        return sums

    def in_period(self, realm: bytes, period: Period) -> dict[bytes, Usage]:
        """The usage of each user in a period."""
        sums: dict[bytes, Usage] = defaultdict(lambda: NO_USAGE)
        for (of_realm, user, hour), usage in self.hours.items():
            if of_realm == realm and period.starts_at <= hour.starts_at < period.ends_at:
                sums[user] = added(sums[user], usage)
        return sums


def statement_digest(realm: str, period: date, user_key: str, usage: Usage, cutoff: str) -> str:
    """SHA-256 of a line of a statement."""
    numbers = [*usage.counters, usage.started, usage.ended, usage.micros, usage.estimated_bytes]
    lines = [period.isoformat(), user_key, *map(str, numbers), cutoff, realm]
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()
