"""The faults of a front: of its scheduler, its Postgres and its connection to the cell."""

import signal
from collections.abc import Iterator
from typing import Final

from tests.chaos.deployment import Deployment
from tests.chaos.fault_kinds import (
    FaultKinds,
    Step,
    hang_server,
    lose_commit,
    stop_processes,
    wrong_clock,
)
from tests.chaos.front import Front
from tests.support.service import send_signal

KINDS: Final = FaultKinds()


def front_of(deployment: Deployment) -> Front:
    assert deployment.front is not None
    return deployment.front


@KINDS.kind("front scheduler", needs=["front"], weight=3)
def kill_the_fronts_scheduler(deployment: Deployment, _seconds: float) -> Iterator[Step]:
    scheduler = front_of(deployment).scheduler
    yield lambda: send_signal(scheduler.pid(), signal.SIGKILL)


@KINDS.kind("front scheduler", needs=["front"])
def hang_the_fronts_scheduler(deployment: Deployment, seconds: float) -> Iterator[Step]:
    yield from stop_processes([front_of(deployment).scheduler.pid()], seconds)


@KINDS.kind("front clock", needs=["front", "libc"], weight=1)
def set_the_clock_of_the_fronts_scheduler_wrong(
    deployment: Deployment, seconds: float
) -> Iterator[Step]:
    yield from wrong_clock(front_of(deployment).scheduler, seconds)


@KINDS.kind("front scheduler wire", needs=["front"])
def cut_the_fronts_scheduler_off(deployment: Deployment, seconds: float) -> Iterator[Step]:
    wire = front_of(deployment).scheduler.database_proxy
    wire.cut()
    yield seconds
    wire.mend()


@KINDS.kind("front scheduler wire", needs=["front"])
def silence_the_fronts_scheduler(deployment: Deployment, seconds: float) -> Iterator[Step]:
    wire = front_of(deployment).scheduler.database_proxy
    wire.silence()
    yield seconds
    wire.mend()


@KINDS.kind("front scheduler wire", needs=["front"], weight=3)
def lose_answer_to_the_fronts_commit(deployment: Deployment, _seconds: float) -> Iterator[Step]:
    """Of a batch of events."""
    front = front_of(deployment)
    front.ask_to_read_cell()
    yield from lose_commit([front.scheduler.database_proxy], "answer")


@KINDS.kind("front scheduler wire", needs=["front"], weight=1)
def lose_the_fronts_commit(deployment: Deployment, _seconds: float) -> Iterator[Step]:
    front = front_of(deployment)
    front.ask_to_read_cell()
    yield from lose_commit([front.scheduler.database_proxy], "request")


@KINDS.kind("cell wire", needs=["front"], weight=3)
def cut_the_front_from_its_cell(deployment: Deployment, seconds: float) -> Iterator[Step]:
    wire = front_of(deployment).cell_wire
    wire.cut()
    yield seconds
    wire.mend()


@KINDS.kind("cell wire", needs=["front"])
def silence_the_cell_to_its_front(deployment: Deployment, seconds: float) -> Iterator[Step]:
    wire = front_of(deployment).cell_wire
    wire.silence()
    yield seconds
    wire.mend()


@KINDS.kind("cell wire", needs=["front"], weight=1)
def drop_the_fronts_connections_to_its_cell(
    deployment: Deployment, _seconds: float
) -> Iterator[Step]:
    front_of(deployment).cell_wire.disconnect()
    yield 0.0


@KINDS.kind("cell wire", needs=["front"])
def lose_answer_to_a_commit_in_the_cell(deployment: Deployment, _seconds: float) -> Iterator[Step]:
    """Before the front commits: it can't know whether the cell has ended the transaction."""
    front = front_of(deployment)
    front.ask_to_read_cell()
    yield from lose_commit([front.cell_wire], "answer")


@KINDS.kind("front postgres", needs=["front"], weight=3)
def kill_the_fronts_postgres(deployment: Deployment, seconds: float) -> Iterator[Step]:
    postgres = front_of(deployment).postgres
    postgres.kill()
    yield seconds
    postgres.start()


@KINDS.kind("front postgres", needs=["front"], weight=1)
def restart_the_fronts_postgres(deployment: Deployment, seconds: float) -> Iterator[Step]:
    postgres = front_of(deployment).postgres
    postgres.stop()
    yield seconds
    postgres.start()


@KINDS.kind("front postgres", needs=["front"])
def hang_the_fronts_postgres(deployment: Deployment, seconds: float) -> Iterator[Step]:
    yield from hang_server(front_of(deployment).postgres.pid, seconds)
