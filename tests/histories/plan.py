"""The plan of a random history: what coturn publishes when, and what operators and faults do.

A plan is a function of its seed. Its times lie in the past, around the nights on which clocks
change and the borders of days, months, years and billing periods.
"""

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Final

from tests.histories.oracle import HOUR, SECOND, Calendar, Rule, day_begins, micros, moment, offset

DAY: Final = 24 * HOUR
MINUTE: Final = 60 * SECOND

ZONES: Final = (
    "Europe/Berlin",
    "America/New_York",
    "Australia/Lord_Howe",  # half an hour of summer time
    "Asia/Kathmandu",  # UTC+5:45
    "America/St_Johns",
    "America/Santiago",  # days that begin at one o'clock
    "Asia/Beirut",  # the same, and days with 23:00 twice
    "Africa/Cairo",
    "Pacific/Chatham",  # UTC+12:45, and summer time at 2:45
    "Pacific/Kiritimati",  # UTC+14
    "Africa/Casablanca",  # winter time in Ramadan
    "Europe/Dublin",
    "Asia/Kolkata",
    "UTC",
)
REALMS: Final = (
    b"example.org",
    b"",
    b"sub.example.org",
    "pr\u00fcfstand".encode(),
    b"a realm",
    b"\xff\xfe.invalid",
    b"x'); DROP TABLE reports;--",
    b"back\\x41slash",
    b"turn/realm/x",
    b"100%s",
)
USERS: Final = (
    b"alice",
    b"bob",
    b"1700000000:carol",
    b"1700000099:carol",
    b"carol:1700000001",
    b"carol",
    b"12345",
    b"12345:67890",
    b"1700000000:",
    b"",
    b" ",
    "zo\u00eb \U0001f480".encode(),
    b"x/allocation/000000000000000009/status",
    b"user/user/turn/realm/r",
    b"\xff\xfe\x00nul",
    b"a\\x41",
    b"a\\\\x41\\",
    b"tab\tline\nreturn\r",
    b"%(user)s {user} $1 ?",
    b"'; --",
    b"1:2:3",
    b"1700000000|dora",
    "\u202etfel ot thgir".encode(),
    b"u" * 512,
)
BAD_MESSAGES: Final = (
    (b"turn/realm/example.org/user/x/allocation/000000000000000001/status", b"new lifetime=abc"),
    (
        b"turn/realm/example.org/user/x/allocation/000000000000000001/status",
        b"new lifetime=2147483648",
    ),
    (b"turn/realm/example.org/user/x/allocation/000000000000000001/traffic", b"rcvp=1, rcvb=-1"),
    (
        b"turn/realm/example.org/user/x/allocation/000000000000000001/traffic",
        b"rcvp=1, rcvb=9007199254740992, sentp=1, sentb=1",
    ),
    (b"turn/realm/\xff\xfe/user/\x00y/allocation/1/status", b"new lifetime=600"),
    (b"turn/realm/example.org/user/z/allocation/000000000000000002/total_traffic", b"\xff\x00junk"),
    (b"turn/user/z/allocation/000000000000000002/other", b"deleted"),
)
STARTS: Final = ("2024-12-12", "2025-03-03", "2025-03-24", "2025-10-12", "2025-12-15", "2026-03-10")
"""The first days of histories: before ends of years, and before nights on which clocks change."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Published:
    """A message at the time at which coturn published it."""

    at: int
    database: int
    channel: bytes
    payload: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class CaptureGap:
    """What was published in [from_at, to_at) is lost. ``new_epoch``: positions start again.

    ``scanned``: whether a scan of the status keys follows.
    """

    from_at: int
    to_at: int
    new_epoch: bool
    scanned: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class SourcePlan:
    """What a source sees. ``clock_steps``: (from when, by how much its clock is off then)."""

    name: str
    mode: str
    published: Sequence[Published]
    gaps: Sequence[CaptureGap]
    clock_steps: Sequence[tuple[int, int]]

    def wall_clock(self, time: int) -> int:
        """What the collector's clock says at that time."""
        errors = [error for start, error in self.clock_steps if start <= time]
        return time + (errors[-1] if errors else 0)


