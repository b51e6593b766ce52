"""The service's own processes: parts started, watched, started again, and ended in order.

Owns no part's work. A part is ``python -m accounting <command>``; its settings go by environment,
so that no secret stands in the arguments of a process.
"""

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from types import FrameType
from typing import Final

import structlog

from accounting.embedded.child import die_with_parent
from accounting.waiting import Backoff

log = structlog.get_logger()

STOP_SIGNALS: Final = (signal.SIGTERM, signal.SIGINT)
MIN_RESTART_SECONDS: Final = 0.5
MAX_RESTART_SECONDS: Final = 10.0
STABLE_SECONDS: Final = 30.0
"""A part that ran so long is started again at once when it ends."""


def child_preexec() -> Callable[[], None]:
    """What a part runs before its program: tied to us, and deaf until it can end in order.

    A part takes a second to begin; a signal that comes before :func:`stop_on_signals` waits for it
    instead of ending the part with its work undone.
    """
    tie = die_with_parent(signal.SIGTERM)

    def prepare() -> None:
        signal.pthread_sigmask(signal.SIG_BLOCK, STOP_SIGNALS)
        tie()

    return prepare


def stop_on_signals() -> threading.Event:
    """An event that SIGTERM and SIGINT set. A second signal ends the process at once."""
    stop = threading.Event()

    def end(number: int, _frame: FrameType | None) -> None:
        if stop.is_set():
            os._exit(128 + number)
        stop.set()

    for ending in STOP_SIGNALS:
        signal.signal(ending, end)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, STOP_SIGNALS)
    return stop


class ChildProcess:
    """One process of the service. Used from one thread, the one that made it."""

    def __init__(self, command: str, environment: Mapping[str, str] | None = None) -> None:
        self.command = command
        self._environment = {**os.environ, **(environment or {})}
        self._process: subprocess.Popen[bytes] | None = None
        self._started = 0.0
        self._due = 0.0
        self._backoff = Backoff(MIN_RESTART_SECONDS, MAX_RESTART_SECONDS)

    def start(self) -> None:
        """Start it, in a process group of its own: Ctrl-C reaches us, who end it in order."""
        self._process = subprocess.Popen(
            [sys.executable, "-m", "accounting", self.command],
            env=self._environment,
            stdin=subprocess.DEVNULL,
            process_group=0,
            preexec_fn=child_preexec(),  # noqa: PLW1509  # two system calls, no lock
        )
        self._started = time.monotonic()
        log.debug("part started", part=self.command, pid=self._process.pid)

    def restart_if_exited(self) -> None:
        """Start it again when it ended: at once if it had run steadily, else with backoff."""
        now = time.monotonic()
        if self._process is not None:
            code = self._process.poll()
            if code is None:
                return
            if now - self._started > STABLE_SECONDS:
                self._backoff.reset()
            else:
                self._due = now + self._backoff.next_pause()
            self._process = None
            log.error("a part ended, starting it again", part=self.command, code=code)
        if now >= self._due:
            self.start()

    def stop(self, timeout_seconds: float) -> None:
        """Let it drain and end; kill it when it takes longer than that."""
        process, self._process = self._process, None
        if process is None:
            return
        process.terminate()
        try:
            code = process.wait(timeout_seconds)
        except subprocess.TimeoutExpired:
            log.error("a part does not end, killing it", part=self.command)
            process.kill()
            process.wait()
            return
        if code:
            log.warning("a part ended with an error", part=self.command, code=code)


def supervise(
    children: Sequence[ChildProcess], stop: threading.Event, until: Callable[[], bool]
) -> None:
    """Keep parts running until ``stop`` is set or ``until()`` is true."""
    while not stop.wait(0.2) and not until():
        for part in children:
            part.restart_if_exited()
