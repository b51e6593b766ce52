"""The life of one allocation: what it relays, when it reports, how it ends.

Owns the counters and the order of its messages; the hard cases that concern one life alone are
its traits. Source: docs/coturn.md#channels and the recordings.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from random import Random
from typing import Final

from accounting.domain.counters import PEER_MODULUS
from accounting.simulator import wire
from accounting.simulator.oracle import ZERO, Eight, Ledger, plus
from accounting.simulator.population import Identity
from accounting.simulator.process import Process

SECOND: Final = 1_000_000
NEVER: Final = 2**62
CHANNEL_HEADER_BYTES: Final = 4
REQUEST_BYTES: Final = 108
ANSWER_BYTES: Final = 84
SETUP_REQUESTS: Final = 4
"""Packets before the first relayed one: Allocate twice, a permission, a channel."""
SILENT_PACKETS: Final = 50_000
"""A silent life relays no more: coturn's deltas have 32 bits."""
WRAP_PACKET_BYTES: Final = 58_000
WRAP_REPORTS: Final = 60
"""So many interims of such packets, three quarters of them upwards, pass 2^32 bytes."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Traits:
    """What is special about a life; see the switches of ``Scenario``."""

    wrap: bool = False
    silent: bool = False
    lose_first_report: bool = False
    lose_deleted: bool = False
    lose_totals: bool = False
    second_on_key: bool = False


class Allocation:
    """One allocation of one server process."""

    def __init__(
        self,
        *,
        process: Process,
        ledger: Ledger,
        random: Random,
        thread: int,
        allocation_id: int,
        identity: Identity,
        transport: str,
        begins_us: int,
        ends_us: int,
        lifetime_seconds: int,
        packets_per_second: float,
        packet_bytes: int,
        traits: Traits,
    ) -> None:
        self.process = process
        self.thread = thread
        self.allocation_id = allocation_id
        self.identity = identity
        self.begins_us = begins_us
        self.ends_us = ends_us
        self.dead = False
        self.traits = traits
        self._ledger = ledger
        self._random = random
        self._lifetime_seconds = lifetime_seconds
        # A client that says goodbye does so a second before the close
        # (docs/coturn.md#lifetime-zero); a TCP client may just hang up.
        self._says_goodbye = transport == "UDP" or random.random() < 0.5
        self.quiet_us = max(begins_us, ends_us - SECOND) if self._says_goodbye else ends_us
        self._up_share = 0.3 + 0.4 * random.random()
        self._up_bytes = packet_bytes * (0.5 + 0.4 * random.random())
        self._down_bytes = packet_bytes * (0.5 + 0.4 * random.random())
        self._packets_per_us = packets_per_second / SECOND
        if traits.wrap:
            self._up_share = 0.75
            self._up_bytes = self._down_bytes = WRAP_PACKET_BYTES
            lasts_us = max(self.quiet_us - begins_us, 1)
            self._packets_per_us = 2048 * (WRAP_REPORTS + 0.5) / lasts_us
        self._prefix = wire.channel_prefix(identity.realm, identity.username, allocation_id)
        self._status_key = self._prefix + b"status"
        self._addresses = b""
        if process.version.status_addresses:
            client = f"203.0.113.{random.randrange(1, 255)}:{random.randrange(1024, 65536)}"
            self._addresses = wire.addresses(transport, process.address, client)
        self._requests = SETUP_REQUESTS
        self._counted_us = begins_us
        self._first_report = True
        self.relayed: Eight = ZERO
        self.reported: Eight = ZERO

    def life(self) -> Iterator[int]:
        """Play the life: yields when to be woken next, in virtual microseconds."""
        now = self.begins_us
        self.begin(now)
        refresh_every = self.refresh_interval()
        refresh_at = now + refresh_every
        report_every = self.report_interval()
        report_at = now + report_every
        while (now := min(refresh_at, report_at)) < self.quiet_us:
            yield now
            if self.dead:
                return
            if now == report_at:
                self.interim(now)
                report_at += report_every
            else:
                self.refresh(now)
                refresh_at += refresh_every
        if self._says_goodbye:
            yield self.quiet_us
            if self.dead:
                return
            self.say_goodbye(self.quiet_us)
        yield self.ends_us
        if not self.dead:
            self.close(self.ends_us)

    def report_interval(self) -> int:
        """Microseconds between two interims at this life's pace."""
        if self.traits.silent or self._packets_per_us == 0:
            return NEVER
        return max(1, int(2048 / self._packets_per_us))

    def refresh_interval(self) -> int:
        """Microseconds between two refreshes: well before the lifetime is over."""
        return self._lifetime_seconds * SECOND * 9 // 10

    def begin(self, now: int) -> None:
        self._say_status(now, "new", self._lifetime_seconds)

    def refresh(self, now: int) -> None:
        self._requests += 1
        self._say_status(now, "refreshed", self._lifetime_seconds)

    def say_goodbye(self, now: int) -> None:
        """Refresh 0: the close follows a second later."""
        self._requests += 1
        self._say_status(now, "refreshed", 0)

    def interim(self, now: int) -> None:
        self._report(now, self._count(self._full_packets()))

    def close(self, now: int) -> None:
        """Normal close: traffic, DEL, ``deleted``, totals [recorded]."""
        self._report(now, self._count(self._pending_packets(now)))
        if not self.traits.lose_deleted:
            self.process.say_deleted(now, self.thread, self._status_key)
        totalled = not self.traits.lose_totals
        if totalled:
            # 32 bits wide on the peer side alone (docs/coturn.md#peer-total-wraps).
            total = self.relayed[:4] + tuple(count % PEER_MODULUS for count in self.relayed[4:])
            self.process.say_traffic(now, self.thread, self._prefix, "total_traffic", total)
        self._settle(totalled=totalled)

    def die(self, now: int) -> None:
        """The server was killed: nothing is published, the packets since the last report lost."""
        pending = self._count(self._pending_packets(now))
        self.relayed = plus(self.relayed, pending)
        self._settle(totalled=False)

    def _settle(self, *, totalled: bool) -> None:
        self.dead = True
        self._ledger.settle(
            self.identity,
            self.relayed,
            self.reported,
            totalled=totalled,
            session=not self.traits.second_on_key,
        )

    def _full_packets(self) -> int:
        """Relayed packets after which the counters add up to the modulus.

        A relayed packet counts twice over four counters, once over the client's two; a request
        and its answer are two packets in either.
        """
        version = self.process.version
        if version.peer_traffic:
            return version.modulus // 2 - self._requests
        return version.modulus - 2 * self._requests

    def _pending_packets(self, now: int) -> int:
        """Relayed since the last report: less than an interim's worth, but for a silent life."""
        packets = int((min(now, self.quiet_us) - self._counted_us) * self._packets_per_us)
        return min(packets, SILENT_PACKETS if self.traits.silent else self._full_packets() - 1)

    def _count(self, packets: int) -> Eight:
        """What the eight counters say after relaying so many packets since the last report."""
        requests, self._requests = self._requests, 0
        up = int(packets * self._up_share)
        down = packets - up
        spread = 0.9 + 0.2 * self._random.random()
        up_bytes = int(up * self._up_bytes * spread)
        down_bytes = int(down * self._down_bytes * spread)
        up_headers = CHANNEL_HEADER_BYTES * up
        client = (
            up + requests,
            up_bytes + up_headers + REQUEST_BYTES * requests,
            down + requests,
            down_bytes + CHANNEL_HEADER_BYTES * down + ANSWER_BYTES * requests,
        )
        if not self.process.version.peer_traffic:
            return (*client, 0, 0, 0, 0)
        if self.process.version.channel_header_in_peer_sent:
            up_bytes += up_headers
        return (*client, down, down_bytes, up, up_bytes)

    def _report(self, now: int, delta: Eight) -> None:
        self._counted_us = now
        self.relayed = plus(self.relayed, delta)
        lost = self._first_report and self.traits.lose_first_report
        self._first_report = False
        if not lost:
            self.reported = plus(self.reported, delta)
            self.process.say_traffic(now, self.thread, self._prefix, "traffic", delta)

    def _say_status(self, now: int, kind: str, lifetime_seconds: int) -> None:
        payload = b"%b lifetime=%d%b" % (kind.encode(), lifetime_seconds, self._addresses)
        self.process.say_status(now, self.thread, self._status_key, kind, payload)
