"""The faults: each breaks a part of the deployment and repairs it again.

A fault is a generator. It yields conditions to wait for, or seconds; the runner steps it. Faults
that use different parts may overlap.
"""

import math
import resource
import signal
import time
from collections.abc import Callable, Generator, Iterator
from contextlib import closing, suppress
from datetime import timedelta
from pathlib import Path
from random import Random
from typing import Final

import psycopg
from psycopg import sql

from accounting.embedded import DATABASE
from tests.chaos.deployment import BACKLOG_BYTES, OWN_SETTINGS, UNLIMITED, Deployment
from tests.chaos.fault_kinds import (
    WRONG_CLOCKS,
    Costs,
    FaultKinds,
    Step,
    hang_server,
    lose_commit,
    number_of,
    stop_processes,
    wrong_clock,
)
from tests.chaos.faulty_proxy import FaultyProxy
from tests.chaos.machine import SETTINGS, Machine
from tests.support.books import READER, WRITER
from tests.support.faulty_libc import ADDRESSES, POSTGRES_NAME, REDIS_NAME, Disk
from tests.support.postgres_programs import start_program
from tests.support.postgres_settings import awkward_settings, set_for_database
from tests.support.readers_locks import hold_readers_locks
from tests.support.servers import ADDRESS, RedisServer
from tests.support.service import (
    SERVICE,
    Service,
    all_paused,
    arguments,
    descendants,
    send_signal,
)

KINDS: Final = FaultKinds()
SMALL_BACKLOG_BYTES: Final = 1 << 14
OVERRUN_BYTES: Final = 1 << 16
CLOCK_STEPS: Final = 8
SETTINGS_AT_ONCE: Final = 12
HOLD_FOR_A_FRONT: Final = {"restrict_nonsystem_relation_kind"}
"""Settings of a cell that its front's sessions there can't take: docs/cells.md#known-limits."""


WHOLE_MACHINE: Final = ("turn", "collector", "loader", "redis wire", "database wire", "postgres")
CONFIGURATION_ERROR: Final = 2
"""The exit code of a collector that is refused."""
STRANGE: Final = "strange.example"
END_SESSIONS: Final = (
    "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
    " WHERE datname = %s AND pid <> pg_backend_pid()"
)
_DATABASE: Final = sql.Identifier(DATABASE)
RESET_SETTINGS: Final = sql.SQL("ALTER DATABASE {} RESET ALL").format(_DATABASE)
REFUSE_CONNECTIONS: Final = sql.SQL("ALTER DATABASE {} WITH ALLOW_CONNECTIONS false").format(
    _DATABASE
)
DROP_DATABASE: Final = sql.SQL("DROP DATABASE {} WITH (FORCE)").format(_DATABASE)
CREATE_DATABASE: Final = sql.SQL("CREATE DATABASE {}").format(_DATABASE)


# -- processes: SIGKILL, and SIGSTOP for seconds


@KINDS.kind("collector", costs=Costs.CAPTURE, weight=3)
def kill_collector(deployment: Deployment, _seconds: float) -> Iterator[Step]:
    yield lambda: send_signal(deployment.leader.pid(), signal.SIGKILL)


@KINDS.kind("loader", weight=3)
def kill_loader(deployment: Deployment, _seconds: float) -> Iterator[Step]:
    yield lambda: send_signal(deployment.leader.pid("load"), signal.SIGKILL)


@KINDS.kind("scheduler", weight=3)
def kill_scheduler(deployment: Deployment, _seconds: float) -> Iterator[Step]:
    yield lambda: send_signal(deployment.scheduler.pid(), signal.SIGKILL)


@KINDS.kind("collector", costs=Costs.CAPTURE)
def hang_collector(deployment: Deployment, seconds: float) -> Iterator[Step]:
    yield from stop_processes([deployment.leader.pid()], seconds)


