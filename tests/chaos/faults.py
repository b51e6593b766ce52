"""The faults: each breaks a part of the deployment and repairs it again.

A fault is a generator. It yields conditions to wait for, or seconds; the runner steps it. Faults
that use different parts may overlap.
"""

import resource
import signal
import time
from collections.abc import Callable, Generator, Iterator
from contextlib import suppress
from dataclasses import dataclass
from enum import Enum, auto
from typing import Final

from tests.chaos.deployment import BACKLOG_BYTES, REDIS, UNLIMITED, Deployment, Machine, send_signal
from tests.chaos.faulty_proxy import CommitLoss
from tests.support import clocked_collector
from tests.support.servers import ADDRESS, RedisServer
from tests.support.service import arguments, descendants

Step = float | Callable[[], object]
Fault = Callable[[Deployment, float], Iterator[Step]]
SMALL_BACKLOG_BYTES: Final = 1 << 14
OVERRUN_BYTES: Final = 1 << 16
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


FAULT_KINDS: Final[dict[str, FaultKind]] = {}


def fault_kind(
    *takes: str, costs: Costs = Costs.NOTHING, weight: int = 2
) -> Callable[[Fault], Fault]:
    """Register a fault as a kind; its name is that of the function, in words."""

    def enter(fault: Fault) -> Fault:
        name = getattr(fault, "__name__", "").replace("_", " ")
        FAULT_KINDS[name] = FaultKind(name, fault, frozenset(takes), costs, weight)
        return fault

    return enter


# -- processes: SIGKILL, and SIGSTOP for seconds


def stop_processes(pids: list[int], seconds: float) -> Iterator[Step]:
    stopped = [pid for pid in pids if send_signal(pid, signal.SIGSTOP)]
    yield seconds
    for pid in stopped:
        send_signal(pid, signal.SIGCONT)


@fault_kind("collector", costs=Costs.CAPTURE, weight=3)
def kill_collector(deployment: Deployment, _seconds: float) -> Iterator[Step]:
    yield lambda: send_signal(deployment.leader.pid(), signal.SIGKILL)


@fault_kind("loader", weight=3)
def kill_loader(deployment: Deployment, _seconds: float) -> Iterator[Step]:
    yield lambda: send_signal(deployment.leader.pid("load"), signal.SIGKILL)


@fault_kind("scheduler", weight=3)
def kill_scheduler(deployment: Deployment, _seconds: float) -> Iterator[Step]:
    yield lambda: send_signal(deployment.scheduler.pid(), signal.SIGKILL)


@fault_kind("collector", costs=Costs.CAPTURE)
def hang_collector(deployment: Deployment, seconds: float) -> Iterator[Step]:
    yield from stop_processes([deployment.leader.pid()], seconds)


@fault_kind("loader")
def hang_loader(deployment: Deployment, seconds: float) -> Iterator[Step]:
    yield from stop_processes([deployment.leader.pid("load")], seconds)


@fault_kind("scheduler")
def hang_scheduler(deployment: Deployment, seconds: float) -> Iterator[Step]:
    yield from stop_processes([deployment.scheduler.pid()], seconds)


# -- clocks


@fault_kind("clock", weight=3)
def set_a_wrong_clock(deployment: Deployment, seconds: float) -> Iterator[Step]:
    """On the machine that collects; a collector that starts meanwhile finds it wrong."""
    machine = deployment.leader
    error = WRONG_CLOCKS[int(seconds * 1000) % len(WRONG_CLOCKS)]
    clocked_collector.set_clock(machine.directory, error)
    yield seconds
    clocked_collector.set_clock(machine.directory, 0)


# -- Postgres


@fault_kind("postgres", weight=3)
def kill_postgres(deployment: Deployment, seconds: float) -> Iterator[Step]:
    deployment.postgres.kill()
    yield seconds
    deployment.postgres.start()


@fault_kind("postgres", weight=1)
def restart_postgres(deployment: Deployment, seconds: float) -> Iterator[Step]:
    deployment.postgres.stop()
    yield seconds
    deployment.postgres.start()


@fault_kind("postgres")
def hang_postgres(deployment: Deployment, seconds: float) -> Iterator[Step]:
    """Stop the postmaster first, so that it starts no more processes."""
    server = deployment.postgres.pid
    send_signal(server, signal.SIGSTOP)
    yield from stop_processes(descendants(server), seconds)
    send_signal(server, signal.SIGCONT)


@fault_kind("postgres")
def let_postgres_only_read(deployment: Deployment, seconds: float) -> Iterator[Step]:
    deployment.configure_postgres(
        "ALTER SYSTEM SET default_transaction_read_only = on", "SELECT pg_reload_conf()"
    )
    yield seconds
    deployment.configure_postgres(
        "ALTER SYSTEM RESET default_transaction_read_only", "SELECT pg_reload_conf()"
    )


