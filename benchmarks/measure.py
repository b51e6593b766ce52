"""CPU time and memory of processes, from Linux' /proc, and wall time. Seconds and bytes."""

import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

TICKS: Final = os.sysconf("SC_CLK_TCK")
MEBIBYTE: Final = 1 << 20


def log_progress(text: str) -> None:
    """Print progress with the time on standard error."""
    print(f"  {time.strftime('%H:%M:%S')} {text}", file=sys.stderr, flush=True)


def cpu_seconds(pid: int, *, tree: bool = False) -> float:
    """The CPU time of a process, 0.0 if it has ended.

    ``tree``: also of its descendants, including those that have ended.
    """
    ticks = 0
    waiting = [pid]
    below = _child_pids() if tree else {}
    while waiting:
        one = waiting.pop()
        words = _stat_fields(one)
        if words:
            # proc(5): user and system time, and those of children that were waited for. A zombie
            # still has its own.
            ticks += sum(int(word) for word in words[11 : 15 if tree else 13])
        waiting += below.get(one, [])
    return ticks / TICKS


def _child_pids() -> dict[int, list[int]]:
    below: dict[int, list[int]] = {}
    for entry in Path("/proc").iterdir():
        words = _stat_fields(int(entry.name)) if entry.name.isdigit() else []
        if words:
            below.setdefault(int(words[1]), []).append(int(entry.name))
    return below


def _stat_fields(pid: int) -> list[str]:
    """The fields of /proc/PID/stat after the name; empty if the process has ended."""
    try:
        # The program's name, in parentheses, may contain spaces and parentheses.
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return []


def resident_bytes(pid: int) -> int:
    """The resident memory of a process, shared memory included; 0 if it has ended."""
    return _status_bytes(pid, "VmRSS")


def proportional_bytes(pid: int) -> int:
    """The memory of a process, its share of what it shares with others; 0 if it has ended."""
    try:
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    except OSError:
        return 0
    return sum(int(line.split()[1]) * 1024 for line in lines if line.startswith("Pss:"))


def reset_peak() -> None:
    """Reset the peak that :func:`peak_bytes` returns."""
    Path("/proc/self/clear_refs").write_text("5")


def peak_bytes() -> int:
    """The peak memory of this process since :func:`reset_peak`."""
    return _status_bytes(os.getpid(), "VmHWM")


def _status_bytes(pid: int, name: str) -> int:
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:
        return 0
    return sum(int(line.split()[1]) * 1024 for line in lines if line.startswith(name))


@dataclass(slots=True)
class Cost:
    """The cost of some work, summed over its parts: seconds of wall and CPU time."""

    wall: float = 0.0
    client: float = 0.0
    postgres: float = 0.0

    @contextmanager
    def measuring(self, postgres_pid: int) -> Iterator[None]:
        """Add the cost of the block: CPU time of this process and of all Postgres processes."""
        server, client, wall = (
            cpu_seconds(postgres_pid, tree=True),
            time.process_time(),
            time.perf_counter(),
        )
        try:
            yield
        finally:
            self.wall += time.perf_counter() - wall
            self.client += time.process_time() - client
            self.postgres += cpu_seconds(postgres_pid, tree=True) - server


def measure(postgres_pid: int, work: Callable[[], object]) -> Cost:
    """The cost of one call."""
    span = Cost()
    with span.measuring(postgres_pid):
        work()
    return span
