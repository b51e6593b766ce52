"""Simulates the fleet: its servers, sessions, unauthenticated requests and failures.

Seeded random numbers in, timed commands out, without I/O or clock; the ledger of the oracle is
filled meanwhile. Every actor (an allocation, the arrivals, a server's keepalives, a restart) is a
generator that yields when to continue, in virtual microseconds.
"""

from collections.abc import Iterator
from heapq import heappop, heappush
from random import Random
from typing import Final, NamedTuple

from accounting.simulator.allocation import (
    REQUEST_BYTES,
    RESPONSE_BYTES,
    SECOND,
    Allocation,
    Traits,
)
from accounting.simulator.oracle import Counters, Expected, OracleLedger
from accounting.simulator.population import (
    SimulatedUser,
    population,
    shared_key_user,
    unauthenticated_user,
)
from accounting.simulator.process import ServerProcess
from accounting.simulator.scenario import Scenario
from accounting.simulator.shared_key import MIN_DURATION_US, play_shared_key
from accounting.simulator.wire import KEEPALIVE_SECONDS, Command, channel_prefix

REPLACEMENT_DELAY_US: Final = 10_000


class Burst(NamedTuple):
    """Commands of one moment.

    ``serialized``: their order against other connections matters. So they are sent after the
    replies to all earlier commands, and later commands after the replies to them.
    """

    at_us: int
    commands: list[Command]
    serialized: bool


