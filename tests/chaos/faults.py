"""The faults: what each does to the world, and how it is taken back.

Owns the kinds. A fault is a generator that does its harm, yields what has to come about or how many
seconds have to pass, and mends what it broke; faults of different things overlap. The run that
steps them is not their business.
"""

import resource
import signal
import time
from collections.abc import Callable, Generator, Iterator
from contextlib import suppress
from dataclasses import dataclass
from enum import Enum, auto
from typing import Final

from tests.chaos.deployment import BACKLOG_BYTES, REDIS, UNLIMITED, Machine, World, send
from tests.chaos.faulty_proxy import Loss
from tests.support.servers import ADDRESS, RedisServer
from tests.support.service import arguments, descendants

Step = float | Callable[[], object]
Fault = Callable[[World, float], Iterator[Step]]
SMALL_BACKLOG_BYTES: Final = 1 << 14
OVERRUN_BYTES: Final = 1 << 16


class Costs(Enum):
    """What a fault may cost. CAPTURE: nothing, as long as the stream can be gone on with."""

    NOTHING = auto()
    CAPTURE = auto()
    EVENTS = auto()


@dataclass(frozen=True, slots=True)
class Kind:
    """A kind of fault: what it does, what it takes for itself alone, what it may cost."""

    name: str
    fault: Fault
    takes: frozenset[str]
    costs: Costs
    weight: int = 2


KINDS: Final[dict[str, Kind]] = {}


def kind(*takes: str, costs: Costs = Costs.NOTHING, weight: int = 2) -> Callable[[Fault], Fault]:
    """Enter a fault among the kinds, under its own name in words."""

    def enter(fault: Fault) -> Fault:
        name = getattr(fault, "__name__", "").replace("_", " ")
        KINDS[name] = Kind(name, fault, frozenset(takes), costs, weight)
        return fault

    return enter


# -- processes: SIGKILL, and SIGSTOP for seconds


def hang(pids: list[int], seconds: float) -> Iterator[Step]:
    stopped = [pid for pid in pids if send(pid, signal.SIGSTOP)]
    yield seconds
    for pid in stopped:
        send(pid, signal.SIGCONT)


@kind("collector", costs=Costs.CAPTURE, weight=3)
def kill_collector(world: World, _seconds: float) -> Iterator[Step]:
    yield lambda: send(world.leader.pid(), signal.SIGKILL)


@kind("loader", weight=3)
def kill_loader(world: World, _seconds: float) -> Iterator[Step]:
    yield lambda: send(world.leader.pid("load"), signal.SIGKILL)


@kind("scheduler", weight=3)
def kill_scheduler(world: World, _seconds: float) -> Iterator[Step]:
    yield lambda: send(world.scheduler.pid(), signal.SIGKILL)


@kind("collector", costs=Costs.CAPTURE)
def hang_collector(world: World, seconds: float) -> Iterator[Step]:
    yield from hang([world.leader.pid()], seconds)


@kind("loader")
def hang_loader(world: World, seconds: float) -> Iterator[Step]:
    yield from hang([world.leader.pid("load")], seconds)


@kind("scheduler")
def hang_scheduler(world: World, seconds: float) -> Iterator[Step]:
    yield from hang([world.scheduler.pid()], seconds)


# -- Postgres


@kind("postgres", weight=3)
def kill_postgres(world: World, seconds: float) -> Iterator[Step]:
    world.postgres.kill()
    yield seconds
    world.postgres.start()


@kind("postgres", weight=1)
def restart_postgres(world: World, seconds: float) -> Iterator[Step]:
    world.postgres.stop()
    yield seconds
    world.postgres.start()


@kind("postgres")
def hang_postgres(world: World, seconds: float) -> Iterator[Step]:
    """The postmaster first, so that it makes no more processes."""
    server = world.postgres.pid
    send(server, signal.SIGSTOP)
    yield from hang(descendants(server), seconds)
    send(server, signal.SIGCONT)


@kind("postgres")
def let_postgres_only_read(world: World, seconds: float) -> Iterator[Step]:
    world.configure_postgres(
        "ALTER SYSTEM SET default_transaction_read_only = on", "SELECT pg_reload_conf()"
    )
    yield seconds
    world.configure_postgres(
        "ALTER SYSTEM RESET default_transaction_read_only", "SELECT pg_reload_conf()"
    )


