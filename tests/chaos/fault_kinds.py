"""The kinds of faults, and the steps that several of them take.

A fault is a generator. It yields conditions to wait for, or seconds; the runner steps it. Faults
that use different parts may overlap.
"""

import signal
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from enum import Enum, auto
from typing import Final

from tests.chaos.deployment import Ability, Deployment
from tests.chaos.faulty_proxy import CommitLoss, FaultyProxy
from tests.chaos.machine import Machine
from tests.support.service import descendants, send_signal

Step = float | Callable[[], object]
Fault = Callable[[Deployment, float], Iterator[Step]]
WRONG_CLOCKS: Final = (32 * 86_400_000_000, -3_600_000_000, 3_600_000_000, 10_000_000)
"""Microseconds."""


class Costs(Enum):
    """What a fault may lose. CAPTURE: nothing where capture can resume its stream."""

    NOTHING = auto()
    CAPTURE = auto()
    EVENTS = auto()


@dataclass(frozen=True, slots=True)
class FaultKind:
    """A kind of fault: its generator, the parts that it alone uses, and what it may lose."""

    name: str
    fault: Fault
    uses: frozenset[str]
    costs: Costs
    weight: int = 2
    needs: frozenset[Ability] = frozenset()
    leaves_gap: bool = False
    """A gap says what a refused collector did not capture; nothing else may be missing."""
    sets_back: bool = False
    """A restore: what was captured since the dump is lost if Redis is lost before it is loaded."""


class FaultKinds(dict[str, FaultKind]):
    """Kinds by name."""

    def kind(
        self,
        *takes: str,
        costs: Costs = Costs.NOTHING,
        weight: int = 2,
        needs: Collection[Ability] = (),
        leaves_gap: bool = False,
        sets_back: bool = False,
    ) -> Callable[[Fault], Fault]:
        """Add a fault as a kind; its name is that of the function, in words."""

        def enter(fault: Fault) -> Fault:
            name = getattr(fault, "__name__", "").replace("_", " ")
            self[name] = FaultKind(
                name,
                fault,
                frozenset(takes),
                costs,
                weight,
                frozenset(needs),
                leaves_gap,
                sets_back,
            )
            return fault

        return enter


# -- steps of several kinds


def stop_processes(pids: list[int], seconds: float) -> Iterator[Step]:
    stopped = [pid for pid in pids if send_signal(pid, signal.SIGSTOP)]
    yield seconds
    for pid in stopped:
        send_signal(pid, signal.SIGCONT)


def hang_server(pid: int, seconds: float) -> Iterator[Step]:
    """Stop the postmaster first, so that it starts no more processes."""
    send_signal(pid, signal.SIGSTOP)
    yield from stop_processes(descendants(pid), seconds)
    send_signal(pid, signal.SIGCONT)


def wrong_clock(machine: Machine, seconds: float) -> Iterator[Step]:
    """A wrong clock for all processes of a machine, also those that start meanwhile."""
    assert machine.faulty is not None
    machine.faulty.set_clock(WRONG_CLOCKS[number_of(seconds) % len(WRONG_CLOCKS)])
    yield seconds
    machine.faulty.set_clock(0)


def lose_commit(wires: Sequence[FaultyProxy], what: CommitLoss) -> Iterator[Step]:
    """Lose the next COMMIT that passes one of the proxies."""
    before = sum(wire.lost_count for wire in wires)
    for wire in wires:
        wire.lose_commit(what)
    yield lambda: sum(wire.lost_count for wire in wires) > before
    for wire in wires:
        wire.mend()


def number_of(seconds: float) -> int:
    """A number that the plan's seed decides, for choices within a fault."""
    return int(seconds * 1_000_000)
