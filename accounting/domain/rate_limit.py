"""The rate limit of a source: reports of more traffic than a network carries are rejected.

Anyone who may publish to Redis can write any number, and sums in the books have 63 bits: a thousand
reports near the largest counter would stop settling and the roll-up permanently, for everybody.
With this limit no sum of a session, a user or a realm comes near 63 bits. Times are whole
microseconds since the Unix epoch.
"""

from dataclasses import dataclass
from typing import Final

from accounting.domain.coturn_messages import MessageRejected, check_counter_range

BYTES_PER_SECOND: Final = 2**36
"""550 Gbit/s in each direction, all the time, behind one Redis: 2^58 in a month."""
BURST_BYTES: Final = 2**55
"""36 PB: what long sessions may report when they end at the same time."""
SECOND: Final = 1_000_000


@dataclass(slots=True)
class RateLimit:
    """A leaky bucket that drains at BYTES_PER_SECOND: it holds ``used_bytes`` at ``at``."""

    used_bytes: int = 0
    at: int = 0

    def drain(self, now: int) -> None:
        """Drain the bucket up to ``now``; a clock that was set back changes nothing."""
        if now > self.at:
            self.used_bytes = max(0, self.used_bytes - (now - self.at) * BYTES_PER_SECOND // SECOND)
            self.at = now

    def consume(self, magnitude: int) -> None:
        """Add the traffic of a report. Raises :class:`MessageRejected`, and adds nothing, if full.

        ``magnitude``: the number that :func:`coturn_messages.parse_counters` gives to ``check``.
        """
        check_counter_range(magnitude)
        if self.used_bytes + magnitude > BURST_BYTES:
            raise MessageRejected("more traffic is reported than a source can have")
        self.used_bytes += magnitude
