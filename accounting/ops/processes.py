"""The service's child processes: started, supervised, restarted and stopped.

A child is ``python -m accounting <command>``. Its settings go by environment, because everyone on
the machine can read the arguments of a process.
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
"""A child that ran for longer than this is restarted at once when it exits."""
SUPERVISE_SECONDS: Final = 0.2


def child_preexec() -> Callable[[], None]:
    """The function that a child runs before its program.

    The kernel sends the child SIGTERM when its parent ends. Until :func:`stop_on_signals`, which a
    child reaches after a second, the stop signals are blocked: they would end it without a drain.
    """
    set_death_signal = die_with_parent(signal.SIGTERM)

    def prepare() -> None:
        signal.pthread_sigmask(signal.SIG_BLOCK, STOP_SIGNALS)
        set_death_signal()

    return prepare


def stop_on_signals() -> threading.Event:
    """An event that SIGTERM and SIGINT set. A second signal ends the process at once."""
    stop = threading.Event()

    def on_signal(number: int, _frame: FrameType | None) -> None:
        if stop.is_set():
            os._exit(128 + number)
        stop.set()

    for stop_signal in STOP_SIGNALS:
        signal.signal(stop_signal, on_signal)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, STOP_SIGNALS)
    return stop


class ChildProcess:
    """One child process of the service. For the one thread that makes it."""

    def __init__(self, command: str, environment: Mapping[str, str] | None = None) -> None:
        self.command = command
        self._environment = {**os.environ, **(environment or {})}
        self._process: subprocess.Popen[bytes] | None = None
        self._started_at = 0.0
        self._restart_at = 0.0
        self._backoff = Backoff(MIN_RESTART_SECONDS, MAX_RESTART_SECONDS)

    def start(self) -> None:
        """Start it in a process group of its own, so that Ctrl-C reaches only the parent."""
        self._process = subprocess.Popen(
            [sys.executable, "-m", "accounting", self.command],
            env=self._environment,
            stdin=subprocess.DEVNULL,
            process_group=0,
            preexec_fn=child_preexec(),  # noqa: PLW1509  # two system calls, no lock
        )
        self._started_at = time.monotonic()
        log.debug("child process started", command=self.command, pid=self._process.pid)

    def restart_if_exited(self) -> None:
        """Start it again when it has exited: at once after a stable run, else with backoff."""
        now = time.monotonic()
        if self._process is not None:
            code = self._process.poll()
            if code is None:
                return
            if now - self._started_at > STABLE_SECONDS:
                self._backoff.reset()
                self._restart_at = now
            else:
                self._restart_at = now + self._backoff.next_pause()
            self._process = None
            log.error("child process exited, restarting it", command=self.command, code=code)
        if now >= self._restart_at:
            self.start()

    def stop(self, timeout_seconds: float) -> None:
        """Send SIGTERM and wait until it has drained and exited; kill it after the timeout."""
        process, self._process = self._process, None
        if process is None:
            return
        process.terminate()
        try:
            code = process.wait(timeout_seconds)
        except subprocess.TimeoutExpired:
            log.error("child process does not exit, killing it", command=self.command)
            process.kill()
            process.wait()
            return
        if code:
            log.warning("child process exited with an error", command=self.command, code=code)


def supervise(
    children: Sequence[ChildProcess],
    stop: threading.Event,
    until: Callable[[], bool] = lambda: False,
) -> None:
    """Restart children that exit, until ``stop`` is set or ``until()`` is true."""
    while not stop.wait(SUPERVISE_SECONDS) and not until():
        for child in children:
            child.restart_if_exited()