# -- the wires


@fault_kind("redis wire", costs=Costs.CAPTURE)
def cut_redis(deployment: Deployment, seconds: float) -> Iterator[Step]:
    wire = deployment.leader.redis_proxy
    assert wire is not None
    wire.cut()
    yield seconds
    wire.mend()


@fault_kind("redis wire", costs=Costs.CAPTURE)
def silence_redis(deployment: Deployment, seconds: float) -> Iterator[Step]:
    wire = deployment.leader.redis_proxy
    assert wire is not None
    wire.silence()
    yield seconds
    wire.mend()


@fault_kind("redis wire", costs=Costs.CAPTURE)
def drop_redis_connections(deployment: Deployment, _seconds: float) -> Iterator[Step]:
    wire = deployment.leader.redis_proxy
    assert wire is not None
    wire.disconnect()
    yield 0.0


@fault_kind("database wire")
def cut_database(deployment: Deployment, seconds: float) -> Iterator[Step]:
    wire = deployment.leader.database_proxy
    wire.cut()
    yield seconds
    wire.mend()


@fault_kind("database wire")
def silence_database(deployment: Deployment, seconds: float) -> Iterator[Step]:
    wire = deployment.leader.database_proxy
    wire.silence()
    yield seconds
    wire.mend()


@fault_kind("scheduler wire")
def cut_scheduler_off(deployment: Deployment, seconds: float) -> Iterator[Step]:
    deployment.scheduler.database_proxy.cut()
    yield seconds
    deployment.scheduler.database_proxy.mend()


def lose_commit(machines: list[Machine], what: CommitLoss) -> Iterator[Step]:
    """Lose the next COMMIT that passes one of the proxies."""
    wires = [machine.database_proxy for machine in machines]
    before = sum(wire.lost_count for wire in wires)
    for wire in wires:
        wire.lose_commit(what)
    yield lambda: sum(wire.lost_count for wire in wires) > before
    for wire in wires:
        wire.mend()


@fault_kind("database wire", weight=3)
def lose_answer_to_loaders_commit(deployment: Deployment, _seconds: float) -> Iterator[Step]:
    yield from lose_commit(deployment.collectors, "answer")


@fault_kind("database wire", weight=1)
def lose_loaders_commit(deployment: Deployment, _seconds: float) -> Iterator[Step]:
    yield from lose_commit(deployment.collectors, "request")


@fault_kind("scheduler wire")
def lose_answer_to_schedulers_commit(deployment: Deployment, _seconds: float) -> Iterator[Step]:
    yield from lose_commit([deployment.scheduler], "answer")


# -- the disk


def fill_disk(deployment: Deployment, part: str, seconds: float) -> Iterator[Step]:
    """Limit the size of the process' files to a little more than its log has now."""
    yield lambda: deployment.leader.pid(part)
    pid, service = deployment.leader.pid(part), deployment.leader.service
    if not pid or service is None:
        return
    room = len(service.log_text()) + (1 << 14)
    with suppress(ProcessLookupError):
        resource.prlimit(pid, resource.RLIMIT_FSIZE, (room, resource.RLIM_INFINITY))
    deadline = time.monotonic() + seconds
    yield lambda: not is_alive(pid) or time.monotonic() > deadline
    with suppress(ProcessLookupError):
        resource.prlimit(pid, resource.RLIMIT_FSIZE, UNLIMITED)


def is_alive(pid: int) -> bool:
    return bool(arguments(pid))


@fault_kind("collector", costs=Costs.CAPTURE)
def fill_collectors_disk(deployment: Deployment, seconds: float) -> Iterator[Step]:
    yield from fill_disk(deployment, "", seconds)


@fault_kind("loader", weight=1)
def fill_loaders_disk(deployment: Deployment, seconds: float) -> Iterator[Step]:
    yield from fill_disk(deployment, "load", seconds)


# -- another machine takes over; only with two machines

WHOLE_MACHINE: Final = ("turn", "collector", "loader", "redis wire", "database wire", "postgres")


def has_other_leader(deployment: Deployment, machine: Machine) -> Callable[[], object]:
    return lambda: deployment.watcher.lease_holder and not deployment.is_leader(machine)


@fault_kind(*WHOLE_MACHINE, costs=Costs.CAPTURE)
def lose_the_collecting_machine(deployment: Deployment, _seconds: float) -> Iterator[Step]:
    """Kill all processes of the machine; restart them when the other has taken over."""
    machine = deployment.leader
    yield machine.pid
    machine.is_held_down = True
    pid = machine.pid()
    for process in (pid, *descendants(pid)):
        send_signal(process, signal.SIGKILL)
    yield has_other_leader(deployment, machine)
    machine.is_held_down = False


