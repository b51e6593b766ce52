"""How much a source may report: more traffic than any line carries is not believed.

Whoever may publish to Redis can write any number, and sums in the books have 63 bits: a thousand
reports near the largest counter would stop settling and the roll-up, for everybody and for good.
With this bound no sum of a session, a user or a realm comes near 63 bits, however it was published.
Pure: times come in, as whole microseconds since the Unix epoch.
"""

from dataclasses import dataclass
from typing import Final

from accounting.domain.coturn_messages import WireError, check_counter_range

BYTES_PER_SECOND: Final = 2**36
"""550 Gbit/s in each direction, all the time, behind one Redis: 2^58 in a month."""
BURST_BYTES: Final = 2**55
"""36 PB: what long sessions may report when they end together."""
SECOND: Final = 1_000_000


@dataclass(slots=True)
class RateLimit:
    """What was reported lately beyond BYTES_PER_SECOND: ``used`` bytes, as of ``at``."""

    used_bytes: int = 0
    at: int = 0

    def refill(self, now: int) -> None:
        """Let time pass; a clock that went back changes nothing."""
        if now > self.at:
            self.used_bytes = max(0, self.used_bytes - (now - self.at) * BYTES_PER_SECOND // SECOND)
            self.at = now

    def consume(self, bits: int) -> None:
        """Take what a report's counters come to, all their bits in one number, as `wire` has it.

        Or raise :class:`WireError`, and take nothing.
        """
        check_counter_range(bits)
        if self.used_bytes + bits > BURST_BYTES:
            raise WireError("more traffic is reported than a source can have")
        self.used_bytes += bits
