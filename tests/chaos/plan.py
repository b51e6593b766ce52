"""The plan of a run: chooses the faults and their times from a seed.

A round is some faults and the check after them. Its faults either may lose events or may not, so
that an allowed loss does not hide one that is not allowed.
"""

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from random import Random
from typing import Final

from tests.chaos import faults, front_faults
from tests.chaos.deployment import Ability, Capture
from tests.chaos.fault_kinds import Costs, FaultKind

FAULT_KINDS: Final = {**faults.KINDS, **front_faults.KINDS}
FAULTS_PER_ROUND: Final = (8, 16)
LOSSY_ROUNDS: Final = 5
"""One of so many rounds may lose events: the second, and every fifth from there on."""
MAX_PAUSE_SECONDS: Final = 1.2
MAX_FAULT_SECONDS: Final = 4.0


@dataclass(frozen=True, slots=True)
class PlannedFault:
    """One fault: its delay after the start of the previous one, and its duration."""

    kind: FaultKind
    after_seconds: float
    seconds: float


@dataclass(frozen=True, slots=True)
class Round:
    """Faults that may overlap. ``may_lose``: they may lose events, within gaps."""

    number: int
    may_lose: bool
    faults: tuple[PlannedFault, ...]


def plan_rounds(
    fault_count: int,
    seed: int,
    capture: Capture,
    only: Collection[str] = (),
    *,
    spare_redis: bool = False,
    abilities: Collection[Ability] = (),
) -> Iterator[Round]:
    """The rounds of a run. With ``spare_redis``, none may lose events."""
    random = Random(seed)
    kinds = [kind for kind in FAULT_KINDS.values() if fits(kind, capture, only, abilities)]
    harmless = Deck(random, [kind for kind in kinds if not may_cost(kind, capture)])
    costly = Deck(random, [kind for kind in kinds if may_cost(kind, capture)])
    if spare_redis:
        costly.kinds = []
    number = 0
    while fault_count:
        number += 1
        count = min(fault_count, random.randint(*FAULTS_PER_ROUND))
        fault_count -= count
        may_lose = not harmless.kinds or (bool(costly.kinds) and number % LOSSY_ROUNDS == 2)
        many = random.randint(1, count) if harmless.kinds else count
        chosen = [costly.deal() for _ in range(many)] if may_lose else []
        chosen += [harmless.deal() for _ in range(count - len(chosen))]
        random.shuffle(chosen)
        yield Round(
            number,
            may_lose,
            tuple(
                PlannedFault(
                    kind,
                    random.random() ** 2 * MAX_PAUSE_SECONDS,
                    0.1 + random.random() ** 2 * MAX_FAULT_SECONDS,
                )
                for kind in chosen
            ),
        )


class Deck:
    """Deals kinds like cards, each ``weight`` times before the deck starts again."""

    def __init__(self, random: Random, kinds: Sequence[FaultKind]) -> None:
        self.kinds = kinds
        self._random = random
        self._left: list[FaultKind] = []

    def deal(self) -> FaultKind:
        if not self._left:
            self._left = [kind for kind in self.kinds for _ in range(kind.weight)]
            self._random.shuffle(self._left)
        return self._left.pop()


def fits(
    kind: FaultKind, capture: Capture, only: Collection[str], abilities: Collection[Ability]
) -> bool:
    """Whether the kind is possible; with a subscription there is no second machine."""
    return (
        (not only or kind.name in only)
        and (capture == "replication" or "turn" not in kind.uses)
        and kind.needs <= set(abilities)
    )


def may_cost(kind: FaultKind, capture: Capture) -> bool:
    """Whether the fault may lose events."""
    return kind.costs is Costs.EVENTS or (kind.costs is Costs.CAPTURE and capture == "subscribe")
