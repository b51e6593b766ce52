"""The roll-up of the workload in steps, with something and without it in turn.

Each step loads about two seconds of messages, which settles them, and rolls up. The two share the
books, the machine and whatever else it does, so that their difference is the cost of that thing.
"""

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import NamedTuple

from benchmarks.fixture import BenchmarkDatabase
from benchmarks.load import START, STEP_US
from benchmarks.measure import Cost
from benchmarks.scale import Scale
from benchmarks.spool_filler import SpoolFiller, take_messages
from benchmarks.workload import Workload
from tests.support.books import Books

Turn = Callable[[bool], AbstractContextManager[None]]
"""What is around a roll-up: with it or without."""


class PairedCost(NamedTuple):
    """CPU time of all Postgres processes in the roll-up, in us an event."""

    having: float
    lacking: float

    @property
    def difference(self) -> float:
        return self.having - self.lacking


def open_workload(books: Books, mix: Workload) -> SpoolFiller:
    """Open the sessions of the workload."""
    filler = SpoolFiller.starting_at(books.spool(), START)
    filler.append(mix.open(), STEP_US)
    books.run_jobs()
    return filler


def roll_up_in_turn(
    bed: BenchmarkDatabase,
    scale: Scale,
    books: Books,
    mix: Workload,
    filler: SpoolFiller,
    turn: Turn,
) -> PairedCost:
    """Load and roll up twice as many events as ``scale`` says, every other step with it."""
    churn = mix.churn()
    bed.vacuum_and_checkpoint()
    costs = {having: Cost() for having in (True, False)}
    events = dict.fromkeys(costs, 0)
    having = True
    while sum(events.values()) < 2 * scale.events:
        events[having] += filler.append(take_messages(churn, scale.step_events), STEP_US)
        books.load()
        with turn(having), costs[having].measuring(bed.server.pid):
            books.rollup()
        having = not having
    return PairedCost(*(costs[of].postgres * 1e6 / events[of] for of in (True, False)))
