"""The memory and CPU time of `up` with both embedded servers while nothing happens, and its lag.

Memory is the proportional share (PSS): a page that several processes share counts once in all. The
lag at rest is the time from PUBLISH until a view shows it, for one message after a pause.
"""

import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Final

import psycopg
import redis

from accounting.embedded import running_postgres
from accounting.ops.servers import READER_ROLE
from benchmarks.figures import Figure, Rounds
from benchmarks.measure import cpu_seconds, log_progress, proportional_bytes
from benchmarks.scale import Scale
from tests.support.servers import PostgresServer
from tests.support.service import SERVICE, Service, descendants, title

SETTINGS: Final = {
    "ACCOUNTING_CAPTURE": "auto",
    "ACCOUNTING_SETTLE_INTERVAL_SECONDS": "2.0",
    "ACCOUNTING_ROLLUP_INTERVAL_SECONDS": "2.0",
}
MAX_PSS_MEGABYTES: Final = 150.0
MAX_CPU_PERCENT: Final = 1.0
MAX_SESSIONS_LAG_SECONDS: Final = 0.5
MAX_USAGE_LAG_SECONDS: Final = 1.0
CHANNEL: Final = "turn/realm/example.org/user/idle/allocation/{:018d}/status"
WAIT_SECONDS: Final = 60.0
POLL_SECONDS: Final = 0.005


def run(_server: PostgresServer, scale: Scale) -> list[Figure]:
    rounds = Rounds("idle")
    for number in range(scale.rounds):
        log_progress(f"idle: round {number + 1} of {scale.rounds}")
        with tempfile.TemporaryDirectory(prefix="ta-idle-") as home:
            directory = Path(home, "data")
            with Service("up", directory, SETTINGS, module=SERVICE) as up:
                up.wait_for_conf_line()
                measure(up, scale, rounds)
    return rounds.figures()


def measure(up: Service, scale: Scale, rounds: Rounds) -> None:
    """Measure a service that has started."""
    time.sleep(scale.settle_down_seconds)
    pids = [up.pid, *descendants(up.pid)]
    kinds = {pid: kind_of(pid, up.pid) for pid in pids}
    before = {pid: cpu_seconds(pid) for pid in pids}
    began = time.monotonic()
    time.sleep(scale.idle_seconds)
    seconds = time.monotonic() - began
    memory: defaultdict[str, float] = defaultdict(float)
    cpu: defaultdict[str, float] = defaultdict(float)
    for pid, kind in kinds.items():
        memory[kind] += proportional_bytes(pid) / 1e6
        cpu[kind] += max(0.0, cpu_seconds(pid) - before[pid]) / seconds * 100
    add(rounds, "memory", memory, "MB", MAX_PSS_MEGABYTES)
    add(rounds, "CPU", cpu, "% of a core", MAX_CPU_PERCENT)
    measure_lag(up.data_dir, scale, rounds)


def add(rounds: Rounds, name: str, values: Mapping[str, float], unit: str, target: float) -> None:
    rounds.add(f"{name}, all of it", sum(values.values()), unit, target=target)
    for kind in sorted(values):
        rounds.add(f"{name}, {kind}", values[kind], unit)


def kind_of(pid: int, up_pid: int) -> str:
    """The kind of a process of the service, by its title."""
    if pid == up_pid:
        return "up"
    name, _, command = title(pid).partition(" ")
    if name == "accounting":
        return command
    return "Valkey" if "valkey" in title(pid) or "valkey" in program(pid) else "Postgres"


def program(pid: int) -> str:
    """The name of a process' program; '' when it has ended."""
    try:
        return Path(f"/proc/{pid}/comm").read_text()
    except OSError:
        return ""


def measure_lag(data_dir: Path, scale: Scale, rounds: Rounds) -> None:
    """Publish one message after another, each after a pause, and wait for it in the views."""
    password = (data_dir / "valkey-coturn-password").read_text().strip()
    port = int((data_dir / "valkey" / "port").read_text())
    server = running_postgres(data_dir)
    assert server is not None
    sessions, usage = [], []
    with (
        redis.Redis(port=port, password=password) as coturn,
        psycopg.connect(server.url(READER_ROLE), autocommit=True) as reader,
    ):
        for number in range(1, scale.lag_messages + 1):
            time.sleep(scale.settle_down_seconds)
            began = time.monotonic()
            coturn.publish(CHANNEL.format(number), "new lifetime=600")
            count = "SELECT count(*) FROM reporting.sessions"
            wait_until(lambda: _value(reader, count) == number)  # noqa: B023
            sessions.append(time.monotonic() - began)
            total = "SELECT coalesce(sum(sessions_started), 0) FROM reporting.user_usage_hourly"
            wait_until(lambda: _value(reader, total) == number)  # noqa: B023
            usage.append(time.monotonic() - began)
    rounds.add("lag at rest, sessions", max(sessions), "s", target=MAX_SESSIONS_LAG_SECONDS)
    rounds.add("lag at rest, usage", max(usage), "s", target=MAX_USAGE_LAG_SECONDS)


def _value(reader: psycopg.Connection, query: str) -> int:
    [row] = reader.execute(query.encode()).fetchall()
    return int(row[0])


def wait_until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + WAIT_SECONDS
    while not condition():
        if time.monotonic() > deadline:
            raise TimeoutError("a message does not reach the views")
        time.sleep(POLL_SECONDS)
