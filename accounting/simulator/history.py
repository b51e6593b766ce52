"""Simulates months of a service: what was captured of it at which time, and what was not.

Days and nights, weekends, growth, a few heavy users, calls over several transports and servers,
outages of capture, a server that crashes, and traffic of scanners. Without I/O or clock: it yields
steps in order of time, and the ledger of the oracle is filled meanwhile.
"""

from bisect import bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from itertools import accumulate
from operator import itemgetter
from random import Random
from typing import Final, NamedTuple
from zoneinfo import ZoneInfo

from accounting.errors import UsageError
from accounting.simulator.allocation import (
    REQUEST_BYTES,
    RESPONSE_BYTES,
    SECOND,
    Allocation,
    Traits,
)
from accounting.simulator.history_oracle import (
    HistoryExpected,
    HistoryLedger,
    HistoryRealm,
    Record,
)
from accounting.simulator.oracle import ZERO_COUNTERS, Counters, OracleLedger
from accounting.simulator.population import SimulatedUser
from accounting.simulator.process import ServerProcess
from accounting.simulator.version import VERSIONS
from accounting.simulator.wire import Command, channel_prefix

MINUTE: Final = 60 * SECOND
HOUR: Final = 60 * MINUTE
DAY: Final = 24 * HOUR
MAX_MONTHS: Final = 24
SETTLED_HOURS: Final = 3
"""A month counts as whole when it has been over for so long: late usage of it came then."""
REALM_NAMES: Final = ("example.org", "example.net", "example.com")
ZONES: Final = ("Europe/Berlin", "America/New_York", "Asia/Kolkata", "UTC")
USER_NAMES: Final = (
    "alice", "bob", "carol", "dave", "erin", "frank", "grace", "heidi", "ivan", "judy", "kim",
    "laura", "mallory", "nina", "oscar", "peggy", "quentin", "rupert", "sybil", "trent", "ursula",
    "victor", "wendy", "xavier", "yvonne", "zoe",
)  # fmt: skip
SCANNED_NAMES: Final = (b"", b"admin", b"test", b"root", b"' OR 1=1 --", b"1000:1000", b"user\x00")
CLIENT_NETWORKS: Final = ("192.0.2.{}", "198.51.100.{}", "203.0.113.{}", "[2001:db8:{:x}::7]")
SERVERS: Final = ("192.0.2.1:3478", "192.0.2.2:3478", "198.51.100.1:3478")
RELAY_THREADS: Final = 2
OFFICE_HOURS: Final = (
    2, 1, 1, 1, 1, 2, 5, 14, 40, 70, 80, 76, 55, 66, 78, 76, 66, 46, 30, 24, 22, 18, 10, 5,
)  # fmt: skip
EVENING_HOURS: Final = (
    20, 10, 6, 4, 3, 3, 6, 12, 18, 22, 26, 30, 34, 34, 34, 36, 42, 52, 66, 80, 92, 90, 68, 40,
)  # fmt: skip
OFFICE_WEEK: Final = (1.0, 1.1, 1.15, 1.1, 0.9, 0.25, 0.2)
EVENING_WEEK: Final = (0.8, 0.8, 0.85, 0.9, 1.1, 1.4, 1.3)
GROWTH: Final = 0.4
"""How much busier the last day is than the first."""
SHORT_LIFETIME, LONG_LIFETIME = 600, 3600
OUTAGE_CAUSES: Final = ("backlog_overrun", "redis_restarted", "failover")
LATE_OUTAGE: Final = (25 * MINUTE, 5 * MINUTE)
"""How long before the end of a month an outage begins and ends. Sessions begin in it and are only
confirmed when their clients refresh, after the month was closed."""
LATE_SESSIONS: Final = 3
CALLS_THROUGH_OUTAGE: Final = 2
DOWN_TIME: Final = 40 * SECOND
SCANS_A_DAY: Final = 3
FEW_MESSAGES: Final = 2_000
GAP_DESCRIBED: Final = 2 * HOUR + 50 * MINUTE
"""How long after a gap its description is last updated: the job does that for three hours."""


class Profile(NamedTuple):
    """A kind of use. ``minutes``: the median length."""

    share: float
    minutes: float
    packets_per_second: float
    packet_bytes: int
    lifetime_seconds: int
    is_tcp_relay: bool = False


