"""Plays a history over the cells of a front, beside one database that gets all of it.

Each source of the plan is in one cell; users and realms are those of the whole history, so they are
in all cells. The jobs of the cells and of the front run at random moments. Those of the front are
interrupted: they end at a random statement, or the sessions in a cell do, or a cell settles, closes
and adjusts between two of their statements.
"""

import random
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from copy import deepcopy
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any, Final

from sqlalchemy import Engine, event

from accounting.audit.rebuild import rebuild
from accounting.audit.verify import verify
from accounting.billing.adjust import post_manual_adjustment
from accounting.billing.close_period import close_period
from accounting.db.engine import open_engine
from accounting.domain.identity import UsernameRule
from accounting.domain.realm_rules import RealmRule
from accounting.errors import ConnectionLost, LockHeld, NotYet
from accounting.front.peaks.count_peaks import count_peaks
from accounting.front.verify import verify_installation
from accounting.identities.realm_rules import set_rule
from accounting.ops.registry import FRONT_JOBS, JOBS
from accounting.sources.retire import reopen_source, retire_source
from tests.histories.billing_worker import BillingWorker
from tests.histories.comparison import (
    VIEWS,
    Expectation,
    Identities,
    Row,
    Views,
    compare_rows,
    differences,
)
from tests.histories.front_comparison import OF_THE_FRONT, feed_differences, front_differences
from tests.histories.oracle import COUNTERS, Calendar, moment, shown
from tests.histories.plan import Plan, Stage, make_plan
from tests.histories.player import HistoryFailed, Source, local_day
from tests.histories.rules import rule_fields
from tests.support.books import WRITER, Books
from tests.support.fronts import CELLS, Front, open_front
from tests.support.restored_database import back_up, restore_database
from tests.support.servers import PostgresServer

SECOND_SOURCE: Final = "second"
"""Of the first cell, and the one that operators retire."""
CELL_JOBS: Final = ("settle", "rollup", "gaps", "close", "adjust", "feed")
FRONT_ORDER: Final = (
    *(name for name in FRONT_JOBS if name not in {"feed", "bill", "webhooks", "retain"}),
    "feed",
    "bill",
    "feed",
)
EQUAL_VIEWS: Final = (
    "sessions", "user_usage_hourly", "user_usage_daily", "user_usage_monthly", "unattributed_usage",
    "rejected_messages", "allocation_events", "traffic_reports", "sources",
)  # fmt: skip
"""The views of which each row is the same in the front and in the whole."""
CLOCKS: Final = ("updated_at", "loaded_at", "created_at")
"""Columns that say when something was written."""
TERMINATE: Final = (
    "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
    " WHERE datname = %s AND application_name = 'turn-accounting front'"
)


class Interrupted(BaseException):
    """The process ends here. A BaseException, so that the job can't catch it."""


def make_cells_plan(seed: int, *, cells: int, short: bool) -> Plan:
    """As ``make_plan``, with a source for each cell and another one in the first."""
    return make_plan(seed, short=short, sources=[*CELLS[:cells], SECOND_SOURCE])