@KINDS.kind("loader")
def hang_loader(deployment: Deployment, seconds: float) -> Iterator[Step]:
    yield from stop_processes([deployment.leader.pid("load")], seconds)


@KINDS.kind("scheduler")
def hang_scheduler(deployment: Deployment, seconds: float) -> Iterator[Step]:
    yield from stop_processes([deployment.scheduler.pid()], seconds)


# -- clocks


@KINDS.kind("clock", needs=["libc"], weight=3)
def set_a_wrong_clock(deployment: Deployment, seconds: float) -> Iterator[Step]:
    """On the machine that collects."""
    yield from wrong_clock(deployment.leader, seconds)


@KINDS.kind("scheduler clock", needs=["libc"])
def set_the_schedulers_clock_wrong(deployment: Deployment, seconds: float) -> Iterator[Step]:
    yield from wrong_clock(deployment.scheduler, seconds)


@KINDS.kind("clock", needs=["libc"])
def step_the_clock_to_and_fro(deployment: Deployment, seconds: float) -> Iterator[Step]:
    faulty = deployment.leader.faulty
    assert faulty is not None
    for step in range(CLOCK_STEPS):
        faulty.set_clock(WRONG_CLOCKS[step % len(WRONG_CLOCKS)] * (step % 2))
        yield seconds / CLOCK_STEPS
    faulty.set_clock(0)


# -- Postgres


@KINDS.kind("postgres", weight=3)
def kill_postgres(deployment: Deployment, seconds: float) -> Iterator[Step]:
    deployment.postgres.kill()
    yield seconds
    deployment.postgres.start()


@KINDS.kind("postgres", weight=1)
def restart_postgres(deployment: Deployment, seconds: float) -> Iterator[Step]:
    deployment.postgres.stop()
    yield seconds
    deployment.postgres.start()


@KINDS.kind("postgres")
def hang_postgres(deployment: Deployment, seconds: float) -> Iterator[Step]:
    yield from hang_server(deployment.postgres.pid, seconds)


@KINDS.kind("postgres")
def let_postgres_only_read(deployment: Deployment, seconds: float) -> Iterator[Step]:
    deployment.configure_postgres(
        "ALTER SYSTEM SET default_transaction_read_only = on", "SELECT pg_reload_conf()"
    )
    yield seconds
    deployment.configure_postgres(
        "ALTER SYSTEM RESET default_transaction_read_only", "SELECT pg_reload_conf()"
    )


@KINDS.kind("postgres")
def change_the_databases_settings(deployment: Deployment, seconds: float) -> Iterator[Step]:
    """Some of all settings that a database can have, for the sessions that begin from now on."""
    with deployment.superuser() as connection:
        every = list(awkward_settings(connection))
        random = Random(number_of(seconds))
        some = [
            random.choice(values) for values in random.sample(every, SETTINGS_AT_ONCE) if values
        ]
        if deployment.front is not None:
            some = [setting for setting in some if setting.name not in HOLD_FOR_A_FRONT]
        set_for_database(connection, DATABASE, some)
        connection.execute(END_SESSIONS, [DATABASE])
    yield seconds
    with deployment.superuser() as connection:
        connection.execute(RESET_SETTINGS)
        connection.execute(END_SESSIONS, [DATABASE])


@KINDS.kind("postgres")
def hold_a_readers_locks(deployment: Deployment, seconds: float) -> Iterator[Step]:
    """All locks that a reader can take; usage must be settled while they are held."""
    with closing(psycopg.connect(deployment.postgres.url(READER), **OWN_SETTINGS)) as connection:
        hold_readers_locks(connection)
        held_at = time.time()
        yield seconds
        yield lambda: deployment.watcher.settled_until > held_at


@KINDS.kind("pooler", needs=["pooler"], weight=3)
def restart_the_pooler(deployment: Deployment, seconds: float) -> Iterator[Step]:
    """The scheduler and the second collecting machine reach Postgres through it."""
    pooler = deployment.pooler
    assert pooler is not None
    if number_of(seconds) % 2:
        pooler.kill()
    else:
        pooler.stop()
    yield seconds / 2
    pooler.start()