VOICE: Final = Profile(0.55, 6, 100, 200, SHORT_LIFETIME)
PROFILES: Final = (
    VOICE,
    Profile(0.20, 10, 350, 1150, SHORT_LIFETIME),  # video
    Profile(0.17, 30, 1.5, 400, SHORT_LIFETIME),  # mostly idle
    Profile(0.05, 60, 60, 900, LONG_LIFETIME),  # meetings
    Profile(0.03, 2, 200, 1300, SHORT_LIFETIME, is_tcp_relay=True),
)
LONG_CALL: Final = Profile(0, 150, 50, 600, LONG_LIFETIME)


@dataclass(frozen=True, slots=True, kw_only=True)
class HistoryScenario:
    """A history that ends now, with so many whole months before the present one.

    The same scenario gives the same messages, byte for byte. Raises :class:`UsageError` if its
    parameters contradict each other.
    """

    until: int
    """The end: the database's now. Microseconds since the Unix epoch."""
    months: int = 3
    realms: tuple[str, ...] = REALM_NAMES[:2]
    """Each second one has TURN REST usernames. They are in several time zones."""
    users: int = 20
    """Users of all realms."""
    sessions: int | None = None
    """About so many in total; None: one a day for each user."""
    seed: int = 1

    def __post_init__(self) -> None:
        def require(condition: bool, problem: str) -> None:
            if not condition:
                raise UsageError(f"can't simulate: {problem}")

        require(1 <= self.months <= MAX_MONTHS, f"months is {self.months}, not 1 to {MAX_MONTHS}")
        require(bool(self.realms), "realms is empty")
        require(len(set(self.realms)) == len(self.realms), "realms names one twice")
        for name in self.realms:
            fits = 0 < len(name.encode()) <= 127 and "/user/" not in name
            require(fits, f"realm {name!r} is empty, longer than 127 bytes or holds '/user/'")
        require(self.users >= len(self.realms), f"users is {self.users}, fewer than the realms")
        require(
            self.sessions is None or self.sessions > 0, f"sessions is {self.sessions}, not above 0"
        )


class Messages(NamedTuple):
    """Captured messages: time, database, channel, payload; with everything up to ``until``."""

    until: int
    messages: list[tuple[int, int, bytes, bytes]]


class Outage(NamedTuple):
    """A span [from_at, to_at) whose messages are lost."""

    from_at: int
    to_at: int
    cause: str


class JobsDue(NamedTuple):
    """A time at which what was captured is to be loaded, and the jobs run.

    Periods have become due, or it became known what an outage did to the sessions.
    """

    at: int


Step = Messages | Outage | JobsDue


class _Server(ServerProcess):
    """A server process that also keeps the records of the allocation that is simulated."""

    __slots__ = ("records",)

    def __init__(self, number: int, ledger: OracleLedger, commands: list[Command]) -> None:
        super().__init__(
            server=number,
            version=VERSIONS["4.6"],
            address=SERVERS[number],
            database=0,
            connections=range(RELAY_THREADS + 1),
            status_keys={},
            ledger=ledger,
            commands=commands,
        )
        self.records: list[Record] = []

    def publish_status(
        self, at_us: int, thread: int, key: bytes, kind: str, payload: bytes
    ) -> None:
        # A release refreshes with lifetime 0, which is a report like others.
        ends = b" lifetime=0," in payload
        self.records.append(Record(at_us, "release" if ends else kind, ZERO_COUNTERS))
        super().publish_status(at_us, thread, key, kind, payload)

    def publish_deleted(self, at_us: int, thread: int, key: bytes) -> None:
        self.records.append(Record(at_us, "deleted", ZERO_COUNTERS))
        super().publish_deleted(at_us, thread, key)

    def publish_traffic(
        self, at_us: int, thread: int, prefix: bytes, kind: str, counters: tuple[int, ...]
    ) -> None:
        a, b, c, d, e, f, g, h = counters
        self.records.append(Record(at_us, kind, (a, b, c, d, e, f, g, h)))
        super().publish_traffic(at_us, thread, prefix, kind, counters)


class _Person(NamedTuple):
    """A user with its habits."""

    realm: HistoryRealm
    name: bytes
    addresses: Sequence[str]
    loves_tcp: bool


class _Start(NamedTuple):
    """A session that is to begin; ``profile`` None: the attempt of a scanner."""

    at: int
    order: int
    person: _Person
    profile: Profile | None


