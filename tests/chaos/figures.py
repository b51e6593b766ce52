"""The figures of runs, as text and as JSON."""

import json
from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from statistics import median

from tests.chaos.checker import Tally


@dataclass(slots=True)
class Figures:
    """The figures of a run, or of several.

    ``recoveries``: by kind of fault, the seconds from its end until everything published before
    is settled.
    """

    seeds: list[int] = field(default_factory=list)
    tally: Tally = field(default_factory=Tally)
    faults: Counter[str] = field(default_factory=Counter)
    recoveries: defaultdict[str, list[float]] = field(default_factory=lambda: defaultdict(list))
    rounds: int = 0
    lossless_faults: int = 0
    """Faults in rounds that may lose nothing, because Redis keeps every event in its backlog."""
    seconds: float = 0.0

    def lines(self) -> Iterator[str]:
        """The figures as text."""
        tally = self.tally
        yield f"{'fault':<46}{'times':>6}  recovered in s: min  median   max"
        for name, count in sorted(self.faults.items()):
            found = self.recoveries[name] or [0.0]
            low, middle, high = min(found), median(found), max(found)
            yield f"{name:<46}{count:>6}{low:>20.1f}{middle:>8.1f}{high:>6.1f}"
        yield f"faults injected        {self.faults.total()} in {self.rounds} rounds,"
        yield f"  {self.lossless_faults} of them in rounds that may lose nothing"
        yield f"events published       {tally.published}"
        yield f"  sent without a reply     {tally.unknown}; not sent, without Redis: {tally.unsent}"
        yield f"events loaded          {tally.loaded}, {tally.estimated} of them from a backlog"
        yield f"lost                   {tally.lost}"
        yield f"lost within gaps       {tally.lost_within_gaps}, with Redis or its backlog"
        yield f"doubled                {tally.doubled}"
        yield f"gap rows               {tally.gaps}, {tally.gap_seconds:.0f} s in all"
        yield f"events of fronts       {tally.forwarded}; periods closed: {tally.closed}"
        yield f"took                   {self.seconds:.0f} s, seed {', '.join(map(str, self.seeds))}"

    def add(self, other: "Figures") -> None:
        """Add those of another run."""
        self.seeds += other.seeds
        self.tally.add(other.tally)
        self.faults += other.faults
        for name, seconds in other.recoveries.items():
            self.recoveries[name] += seconds
        self.rounds += other.rounds
        self.lossless_faults += other.lossless_faults
        self.seconds += other.seconds

    def to_json(self) -> str:
        own = {name: getattr(self, name) for name in self.__slots__}
        return json.dumps({**own, "tally": asdict(self.tally)})

    @classmethod
    def from_json(cls, text: str) -> "Figures":
        fields = json.loads(text)
        return cls(
            fields["seeds"],
            Tally(**fields["tally"]),
            Counter(fields["faults"]),
            defaultdict(list, fields["recoveries"]),
            fields["rounds"],
            fields["lossless_faults"],
            fields["seconds"],
        )
