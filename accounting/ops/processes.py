"""The service's child processes: started by the fork server, supervised, restarted and stopped.

Their settings go by environment, because everyone on the machine can read the arguments of a
process.
"""

import os
import signal
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from typing import Final

import structlog

from accounting.errors import AccountingError
from accounting.ops.fork_server import ProcessStarter
from accounting.waiting import Backoff

log = structlog.get_logger()

MIN_RESTART_SECONDS: Final = 0.5
MAX_RESTART_SECONDS: Final = 10.0
STABLE_SECONDS: Final = 30.0
"""A child that ran for longer than this is restarted at once when it exits."""
SUPERVISE_SECONDS: Final = 0.5


class ChildProcess:
    """One child process of the service. For the one thread that makes it.

    It gets ``stop_timeout_seconds`` to drain, and is killed then: by its parent, or by itself when
    its parent has ended. ``inherits``: whether its environment has that of this process too.
    ``final_exit_code``: it is not restarted after this one.
    """

    def __init__(
        self,
        starter: ProcessStarter,
        command: str,
        environment: Mapping[str, str] | None = None,
        *,
        stop_timeout_seconds: float,
        inherits: bool = True,
        final_exit_code: int | None = None,
    ) -> None:
        self.command = command
        self.exit_code: int | None = None
        """Of its last run that ended by itself; None before."""
        self._starter = starter
        self._stop_timeout_seconds = stop_timeout_seconds
        self._final_exit_code = final_exit_code
        self._environment = {**(os.environ if inherits else {}), **(environment or {})}
        self._pid: int | None = None
        self._started_at = 0.0
        self._restart_at = 0.0
        self._backoff = Backoff(MIN_RESTART_SECONDS, MAX_RESTART_SECONDS)

    def start(self) -> None:
        """Start it in a process group of its own, so that Ctrl-C reaches only the parent."""
        self._pid = self._starter.start(self.command, self._environment, self._stop_timeout_seconds)
        self._started_at = time.monotonic()
        log.debug("child process started", command=self.command, pid=self._pid)

    def restart_if_exited(self) -> None:
        """Start it again when it has exited: at once after a stable run, else with backoff."""
        now = time.monotonic()
        if self._pid is not None:
            code = self._starter.exit_code(self._pid)
            if code is None:
                return
            if now - self._started_at > STABLE_SECONDS:
                self._backoff.reset()
                self._restart_at = now
            else:
                self._restart_at = now + self._backoff.next_pause()
            self._pid, self.exit_code = None, code
            if self._is_over():
                log.error("child process exited, not restarting it", command=self.command)
                return
            log.error("child process exited, restarting it", command=self.command, code=code)
        if now >= self._restart_at and not self._is_over():
            self.start()

    def _is_over(self) -> bool:
        return self.exit_code is not None and self.exit_code == self._final_exit_code

    def stop(self) -> None:
        """Send SIGTERM and wait until it has drained and exited; kill it after the timeout."""
        pid, self._pid = self._pid, None
        if pid is None:
            return
        with suppress(AccountingError):  # without a fork server it ends by itself
            self._starter.send_signal(pid, signal.SIGTERM)
            code = self._starter.wait(pid, self._stop_timeout_seconds)
            if code is None:
                log.error("child process does not exit, killing it", command=self.command)
                self._starter.send_signal(pid, signal.SIGKILL)
                self._starter.wait(pid)
            elif code:
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