RESTORES: Final = (
    "postgres",
    "scheduler",
    "database wire",
    "scheduler wire",
    "collector",
    "loader",
    "turn",
    "redis",
    "redis wire",
)


def run_program(name: str, *words: str) -> Iterator[Step]:
    """Run a program of Postgres, and wait for it."""
    with start_program(name, *words) as program:
        yield lambda: program.poll() is not None
        output, _ = program.communicate()
        assert program.returncode == 0, output


def dump(deployment: Deployment, name: str) -> Generator[Step, None, Path]:
    """Take a dump."""
    path = deployment.directory / f"{name}.dump"
    url = deployment.postgres.url()
    yield from run_program("pg_dump", "--format=custom", f"--file={path}", url)
    return path


def restore(deployment: Deployment, path: Path) -> Iterator[Step]:
    """As docs/restore.md says: the collectors go on, the scheduler stops."""
    scheduler = deployment.scheduler
    deployment.restores += 1
    scheduler.is_held_down = True
    if scheduler.service is not None:
        send_signal(scheduler.service.pid, signal.SIGTERM)
    yield lambda: not scheduler.pid()
    with deployment.superuser("postgres") as connection:
        connection.execute(REFUSE_CONNECTIONS)
        connection.execute(END_SESSIONS, [DATABASE])
        connection.execute(DROP_DATABASE)
        connection.execute(CREATE_DATABASE)
    url = deployment.postgres.url()
    yield from run_program("pg_restore", "--single-transaction", f"--dbname={url}", str(path))
    scheduler.is_held_down = False


@KINDS.kind(*RESTORES, costs=Costs.CAPTURE, weight=3, sets_back=True)
def restore_postgres_from_a_dump(deployment: Deployment, seconds: float) -> Iterator[Step]:
    path = yield from dump(deployment, str(number_of(seconds)))
    yield seconds
    yield from restore(deployment, path)


# -- wrong names: a collector that must be refused


def intrude(
    deployment: Deployment, source: str, server: RedisServer, said: str
) -> Generator[Step, None, None]:
    """Start a collector, and wait until it has exited with the error."""
    deployment.intruders += 1
    yield deployment.knows_history
    settings = {
        **SETTINGS,
        "ACCOUNTING_CAPTURE": deployment.capture,
        "ACCOUNTING_DATABASE_URL": deployment.postgres.url(WRITER),
        "ACCOUNTING_REDIS_URL": server.url,
        "ACCOUNTING_SOURCE": source,
    }
    home = deployment.directory / f"intruder-{deployment.intruders}"
    with Service("collect", home, settings, module=SERVICE) as intruder:
        yield lambda: intruder.process.poll() is not None
    assert intruder.process.returncode == CONFIGURATION_ERROR, intruder.log_text()
    assert said in intruder.log_text(), intruder.log_text()


@KINDS.kind("redis", "intruder")
def collect_under_a_second_name(deployment: Deployment, seconds: float) -> Iterator[Step]:
    """Two names on one Redis."""
    name = f"second-{number_of(seconds)}"
    yield from intrude(deployment, name, deployment.master, "has the history of source 'default'")


@KINDS.kind("redis", "intruder")
def collect_a_replica_under_a_second_name(deployment: Deployment, seconds: float) -> Iterator[Step]:
    """Two names on one history."""
    server = yield from replica(deployment)
    name = f"replica-{number_of(seconds)}"
    yield from intrude(deployment, name, server, "has the history of source 'default'")
    server.__exit__(None, None, None)


