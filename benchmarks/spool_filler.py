"""Appends the workload to a spool with chosen times, for benchmarks without Redis."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import datetime
from itertools import islice

from accounting.capture.spool.spool import Spool
from accounting.domain.calendar import to_micros
from benchmarks.workload import GROUP_MESSAGES, Message

BATCH_MESSAGES: int = 10_000


@dataclass(slots=True)
class SpoolFiller:
    """Appends messages to a spool, each a step after the last.

    ``position``: of the last message. A high first position leaves positions for a history before.
    """

    spool: Spool
    now_us: int
    position: int = 0

    @classmethod
    def starting_at(cls, spool: Spool, start: datetime, position: int = 0) -> "SpoolFiller":
        filler = cls(spool, to_micros(start), position)
        spool.checkpoint(filler.now_us)
        return filler

    def append(self, groups: Iterable[list[Message]], step_us: int) -> int:
        """Append messages ``step_us`` apart, with a checkpoint after them; returns their number."""
        total = 0
        batch: list[tuple[int, int, bytes, bytes]] = []
        for group in groups:
            for channel, payload in group:
                self.now_us += step_us
                batch.append((self.now_us, 0, channel, payload))
            if len(batch) >= BATCH_MESSAGES:
                total += self._store(batch)
        return total + self._store(batch)

    def advance_clock(self, seconds: float) -> None:
        """Record that nothing was received for so many seconds."""
        self.now_us += int(seconds * 1_000_000)
        self.spool.checkpoint(self.now_us)

    def _store(self, batch: list[tuple[int, int, bytes, bytes]]) -> int:
        count = len(batch)
        positions = range(self.position + 1, self.position + 1 + count)
        # The checkpoint must be later than the last message.
        self.spool.append(batch, self.now_us + 1, positions=positions)
        self.position += count
        batch.clear()
        return count


def take_messages(churn: Iterator[list[Message]], messages: int) -> Iterator[list[Message]]:
    """The next groups with about so many messages."""
    return islice(churn, max(1, messages // GROUP_MESSAGES))