# -- the wires


@kind("redis wire", costs=Costs.CAPTURE)
def cut_redis(world: World, seconds: float) -> Iterator[Step]:
    wire = world.leader.redis_wire
    assert wire is not None
    wire.cut()
    yield seconds
    wire.mend()


@kind("redis wire", costs=Costs.CAPTURE)
def silence_redis(world: World, seconds: float) -> Iterator[Step]:
    wire = world.leader.redis_wire
    assert wire is not None
    wire.silence()
    yield seconds
    wire.mend()


@kind("redis wire", costs=Costs.CAPTURE)
def drop_redis_connections(world: World, _seconds: float) -> Iterator[Step]:
    wire = world.leader.redis_wire
    assert wire is not None
    wire.drop()
    yield 0.0


@kind("database wire")
def cut_database(world: World, seconds: float) -> Iterator[Step]:
    wire = world.leader.database_wire
    wire.cut()
    yield seconds
    wire.mend()


@kind("database wire")
def silence_database(world: World, seconds: float) -> Iterator[Step]:
    wire = world.leader.database_wire
    wire.silence()
    yield seconds
    wire.mend()


@kind("scheduler wire")
def cut_scheduler_off(world: World, seconds: float) -> Iterator[Step]:
    world.scheduler.database_wire.cut()
    yield seconds
    world.scheduler.database_wire.mend()


def lose(machines: list[Machine], what: Loss) -> Iterator[Step]:
    """Lose one COMMIT, on whichever wire the next one comes."""
    wires = [machine.database_wire for machine in machines]
    before = sum(wire.lost for wire in wires)
    for wire in wires:
        wire.lose_commit(what)
    yield lambda: sum(wire.lost for wire in wires) > before
    for wire in wires:
        wire.mend()


@kind("database wire", weight=3)
def lose_answer_to_loaders_commit(world: World, _seconds: float) -> Iterator[Step]:
    yield from lose(world.collectors, "answer")


@kind("database wire", weight=1)
def lose_loaders_commit(world: World, _seconds: float) -> Iterator[Step]:
    yield from lose(world.collectors, "request")


@kind("scheduler wire")
def lose_answer_to_schedulers_commit(world: World, _seconds: float) -> Iterator[Step]:
    yield from lose([world.scheduler], "answer")


# -- the disk


def fill_disk(world: World, part: str, seconds: float) -> Iterator[Step]:
    """No file of that process may grow beyond a little more than its log has now."""
    yield lambda: world.leader.pid(part)
    pid, service = world.leader.pid(part), world.leader.service
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


@kind("collector", costs=Costs.CAPTURE)
def fill_collectors_disk(world: World, seconds: float) -> Iterator[Step]:
    yield from fill_disk(world, "", seconds)


@kind("loader", weight=1)
def fill_loaders_disk(world: World, seconds: float) -> Iterator[Step]:
    yield from fill_disk(world, "load", seconds)


# -- another machine takes over. Only where there is one.

EVERYTHING: Final = ("turn", "collector", "loader", "redis wire", "database wire", "postgres")


def other_than(world: World, machine: Machine) -> Callable[[], object]:
    return lambda: world.watch.holder and not world.is_leader(machine)


@kind(*EVERYTHING, costs=Costs.CAPTURE)
def lose_the_collecting_machine(world: World, _seconds: float) -> Iterator[Step]:
    """It dies as a whole, and comes back when the other has taken over."""
    machine = world.leader
    yield machine.pid
    machine.is_held_down = True
    pid = machine.pid()
    for one in (pid, *descendants(pid)):
        send(one, signal.SIGKILL)
    yield other_than(world, machine)
    machine.is_held_down = False


@kind(*EVERYTHING, costs=Costs.CAPTURE)
def hang_the_collecting_machine(world: World, _seconds: float) -> Iterator[Step]:
    machine = world.leader
    yield machine.pid
    pid = machine.pid()
    stopped = [one for one in (pid, *descendants(pid)) if send(one, signal.SIGSTOP)]
    yield other_than(world, machine)
    for one in stopped:
        send(one, signal.SIGCONT)