@fault_kind(*WHOLE_MACHINE, costs=Costs.CAPTURE)
def hang_the_collecting_machine(deployment: Deployment, _seconds: float) -> Iterator[Step]:
    machine = deployment.leader
    yield machine.pid
    pid = machine.pid()
    stopped = [each for each in (pid, *descendants(pid)) if send_signal(each, signal.SIGSTOP)]
    yield has_other_leader(deployment, machine)
    for process in stopped:
        send_signal(process, signal.SIGCONT)


@fault_kind(*WHOLE_MACHINE, costs=Costs.CAPTURE)
def hang_the_collector_for_good(deployment: Deployment, _seconds: float) -> Iterator[Step]:
    """Stop only the collector: its loader then has nothing more to load."""
    machine = deployment.leader
    yield machine.pid
    pid = machine.pid()
    send_signal(pid, signal.SIGSTOP)
    yield has_other_leader(deployment, machine)
    send_signal(pid, signal.SIGCONT)


@fault_kind(*WHOLE_MACHINE, costs=Costs.CAPTURE)
def cut_the_collecting_machine_off(deployment: Deployment, _seconds: float) -> Iterator[Step]:
    """The machine assumes that it has the lease until it reaches the servers again."""
    machine = deployment.leader
    assert machine.redis_proxy is not None
    machine.redis_proxy.silence()
    machine.database_proxy.silence()
    yield has_other_leader(deployment, machine)
    machine.redis_proxy.mend()
    machine.database_proxy.mend()


@fault_kind(*WHOLE_MACHINE, costs=Costs.CAPTURE)
def cut_the_collecting_machine_off_from_postgres(
    deployment: Deployment, _seconds: float
) -> Iterator[Step]:
    """The machine goes on capturing into its spool, while the other captures and loads the same."""
    machine = deployment.leader
    machine.database_proxy.cut()
    yield has_other_leader(deployment, machine)
    machine.database_proxy.mend()


# -- Redis itself: it loses what no collector had read


@fault_kind("redis", weight=2)
def hang_redis(deployment: Deployment, seconds: float) -> Iterator[Step]:
    deployment.master.pause()
    yield seconds
    deployment.master.resume()


@fault_kind("redis", costs=Costs.EVENTS)
def kill_redis(deployment: Deployment, seconds: float) -> Iterator[Step]:
    deployment.master.kill()
    yield seconds
    deployment.master.start()


@fault_kind("redis", costs=Costs.EVENTS)
def restart_redis_with_its_snapshot(deployment: Deployment, seconds: float) -> Iterator[Step]:
    with deployment.client() as client:
        client.config_set("save", "3600 1")
    deployment.master.stop()
    yield seconds
    deployment.master.start()


def replica(deployment: Deployment) -> Generator[Step, None, RedisServer]:
    """Start a replica of the master and wait until it is in sync."""
    server = deployment.redis_kind(REDIS)
    server.start()
    with deployment.client(server) as client:
        client.replicaof(ADDRESS, deployment.master.port)
        yield lambda: client.info("replication").get("master_link_status") == "up"
    return server


def offset(deployment: Deployment, server: RedisServer) -> int:
    with deployment.client(server) as client:
        return int(client.info("replication")["master_repl_offset"])


def promote(deployment: Deployment, server: RedisServer) -> None:
    """Make a replica the master, and end the old one."""
    old = deployment.master
    with deployment.client(server) as client:
        client.replicaof("NO", "ONE")
    deployment.master = server
    old.__exit__(None, None, None)


@fault_kind("redis", costs=Costs.EVENTS)
def hand_over_to_a_replica(deployment: Deployment, _seconds: float) -> Iterator[Step]:
    """A planned failover: publishing pauses until the replica has everything."""
    server = yield from replica(deployment)
    deployment.publisher.pause()
    reached = offset(deployment, deployment.master)
    yield lambda: offset(deployment, server) >= reached
    promote(deployment, server)
    deployment.publisher.resume()


@fault_kind("redis", costs=Costs.EVENTS)
def lose_the_master_to_a_replica(deployment: Deployment, _seconds: float) -> Iterator[Step]:
    server = yield from replica(deployment)
    deployment.master.kill()
    promote(deployment, server)


@fault_kind("redis", "redis wire", "collector", costs=Costs.EVENTS)
def overrun_the_backlog(deployment: Deployment, _seconds: float) -> Iterator[Step]:
    with deployment.client() as client:
        client.config_set("repl-backlog-size", SMALL_BACKLOG_BYTES)
    for machine in deployment.collectors:
        if machine.redis_proxy is not None:
            machine.redis_proxy.cut()
    reached = deployment.publisher.bytes + OVERRUN_BYTES
    yield lambda: deployment.publisher.bytes > reached
    with deployment.client() as client:
        client.config_set("repl-backlog-size", BACKLOG_BYTES)
    for machine in deployment.collectors:
        if machine.redis_proxy is not None:
            machine.redis_proxy.mend()
