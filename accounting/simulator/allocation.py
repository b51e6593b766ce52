"""Simulates one allocation: what it relays, when it reports, how it ends.

The messages and their order are those of docs/coturn.md#channels and of the recordings.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from random import Random
from typing import Final

from accounting.domain.counters import PEER_MODULUS
from accounting.simulator import wire
from accounting.simulator.oracle import ZERO_COUNTERS, Counters, OracleLedger, add_counters
from accounting.simulator.population import SimulatedUser
from accounting.simulator.process import ServerProcess

SECOND: Final = 1_000_000
NEVER: Final = 2**62
CHANNEL_HEADER_BYTES: Final = 4
REQUEST_BYTES: Final = 108
RESPONSE_BYTES: Final = 84
SETUP_REQUESTS: Final = 4
"""Packets before the first relayed one: Allocate twice, a permission, a channel."""
MAX_SILENT_PACKETS: Final = 50_000
"""Most packets of an allocation that reports only at its close: coturn's deltas have 32 bits."""
WRAP_PACKET_BYTES: Final = 58_000
WRAP_REPORTS: Final = 60
"""This many interims of such packets, three quarters of them upwards, exceed 2^32 bytes."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Traits:
    """The hard cases of one allocation; see the switches of ``Scenario``."""

    wraps_peer_total: bool = False
    reports_only_at_close: bool = False
    loses_first_report: bool = False
    loses_deleted: bool = False
    loses_totals: bool = False
    is_second_on_key: bool = False


class Allocation:
    """One allocation of one server process."""

    def __init__(
        self,
        *,
        process: ServerProcess,
        ledger: OracleLedger,
        random: Random,
        thread: int,
        allocation_id: int,
        identity: SimulatedUser,
        transport: str,
        begins_us: int,
        ends_us: int,
        lifetime_seconds: int,
        packets_per_second: float,
        packet_bytes: int,
        traits: Traits,
        client_address: str | None = None,
    ) -> None:
        """``client_address``: ``ip:port``; a random one when not given."""
        self.process = process
        self.thread = thread
        self.allocation_id = allocation_id
        self.identity = identity
        self.begins_us = begins_us
        self.ends_us = ends_us
        self.is_over = False
        self.traits = traits
        self._ledger = ledger
        self._random = random
        self._lifetime_seconds = lifetime_seconds
        # A client refreshes with lifetime 0 a second before the close
        # (docs/coturn.md#lifetime-zero), or a TCP client just closes its connection.
        self._releases = transport == "UDP" or random.random() < 0.5
        self.last_report_us = max(begins_us, ends_us - SECOND) if self._releases else ends_us
        self._up_share = 0.3 + 0.4 * random.random()
        self._up_bytes = packet_bytes * (0.5 + 0.4 * random.random())
        self._down_bytes = packet_bytes * (0.5 + 0.4 * random.random())
        self._packets_per_us = packets_per_second / SECOND
        if traits.wraps_peer_total:
            self._up_share = 0.75
            self._up_bytes = self._down_bytes = WRAP_PACKET_BYTES
            lasts_us = max(self.last_report_us - begins_us, 1)
            self._packets_per_us = 2048 * (WRAP_REPORTS + 0.5) / lasts_us
        self._prefix = wire.channel_prefix(identity.realm, identity.username, allocation_id)
        self._status_key = self._prefix + b"status"
        self._addresses = b""
        if process.version.status_addresses:
            if client_address is None:
                client_address = (
                    f"203.0.113.{random.randrange(1, 255)}:{random.randrange(1024, 65536)}"
                )
            self._addresses = wire.status_addresses(transport, process.address, client_address)
        self._uncounted_requests = SETUP_REQUESTS
        self._counted_us = begins_us
        self._first_report = True
        self.relayed: Counters = ZERO_COUNTERS
        self.reported: Counters = ZERO_COUNTERS

    def play(self) -> Iterator[int]:
        """Simulate the allocation; yields when to continue, in virtual microseconds."""
        now = self.begins_us
        self.begin(now)
        refresh_every = self.refresh_interval()
        refresh_at = now + refresh_every
        report_every = self.report_interval()
        report_at = now + report_every
        while (now := min(refresh_at, report_at)) < self.last_report_us:
            yield now
            if self.is_over:
                return
            if now == report_at:
                self.interim(now)
                report_at += report_every
            else:
                self.refresh(now)
                refresh_at += refresh_every
        if self._releases:
            yield self.last_report_us
            if self.is_over:
                return
            self.release(self.last_report_us)
        yield self.ends_us
        if not self.is_over:
            self.close(self.ends_us)

    def report_interval(self) -> int:
        """Microseconds between two interims, at this allocation's rate of packets."""
        if self.traits.reports_only_at_close or self._packets_per_us == 0:
            return NEVER
        return max(1, int(2048 / self._packets_per_us))

    def refresh_interval(self) -> int:
        """Microseconds between two refreshes: less than the lifetime."""
        return self._lifetime_seconds * SECOND * 9 // 10

    def begin(self, now: int) -> None:
        self._publish_status(now, "new", self._lifetime_seconds)

    def refresh(self, now: int) -> None:
        self._uncounted_requests += 1
        self._publish_status(now, "refreshed", self._lifetime_seconds)

    def release(self, now: int) -> None:
        """Refresh with lifetime 0; the close follows a second later."""
        self._uncounted_requests += 1
        self._publish_status(now, "refreshed", 0)

    def interim(self, now: int) -> None:
        self._report(now, self._take_counters(self._packets_per_report()))

    def close(self, now: int) -> None:
        """Close normally: traffic, DEL, ``deleted`` and totals, in the order of the recordings."""
        self._report(now, self._take_counters(self._pending_packets(now)))
        if not self.traits.loses_deleted:
            self.process.publish_deleted(now, self.thread, self._status_key)
        has_totals = not self.traits.loses_totals
        if has_totals:
            # Only those of the peer side have 32 bits (docs/coturn.md#peer-total-wraps).
            total = self.relayed[:4] + tuple(count % PEER_MODULUS for count in self.relayed[4:])
            self.process.publish_traffic(now, self.thread, self._prefix, "total_traffic", total)
        self._enter_in_ledger(has_totals=has_totals)

    def lose(self, now: int) -> None:
        """End with a killed server: publishes nothing, loses the packets since the last report."""
        pending = self._take_counters(self._pending_packets(now))
        self.relayed = add_counters(self.relayed, pending)
        self._enter_in_ledger(has_totals=False)

    def _enter_in_ledger(self, *, has_totals: bool) -> None:
        self.is_over = True
        self._ledger.add_session(
            self.identity,
            self.relayed,
            self.reported,
            has_totals=has_totals,
            is_first_on_key=not self.traits.is_second_on_key,
        )

    def _packets_per_report(self) -> int:
        """The relayed packets between two interims.

        coturn reports when the sum of its packet counters reaches the modulus. That sum counts a
        relayed packet twice with the peer side, else once; and a request with its answer as two.
        """
        version = self.process.version
        if version.peer_traffic:
            return version.modulus // 2 - self._uncounted_requests
        return version.modulus - 2 * self._uncounted_requests

    def _pending_packets(self, now: int) -> int:
        """The packets relayed since the last report: too few for an interim, if it sends them."""
        packets = int((min(now, self.last_report_us) - self._counted_us) * self._packets_per_us)
        return min(
            packets,
            MAX_SILENT_PACKETS
            if self.traits.reports_only_at_close
            else self._packets_per_report() - 1,
        )

    def _take_counters(self, packets: int) -> Counters:
        """The eight counters after that many packets since the last report; resets them."""
        requests, self._uncounted_requests = self._uncounted_requests, 0
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
            down_bytes + CHANNEL_HEADER_BYTES * down + RESPONSE_BYTES * requests,
        )
        if not self.process.version.peer_traffic:
            return (*client, 0, 0, 0, 0)
        if self.process.version.channel_header_in_peer_sent:
            up_bytes += up_headers
        return (*client, down, down_bytes, up, up_bytes)

    def _report(self, now: int, delta: Counters) -> None:
        self._counted_us = now
        self.relayed = add_counters(self.relayed, delta)
        lost = self._first_report and self.traits.loses_first_report
        self._first_report = False
        if not lost:
            self.reported = add_counters(self.reported, delta)
            self.process.publish_traffic(now, self.thread, self._prefix, "traffic", delta)

    def _publish_status(self, now: int, kind: str, lifetime_seconds: int) -> None:
        payload = b"%b lifetime=%d%b" % (kind.encode(), lifetime_seconds, self._addresses)
        self.process.publish_status(now, self.thread, self._status_key, kind, payload)
