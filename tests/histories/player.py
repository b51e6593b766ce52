"""Plays a history: real processes against a real Postgres, and the oracle after each stage.

The harness stands in for the collector's clock: it appends to the spools what a source captured up
to a stage, at the times of the plan. Everything behind the spool is the service's own processes:
loaders, jobs and schedulers, which are killed and run again, and the commands of operators.
"""

import os
import random
import signal
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import dataclass, field
from datetime import date, timedelta
from itertools import zip_longest
from pathlib import Path
from typing import Any, Final
from zoneinfo import ZoneInfo

import psycopg
from psycopg.rows import dict_row

from accounting.capture.spool.file import spool_path
from accounting.capture.spool.records import RawKeySighting
from accounting.capture.spool.spool import Spool
from tests.histories.billing_worker import BillingWorker
from tests.histories.capture import Place, capture
from tests.histories.comparison import (
    VIEWS,
    Expectation,
    Identities,
    Views,
    differences,
)
from tests.histories.oracle import (
    COUNTERS,
    SECOND,
    Calendar,
    Gap,
    Message,
    Sighting,
    Stream,
    moment,
    shown,
    status_key,
)
from tests.histories.plan import MINUTE, CaptureGap, Plan, SourcePlan, Stage
from tests.histories.rules import changed_rules, random_changes, rule_fields, rule_options
from tests.support.books import READER, WRITER
from tests.support.command import start_turn_accounting
from tests.support.servers import PostgresServer, RedisServer, wait_until

JOBS: Final = ("settle", "rollup", "gaps", "close", "adjust", "feed")
"""In an order in which one run of each is enough."""
DEADLINE_SECONDS: Final = 120.0
SPOOL_RETENTION_SECONDS: Final = 50 * 365 * 86_400
"""Longer than these histories are ago: what a restored database lacks is still in the spools."""


class HistoryFailed(AssertionError):
    """The books differ from the oracle's, or a command ended otherwise than it must."""


