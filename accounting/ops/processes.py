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
from typing import Final

import structlog

from accounting.ops.stop_signals import STOP_SIGNALS, ParentPipe
from accounting.waiting import Backoff

log = structlog.get_logger()

MIN_RESTART_SECONDS: Final = 0.5
MAX_RESTART_SECONDS: Final = 10.0
STABLE_SECONDS: Final = 30.0
"""A child that ran for longer than this is restarted at once when it exits."""
SUPERVISE_SECONDS: Final = 0.2


def block_stop_signals() -> None:
    """What a child runs before its program: blocks the stop signals.

    They would end the child without a drain until it reaches :func:`stop_on_signals`, after a
    second; that unblocks them.
    """
    signal.pthread_sigmask(signal.SIG_BLOCK, STOP_SIGNALS)


class ChildProcess:
    """One child process of the service. For the one thread that makes it.

    It gets ``stop_timeout_seconds`` to drain, and is killed then: by its parent, or by itself when
    its parent has ended.
    """

    def __init__(
        self,
        command: str,
        environment: Mapping[str, str] | None = None,
        *,
        stop_timeout_seconds: float,
    ) -> None:
        self.command = command
        self.exit_code: int | None = None
        """Of its last run that ended by itself; None before."""
        self._stop_timeout_seconds = stop_timeout_seconds
        self._pipe: ParentPipe | None = None
        self._environment = {**os.environ, **(environment or {})}
        self._process: subprocess.Popen[bytes] | None = None
        self._started_at = 0.0
        self._restart_at = 0.0
        self._backoff = Backoff(MIN_RESTART_SECONDS, MAX_RESTART_SECONDS)

    def start(self) -> None:
        """Start it in a process group of its own, so that Ctrl-C reaches only the parent."""
        self._pipe = ParentPipe(self._stop_timeout_seconds)
        try:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "accounting", self.command],
                env=self._environment | self._pipe.environment,
                stdin=subprocess.DEVNULL,
                process_group=0,
                pass_fds=[self._pipe.reader],
                preexec_fn=block_stop_signals,  # noqa: PLW1509  # one system call, no lock
            )
        finally:
            self._pipe.close_reader()
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
            self._process, self.exit_code = None, code
            self._close_pipe()
            log.error("child process exited, restarting it", command=self.command, code=code)
        if now >= self._restart_at:
            self.start()

    def stop(self) -> None:
        """Send SIGTERM and wait until it has drained and exited; kill it after the timeout."""
        process, self._process = self._process, None
        if process is None:
            return
        process.terminate()
        try:
            code = process.wait(self._stop_timeout_seconds)
        except subprocess.TimeoutExpired:
            log.error("child process does not exit, killing it", command=self.command)
            process.kill()
            process.wait()
            return
        finally:
            self._close_pipe()
        if code:
            log.warning("child process exited with an error", command=self.command, code=code)

    def _close_pipe(self) -> None:
        if self._pipe is not None:
            self._pipe.close()
            self._pipe = None


def supervise(
    children: Sequence[ChildProcess],
    stop: threading.Event,
    until: Callable[[], bool] = lambda: False,
) -> None:
    """Restart children that exit, until ``stop`` is set or ``until()`` is true."""
    while not stop.wait(SUPERVISE_SECONDS) and not until():
        for child in children:
            child.restart_if_exited()