class Fleet:
    """One run of a scenario: iterate over :meth:`run`, then call :meth:`expected`."""

    def __init__(self, scenario: Scenario) -> None:
        self.scenario = scenario
        self.ledger = OracleLedger()
        self._random = Random(scenario.seed)  # noqa: S311 - a simulation wants repeatable numbers
        self._ends_us = int(scenario.duration_seconds * SECOND)
        self._wakeups: list[tuple[int, int, Iterator[int]]] = []
        self._schedule_count = 0
        self._commands: list[Command] = []
        self._serialized = False
        self._halted = False
        self._now_us = 0
        self._connections = 0
        self._status_keys: dict[int, dict[bytes, None]] = {}
        self._active: dict[Allocation, None] = {}
        # The (user, allocation id) of each server whose session the books do not know to have
        # ended: its process was killed, or its `deleted` was lost.
        self._leftover_keys: list[set[tuple[SimulatedUser, int]]] = [
            set() for _ in range(scenario.servers)
        ]
        self._interrupted_users: list[dict[int, SimulatedUser]] = [
            {} for _ in range(scenario.servers)
        ]
        self._processes = [self._start_process(server) for server in range(scenario.servers)]
        identities = population(scenario)
        self._random.shuffle(identities)
        self._identities = [
            identities[server :: scenario.servers] for server in range(scenario.servers)
        ]
        self._restart_us = self._ends_us // 2 if scenario.restart else 0
        self._down_us = min(SECOND, self._ends_us // 20)
        self._ordinal = 0
        self._schedule(0, self._start_fleet())

    @property
    def now_us(self) -> int:
        return self._now_us

    @property
    def active_sessions(self) -> int:
        return len(self._active)

    @property
    def connections(self) -> int:
        """The number of connections so far."""
        return self._connections

    def run(self) -> Iterator[Burst]:
        """Run the scenario; yields bursts in order of time."""
        while self._wakeups:
            self._now_us, _, actor = heappop(self._wakeups)
            next_us = next(actor, None)
            if next_us is not None:
                self._schedule(next_us, actor)
            if self._commands:
                yield Burst(self._now_us, self._commands.copy(), self._serialized)
                self._commands.clear()
                self._serialized = False

    def halt(self) -> None:
        """End the run early, between two bursts: kills every server, starts no more sessions.

        :meth:`run` goes on until the two allocations of each shared key (``same_key``) have closed.
        """
        self._halted = True
        for process in self._processes:
            self._kill_process(process)

    def expected(self) -> Expected:
        """The totals that the books must show after the bursts so far."""
        return self.ledger.expected()

    def _schedule(self, at_us: int, actor: Iterator[int]) -> None:
        self._schedule_count += 1
        heappush(self._wakeups, (max(at_us, self._now_us), self._schedule_count, actor))

    def _start_process(self, server: int) -> ServerProcess:
        scenario = self.scenario
        database = scenario.database(server)
        first = self._connections
        self._connections += scenario.relay_threads + 1
        return ServerProcess(
            server=server,
            version=scenario.release,
            address=scenario.address(server),
            database=database,
            connections=range(first, self._connections),
            status_keys=self._status_keys.setdefault(database, {}),
            ledger=self.ledger,
            commands=self._commands,
        )

    def _kill_process(self, process: ServerProcess) -> None:
        process.is_running = False
        server = process.server
        for allocation in [active for active in self._active if active.process is process]:
            allocation.lose(self._now_us)
            del self._active[allocation]
            self._leftover_keys[server].add((allocation.identity, allocation.allocation_id))
            self._interrupted_users[server][allocation.allocation_id] = allocation.identity

    # Actors

    def _start_fleet(self) -> Iterator[int]:
        for process in self._processes:
            process.clear_status_keys(0)
            self._schedule(0, self._keepalives(process))
        self._serialized = True
        self._schedule(SECOND // 10, self._arrivals())
        if self.scenario.restart:
            self._schedule(self._restart_us, self._restart())
        yield from ()

    def _keepalives(self, process: ServerProcess) -> Iterator[int]:
        if not process.version.keepalives:
            return
        while (at_us := self._now_us + KEEPALIVE_SECONDS * SECOND) < self._ends_us:
            yield at_us
            if not process.is_running:
                return
            process.publish_keepalives(at_us)

    def _restart(self) -> Iterator[int]:
        self._kill_process(self._processes[0])
        yield self._restart_us + self._down_us
        if self._halted:
            return
        process = self._processes[0] = self._start_process(0)
        process.clear_status_keys(self._now_us)
        self._serialized = True
        self._schedule(self._now_us, self._keepalives(process))

    def _arrivals(self) -> Iterator[int]:
        scenario = self.scenario
        if scenario.concurrency is not None:
            count, window = scenario.concurrency, min(SECOND, self._ends_us // 10)
        else:
            count, window = scenario.sessions, self._ends_us * 4 // 5
        began_us = self._now_us
        for index in range(count):
            yield began_us + window * index // count
            if self._halted:
                return
            self._begin_session()

    def _run_allocation(self, allocation: Allocation) -> Iterator[int]:
        yield from allocation.play()
        self._active.pop(allocation, None)
        self._schedule_replacement()

    def _schedule_replacement(self) -> None:
        if self.scenario.concurrency is None or self._halted:
            return
        if self._now_us + REPLACEMENT_DELAY_US < self._ends_us - SECOND:
            self._schedule(self._now_us + REPLACEMENT_DELAY_US, self._replacement())

    def _replacement(self) -> Iterator[int]:
        if not self._halted:
            self._begin_session()
        yield from ()

    # Arrivals

    def _begin_session(self) -> None:
        """Start another session, and with it the traffic of the hard cases."""
        scenario, random = self.scenario, self._random
        ordinal, self._ordinal = self._ordinal, self._ordinal + 1
        server = random.randrange(scenario.servers)
        if not self._processes[server].is_running:
            # It is restarting: the client uses another server, or tries again.
            if scenario.servers == 1:
                self._ordinal = ordinal
                self._schedule(self._restart_us + self._down_us + 1, self._replacement())
                return
            server = (server + 1) % scenario.servers
        length = scenario.session_seconds * (0.5 + random.random()) * SECOND
        ends_us = min(self._now_us + max(int(length), SECOND * 6 // 5), self._ends_us)
        if scenario.same_key and ordinal % 20 == 4 and self._begin_shared_key(ends_us):
            return
        allocation = self._new_allocation(self._processes[server], ends_us, self._traits(ordinal))
        self._active[allocation] = None
        self.ledger.sessions_started += 1
        if allocation.traits.loses_deleted and scenario.restart:
            self._leftover_keys[server].add((allocation.identity, allocation.allocation_id))
        self._schedule(self._now_us, self._run_allocation(allocation))
        if allocation.traits.reports_only_at_close:
            self._publish_unauthenticated(allocation.process, allocation.identity, packets=1000)
        if scenario.stolen and ordinal % 10 == 0:
            self._publish_stolen(allocation.process, ordinal // 10)

    def _traits(self, ordinal: int) -> Traits:
        scenario = self.scenario
        lost = (ordinal // 5) % 3 if scenario.lost_totals and ordinal % 5 == 2 else None
        return Traits(
            wraps_peer_total=scenario.wrap and ordinal % 20 == 0,
            reports_only_at_close=scenario.rfc6062 and ordinal % 10 == 1,
            loses_first_report=scenario.lost_interims and ordinal % 10 == 3,
            loses_deleted=lost in {0, 2},
            loses_totals=lost in {1, 2},
        )

    def _new_allocation(
        self,
        process: ServerProcess,
        ends_us: int,
        traits: Traits,
        *,
        identity: SimulatedUser | None = None,
        thread: int | None = None,
    ) -> Allocation:
        scenario, random = self.scenario, self._random
        if thread is None:
            thread = random.randrange(scenario.relay_threads)
        allocation_id = process.take_id(thread)
        if identity is None:
            # The hard case of a restart: a user whose session was interrupted gets its id again.
            remembered = self._interrupted_users[process.server].pop(allocation_id, None)
            identity = remembered or self._random_identity(process.server)
        transport = "UDP"
        if traits.reports_only_at_close or random.random() < scenario.tcp_share:
            transport = "TLS/TCP" if random.random() < 0.5 else "TCP"
        return Allocation(
            process=process,
            ledger=self.ledger,
            random=random,
            thread=thread,
            allocation_id=allocation_id,
            identity=identity,
            transport=transport,
            begins_us=self._now_us,
            ends_us=ends_us,
            lifetime_seconds=scenario.lifetime_seconds,
            packets_per_second=scenario.packets_per_second,
            packet_bytes=scenario.packet_bytes,
            traits=traits,
        )

    def _publish_stolen(self, process: ServerProcess, index: int) -> None:
        """Requests with a user's name and a wrong password; every second time a STUN binding."""
        if index % 2 and process.version.stun_traffic:
            self._publish_unauthenticated(
                process, unauthenticated_user(self.scenario, index), packets=0
            )
        else:
            self._publish_unauthenticated(process, self._random_identity(process.server), packets=0)

    def _publish_unauthenticated(
        self, process: ServerProcess, identity: SimulatedUser, *, packets: int
    ) -> None:
        """Publish traffic under an unused id, which no status and no total confirms."""
        thread = self._random.randrange(self.scenario.relay_threads)
        allocation_id = process.take_id(thread)
        if (identity, allocation_id) in self._leftover_keys[process.server]:
            # By the rules the traffic would belong to that session, until it expires.
            return
        requests = 1 + int(self._random.random() * 4)
        data = packets * self.scenario.packet_bytes
        reported: Counters = (
            requests + packets,
            REQUEST_BYTES * requests + data,
            requests,
            RESPONSE_BYTES * requests,
            *((0, 0, packets, data) if process.version.peer_traffic else (0, 0, 0, 0)),
        )
        prefix = channel_prefix(identity.realm, identity.username, allocation_id)
        process.publish_traffic(self._now_us, thread, prefix, "traffic", reported)
        self.ledger.add_unauthenticated(identity, reported)
        if self._now_us < self._restart_us and identity.username:
            self._interrupted_users[process.server][allocation_id] = identity

    def _begin_shared_key(self, ends_us: int) -> bool:
        """Start one user on two servers under one id; False if that is impossible now."""
        first, second = self._processes[:2]
        if self._now_us < self._restart_us:
            ends_us = min(ends_us, self._restart_us - 1)
        if not first.is_running or ends_us - self._now_us < MIN_DURATION_US:
            return False
        shared = max(first.next_id(0), second.next_id(0))
        pair = []
        for process in (first, second):
            process.skip_to(0, shared)
            traits = Traits(is_second_on_key=process is second)
            identity = shared_key_user(self.scenario)
            pair.append(self._new_allocation(process, ends_us, traits, identity=identity, thread=0))
        self.ledger.sessions_started += 1
        self.ledger.add_dispute(pair[0].identity)
        self._schedule(self._now_us, play_shared_key(*pair, serialize=self._serialize))
        return True

    def _serialize(self) -> None:
        self._serialized = True

    def _random_identity(self, server: int) -> SimulatedUser:
        return self._random.choice(self._random.choice(self._identities[server]))