@kind(*EVERYTHING, costs=Costs.CAPTURE)
def hang_the_collector_for_good(world: World, _seconds: float) -> Iterator[Step]:
    """Only capture hangs: the loader beside it has nothing more to load."""
    machine = world.leader
    yield machine.pid
    pid = machine.pid()
    send(pid, signal.SIGSTOP)
    yield other_than(world, machine)
    send(pid, signal.SIGCONT)


@kind(*EVERYTHING, costs=Costs.CAPTURE)
def cut_the_collecting_machine_off(world: World, _seconds: float) -> Iterator[Step]:
    """It goes on believing that it is its turn, until it is heard again."""
    machine = world.leader
    assert machine.redis_wire is not None
    machine.redis_wire.silence()
    machine.database_wire.silence()
    yield other_than(world, machine)
    machine.redis_wire.mend()
    machine.database_wire.mend()


@kind(*EVERYTHING, costs=Costs.CAPTURE)
def cut_the_collecting_machine_off_from_postgres(world: World, _seconds: float) -> Iterator[Step]:
    """It goes on capturing into its spool, while another captures and loads the same."""
    machine = world.leader
    machine.database_wire.cut()
    yield other_than(world, machine)
    machine.database_wire.mend()


# -- Redis itself: what nobody had read yet is gone with it


@kind("redis", weight=2)
def hang_redis(world: World, seconds: float) -> Iterator[Step]:
    world.master.pause()
    yield seconds
    world.master.resume()


@kind("redis", costs=Costs.EVENTS)
def kill_redis(world: World, seconds: float) -> Iterator[Step]:
    world.master.kill()
    yield seconds
    world.master.start()


@kind("redis", costs=Costs.EVENTS)
def restart_redis_with_its_snapshot(world: World, seconds: float) -> Iterator[Step]:
    with world.client() as client:
        client.config_set("save", "3600 1")
    world.master.stop()
    yield seconds
    world.master.start()


def replica(world: World) -> Generator[Step, None, RedisServer]:
    """A server that has everything that the master has, and follows it."""
    server = world.redis_kind(REDIS)
    server.start()
    with world.client(server) as client:
        client.replicaof(ADDRESS, world.master.port)
        yield lambda: client.info("replication").get("master_link_status") == "up"
    return server


def offset(world: World, server: RedisServer) -> int:
    with world.client(server) as client:
        return int(client.info("replication")["master_repl_offset"])


def promote(world: World, server: RedisServer) -> None:
    """Make it the master, for whoever asks from now on; the old one is gone."""
    old = world.master
    with world.client(server) as client:
        client.replicaof("NO", "ONE")
    world.master = server
    old.__exit__(None, None, None)


@kind("redis", costs=Costs.EVENTS)
def hand_over_to_a_replica(world: World, _seconds: float) -> Iterator[Step]:
    """As planned work does: nobody publishes until the replica has everything."""
    server = yield from replica(world)
    world.publisher.pause()
    reached = offset(world, world.master)
    yield lambda: offset(world, server) >= reached
    promote(world, server)
    world.publisher.resume()


@kind("redis", costs=Costs.EVENTS)
def lose_the_master_to_a_replica(world: World, _seconds: float) -> Iterator[Step]:
    server = yield from replica(world)
    world.master.kill()
    promote(world, server)


@kind("redis", "redis wire", "collector", costs=Costs.EVENTS)
def overrun_the_backlog(world: World, _seconds: float) -> Iterator[Step]:
    with world.client() as client:
        client.config_set("repl-backlog-size", SMALL_BACKLOG_BYTES)
    for machine in world.collectors:
        if machine.redis_wire is not None:
            machine.redis_wire.cut()
    reached = world.publisher.bytes + OVERRUN_BYTES
    yield lambda: world.publisher.bytes > reached
    with world.client() as client:
        client.config_set("repl-backlog-size", BACKLOG_BYTES)
    for machine in world.collectors:
        if machine.redis_wire is not None:
            machine.redis_wire.mend()