@dataclass(slots=True)
class Source:
    """A source of the plan while it is played: its spool, and what the oracle knows of it."""

    plan: SourcePlan
    data_dir: Path
    spool: Spool
    stream: Stream
    cursor: int = 0
    last_at: int = 0
    epoch: int = 1
    position: int = 0
    ahead: int = 0
    """By how much its clock is ahead now, which was not noticed yet."""
    ahead_after: int = 0
    """The last time before that."""
    ahead_passed: bool = False
    """Whether it has passed that time: a clock that is ahead can step back as well."""
    open_gap: tuple[int, int] | None = None
    """Its number in the spool, and its index in the stream."""
    events: Sequence[tuple[int, int, int, CaptureGap | None]] = ()
    """Time, order, index of the published message, gap."""
    places: Sequence[Place] | None = None

    @classmethod
    def open(
        cls, plan: SourcePlan, directory: Path, places: Sequence[Place] | None = None
    ) -> "Source":
        """``places``: where a collector stored the messages; None: they get invented ones."""
        data_dir = directory / f"collector-{plan.mode}-{ord(plan.name[0])}"
        started_at = plan.wall_clock(plan.published[0].at) - 60 * SECOND
        spool = Spool.open(spool_path(data_dir, plan.name), plan.name, clock=lambda: started_at)
        spool.set_mode("replication" if plan.mode == "replication" else "subscribe")
        spool.checkpoint(started_at)
        events: list[tuple[int, int, int, CaptureGap | None]] = []
        for gap in plan.gaps:
            events += [(gap.from_at, 0, 0, gap), (gap.to_at, 1, 0, gap)]
        for index, message in enumerate(plan.published):
            if not any(gap.from_at <= message.at < gap.to_at for gap in plan.gaps):
                events.append((message.at, 2, index, None))
        events.sort(key=lambda event: event[:3])
        stream = Stream(until=started_at)
        source = cls(plan, data_dir, spool, stream, last_at=started_at, events=events)
        source.places = places
        return source

    def put_clock_ahead(self, until: int, chance: random.Random) -> None:
        """Put the clock so far ahead that all times from now on are later than ``until``."""
        self.ahead_after, self.ahead_passed = self.last_at, False
        self.ahead = self.plan.wall_clock(until) - self.last_at + chance.randint(1, 40) * MINUTE

    def correct_clock(self) -> None:
        """Correct the times that were stored, as a collector does when it has noticed."""
        if self.ahead:
            self.spool.shift_times(-self.ahead, after=self.ahead_after)
            self.ahead = 0

    def receive_until(self, until: int, chance: random.Random) -> None:
        """Append everything up to that time to the spool, as a collector does."""
        batch: list[int] = []
        while self.cursor < len(self.events) and self.events[self.cursor][0] <= until:
            at, kind, index, event = self.events[self.cursor]
            self.cursor += 1
            if event is None:
                batch.append(index)
                if chance.random() < 0.02:
                    self._append(batch, chance)
                continue
            self._append(batch, chance)
            if kind == 0:
                self._begin_gap(self.plan.wall_clock(at), new_epoch=event.new_epoch)
            else:
                self._end_gap(self.plan.wall_clock(at))
                if event.scanned:
                    self._scan_keys(at, chance)
        self._append(batch, chance)
        self.last_at = max(self.last_at, self.plan.wall_clock(until))
        self.spool.checkpoint(self.last_at + self.ahead)
        self.stream.until = self.last_at

    def _is_to_be_corrected(self, wall: int) -> bool:
        """Whether a message that is received now gets a time that is ahead."""
        self.ahead_passed |= self.ahead > 0 and wall + self.ahead > self.ahead_after
        return self.ahead > 0 and self.ahead_passed

    def _append(self, batch: list[int], chance: random.Random) -> None:
        if not batch:
            return
        estimated_count = chance.choice((0, 0, 0, len(batch) // 2))
        messages, positions = [], []
        for number, index in enumerate(batch):
            event = self.plan.published[index]
            if self.places is not None:
                self.position, database = self.places[index]
            else:
                self.position += 1 if self.plan.mode == "subscribe" else chance.randint(40, 900)
                database = 0 if self.plan.mode == "subscribe" else event.database
            wall = self.plan.wall_clock(event.at)
            self.last_at = max(self.last_at, wall)
            messages.append((wall + self.ahead, database, event.channel, event.payload))
            positions.append(self.position)
            self.stream.messages.append(
                Message(
                    self.epoch,
                    self.position,
                    self.last_at,
                    number < estimated_count or self._is_to_be_corrected(wall),
                    database,
                    event.channel,
                    event.payload,
                )
            )
        self.spool.append(messages, positions=positions, estimated_count=estimated_count)
        batch.clear()

    def _begin_gap(self, wall: int, *, new_epoch: bool) -> None:
        from_at = max(wall, self.last_at)
        cause = "disconnected" if self.plan.mode == "subscribe" else "backlog_overrun"
        number = self.spool.open_gap(from_at + self.ahead, cause, "by the plan")
        self.stream.gaps.append(Gap(self.epoch, self.position, from_at, None, cause))
        self.open_gap = number, len(self.stream.gaps) - 1
        if new_epoch:
            self.spool.start_epoch(cause)
            self.epoch, self.position = self.epoch + 1, 0

    def _end_gap(self, wall: int) -> None:
        assert self.open_gap is not None
        number, index = self.open_gap
        gap = self.stream.gaps[index]
        last_received_at = self.stream.messages[-1].received_at if self.stream.messages else 0
        to_at = max(wall, gap.from_at + 1, last_received_at)
        self.spool.close_gap(number, wall + self.ahead)
        self.stream.gaps[index] = gap._replace(to_at=to_at)
        self.last_at = max(self.last_at, to_at)
        self.spool.checkpoint(to_at + self.ahead)
        self.open_gap = None

    def _scan_keys(self, at: int, chance: random.Random) -> None:
        """What a scan of the status keys finds: those that coturn has set and not deleted."""
        keys: dict[tuple[int, bytes], int] = {}
        for event in self.plan.published:
            if event.at >= at or not event.channel.endswith(b"/status"):
                continue
            keys.pop((event.database, event.channel), None)
            if event.payload != b"deleted":
                keys[event.database, event.channel] = event.at
        began_at = self.last_at
        seen_at = began_at + chance.randrange(2 * SECOND)
        found = [
            RawKeySighting(
                began_at + self.ahead,
                seen_at + self.ahead,
                database,
                key,
                (at - written_at) // SECOND,
            )
            for (database, key), written_at in sorted(keys.items())
        ]
        chance.shuffle(found)
        self.spool.add_sightings(found)
        is_shown = self.plan.mode == "replication"
        self.stream.sightings += [
            Sighting(
                self.epoch,
                self.position,
                number,
                began_at,
                seen_at,
                sighting.database if is_shown else 0,
                sighting.key,
                sighting.idle_seconds,
            )
            for number, sighting in enumerate(filter(is_of_allocation, found), start=1)
        ]


def is_of_allocation(sighting: RawKeySighting) -> bool:
    """Whether the service stores it, and so numbers it."""
    return status_key(sighting.key) is not None


@dataclass(slots=True)
class Player:
    """One history being played in its own database and directory."""

    plan: Plan
    server: PostgresServer
    database: str
    directory: Path
    redis_servers: Sequence[RedisServer] = ()
    """One for each source; none: nothing is captured, and the messages get invented positions."""
    sources: list[Source] = field(init=False)
    expected: Expectation = field(init=False)
    identities: Identities = field(init=False, default_factory=Identities)
    backup: Expectation | None = field(init=False, default=None)
    worker: BillingWorker = field(init=False, default_factory=BillingWorker)
    backed_up: dict[str, int] = field(init=False, default_factory=dict)
    """The messages of each source that are in the backup."""
    since_backup: list[tuple[str, ...]] = field(init=False, default_factory=list)
    """What operators did since the backup, and must do again after a restore."""
    corrections: dict[tuple[str, ...], tuple[Any, ...]] = field(init=False, default_factory=dict)
    """The rows of the corrections by command."""
    runs: int = field(init=False, default=0)
    killed: int = field(init=False, default=0)

    def play(self) -> None:
        chance = random.Random(self.plan.seed)
        places: list[Sequence[Place] | None] = [
            capture(plan, server, self.directory / f"captured-{index}", chance)
            for index, (plan, server) in enumerate(
                zip(self.plan.sources, self.redis_servers, strict=False)
            )
        ]
        self.sources = [
            Source.open(plan, self.directory, of_plan)
            for plan, of_plan in zip_longest(self.plan.sources, places)
        ]
        self.expected = Expectation(
            {realm: Calendar(rules) for realm, rules in self.plan.rules.items()},
            {source.plan.name: source.stream for source in self.sources},
        )
        self._set_database_clock()
        self._set_rules()
        try:
            for number, stage in enumerate(self.plan.stages):
                self._play_stage(number, stage)
        finally:
            for source in self.sources:
                source.spool.close()

    def _set_rules(self) -> None:
        for realm, rules in self.plan.rules.items():
            for rule in rules:
                if rule == self.plan.default_rule:
                    continue
                since = []
                if rule.holds_from is not None:
                    since = ["--from", str(local_day(rule.holds_from, rule.time_zone))]
                fields = dict(rule_fields(rule))
                self.run("realm", "set", shown(realm), *rule_options(fields), *since)

    def _play_stage(self, number: int, stage: Stage) -> None:
        chance = random.Random(stage.order)
        loaded = self._message_counts()
        for source in self.sources:
            until = stage.until[source.plan.name]
            if source.plan.name == stage.clock_ahead:
                middle = (source.last_at + until) // 2
                source.receive_until(min(middle, until), chance)
                source.put_clock_ahead(max(stage.until.values()), chance)
            source.receive_until(until, chance)
        self._set_database_clock()
        self._reopen_by_messages(loaded)
        if stage.runs == "services":
            self._run_services(stage.kills)
            # The schedulers ran these too, but maybe before all was settled.
            self._run_all("gaps", "close", "adjust", "feed")
        else:
            self._run_jobs(stage.kills, chance)
            self._finish_jobs()
        self.check(f"stage {number}")
        for action in stage.actions:
            self._act(action, stage, chance)
            self.check(f"stage {number}, after {action!r}")

    def _message_counts(self) -> dict[str, int]:
        return {source.plan.name: len(source.stream.messages) for source in self.sources}

    def _reopen_by_messages(self, loaded: Mapping[str, int]) -> None:
        """A message that is younger than the retirement of its source puts that back in service."""
        for source in self.sources:
            retired_at = self.expected.retired.get(source.plan.name)
            new = source.stream.messages[loaded[source.plan.name] :]
            if retired_at is not None and new and new[-1].received_at > retired_at:
                del self.expected.retired[source.plan.name]

    def _set_database_clock(self) -> None:
        """The database's now is the latest time that a source has captured."""
        self.expected.now = max(source.stream.until for source in self.sources)
        self.query(
            None,
            "UPDATE test_clock.clock SET fixed_at = %s RETURNING fixed_at",
            [moment(self.expected.now)],
        )

    # -- processes

    def settings(self, source: Source | None = None) -> dict[str, str]:
        rule = self.plan.default_rule
        name = source.plan.name if source else self.sources[0].plan.name
        return {
            "database_url": self.server.url(WRITER, self.database),
            "data_dir": str(source.data_dir if source else self.directory / "operator"),
            "source": name,
            "time_zone": rule.time_zone,
            "grace_seconds": str(rule.grace_seconds),
            "settle_interval_seconds": "0.2",
            "rollup_interval_seconds": "0.2",
            "log_level": "warning",
            "spool_retention_seconds": str(SPOOL_RETENTION_SECONDS),
            # As schedulers run ``retain`` too, it drops something only where an action says so.
            "unattributed_retention_days": "36500",
            "rejected_retention_days": "36500",
        }

    @contextmanager
    def _running(
        self, *arguments: str, source: Source | None = None, **settings: str
    ) -> Iterator["Process"]:
        process = self._start(arguments, source, **settings)
        try:
            yield process
        finally:
            process.end()

    def run(self, *arguments: str, codes: Sequence[int] = (0,), **settings: str) -> "Process":
        """Run a command to its end, which must have one of these exit codes."""
        with self._running(*arguments, source=None, **settings) as process:
            code = process.wait()
        if code not in codes:
            raise HistoryFailed(f"{arguments}: exit code {code}\n{process.output()}")
        return process

    def _load(self, source: Source) -> None:
        with self._running("load", source=source) as loader:
            wait_until(
                lambda: loader.has_ended() or self._loaded_until(source) == source.stream.until,
                DEADLINE_SECONDS,
            )
            code = loader.stop()
        if code != 0:
            raise HistoryFailed(f"load: exit code {code}\n{loader.output()}")

    def _loaded_until(self, source: Source) -> int | None:
        rows = self.query(
            None,
            "SELECT (extract(epoch FROM loaded_until) * 1000000)::bigint AS until"
            " FROM reporting.sources WHERE source = %s",
            [source.plan.name],
        )
        return rows[0]["until"] if rows else None

    def _run_jobs(self, kills: Sequence[float], chance: random.Random) -> None:
        """Run loaders and jobs in any order, and kill some of them."""
        todo: list[tuple[tuple[str, ...], Source | None]] = [
            (("load",), source) for source in self.sources
        ]
        todo += [(("job", "run", job), None) for job in chance.sample(JOBS, len(JOBS))]
        chance.shuffle(todo)
        for seconds, (arguments, source) in zip(kills, todo, strict=False):
            with self._running(*arguments, source=source) as process:
                process.kill_after(seconds)
                self.killed += 1
        self._correct_clocks()

    def _correct_clocks(self) -> None:
        for source in self.sources:
            source.correct_clock()

    def _run_services(self, kills: Sequence[float]) -> None:
        """Run a loader for each source and two schedulers, all at once; kill and restart some."""
        services: list[tuple[tuple[str, ...], Source | None]] = [
            *[(("load",), source) for source in self.sources],
            (("schedule",), None),
            (("schedule",), None),
        ]
        running = [self._start(*service) for service in services[: len(self.sources)]]
        try:
            # A period waits for the sources that the books know, so all have to be known.
            wait_until(self._all_known, DEADLINE_SECONDS)
            running += [self._start(*service) for service in services[len(self.sources) :]]
            for index, seconds in enumerate(kills):
                victim = (index * 2 + 1) % len(services)
                running[victim].kill_after(seconds)
                running[victim] = self._start(*services[victim])
                self.killed += 1
            self._correct_clocks()
            wait_until(self._all_settled, DEADLINE_SECONDS)
            codes = [process.stop() for process in running]
        finally:
            for process in running:
                process.end()
        # One that was started a moment ago has no handler for SIGTERM yet.
        if set(codes) - {0, -signal.SIGTERM}:
            raise HistoryFailed(f"exit codes {codes}\n{[p.output() for p in running]}")

    def _start(self, arguments: Sequence[str], source: Source | None, **settings: str) -> "Process":
        self.runs += 1
        path = self.directory / f"{self.runs:04}"
        return Process(arguments, path, self.settings(source) | settings)

    def _all_known(self) -> bool:
        rows = self.query(None, "SELECT source FROM reporting.sources")
        return len(rows) == len(self.sources)

    def _all_settled(self) -> bool:
        rows = self.query(
            None,
            "SELECT source, (extract(epoch FROM settled_until) * 1000000)::bigint AS until"
            " FROM reporting.sources",
        )
        return {row["source"]: row["until"] for row in rows} == {
            source.plan.name: source.stream.until for source in self.sources
        }

    def _finish_jobs(self) -> None:
        for source in self.sources:
            if self._loaded_until(source) != source.stream.until:
                self._load(source)
        self._run_all(*JOBS)

    def _run_all(self, *jobs: str) -> None:
        for job in jobs:
            self.run("job", "run", job)

    # -- what operators do

    def _act(self, action: str, stage: Stage, chance: random.Random) -> None:
        match action:
            case "verify":
                self.run("verify")
            case "rebuild":
                self.run("rebuild", "--reason", "a history")
            case "retain":
                self._retain(chance)
            case "back up":
                self._back_up()
            case "restore":
                self._restore()
            case _:
                self._bill(action, stage, chance)

    def _bill(self, action: str, stage: Stage, chance: random.Random) -> None:
        match action:
            case "close without the late source":
                self._close_without(stage, chance)
            case "retire the late source":
                self._retire(stage)
            case "reopen the source":
                self._reopen()
            case "correct":
                self._correct(chance)
            case "correct again":
                if self.expected.corrections:
                    again = chance.choice(self.expected.corrections)
                    self.run(*next(c for c, row in self.corrections.items() if row == again))
            case "refused rule":
                self._refuse_rule(chance)
            case "change a rule":
                self._change_rule(chance)
            case _:
                raise AssertionError(action)

    def _retain(self, chance: random.Random) -> None:
        days = str(chance.choice((1, 7, 30)))
        if chance.random() < 0.5:
            self.run("job", "run", "retain", report_retention_days=days)
        else:
            self.run(
                "job", "run", "retain",
                report_retention_days=days, unattributed_retention_days=days,
            )  # fmt: skip
            self.expected.strangers_kept = False
        self.expected.reports_kept = False

    def _back_up(self) -> None:
        self._copy_database(self.database, f"{self.database}_backup")
        self.backup = deepcopy(self.expected)
        self.backed_up = self._message_counts()
        self.since_backup.clear()

    def _copy_database(self, source: str, target: str) -> None:
        with psycopg.connect(self.server.url(), autocommit=True) as connection:
            connection.execute(f"DROP DATABASE IF EXISTS {target} WITH (FORCE)")
            connection.execute(f"CREATE DATABASE {target} TEMPLATE {source} STRATEGY file_copy")

    def _restore(self) -> None:
        """Postgres is lost; the backup takes its place, and the spools have what came since.

        Then operators repeat what they did; a period may be closed already, or not yet.
        """
        if self.backup is None:
            return
        self._copy_database(f"{self.database}_backup", self.database)
        self._set_database_clock()
        self.expected.corrections = list(self.backup.corrections)
        self.expected.closed = set(self.backup.closed)
        self.expected.retired = dict(self.backup.retired)
        self._reopen_by_messages(self.backed_up)
        self.expected.reports_kept = self.backup.reports_kept
        self.expected.strangers_kept = self.backup.strangers_kept
        self.identities.books_at.clear()
        self._finish_jobs()
        for command in self.since_backup:
            if self.run(*command, codes=(0, 2, 3)).code == 0:
                self._note(command)
        self._run_all("close", "adjust", "feed")

    def _note(self, command: tuple[str, ...]) -> None:
        """Note what a command of an operator changed."""
        match command:
            case ("adjust", *_):
                self.expected.corrections.append(self.corrections[command])
            case ("period", "close", realm, period, *_):
                self.expected.closed.add((realm, period))
            case ("source", "retire", name):
                self.expected.retired[name] = self.expected.now
            case ("source", "reopen", name):
                self.expected.retired.pop(name, None)

    def _operate(self, *command: str, codes: Sequence[int] = (0,)) -> None:
        if self.run(*command, codes=codes).code == 0:
            self._note(command)
            self.since_backup.append(command)

    def _close_without(self, stage: Stage, chance: random.Random) -> None:
        late = min(stage.until, key=lambda name: stage.until[name])
        rows = self.query(
            None, "SELECT realm, period FROM reporting.periods WHERE state <> 'closed'"
        )
        for row in sorted(rows, key=lambda row: (row["realm"], row["period"])):
            if chance.random() < 0.6:
                self._operate(
                    "period", "close", row["realm"], str(row["period"]), "--without", late,
                    codes=(0, 3),
                )  # fmt: skip
        self.run("job", "run", "feed")

    def _retire(self, stage: Stage) -> None:
        """The source that is behind; a source must be left, and periods close without this one."""
        if not self.expected.retired:
            name = min(stage.until, key=lambda name: stage.until[name])
            self._operate("source", "retire", name)
            self._run_all("close", "feed")

    def _reopen(self) -> None:
        for name in list(self.expected.retired):
            self._operate("source", "reopen", name)

    def _correct(self, chance: random.Random) -> None:
        lines = self.query(
            None, "SELECT realm, period, user_id FROM reporting.statements ORDER BY 1, 2, 3"
        )
        if not lines:
            return
        line = chance.choice(lines)
        name = chance.choice(COUNTERS)
        amount, seconds = chance.randint(-(10**12), 10**12), chance.randint(-(10**7), 10**7)
        reason = chance.choice(("goodwill", "a test call", "\u00fc '; -- %s"))
        command = (
            "adjust", line["realm"], str(line["period"]), line["user_id"],
            f"--{name.replace('_', '-')}={amount}", f"--session-seconds={seconds / 1000:.3f}",
            "--reason", reason, "--author", "carol",
        )  # fmt: skip
        self.corrections[command] = (
            line["realm"],
            str(line["period"]),
            line["user_id"],
            tuple(amount if counter == name else 0 for counter in COUNTERS),
            seconds * 1000,
            reason,
            "carol",
        )
        self._operate(*command)
        self.run("job", "run", "feed")

    def _refuse_rule(self, chance: random.Random) -> None:
        """A rule can't begin on a day with accounted usage."""
        rows = self.query(None, "SELECT DISTINCT realm FROM reporting.realm_usage_daily ORDER BY 1")
        if rows:
            realm = chance.choice(rows)["realm"]
            day = moment(min(source.stream.until for source in self.sources)).date()
            self.run(
                "realm", "set", realm, "--time-zone", "Asia/Tokyo",
                "--from", str(day.replace(day=1)), codes=(2,),
            )  # fmt: skip

    def _change_rule(self, chance: random.Random) -> None:
        """A rule begins after all that is accounted, from the next midnight or a later day on.

        A backup follows: a rule that is set again after a restore begins later.
        """
        rows = self.query(None, "SELECT DISTINCT realm FROM reporting.realm_usage_daily ORDER BY 1")
        if not rows:
            return
        name = chance.choice(rows)["realm"]
        realm = next(realm for realm in self.plan.rules if shown(realm) == name)
        changes = random_changes(chance)
        day = None
        if chance.random() < 0.5:
            day = moment(self.expected.now).date() + timedelta(days=chance.randint(2, 20))
        rules = self.expected.calendars[realm].rules
        self.expected.calendars[realm] = Calendar(
            changed_rules(rules, changes, self.expected.now, day)
        )
        self.run(
            *("realm", "set", name, *rule_options(changes)),
            *(() if day is None else ("--from", str(day))),
        )
        self.identities.books_at.clear()
        self._run_all("close", "feed")
        self._back_up()

    # -- the books

    def query(
        self, role: str | None, query: str, parameters: Sequence[Any] | None = None
    ) -> list[dict[str, Any]]:
        with psycopg.connect(
            self.server.url(role, self.database), row_factory=dict_row, options="-c timezone=UTC"
        ) as connection:
            return connection.execute(query.encode(), parameters).fetchall()

    def views(self) -> Views:
        with psycopg.connect(
            self.server.url(READER, self.database), row_factory=dict_row, options="-c timezone=UTC"
        ) as connection:
            return {
                view: connection.execute(
                    f"SELECT * FROM reporting.{view} ORDER BY {order}".encode()  # noqa: S608
                ).fetchall()
                for view, order in VIEWS.items()
            }

    def check(self, when: str) -> None:
        views = self.views()
        found = differences(self.expected, views, self.identities)
        found += self.worker.work(views["feed"], views["statements"])
        if not found:
            found += self.worker.compare(views, self.expected.corrections)
        if found:
            raise HistoryFailed("\n".join([f"seed {self.plan.seed}, {when}:", *found]))


def local_day(time: int, zone: str) -> date:
    return moment(time).astimezone(ZoneInfo(zone)).date()


class Process:
    """A running command. Everything it printed is in ``path``.out and ``path``.err."""

    def __init__(self, arguments: Sequence[str], path: Path, settings: Mapping[str, str]) -> None:
        self.arguments = arguments
        self.out, self.err = path.with_suffix(".out"), path.with_suffix(".err")
        self._process = start_turn_accounting(
            *arguments, out=self.out, err=self.err, settings=settings
        )
        self.code: int | None = None

    def has_ended(self) -> bool:
        return not self._process.is_alive()

    def wait(self) -> int:
        self._process.join(DEADLINE_SECONDS)
        code = self._process.exitcode
        if code is None:
            raise HistoryFailed(f"{self.arguments} does not end\n{self.output()}")
        self.code = code
        if "Traceback" in self.err.read_text():
            raise HistoryFailed(f"{self.arguments}\n{self.output()}")
        return code

    def kill_after(self, seconds: float) -> None:
        """SIGKILL, unless it ends before."""
        self._process.join(seconds)
        self._signal(signal.SIGKILL)
        self._process.join(DEADLINE_SECONDS)

    def stop(self) -> int:
        """SIGTERM, and wait."""
        self._signal(signal.SIGTERM)
        return self.wait()

    def end(self) -> None:
        """End it, however the test ends."""
        if self._process.is_alive():
            self._signal(signal.SIGKILL)
            self._process.join(DEADLINE_SECONDS)

    def _signal(self, number: signal.Signals) -> None:
        pid = self._process.pid
        if pid is not None and self._process.is_alive():
            os.kill(pid, number)

    def output(self) -> str:
        texts = [path.read_text(errors="replace") for path in (self.out, self.err) if path.exists()]
        return "\n".join(texts)[-3000:]
