"""Forks processes from one that has imported everything: they start at once.

process = ForkedProcess(run_command, "up", out=out, err=err, environ=environ)
process.send_signal(signal.SIGTERM)
assert process.wait(60) == 0

A new Python would import for half a second of the processor before it begins. The processes are
children of the fork server; they end with the test process, however it ends.
"""

import multiprocessing
import multiprocessing.context
import os
import pkgutil
import signal
import subprocess
from collections.abc import Callable
from contextlib import suppress
from multiprocessing import forkserver
from typing import Any, Final

import accounting
from accounting.embedded import child

FORK_SERVER: Final = multiprocessing.get_context("forkserver")
FORK_SERVER.set_forkserver_preload(
    [
        *(module.name for module in pkgutil.walk_packages(accounting.__path__, "accounting.")),
        "tests.support.command",
        "tests.support.collector_process",
    ]
)


class ForkedProcess:
    """A process that calls a function, in a process group of its own; as ``subprocess.Popen``."""

    def __init__(self, function: Callable[..., None], *arguments: object) -> None:
        """Start it. ``function``: of a module that the fork server has imported."""
        self._process = FORK_SERVER.Process(target=_run, args=(function, arguments), daemon=True)
        self._process.start()

    @property
    def pid(self) -> int:
        assert self._process.pid is not None
        return self._process.pid

    @property
    def returncode(self) -> int | None:
        return self.poll()

    def poll(self) -> int | None:
        """The exit code; None while it runs."""
        return self._process.exitcode

    def wait(self, timeout_seconds: float | None = None) -> int:
        """The exit code, once it has ended. Raises TimeoutExpired."""
        self._process.join(timeout_seconds)
        code = self.poll()
        if code is None:
            raise subprocess.TimeoutExpired(str(self._process), timeout_seconds or 0.0)
        return code

    def send_signal(self, number: signal.Signals) -> None:
        """Send a signal, unless it has ended."""
        if self.poll() is None:
            with suppress(ProcessLookupError):
                os.kill(self.pid, number)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)


def _run(function: Callable[..., None], arguments: tuple[Any, ...]) -> None:
    # While a process has this end of its pipe, the fork server would outlive the test process.
    os.close(forkserver._forkserver._forkserver_alive_fd)  # type: ignore[attr-defined]
    if child._libc is not None:
        child._libc.prctl(child.PR_SET_PDEATHSIG, int(signal.SIGTERM), 0, 0, 0)
    os.setpgid(0, 0)
    function(*arguments)