@KINDS.kind(*WHOLE_MACHINE, "redis", "pooler", "intruder", "clock", leaves_gap=True)
def collect_another_redis_under_the_same_name(
    deployment: Deployment, _seconds: float
) -> Iterator[Step]:
    """One name on two Redis servers. What is published on the other one enters no books."""
    server = deployment.new_redis()
    server.start()
    with deployment.client(server) as client:
        steps = intrude(deployment, "default", server, "from another Redis")
        for step in steps:
            assert callable(step)

            def is_over(is_due: Callable[[], object] = step) -> object:
                client.publish(
                    f"turn/realm/{STRANGE}/user/a/allocation/1/status", "new lifetime=600"
                )
                return is_due()

            yield is_over
    server.__exit__(None, None, None)


# -- the wires


@KINDS.kind("redis wire", costs=Costs.CAPTURE)
def cut_redis(deployment: Deployment, seconds: float) -> Iterator[Step]:
    wire = deployment.leader.redis_proxy
    assert wire is not None
    wire.cut()
    yield seconds
    wire.mend()


@KINDS.kind("redis wire", costs=Costs.CAPTURE)
def silence_redis(deployment: Deployment, seconds: float) -> Iterator[Step]:
    wire = deployment.leader.redis_proxy
    assert wire is not None
    wire.silence()
    yield seconds
    wire.mend()


@KINDS.kind("redis wire", costs=Costs.CAPTURE)
def drop_redis_connections(deployment: Deployment, _seconds: float) -> Iterator[Step]:
    wire = deployment.leader.redis_proxy
    assert wire is not None
    wire.disconnect()
    yield 0.0


def move_server(machine: Machine, wire: FaultyProxy, name: str, seconds: float) -> Iterator[Step]:
    """The name is unknown for a while, and then leads to the server's new address."""
    assert machine.faulty is not None
    address = next(each for each in ADDRESSES if each != wire.address)
    machine.faulty.set_address(name, "")
    wire.move(address)
    yield seconds
    machine.faulty.set_address(name, address)


@KINDS.kind("redis wire", needs=["libc"], costs=Costs.CAPTURE)
def move_redis_to_another_address(deployment: Deployment, seconds: float) -> Iterator[Step]:
    wire = deployment.leader.redis_proxy
    assert wire is not None
    yield from move_server(deployment.leader, wire, REDIS_NAME, seconds)


@KINDS.kind("database wire", needs=["libc"])
def move_postgres_to_another_address(deployment: Deployment, seconds: float) -> Iterator[Step]:
    machine = deployment.leader
    yield from move_server(machine, machine.database_proxy, POSTGRES_NAME, seconds)


@KINDS.kind("scheduler wire", needs=["libc"])
def move_the_schedulers_postgres(deployment: Deployment, seconds: float) -> Iterator[Step]:
    machine = deployment.scheduler
    yield from move_server(machine, machine.database_proxy, POSTGRES_NAME, seconds)


@KINDS.kind("redis", "redis wire", needs=["tls"], costs=Costs.CAPTURE, weight=3)
def let_the_certificate_expire(deployment: Deployment, seconds: float) -> Iterator[Step]:
    """Of Redis, under way: connections go on, and no new one succeeds until it is renewed."""
    authority = deployment.authority
    assert authority is not None
    whole_seconds = math.ceil(seconds)
    with deployment.client() as client:
        client.config_set("tls-cert-file", str(authority.issue(timedelta(seconds=whole_seconds))))
        drop_connections(deployment)
        yield whole_seconds + 1.0
        drop_connections(deployment)
        yield seconds
        client.config_set("tls-cert-file", str(authority.issue(timedelta(days=1))))


def drop_connections(deployment: Deployment) -> None:
    for machine in deployment.collectors:
        assert machine.redis_proxy is not None
        machine.redis_proxy.disconnect()


@KINDS.kind("database wire")
def cut_database(deployment: Deployment, seconds: float) -> Iterator[Step]:
    wire = deployment.leader.database_proxy
    wire.cut()
    yield seconds
    wire.mend()