@dataclass(frozen=True, slots=True, kw_only=True)
class Stage:
    """A part of the history: how far each source gets, how jobs run, and what happens then.

    ``until``: by source. ``kills``: how long processes run until they are killed, in seconds.
    ``clock_ahead``: the source whose collector's clock is ahead of all others in the last part of
    the stage, until it is corrected; '' for none.
    """

    until: dict[str, int]
    runs: str
    kills: Sequence[float]
    actions: Sequence[str]
    clock_ahead: str
    order: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """A history. ``default_rule``: of the settings."""

    seed: int
    short: bool
    rules: dict[bytes, Sequence[Rule]]
    default_rule: Rule
    sources: Sequence[SourcePlan]
    stages: Sequence[Stage]

    def lines(self) -> Iterator[str]:
        """The plan in words."""
        for realm, rules in self.rules.items():
            for rule in rules:
                since = "the beginning" if rule.holds_from is None else moment(rule.holds_from)
                yield (
                    f"realm {realm!r}: {rule.time_zone}, anchor day {rule.anchor_day},"
                    f" grace {rule.grace_seconds} s, {rule.username_rule} {rule.separator!r}"
                    f" from {since}"
                )
        for source in self.sources:
            steps = [f"{error // SECOND:+} s at {moment(at)}" for at, error in source.clock_steps]
            yield (
                f"source {source.name!r}: {source.mode}, {len(source.published)} messages from"
                f" {moment(source.published[0].at)} to {moment(source.published[-1].at)},"
                f" {len(source.gaps)} gaps, clock steps: {', '.join(steps) or 'none'}"
            )
        for number, stage in enumerate(self.stages):
            until = ", ".join(f"{name!r} to {moment(at)}" for name, at in stage.until.items())
            yield (
                f"stage {number}: {until}; {stage.runs}, {len(stage.kills)} kills;"
                f" then {', '.join(stage.actions) or 'nothing'}"
                + (f"; the clock of {stage.clock_ahead!r} is ahead" if stage.clock_ahead else "")
            )


def make_plan(
    seed: int, *, short: bool, sources: Sequence[str] = ("north", "s\u00fcd west")
) -> Plan:
    return _Planner(seed, short=short, names=sources).plan()


