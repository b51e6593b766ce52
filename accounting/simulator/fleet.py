"""The fleet: servers, arrivals, strangers and accidents on one virtual clock.

Pure: seeded random numbers in, timed commands out, with the oracle's ledger kept on the way. No
I/O, no clock. Every actor (a life, the arrivals, a server's keepalives, a restart) is a generator
that yields when to be woken next.
"""

from collections.abc import Iterator
from heapq import heappop, heappush
from random import Random
from typing import Final, NamedTuple

from accounting.simulator.allocation import ANSWER_BYTES, REQUEST_BYTES, SECOND, Allocation, Traits
from accounting.simulator.oracle import Eight, Expected, Ledger
from accounting.simulator.population import Identity, nobody, population, roaming
from accounting.simulator.process import Process
from accounting.simulator.scenario import Scenario
from accounting.simulator.shared_key import SHORTEST_PAIR_US, two_on_one_key
from accounting.simulator.wire import KEEPALIVE_SECONDS, Command, channel_prefix

REPLACED_AFTER_US: Final = 10_000


class Burst(NamedTuple):
    """Commands of one moment.

    ``alone``: every command before it is answered before it is sent, and it before any that
    follows, since its order against other connections matters.
    """

    at_us: int
    commands: list[Command]
    alone: bool