@dataclass(slots=True)
class CellsPlayer:
    """One history over cells."""

    plan: Plan
    server: PostgresServer
    directory: Path
    cells: int = 3
    front: Front = field(init=False)
    chance: random.Random = field(init=False)
    sources: list[tuple[Source, Source]] = field(init=False, default_factory=list)
    """Of the cell, and the same of the whole."""
    expected: Expectation = field(init=False)
    """Of the whole."""
    of_front: Expectation = field(init=False)
    of_cells: dict[str, Expectation] = field(init=False)
    identities: dict[str, Identities] = field(init=False)
    worker: BillingWorker = field(init=False, default_factory=BillingWorker)
    backup: tuple[str, Mapping[str, int], Expectation] | None = field(init=False, default=None)
    """The cell, the messages of each of its sources that are in the backup, and its books."""
    restored: set[str] = field(init=False, default_factory=set)
    interruptions: int = field(init=False, default=0)
    runs: int = field(init=False, default=0)
    events: int = field(init=False, default=0)
    closed: int = field(init=False, default=0)

    def play(self) -> None:
        with open_front(self.server, self.directory, CELLS[: self.cells]) as self.front:
            self._open()
            try:
                for number, stage in enumerate(self.plan.stages):
                    self._play_stage(number, stage)
            finally:
                for pair in self.sources:
                    for source in pair:
                        source.spool.close()

    def _open(self) -> None:
        rule = self.plan.default_rule
        default = RealmRule(time_zone=rule.time_zone, grace_seconds=rule.grace_seconds)
        for books in self._all():
            books.rule = default
        for plan in self.plan.sources:
            pair = (
                Source.open(plan, self.directory / "of-cells"),
                Source.open(plan, self.directory / "of-whole"),
            )
            for source, books in zip(pair, self._databases(plan.name), strict=True):
                books._spools[plan.name] = source.spool
            self.sources.append(pair)
        calendars = {realm: Calendar(rules) for realm, rules in self.plan.rules.items()}
        self.expected = Expectation(
            calendars, {source.plan.name: source.stream for source, _ in self.sources}
        )
        self.of_cells = {
            cell: Expectation(
                calendars,
                {
                    source.plan.name: source.stream
                    for source, _ in self.sources
                    if self._cell_of(source.plan.name) == cell
                },
            )
            for cell in self.front.cells
        }
        # What the front shows of sources is what their cells do.
        self.of_front = Expectation(
            calendars, self.expected.streams, retired=self.of_cells[CELLS[0]].retired
        )
        self.identities = {name: Identities() for name in ("whole", "front", *self.front.cells)}
        self._set_clocks()
        self._set_rules(default)
        # A period waits for the sources that the books know, so all have to be known.
        for source, _ in self.sources:
            for books in self._databases(source.plan.name):
                books.load(source=source.plan.name)

    def _all(self) -> list[Books]:
        return [*self.front.cells.values(), self.front.whole]

    def _cell_of(self, source: str) -> str:
        return CELLS[0] if source == SECOND_SOURCE else source

    def _databases(self, source: str) -> tuple[Books, Books]:
        """The cell of a source, and the whole."""
        return self.front.cells[self._cell_of(source)], self.front.whole

    def _set_clocks(self) -> None:
        self.expected.now = max(source.stream.until for source, _ in self.sources)
        for of_cell in (self.of_front, *self.of_cells.values()):
            of_cell.now = self.expected.now
        for books in (*self._all(), self.front.books):
            books.set_database_clock(moment(self.expected.now))

    def _set_rules(self, default: RealmRule) -> None:
        for realm, rules in self.plan.rules.items():
            for rule in rules:
                if rule == self.plan.default_rule:
                    continue
                changes = dict(rule_fields(rule))
                changes["username_rule"] = UsernameRule(changes["username_rule"])
                changes["separator"] = changes["separator"].decode()
                since = None
                if rule.holds_from is not None:
                    since = local_day(rule.holds_from, rule.time_zone)
                for books in self._all():
                    set_rule(books.engine, shown(realm), changes, default=default, holds_from=since)

    # -- stages

    def _play_stage(self, number: int, stage: Stage) -> None:
        chance = self.chance = random.Random(stage.order)
        before = {s.plan.name: len(s.stream.messages) for s, _ in self.sources}
        for pair in self.sources:
            state = chance.getrandbits(32)
            for source in pair:
                source.receive_until(stage.until[source.plan.name], random.Random(state))
        self._set_clocks()
        self._reopen_by_messages(before)
        for _ in range(8 if self.plan.short else 40):
            self._run_something()
        self._finish()
        self.check(f"stage {number}")
        for action in self._actions(number):
            action()
            self._finish()
            self.check(f"stage {number}, after {action.__name__}")

    def _reopen_by_messages(self, before: Mapping[str, int]) -> None:
        for source, _ in self.sources:
            if source.plan.name not in before:
                continue
            for expected in (self.expected, self.of_cells[self._cell_of(source.plan.name)]):
                retired_at = expected.retired.get(source.plan.name)
                new = source.stream.messages[before[source.plan.name] :]
                if retired_at is not None and new and new[-1].received_at > retired_at:
                    del expected.retired[source.plan.name]

    def _run_something(self) -> None:
        chance = self.chance
        cell = chance.choice(list(self.front.cells))
        if chance.random() < 0.5:
            self._run_in_cell(cell)
        else:
            self._run_on_front(chance.choice(FRONT_ORDER))

    def _run_in_cell(self, cell: str, *jobs: str) -> None:
        """Load and run some jobs of a cell."""
        books, chance = self.front.cells[cell], self.chance
        self.runs += 1
        for source in self.of_cells[cell].streams:
            if chance.random() < 0.7:
                books.load(source=source, limit=chance.choice((7, 100, 50_000)))
        for job in jobs or chance.sample(CELL_JOBS, chance.randint(1, len(CELL_JOBS))):
            JOBS[job].run(books.engine)

    def _run_on_front(self, job: str) -> None:
        """Run a job of the front, with something that happens at one of its statements."""
        chance = self.chance
        self.runs += 1
        happening: Callable[[], None] = chance.choice(
            (self._end_process, self._end_sessions_in_cell, self._let_cell_go_on, lambda: None)
        )
        moment = chance.randint(1, 25)
        with (
            self._interrupted_engine(moment, happening) as engine,
            suppress(Interrupted, ConnectionLost),
        ):
            FRONT_JOBS[job].run(engine)

    @contextmanager
    def _interrupted_engine(self, moment: int, happening: Callable[[], None]) -> Iterator[Engine]:
        engine = open_engine(self.front.books.url(WRITER))
        moments = 0

        def count() -> None:
            nonlocal moments
            moments += 1
            if moments == moment:
                self.interruptions += 1
                happening()

        event.listen(engine, "before_cursor_execute", lambda *_: count())
        event.listen(engine, "commit", lambda *_: count())
        try:
            yield engine
        finally:
            engine.dispose()

    def _end_process(self) -> None:
        raise Interrupted

    def _end_sessions_in_cell(self) -> None:
        self.front.books.query(
            TERMINATE, [self.chance.choice(list(self.front.cells.values())).name]
        )

    def _let_cell_go_on(self) -> None:
        with suppress(LockHeld):
            self._run_in_cell(self.chance.choice(list(self.front.cells)))

    def _finish(self) -> None:
        """Run all jobs everywhere, in an order in which one run of each is enough."""
        for books in self._all():
            for source in books._spools:
                books.load(source=source)
            for job in CELL_JOBS:
                JOBS[job].run(books.engine)
        self.front.books.query("UPDATE accounting.cells SET feed_retry_at = NULL RETURNING 1")
        for job in FRONT_ORDER:
            FRONT_JOBS[job].run(self.front.books.engine)
        while count_peaks(self.front.books.engine):  # a run counts a part of many hours
            pass

    # -- what operators do

    def _actions(self, number: int) -> list[Callable[[], None]]:
        chance = self.chance
        if self.plan.short:
            if number == 0:
                return [chance.choice((self.correct, self.close_without)), self.back_up_a_cell]
            return [chance.choice((self.restore_the_cell, self.retire, self.correct)), self.verify]
        actions = [
            action
            for action, probability in (
                (self.close_without, 0.5),
                (self.retire, 0.3),
                (self.reopen, 0.3),
                (self.correct, 0.6),
                (self.correct, 0.4),
                (self.rebuild_a_cell, 0.3),
                (self.verify, 0.3),
            )
            if chance.random() < probability
        ]
        chance.shuffle(actions)
        if number == 0 or chance.random() < 0.3:
            actions.append(self.back_up_a_cell)
        if number > 0 and chance.random() < 0.4:
            actions.append(self.restore_the_cell)
        return actions

    def close_without(self) -> None:
        """Close periods of the first cell, and of the whole, without the second source."""
        for books, expected in self._with_second_source():
            rows = books.query(
                "SELECT realm, period FROM reporting.periods WHERE state = 'closing'"
            )
            for row in sorted(rows, key=lambda row: (row["realm"], row["period"])):
                with suppress(NotYet):
                    close_period(
                        books.engine, row["realm"], row["period"], excluded_sources=[SECOND_SOURCE]
                    )
                    expected.closed.add((row["realm"], row["period"].isoformat()))

    def retire(self) -> None:
        for books, expected in self._with_second_source():
            if SECOND_SOURCE not in expected.retired:
                retire_source(books.engine, SECOND_SOURCE, also_captured=True)
                expected.retired[SECOND_SOURCE] = expected.now

    def reopen(self) -> None:
        for books, expected in self._with_second_source():
            if expected.retired.pop(SECOND_SOURCE, None) is not None:
                reopen_source(books.engine, SECOND_SOURCE)

    def _with_second_source(self) -> list[tuple[Books, Expectation]]:
        first = CELLS[0]
        return [
            (self.front.cells[first], self.of_cells[first]),
            (self.front.whole, self.expected),
        ]

    def correct(self) -> None:
        """Post a correction on the front or in a cell, and in the whole."""
        chance = self.chance
        cell = chance.choice([None, *self.front.cells])
        books = self.front.books if cell is None else self.front.cells[cell]
        closed = {(r["realm"], r["period"]) for r in self.front.rows("statements")}
        lines = [
            row
            for row in books.rows("statements", order="realm, period, user_key")
            if (row["realm"], row["period"]) in closed
        ]
        if not lines:
            return
        line, name = chance.choice(lines), chance.choice(COUNTERS)
        numbers = {
            name: chance.randint(-(10**12), 10**12),
            "session_microseconds": chance.randint(-(10**7), 10**7) * 1000,
        }
        reason = chance.choice(("goodwill", "a test call", "\u00fc '; -- %s"))

        def row(reason: str) -> tuple[Any, ...]:
            return (
                line["realm"],
                str(line["period"]),
                line["user_id"],
                tuple(numbers.get(counter, 0) for counter in COUNTERS),
                numbers["session_microseconds"],
                reason,
                "carol",
            )

        for each in (books, self.front.whole):
            post_manual_adjustment(
                each.engine, line["realm"], line["period"], line["user_id"], numbers,
                reason=reason, author="carol",
            )  # fmt: skip
        self.expected.corrections.append(row(reason))
        if cell is None:
            self.of_front.corrections.append(row(reason))
        else:
            self.of_cells[cell].corrections.append(row(reason))
            self.of_front.corrections.append(row(f"{reason} (cell {cell})"))

    def rebuild_a_cell(self) -> None:
        books = self.front.cells[self.chance.choice(list(self.front.cells))]
        list(rebuild(books.engine, "a history"))

    def verify(self) -> None:
        """Of all cells, and of what the front made of them, which a restored one may lack."""
        for books in (self.front.whole, *self.front.cells.values()):
            self._expect_none("verify", list(verify(books.engine)))
        if not self.restored:
            self._expect_none(
                "verify of the front", list(verify_installation(self.front.books.engine))
            )

    def back_up_a_cell(self) -> None:
        if self.backup is not None:
            return
        cell = self.chance.choice(list(self.front.cells))
        books = self.front.cells[cell]
        self.front.books.query(TERMINATE, [books.name])
        back_up(books)
        counts = {
            s.plan.name: len(s.stream.messages)
            for s, _ in self.sources
            if self._cell_of(s.plan.name) == cell
        }
        self.backup = cell, counts, deepcopy(self.of_cells[cell])

    def restore_the_cell(self) -> None:
        """A cell's Postgres is lost; the backup takes its place, and the spools have the rest."""
        if self.backup is None:
            return
        cell, counts, backup = self.backup
        self.backup = None
        self.restored.add(cell)
        books = self.front.cells[cell]
        books.disconnect()
        restore_database(books)
        books._loaders.clear()
        of_cell = self.of_cells[cell]
        of_cell.corrections, of_cell.closed = backup.corrections, backup.closed
        of_cell.retired.clear()
        of_cell.retired.update(backup.retired)
        self._set_clocks()
        self._reopen_by_messages(counts)
        cell_and_whole = self._with_second_source()
        for (kept, expected), (_, other) in zip(cell_and_whole, cell_and_whole[::-1], strict=True):
            if SECOND_SOURCE in expected.retired and SECOND_SOURCE not in other.retired:
                del expected.retired[SECOND_SOURCE]
                reopen_source(kept.engine, SECOND_SOURCE)

    def _expect_none(self, what: str, found: list[Any]) -> None:
        if found:
            lines = "\n".join(map(str, found[:12]))
            raise HistoryFailed(f"seed {self.plan.seed}, {what}: {len(found)}\n{lines}")

    # -- the books

    def check(self, when: str) -> None:
        views = {name: self._views(books) for name, books in self._named()}
        found: list[str] = []
        for name, expected in {**self.of_cells, "whole": self.expected}.items():
            of_books = differences(expected, views[name], self.identities[name])
            found += [f"{name}: {line}" for line in of_books]
        of_front = views["front"]
        found += front_differences(self.of_front, of_front, self.identities["front"], self.of_cells)
        for view in EQUAL_VIEWS:
            found += compare_rows(
                f"{view} of the front and of the whole",
                [tuple(_without_clocks(row).items()) for row in views["whole"][view]],
                [tuple(_without_clocks(row).items()) for row in of_front[view]],
            )
        for cell in self.front.cells:
            rows = [
                row
                for row in of_front["feed"]
                if row["payload"].get("cell") == cell and row["type"] not in OF_THE_FRONT
            ]
            differ = feed_differences(rows, views[cell]["feed"], restored=cell in self.restored)
            found += [f"{cell}: {line}" for line in differ]
        if not self.restored:
            found += _counted_differences(of_front)
        found += self.worker.work(of_front["feed"], of_front["statements"])
        found += self.worker.compare(of_front, self.of_front.corrections)
        self.events = len(of_front["feed"])
        self.closed = sum(row["closed_at"] is not None for row in of_front["periods"])
        if found:
            raise HistoryFailed("\n".join([f"seed {self.plan.seed}, {when}:", *found]))

    def _named(self) -> Iterator[tuple[str, Books]]:
        yield from self.front.cells.items()
        yield "whole", self.front.whole
        yield "front", self.front.books

    def _views(self, books: Books) -> Views:
        return {view: books.rows(view, order=order) for view, order in VIEWS.items()}