@dataclass(slots=True)
class _Planner:
    seed: int
    short: bool
    names: Sequence[str]
    chance: random.Random = field(init=False)
    rules: dict[bytes, Sequence[Rule]] = field(init=False, default_factory=dict)
    start: int = field(init=False, default=0)
    end: int = field(init=False, default=0)

    def __post_init__(self) -> None:
        self.chance = random.Random(self.seed * 2 + self.short)

    def plan(self) -> Plan:
        chance = self.chance
        self.start = micros(datetime.fromisoformat(chance.choice(STARTS)).replace(tzinfo=UTC))
        self.end = (
            self.start + (chance.randint(22, 30) if self.short else chance.randint(25, 70)) * DAY
        )
        default_rule = Rule(time_zone=chance.choice(ZONES), grace_seconds=chance.choice((60, 900)))
        realms = chance.sample(REALMS, 2 if self.short else chance.randint(2, 4))
        for realm in realms:
            self.rules[realm] = self._rules(default_rule)
        mode = chance.choice(("replication", "subscribe"))
        sources = [self._source(name, mode) for name in self.names]
        return Plan(
            seed=self.seed,
            short=self.short,
            rules=self.rules,
            default_rule=default_rule,
            sources=sources,
            stages=self._stages(sources),
        )

    # -- rules

    def _rules(self, default: Rule) -> Sequence[Rule]:
        chance = self.chance
        if chance.random() < 0.15:
            return [default]
        rules = [self._rule(None)]
        if chance.random() < 0.4:
            # Known before there is usage; later changes of rules are actions.
            zone = chance.choice(ZONES)
            day = moment(chance.randint(self.start + 2 * DAY, self.end)).date()
            rules.append(self._rule(day_begins(zone, day), zone))
        return rules

    def _rule(self, holds_from: int | None, zone: str | None = None) -> Rule:
        chance = self.chance
        return Rule(
            holds_from=holds_from,
            time_zone=zone or chance.choice(ZONES),
            anchor_day=chance.choice((1, 1, 15, 28, 30, 31, chance.randint(1, 31))),
            grace_seconds=chance.choice((0, 1, 60, 60, 300, 7200)),
            username_rule=chance.choice(("auto", "rest", "plain")),
            separator=chance.choice((b":", b":", b"|", b"/")),
        )

    # -- sources

    def _source(self, name: str, mode: str) -> SourcePlan:
        chance = self.chance
        published: list[Published] = []
        for _ in range(10 if self.short else chance.randint(60, 120)):
            published += self._allocation()
        for _ in range(2 if self.short else 8):
            published += self._mess()
        for channel, payload in chance.sample(BAD_MESSAGES, 3):
            at = chance.randint(self.start, self.end)
            published.append(Published(at=at, database=0, channel=channel, payload=payload))
        published.sort(key=lambda message: message.at)
        gaps = []
        time = self.start
        for _ in range(chance.randint(0, 5)):
            later = [message.at for message in published if message.at >= time]
            if not later:
                break
            time = chance.choice(later) - chance.randrange(HOUR)
            to_at = time + chance.choice((SECOND, 5 * MINUTE, HOUR, 5 * HOUR))
            new_epoch = mode == "subscribe" or chance.random() < 0.5
            scanned = chance.random() < 0.7
            gaps.append(CaptureGap(from_at=time, to_at=to_at, new_epoch=new_epoch, scanned=scanned))
            time = to_at + HOUR
        steps = []
        for _ in range(chance.choice((0, 0, 1, 3))):
            error = chance.choice((0, 1, -1)) * chance.choice((SECOND, 20 * MINUTE, HOUR, 7 * HOUR))
            steps.append((chance.randint(self.start, self.end), error))
        return SourcePlan(
            name=name, mode=mode, published=published, gaps=gaps, clock_steps=sorted(steps)
        )

    def _time(self, realm: bytes) -> int:
        """A time of the history, mostly near a border of the realm."""
        chance = self.chance
        if chance.random() < 0.3:
            return chance.randint(self.start, self.end)
        border = chance.choice(self._borders(realm))
        return border + round(chance.gauss(0, 1.5) * HOUR)

    def _borders(self, realm: bytes) -> list[int]:
        rules = self.rules[realm]
        borders = [
            *[rule.holds_from for rule in rules if rule.holds_from],
            *[p.starts_at for p in Calendar(rules).periods(self.start, self.end)],
        ]
        for rule in rules:
            zone, time = rule.time_zone, self.start
            while time < self.end:
                today = moment(time).date()
                if today.day == 1 or offset(zone, time) != offset(zone, time + DAY):
                    borders += [
                        day_begins(zone, today),
                        day_begins(zone, today + timedelta(days=1)),
                    ]
                time += DAY
        return [time for time in borders if self.start < time < self.end] or [self.start + DAY]

    def _key(self, realm: bytes) -> tuple[bytes, int, str]:
        """The channel before its suffix, the database, and the address of the server."""
        chance = self.chance
        username = chance.choice(self._users_of(realm))
        thread, number = chance.choice((0, 0, 1, 127)), chance.randint(1, 3)
        prefix = b"turn/realm/%b" % realm if realm or chance.random() < 0.1 else b"turn"
        allocation = b"%018d" % (thread * 10**15 + number)
        channel = b"%b/user/%b/allocation/%b" % (prefix, username, allocation)
        database = chance.choice((0, 3))
        return channel, database, f"192.0.2.{chance.choice((1, 1, 1, 2))}:3478"

    def _users_of(self, realm: bytes) -> Sequence[bytes]:
        return random.Random(f"{self.seed} {realm!r}").sample(USERS, 4 if self.short else 8)

    # -- what coturn publishes

    def _allocation(self) -> list[Published]:
        """An allocation from its start to its end, of which some messages may be lost."""
        chance = self.chance
        realm = chance.choice(list(self.rules))
        channel, database, local = self._key(realm)
        at = self._time(realm)
        lifetime = chance.choice((600, 600, 777, 3600))
        length = round(chance.choice((30, 600, 3000, 9000, 40_000)) * chance.random() * SECOND)
        addresses = self._addresses(local) if chance.random() < 0.7 else b""
        timed: list[tuple[int, bytes, bytes]] = [
            (at, b"status", b"new lifetime=%d%b" % (lifetime, addresses))
        ]
        time = at
        while (time := time + round(lifetime * SECOND * chance.uniform(0.5, 1.0))) < at + length:
            timed.append((time, b"status", b"refreshed lifetime=%d%b" % (lifetime, addresses)))
        client, peer = [0] * 4, [0] * 4
        for _ in range(chance.choice((0, 1, 2, 5))):
            moment_of_report = at + round(chance.random() * length)
            timed += self._interims(moment_of_report, client, peer)
        end = at + length
        if chance.random() < 0.7:
            timed.append((end, b"status", b"refreshed lifetime=0" + addresses))
        end += SECOND
        if chance.random() < 0.8:
            timed += self._interims(end, client, peer)
        if chance.random() < 0.05:
            client[chance.randrange(4)] += chance.choice((1, 10_000))
        if chance.random() < 0.05:
            client[1] = max(0, client[1] - 5)
        if chance.random() < 0.05:
            peer[chance.randrange(4)] += chance.choice((1, 700, 2**31))
        timed += [
            (end, b"status", b"deleted"),
            (end, b"total_traffic", self._counts(client)),
            (end + 1, b"total_traffic/peer", self._counts([count % 2**32 for count in peer])),
        ]
        timed.sort(key=lambda entry: entry[0])
        return self._on_channel(channel, database, self._lose_some(timed, end - SECOND))

    def _lose_some(
        self, timed: list[tuple[int, bytes, bytes]], end: int
    ) -> list[tuple[int, bytes, bytes]]:
        """What of an allocation is published, and when; mostly everything at its time."""
        chance = self.chance
        fate = chance.random()
        if fate < 0.15:  # the server crashed
            return timed[: chance.randint(1, len(timed))]
        if fate < 0.4:
            lost = chance.choice((0.1, 0.4))
            return [entry for entry in timed if chance.random() > lost]
        if fate < 0.48:  # never authenticated
            return [entry for entry in timed if entry[1].startswith(b"traffic")]
        if fate < 0.55:  # what ended it came hours later
            return [
                (time + (6 * HOUR if time >= end else 0), suffix, payload)
                for time, suffix, payload in timed
            ]
        return timed

    def _mess(self) -> list[Published]:
        """Messages of any kind in any order on one key."""
        chance = self.chance
        realm = chance.choice(list(self.rules))
        channel, database, _ = self._key(realm)
        time = self._time(realm)
        timed: list[tuple[int, bytes, bytes]] = []
        for _ in range(chance.randint(5, 20)):
            time += round(chance.choice((0, 1, 60, 700, 4000, 9000)) * chance.random() * SECOND)
            kind = chance.choice(
                ("new", "new", "refreshed", "deleted", "interim", "interim", "total")
            )
            local = f"192.0.2.{chance.choice((1, 2, 3))}:3478"
            addresses = self._addresses(local) if chance.random() < 0.7 else b""
            counts = [chance.choice((0, 1, 1000, chance.randrange(2**33))) for _ in range(4)]
            side = chance.choice((b"", b"/peer"))
            match kind:
                case "new" | "refreshed":
                    lifetime = chance.choice((0, 1, 600, 3600, 100_000))
                    payload = b"%b lifetime=%d%b" % (kind.encode(), lifetime, addresses)
                    timed.append((time, b"status", payload))
                case "deleted":
                    timed.append((time, b"status", b"deleted"))
                case "interim":
                    timed.append((time, b"traffic" + side, self._counts(counts)))
                case _:
                    timed.append((time, b"total_traffic" + side, self._counts(counts)))
        return self._on_channel(channel, database, timed)

    def _interims(
        self, time: int, client: list[int], peer: list[int]
    ) -> list[tuple[int, bytes, bytes]]:
        chance = self.chance
        entries = []
        for suffix, sums in ((b"traffic", client), (b"traffic/peer", peer)):
            received, sent = chance.randint(0, 4096), chance.randint(0, 4096)
            size = chance.choice((0, 60, 172, 1200, 65000))
            counts = [received, received * size, sent, sent * size]
            if size == 65000:  # enough of them wrap the peer total
                counts[1], counts[3] = counts[1] * 9, counts[3] * 9
            sums[:] = [a + b for a, b in zip(sums, counts, strict=True)]
            entries.append((time, suffix, self._counts(counts)))
        return entries

    def _addresses(self, local: str) -> bytes:
        chance = self.chance
        transport = chance.choice(("UDP", "TCP", "TLS/TCP"))
        remote = chance.choice(("198.51.100.7", "[2001:db8::2]"))
        text = f", type={transport}, local={local}, remote={remote}:{chance.randint(1024, 65535)}"
        return f"{text}, ssl=NONE, cipher=NONE".encode()

    @staticmethod
    def _counts(counts: Sequence[int]) -> bytes:
        return b"rcvp=%d, rcvb=%d, sentp=%d, sentb=%d" % tuple(counts)

    @staticmethod
    def _on_channel(
        channel: bytes, database: int, timed: Sequence[tuple[int, bytes, bytes]]
    ) -> list[Published]:
        return [
            Published(at=at, database=database, channel=channel + b"/" + suffix, payload=payload)
            for at, suffix, payload in timed
        ]

    # -- stages

    def _stages(self, sources: Sequence[SourcePlan]) -> list[Stage]:
        chance = self.chance
        count = 2 if self.short else chance.randint(3, 5)
        times = [message.at for source in sources for message in source.published]
        ends = sorted(chance.sample(times, count - 1))
        last = self.end + chance.choice((2 * HOUR, 3 * DAY, 70 * DAY))
        late = chance.choice(sources).name
        lag = chance.choice((0, 0, 2 * DAY, 20 * DAY))
        stages = []
        for number, end in enumerate([*ends, last]):
            until = {
                source.name: end - (lag if source.name == late and end != last else 0)
                for source in sources
            }
            stages.append(
                Stage(
                    until=until,
                    runs=self._short_runs(number)
                    if self.short
                    else chance.choice(("jobs", "jobs", "services")),
                    kills=[chance.random() ** 2 * 0.5 for _ in range(chance.randint(0, 3))],
                    actions=self._short_actions(number)
                    if self.short
                    else self._actions(number, is_last=end == last),
                    clock_ahead=chance.choice((sources[0].name, "", ""))
                    if self.short
                    else chance.choice((late, sources[0].name, sources[1].name, "", "", "")),
                    order=chance.randrange(2**30),
                )
            )
        return stages

    def _actions(self, number: int, *, is_last: bool) -> list[str]:
        chance = self.chance
        actions = [
            action
            for action, probability in {
                "close without the late source": 0.4,
                "retire the late source": 0.25,
                "reopen the source": 0.15,
                "correct": 0.5,
                "correct again": 0.2,
                "refused rule": 0.3,
                "change a rule": 0.25,
                "rebuild": 0.3,
                "retain": 0.3,
                "verify": 0.2,
            }.items()
            if chance.random() < probability
        ]
        chance.shuffle(actions)
        if number == 0 or chance.random() < 0.3:
            actions.append("back up")
        if number > 0 and chance.random() < 0.4:
            actions.append("restore")
        if is_last:
            actions.append("verify")
        return actions

    def _short_runs(self, number: int) -> str:
        """Schedulers run for seconds, so only every second short history has them, once."""
        return "services" if number == 1 and self.seed % 2 == 0 else "jobs"

    def _short_actions(self, number: int) -> list[str]:
        chance = self.chance
        if number == 0:
            return [chance.choice(("close without the late source", "correct")), "back up"]
        return [chance.choice(("restore", "rebuild", "retain")), "verify"]