class Fleet:
    """A scenario, played once: iterate over :meth:`run`, then ask for :meth:`expected`."""

    def __init__(self, scenario: Scenario) -> None:
        self.scenario = scenario
        self.ledger = Ledger()
        self._random = Random(scenario.seed)  # noqa: S311 - a simulation wants repeatable numbers
        self._ends_us = int(scenario.duration_seconds * SECOND)
        self._heap: list[tuple[int, int, Iterator[int]]] = []
        self._scheduled = 0
        self._out: list[Command] = []
        self._alone = False
        self._halted = False
        self._now_us = 0
        self._connections = 0
        self._status_keys: dict[int, dict[bytes, None]] = {}
        self._live: dict[Allocation, None] = {}
        # What a key of each server's current or earlier process last stood for, where nothing
        # ended it: killed lives, lost `deleted`, strays. By (relay thread and counter).
        self._unclean: list[set[tuple[Identity, int]]] = [set() for _ in range(scenario.servers)]
        self._remembered: list[dict[int, Identity]] = [{} for _ in range(scenario.servers)]
        self._processes = [self._start(server) for server in range(scenario.servers)]
        people = population(scenario)
        self._random.shuffle(people)
        self._people = [people[server :: scenario.servers] for server in range(scenario.servers)]
        self._restart_us = self._ends_us // 2 if scenario.restart else 0
        self._down_us = min(SECOND, self._ends_us // 20)
        self._ordinal = 0
        self._wake(0, self._open())

    @property
    def now_us(self) -> int:
        return self._now_us

    @property
    def sessions_live(self) -> int:
        return len(self._live)

    @property
    def connections(self) -> int:
        """How many connections were numbered so far."""
        return self._connections

    def run(self) -> Iterator[Burst]:
        """Play; bursts come in order of time."""
        while self._heap:
            self._now_us, _, actor = heappop(self._heap)
            next_us = next(actor, None)
            if next_us is not None:
                self._wake(next_us, actor)
            if self._out:
                yield Burst(self._now_us, self._out.copy(), self._alone)
                self._out.clear()
                self._alone = False

    def halt(self) -> None:
        """End the run early, between two bursts: every server is killed, nothing new begins.

        A pair of ``same_key`` under way goes on in :meth:`run` until both have closed.
        """
        self._halted = True
        for process in self._processes:
            self._kill(process)

    def expected(self) -> Expected:
        """What the bursts so far must come to; whole once :meth:`run` is exhausted."""
        return self.ledger.expected()

    def _wake(self, at_us: int, actor: Iterator[int]) -> None:
        self._scheduled += 1
        heappush(self._heap, (max(at_us, self._now_us), self._scheduled, actor))

    def _start(self, server: int) -> Process:
        scenario = self.scenario
        database = scenario.database(server)
        first = self._connections
        self._connections += scenario.relay_threads + 1
        return Process(
            server=server,
            version=scenario.release,
            address=scenario.address(server),
            database=database,
            connections=range(first, self._connections),
            status_keys=self._status_keys.setdefault(database, {}),
            ledger=self.ledger,
            out=self._out,
        )

    def _kill(self, process: Process) -> None:
        process.alive = False
        server = process.server
        for allocation in [life for life in self._live if life.process is process]:
            allocation.die(self._now_us)
            del self._live[allocation]
            self._unclean[server].add((allocation.identity, allocation.allocation_id))
            self._remembered[server][allocation.allocation_id] = allocation.identity

    # Actors

    def _open(self) -> Iterator[int]:
        for process in self._processes:
            process.clear_status_keys(0)
            self._wake(0, self._keepalives(process))
        self._alone = True
        self._wake(SECOND // 10, self._arrivals())
        if self.scenario.restart:
            self._wake(self._restart_us, self._restart())
        yield from ()

    def _keepalives(self, process: Process) -> Iterator[int]:
        if not process.version.keepalives:
            return
        while (at_us := self._now_us + KEEPALIVE_SECONDS * SECOND) < self._ends_us:
            yield at_us
            if not process.alive:
                return
            process.keep_alive(at_us)

    def _restart(self) -> Iterator[int]:
        self._kill(self._processes[0])
        yield self._restart_us + self._down_us
        if self._halted:
            return
        process = self._processes[0] = self._start(0)
        process.clear_status_keys(self._now_us)
        self._alone = True
        self._wake(self._now_us, self._keepalives(process))

    def _arrivals(self) -> Iterator[int]:
        scenario = self.scenario
        if scenario.concurrency is not None:
            count, window = scenario.concurrency, min(SECOND, self._ends_us // 10)
        else:
            count, window = scenario.sessions, self._ends_us * 4 // 5
        began_us = self._now_us
        for place in range(count):
            yield began_us + window * place // count
            if self._halted:
                return
            self._arrive()

    def _live_out(self, allocation: Allocation) -> Iterator[int]:
        yield from allocation.life()
        self._live.pop(allocation, None)
        self._replace()

    def _replace(self) -> None:
        if self.scenario.concurrency is None or self._halted:
            return
        if self._now_us + REPLACED_AFTER_US < self._ends_us - SECOND:
            self._wake(self._now_us + REPLACED_AFTER_US, self._replacement())

    def _replacement(self) -> Iterator[int]:
        if not self._halted:
            self._arrive()
        yield from ()

    # Arrivals

    def _arrive(self) -> None:
        """One more session begins, and what the hard cases hang on it."""
        scenario, random = self.scenario, self._random
        ordinal, self._ordinal = self._ordinal, self._ordinal + 1
        server = random.randrange(scenario.servers)
        if not self._processes[server].alive:
            # Down for a moment: the client takes another server, or tries again.
            if scenario.servers == 1:
                self._ordinal = ordinal
                self._wake(self._restart_us + self._down_us + 1, self._replacement())
                return
            server = (server + 1) % scenario.servers
        length = scenario.session_seconds * (0.5 + random.random()) * SECOND
        ends_us = min(self._now_us + max(int(length), SECOND * 6 // 5), self._ends_us)
        if scenario.same_key and ordinal % 20 == 4 and self._begin_pair(ends_us):
            return
        allocation = self._allocation(self._processes[server], ends_us, self._traits(ordinal))
        self._live[allocation] = None
        self.ledger.sessions_started += 1
        if allocation.traits.lose_deleted and scenario.restart:
            self._unclean[server].add((allocation.identity, allocation.allocation_id))
        self._wake(self._now_us, self._live_out(allocation))
        if allocation.traits.silent:
            self._stray(allocation.process, allocation.identity, packets=1000)
        if scenario.stolen and ordinal % 10 == 0:
            self._stranger(allocation.process, ordinal // 10)

    def _traits(self, ordinal: int) -> Traits:
        scenario = self.scenario
        lost = (ordinal // 5) % 3 if scenario.lost_totals and ordinal % 5 == 2 else None
        return Traits(
            wrap=scenario.wrap and ordinal % 20 == 0,
            silent=scenario.rfc6062 and ordinal % 10 == 1,
            lose_first_report=scenario.lost_interims and ordinal % 10 == 3,
            lose_deleted=lost in {0, 2},
            lose_totals=lost in {1, 2},
        )

    def _allocation(
        self,
        process: Process,
        ends_us: int,
        traits: Traits,
        *,
        identity: Identity | None = None,
        thread: int | None = None,
    ) -> Allocation:
        scenario, random = self.scenario, self._random
        if thread is None:
            thread = random.randrange(scenario.relay_threads)
        allocation_id = process.take_id(thread)
        if identity is None:
            # After a restart the user who left an id unfinished meets it again: the hard case.
            remembered = self._remembered[process.server].pop(allocation_id, None)
            identity = remembered or self._someone(process.server)
        transport = "UDP"
        if traits.silent or random.random() < scenario.tcp_share:
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

    def _stranger(self, process: Process, place: int) -> None:
        """A wrong password under a user's name; every second time a STUN binding under none."""
        if place % 2 and process.version.stun_strangers:
            self._stray(process, nobody(self.scenario, place), packets=0)
        else:
            self._stray(process, self._someone(process.server), packets=0)

    def _stray(self, process: Process, identity: Identity, *, packets: int) -> None:
        """Traffic under an id of its own that no status and no total will vouch for."""
        thread = self._random.randrange(self.scenario.relay_threads)
        allocation_id = process.take_id(thread)
        if (identity, allocation_id) in self._unclean[process.server]:
            # The life under way there would take it in: by the rules, and until it expires.
            return
        requests = 1 + int(self._random.random() * 4)
        data = packets * self.scenario.packet_bytes
        reported: Eight = (
            requests + packets,
            REQUEST_BYTES * requests + data,
            requests,
            ANSWER_BYTES * requests,
            *((0, 0, packets, data) if process.version.peer_traffic else (0, 0, 0, 0)),
        )
        prefix = channel_prefix(identity.realm, identity.username, allocation_id)
        process.say_traffic(self._now_us, thread, prefix, "traffic", reported)
        self.ledger.stray(identity, reported)
        if self._now_us < self._restart_us and identity.username:
            self._remembered[process.server][allocation_id] = identity

    def _begin_pair(self, ends_us: int) -> bool:
        """One user on two servers under one id; false where there is no room for it now."""
        first, second = self._processes[:2]
        if self._now_us < self._restart_us:
            ends_us = min(ends_us, self._restart_us - 1)
        if not first.alive or ends_us - self._now_us < SHORTEST_PAIR_US:
            return False
        shared = max(first.peek_id(0), second.peek_id(0))
        pair = []
        for process in (first, second):
            process.skip_to(0, shared)
            traits = Traits(second_on_key=process is second)
            identity = roaming(self.scenario)
            pair.append(self._allocation(process, ends_us, traits, identity=identity, thread=0))
        self.ledger.sessions_started += 1
        self.ledger.dispute(pair[0].identity)
        self._wake(self._now_us, two_on_one_key(*pair, alone=self._stand_alone))
        return True

    def _stand_alone(self) -> None:
        self._alone = True

    def _someone(self, server: int) -> Identity:
        return self._random.choice(self._random.choice(self._people[server]))