@KINDS.kind("database wire")
def silence_database(deployment: Deployment, seconds: float) -> Iterator[Step]:
    wire = deployment.leader.database_proxy
    wire.silence()
    yield seconds
    wire.mend()


@KINDS.kind("scheduler wire")
def cut_scheduler_off(deployment: Deployment, seconds: float) -> Iterator[Step]:
    deployment.scheduler.database_proxy.cut()
    yield seconds
    deployment.scheduler.database_proxy.mend()


@KINDS.kind("database wire", weight=3)
def lose_answer_to_loaders_commit(deployment: Deployment, _seconds: float) -> Iterator[Step]:
    yield from lose_commit(deployment.database_wires, "answer")


@KINDS.kind("database wire", weight=1)
def lose_loaders_commit(deployment: Deployment, _seconds: float) -> Iterator[Step]:
    yield from lose_commit(deployment.database_wires, "request")


@KINDS.kind("scheduler wire")
def lose_answer_to_schedulers_commit(deployment: Deployment, _seconds: float) -> Iterator[Step]:
    yield from lose_commit([deployment.scheduler.database_proxy], "answer")


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


def fail_disk(deployment: Deployment, disk: Disk, seconds: float) -> Iterator[Step]:
    """The disk of the collecting machine: its spool is written by the collector and the loader."""
    faulty = deployment.leader.faulty
    assert faulty is not None
    faulty.set_disk(disk)
    yield seconds
    faulty.set_disk(Disk.HAS_ROOM)


@KINDS.kind("collector", "loader", needs=["libc"], costs=Costs.CAPTURE)
def fill_disk_amid_a_write(deployment: Deployment, seconds: float) -> Iterator[Step]:
    yield from fail_disk(deployment, Disk.IS_FULL, seconds)


@KINDS.kind("collector", "loader", needs=["libc"], costs=Costs.CAPTURE)
def lie_about_free_space(deployment: Deployment, seconds: float) -> Iterator[Step]:
    """Writes succeed, and the disk is full when they are synced."""
    yield from fail_disk(deployment, Disk.IS_FULL_LATE, seconds)


def is_alive(pid: int) -> bool:
    return bool(arguments(pid))


@KINDS.kind("collector", costs=Costs.CAPTURE)
def fill_collectors_disk(deployment: Deployment, seconds: float) -> Iterator[Step]:
    yield from fill_disk(deployment, "", seconds)


@KINDS.kind("loader", weight=1)
def fill_loaders_disk(deployment: Deployment, seconds: float) -> Iterator[Step]:
    yield from fill_disk(deployment, "load", seconds)


# -- another machine takes over; only with two machines


def has_other_leader(deployment: Deployment, machine: Machine) -> Callable[[], object]:
    return lambda: deployment.watcher.lease_holder and not deployment.is_leader(machine)


@KINDS.kind(*WHOLE_MACHINE, costs=Costs.CAPTURE)
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


@KINDS.kind(*WHOLE_MACHINE, costs=Costs.CAPTURE)
def hang_the_collecting_machine(deployment: Deployment, _seconds: float) -> Iterator[Step]:
    machine = deployment.leader
    yield machine.pid
    pid = machine.pid()
    with all_paused(pid):
        yield has_other_leader(deployment, machine)


@KINDS.kind(*WHOLE_MACHINE, costs=Costs.CAPTURE)
def hang_the_collector_for_good(deployment: Deployment, _seconds: float) -> Iterator[Step]:
    """Stop only the collector: its loader then has nothing more to load."""
    machine = deployment.leader
    yield machine.pid
    pid = machine.pid()
    send_signal(pid, signal.SIGSTOP)
    yield has_other_leader(deployment, machine)
    send_signal(pid, signal.SIGCONT)