def _without_clocks(row: Row) -> dict[str, Any]:
    return {name: value for name, value in row.items() if name not in CLOCKS}


def _counted_differences(views: Views) -> Iterator[str]:
    """The sums of ``usage.counted`` in a closed period are its statement."""
    spans = {
        (row["realm"], row["period"]): (row["starts_at"], row["ends_at"])
        for row in views["periods"]
        if row["closed_at"] is not None
    }
    sums: dict[tuple[Any, ...], list[int]] = defaultdict(lambda: [0] * 8)
    for row in views["feed"]:
        if row["type"] != "usage.counted":
            continue
        starts_at = datetime.fromisoformat(row["payload"]["starts_at"])
        for (realm, period), (first, last) in spans.items():
            if realm == row["realm"] and first <= starts_at < last:
                entry = sums[realm, period, row["payload"]["user_key"]]
                for index, name in enumerate(COUNTERS):
                    entry[index] += int(row["payload"][name])
    statements = [
        (r["realm"], r["period"], str(r["user_key"]), *[int(r[name]) for name in COUNTERS])
        for r in views["statements"]
    ]
    yield from compare_rows(
        "sums of usage.counted",
        [row for row in statements if any(row[3:])],
        [(*key, *entry) for key, entry in sums.items() if any(entry)],
    )
