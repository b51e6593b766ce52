"""What processes take: CPU time and memory out of /proc, wall time, and how far disks are filled.

Owns the reading of /proc (Linux). Times are seconds, sizes bytes.
"""

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
    """Tell a person at the terminal how far it is: on standard error, figures go elsewhere."""
    print(f"  {time.strftime('%H:%M:%S')} {text}", file=sys.stderr, flush=True)


def cpu_seconds(pid: int, *, tree: bool = False) -> float:
    """CPU time that a process has taken; with ``tree`` also all below it, those ended included.

    0.0 for one that is gone.
    """
    ticks = 0
    waiting = [pid]
    below = _child_pids() if tree else {}
    while waiting:
        one = waiting.pop()
        words = _stat_fields(one)
        if words:
            # proc(5): user, system, and the same of children that ended and were waited for. One
            # that ended and was not yet is a zombie, and still tells its own.
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
    """What /proc says of a process after its name; nothing when it is gone."""
    try:
        # The name of the program, in parentheses, may hold anything.
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return []


def resident_bytes(pid: int) -> int:
    """Memory of a process that is its own or shared, as the kernel counts it; 0 when it is gone."""
    return _status_bytes(pid, "VmRSS")


def reset_peak() -> None:
    """Let :func:`peak_bytes` begin anew."""
    Path("/proc/self/clear_refs").write_text("5")


def peak_bytes() -> int:
    """The most memory that this process had since :func:`reset_peak`."""
    return _status_bytes(os.getpid(), "VmHWM")


def _status_bytes(pid: int, name: str) -> int:
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:
        return 0
    return sum(int(line.split()[1]) * 1024 for line in lines if line.startswith(name))


@dataclass(slots=True)
class Cost:
    """What a stretch of work took, summed over its parts: seconds of wall and CPU time."""

    wall: float = 0.0
    client: float = 0.0
    postgres: float = 0.0

    @contextmanager
    def measuring(self, postgres_pid: int) -> Iterator[None]:
        """Add what the block takes: this process' CPU time, and that of Postgres as a tree."""
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
    """What one piece of work takes."""
    span = Cost()
    with span.measuring(postgres_pid):
        work()
    return span