@KINDS.kind(*WHOLE_MACHINE, costs=Costs.CAPTURE)
def cut_the_collecting_machine_off(deployment: Deployment, _seconds: float) -> Iterator[Step]:
    """The machine assumes that it has the lease until it reaches the servers again."""
    machine = deployment.leader
    assert machine.redis_proxy is not None
    machine.redis_proxy.silence()
    machine.database_proxy.silence()
    yield has_other_leader(deployment, machine)
    machine.redis_proxy.mend()
    machine.database_proxy.mend()


@KINDS.kind(*WHOLE_MACHINE, costs=Costs.CAPTURE)
def cut_the_collecting_machine_off_from_postgres(
    deployment: Deployment, _seconds: float
) -> Iterator[Step]:
    """The machine goes on capturing into its spool, while the other captures and loads the same."""
    machine = deployment.leader
    machine.database_proxy.cut()
    yield has_other_leader(deployment, machine)
    machine.database_proxy.mend()


# -- Redis itself: it loses what no collector had read


@KINDS.kind("redis", weight=2)
def hang_redis(deployment: Deployment, seconds: float) -> Iterator[Step]:
    deployment.master.pause()
    yield seconds
    deployment.master.resume()


@KINDS.kind("redis", costs=Costs.EVENTS)
def kill_redis(deployment: Deployment, seconds: float) -> Iterator[Step]:
    deployment.master.kill()
    yield seconds
    deployment.master.start()


@KINDS.kind("redis", costs=Costs.EVENTS)
def restart_redis_with_its_snapshot(deployment: Deployment, seconds: float) -> Iterator[Step]:
    with deployment.client() as client:
        client.config_set("save", "3600 1")
    deployment.master.stop()
    yield seconds
    deployment.master.start()


@KINDS.kind(*RESTORES, costs=Costs.CAPTURE, sets_back=True)
def restore_after_a_takeover(deployment: Deployment, seconds: float) -> Iterator[Step]:
    """The spool of the machine that collects now may not reach back to the dump."""
    path = yield from dump(deployment, str(number_of(seconds)))
    yield seconds / 2
    yield from lose_the_collecting_machine(deployment, seconds)
    yield seconds / 2
    yield from restore(deployment, path)


@KINDS.kind(*RESTORES, costs=Costs.EVENTS)
def restore_after_redis_was_lost(deployment: Deployment, seconds: float) -> Iterator[Step]:
    path = yield from dump(deployment, str(number_of(seconds)))
    yield seconds / 2
    yield from kill_redis(deployment, seconds / 2)
    yield seconds / 2
    yield from restore(deployment, path)


@KINDS.kind(*RESTORES, costs=Costs.EVENTS)
def restore_after_redis_was_lost_and_a_takeover(
    deployment: Deployment, seconds: float
) -> Iterator[Step]:
    path = yield from dump(deployment, str(number_of(seconds)))
    yield seconds / 2
    yield from kill_redis(deployment, seconds / 2)
    yield seconds / 2
    yield from lose_the_collecting_machine(deployment, seconds)
    yield seconds / 2
    yield from restore(deployment, path)


def replica(deployment: Deployment) -> Generator[Step, None, RedisServer]:
    """Start a replica of the master and wait until it is in sync."""
    server = deployment.new_redis()
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


@KINDS.kind("redis", costs=Costs.EVENTS)
def hand_over_to_a_replica(deployment: Deployment, _seconds: float) -> Iterator[Step]:
    """A planned failover: publishing pauses until the replica has everything."""
    server = yield from replica(deployment)
    deployment.publisher.pause()
    reached = offset(deployment, deployment.master)
    yield lambda: offset(deployment, server) >= reached
    promote(deployment, server)
    deployment.publisher.resume()


@KINDS.kind("redis", costs=Costs.EVENTS)
def lose_the_master_to_a_replica(deployment: Deployment, _seconds: float) -> Iterator[Step]:
    server = yield from replica(deployment)
    deployment.master.kill()
    promote(deployment, server)


@KINDS.kind("redis", "redis wire", "collector", costs=Costs.EVENTS)
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