class History:
    """One run of a scenario: iterate over :meth:`run`, then read :attr:`ledger`."""

    def __init__(self, scenario: HistoryScenario) -> None:
        self.scenario = scenario
        self._random = Random(scenario.seed)  # noqa: S311 - a simulation wants repeatable numbers
        self.realms = [_realm(name, index, scenario) for index, name in enumerate(scenario.realms)]
        self.begins_at = min(realm.borders[0] for realm in self.realms)
        self.outages, self._crash_at = self._plan_failures()
        self.ledger = HistoryLedger(self.realms, scenario.until, [o[:2] for o in self.outages])
        self._published = OracleLedger()
        self._commands: list[Command] = []
        self._servers = [self._start_server(number) for number in range(len(SERVERS))]
        self._used_keys: set[tuple[bytes, bytes, int]] = set()
        self._crashed = False

    def expected(self) -> HistoryExpected:
        """What the books must show at the end."""
        return self.ledger.expected(self._published.published, len(self.outages))

    def run(self) -> Iterator[Step]:
        """Run the history; yields what happens, in order of time."""
        starts = self._plan_sessions()
        outage_ends = {outage.to_at: outage for outage in self.outages}
        closings = {time for realm in self.realms for time in realm.closings}
        until = self.scenario.until
        jobs_due = {*closings, *(end + GAP_DESCRIBED for end in outage_ends), until}
        jobs_due -= {time for time in jobs_due if time > until}
        others = {*(outage.from_at for outage in self.outages), *outage_ends, *jobs_due}
        times = {*range(self.begins_at + DAY, until, DAY), *others}
        pending: list[tuple[int, int, bytes, bytes]] = []
        done = 0
        for time in sorted(times):
            while done < len(starts) and starts[done].at <= time:
                pending += self._simulate(starts[done])
                done += 1
            if time not in others and len(pending) < FEW_MESSAGES:
                continue  # a step costs more than so few
            pending.sort(key=itemgetter(0))
            count = bisect_right(pending, time, key=itemgetter(0))
            if time in outage_ends:
                yield outage_ends[time]
            yield Messages(time, pending[:count])
            del pending[:count]
            if time in jobs_due:
                yield JobsDue(time)

    def _start_server(self, number: int) -> _Server:
        return _Server(number, self._published, self._commands)

    # -- the plan

    def _plan_failures(self) -> tuple[list[Outage], int]:
        """The outages of capture, and when a server crashes."""
        until, random = self.scenario.until, self._random
        first = self.realms[0]
        taken = [border for realm in self.realms for border in realm.borders]
        spans = []
        for index, border in enumerate(first.borders[1:]):
            realm = self.realms[index % len(self.realms)]
            end = realm.borders[1 + index] if 1 + index < len(realm.borders) else border
            spans.append((end - LATE_OUTAGE[0], end - LATE_OUTAGE[1]))
        count = 1 + self.scenario.months // 2
        crash_at = 0
        for number in range(count + 1):
            at = first.borders[0] + (until - first.borders[0]) * (2 * number + 1) // (2 * count + 2)
            at += 10 * HOUR - (at - first.borders[0]) % DAY + random.randrange(5 * HOUR)
            while any(abs(at - time) < 2 * DAY for time in taken) or not _is_workday(first, at):
                at += DAY
            taken.append(at)
            if number == count // 2:
                crash_at = at
            elif at < until - 2 * DAY:
                spans.append((at, at + random.randrange(20 * MINUTE, 80 * MINUTE)))
        spans.sort()
        outages = [
            Outage(*span, OUTAGE_CAUSES[index % len(OUTAGE_CAUSES)])
            for index, span in enumerate(spans)
        ]
        return outages, crash_at

    def _people(self) -> list[list[_Person]]:
        """The users of each realm."""
        random = self._random
        people: list[list[_Person]] = [[] for _ in self.realms]
        for index in range(self.scenario.users):
            number, realm = divmod(index, len(self.realms))
            repetition, place = divmod(number, len(USER_NAMES))
            name = USER_NAMES[place] + (str(repetition + 1) if repetition else "")
            addresses = [
                random.choice(CLIENT_NETWORKS).format(random.randrange(1, 255))
                for _ in range(random.randrange(1, 4))
            ]
            person = _Person(self.realms[realm], name.encode(), addresses, random.random() < 0.2)
            people[realm].append(person)
        return people

    def _plan_sessions(self) -> list[_Start]:
        """All sessions and the attempts of scanners, by the time they begin."""
        scenario, random = self.scenario, self._random
        days = (scenario.until - self.begins_at) / DAY
        count = round(scenario.users * days) if scenario.sessions is None else scenario.sessions
        people = self._people()
        starts: list[_Start] = []
        shares = [profile.share for profile in PROFILES]
        for index, realm in enumerate(self.realms):
            own = people[index]
            # A few users make most of the calls.
            weights = list(accumulate(1 / (rank + 1) ** 0.7 for rank in range(len(own))))
            hours, week = (
                (EVENING_HOURS, EVENING_WEEK) if realm.is_rest else (OFFICE_HOURS, OFFICE_WEEK)
            )
            midnights = _midnights(realm, scenario.until)
            busyness = [
                week[day.weekday()] * (1 + GROWTH * number / len(midnights))
                for number, (_, day) in enumerate(midnights)
            ]
            scale = count * len(own) / scenario.users / sum(busyness)
            # On the first morning: from a realm's first usage on it has periods.
            starts.append(_Start(midnights[0][0] + 10 * HOUR, len(starts), own[0], VOICE))
            owed = 0.0
            for (midnight, _), busy in zip(midnights, busyness, strict=True):
                owed += busy * scale
                for _ in range(int(owed)):
                    hour = random.choices(range(24), hours)[0]
                    at = midnight + hour * HOUR + random.randrange(HOUR)
                    person = random.choices(own, cum_weights=weights)[0]
                    profile = random.choices(PROFILES, shares)[0]
                    starts.append(_Start(at, len(starts), person, profile))
                owed -= int(owed)
                for _ in range(random.randrange(SCANS_A_DAY + 1)):
                    at = midnight + random.randrange(DAY)
                    starts.append(_Start(at, len(starts), random.choice(own), None))
        return sorted(
            start
            for start in (*starts, *self._plan_calls_at_outages(people, len(starts)))
            if start.at < scenario.until
        )

    def _plan_calls_at_outages(
        self, people: Sequence[Sequence[_Person]], order: int
    ) -> Iterator[_Start]:
        """Calls through each outage, or at the end of a month those that begin in it."""
        month_ends = {border - LATE_OUTAGE[1] for realm in self.realms for border in realm.borders}
        for outage in self.outages:
            for realm, own in zip(self.realms, people, strict=True):
                if outage.to_at + LATE_OUTAGE[1] in realm.borders:
                    offsets = [(number + 1) * 4 * MINUTE for number in range(LATE_SESSIONS)]
                elif outage.to_at not in month_ends:
                    offsets = [-(number + 2) * 5 * MINUTE for number in range(CALLS_THROUGH_OUTAGE)]
                else:
                    continue  # of another realm's month
                for number, offset in enumerate(offsets):
                    person = own[number % len(own)]
                    order += 1
                    yield _Start(outage.from_at + offset, order, person, LONG_CALL)

    # -- what happens

    def _simulate(self, start: _Start) -> list[tuple[int, int, bytes, bytes]]:
        """Simulate one session to its end; returns the messages of it that are captured."""
        if not self._crashed and start.at >= self._crash_at + DOWN_TIME:
            self._crashed = True
            self._servers[0] = self._start_server(0)
        if start.profile is None:
            self._scan(start)
        elif not self._begin(start, start.profile):
            return []
        messages = [
            (command.at_us, command.database, command.args[0], command.args[1])
            for command in self._commands
            if command.name == b"publish" and not self.ledger.is_lost(command.at_us)
        ]
        self._commands.clear()
        return messages

    def _begin(self, start: _Start, profile: Profile) -> bool:
        """Simulate a session; False for one that would not be over at the end of the history."""
        random, person = self._random, start.person
        length = profile.minutes * random.lognormvariate(0, 0.8) * MINUTE
        if profile is LONG_CALL:
            length = profile.minutes * (0.8 + 0.4 * random.random()) * MINUTE
        ends_at = start.at + min(max(int(length), 5 * SECOND), 3 * HOUR)
        if ends_at > self.scenario.until - 2 * MINUTE:
            return False
        is_down = self._crash_at <= start.at and not self._crashed
        server = self._servers[random.randrange(1 if is_down else 0, len(SERVERS))]
        identity = self._identity(person, start.at)
        thread = random.randrange(RELAY_THREADS)
        transport = "UDP"
        if profile.is_tcp_relay or random.random() < (0.7 if person.loves_tcp else 0.1):
            transport = "TLS/TCP" if random.random() < 0.5 else "TCP"
        allocation = Allocation(
            process=server,
            ledger=self._published,
            random=random,
            thread=thread,
            allocation_id=self._take_id(server, thread, identity),
            identity=identity,
            transport=transport,
            begins_us=start.at,
            ends_us=ends_at,
            lifetime_seconds=profile.lifetime_seconds,
            packets_per_second=profile.packets_per_second * (0.7 + 0.6 * random.random()),
            packet_bytes=profile.packet_bytes,
            traits=Traits(
                reports_only_at_close=profile.is_tcp_relay,
                loses_first_report=random.random() < 0.004,
            ),
            client_address=f"{random.choice(person.addresses)}:{random.randrange(1024, 65536)}",
        )
        server.records = []
        for time in allocation.play():
            if server.server == 0 and start.at < self._crash_at <= time:
                allocation.lose(self._crash_at)
                break
        self.ledger.add_session(
            person.realm, identity, server.records, profile.lifetime_seconds * SECOND
        )
        return True

    def _scan(self, start: _Start) -> None:
        """Requests that never authenticate: often under made-up names, sometimes a user's."""
        random, person = self._random, start.person
        name = random.choice((*SCANNED_NAMES, person.name))
        identity = SimulatedUser(person.realm.name.encode(), name, name)
        is_down = self._crash_at <= start.at and not self._crashed
        server = self._servers[random.randrange(1 if is_down else 0, len(SERVERS))]
        thread = random.randrange(RELAY_THREADS)
        allocation_id = self._take_id(server, thread, identity)
        requests = random.randrange(1, 40)
        counters: Counters = (
            *(requests, requests * REQUEST_BYTES, requests, requests * RESPONSE_BYTES),
            *(0, 0, 0, 0),
        )
        server.records = []
        prefix = channel_prefix(identity.realm, identity.username, allocation_id)
        server.publish_traffic(start.at, thread, prefix, "traffic", counters)
        self.ledger.add_session(person.realm, identity, server.records, SHORT_LIFETIME * SECOND)

    def _identity(self, person: _Person, at: int) -> SimulatedUser:
        """The user, with a username of that day in a realm of TURN REST."""
        username = person.name
        if person.realm.is_rest:
            username = b"%d:%b" % ((at // DAY + 1) * DAY // SECOND, person.name)
        return SimulatedUser(person.realm.name.encode(), username, person.name)

    def _take_id(self, server: _Server, thread: int, identity: SimulatedUser) -> int:
        """An id that this name never had: what an outage swallows can't join another session."""
        while True:
            allocation_id = server.take_id(thread)
            key = (identity.realm, identity.username, allocation_id)
            if key not in self._used_keys:
                self._used_keys.add(key)
                return allocation_id


def realm_names(count: int) -> tuple[str, ...]:
    """So many names of realms, from the domains that are reserved for examples."""
    return tuple(
        REALM_NAMES[index] if index < len(REALM_NAMES) else f"realm{index + 1}.example.org"
        for index in range(count)
    )


def _realm(name: str, index: int, scenario: HistoryScenario) -> HistoryRealm:
    """A realm with the borders of its months, in its time zone."""
    zone = ZoneInfo(ZONES[index % len(ZONES)])
    end = datetime.fromtimestamp(scenario.until / SECOND, UTC)
    last = (end - timedelta(hours=SETTLED_HOURS)).astimezone(zone)
    months = last.year * 12 + last.month - 1
    days = [
        datetime(month // 12, month % 12 + 1, 1, tzinfo=zone)
        for month in range(months - scenario.months, months + 2)
    ]
    days = [day for day in days if _micros(day) < scenario.until]
    return HistoryRealm(
        name=name,
        time_zone=zone.key,
        is_rest=index % 2 == 1,
        borders=tuple(map(_micros, days)),
        first_days=tuple(day.date() for day in days),
        until=scenario.until,
    )


def _midnights(realm: HistoryRealm, until: int) -> list[tuple[int, datetime]]:
    """The local midnights of a realm's history, as time and as day."""
    zone = ZoneInfo(realm.time_zone)
    day = datetime.combine(realm.first_days[0], datetime.min.time(), zone)
    midnights = []
    while (time := _micros(day)) < until:
        midnights.append((time, day))
        day += timedelta(days=1)  # of the local clock
    return midnights


def _is_workday(realm: HistoryRealm, time: int) -> bool:
    return datetime.fromtimestamp(time / SECOND, ZoneInfo(realm.time_zone)).weekday() < 5


def _micros(moment: datetime) -> int:
    return int(moment.timestamp()) * SECOND
