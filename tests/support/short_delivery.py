"""Schedulers with short waits of the delivery, for its proof; forked, so they start at once."""

import multiprocessing
import os
import signal
import threading
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import Final, Self, cast

from accounting.ops.registry import JOBS, Job
from tests.support.command import environment, run_here
from tests.support.fork_server import FORK_SERVER
from tests.support.short_waits import SERVICE, shorten

LEASE_SECONDS: Final = 4.0
"""Longer than a request, by more than a process stands still on a busy machine."""
DELIVERY: Final = {
    "accounting.webhooks.leases.LEASE_SECONDS": LEASE_SECONDS,
    "accounting.webhooks.endpoint_delivery.LEASE_SECONDS": LEASE_SECONDS,
    "accounting.webhooks.endpoint_delivery.SEND_MARGIN_SECONDS": LEASE_SECONDS - 1.0,
    "accounting.webhooks.endpoint_delivery.TURN_SECONDS": 1.0,
    "accounting.webhooks.retries.MIN_RETRY_SECONDS": 0.2,
    "accounting.webhooks.retries.MAX_RETRY_SECONDS": 0.4,
    "accounting.webhooks.delivery.POLL_SECONDS": 0.05,
    "accounting.webhooks.outbound_policy.TOTAL_SECONDS": 1.0,
}


class Scheduler:
    """A process that runs ``turn-accounting schedule``; the constructor starts it."""

    def __init__(self, directory: Path, settings: Mapping[str, str]) -> None:
        number = len(list(directory.glob("schedule-*.log")))
        self._log = directory / f"schedule-{number}.log"
        self._log.touch()
        self._process = FORK_SERVER.Process(
            target=_run, args=(environment(settings), directory / "out", self._log)
        )
        self._process.start()

    def log_text(self) -> str:
        return self._log.read_text(errors="replace")

    def kill(self) -> None:
        """SIGKILL, and wait."""
        self._process.kill()
        self._process.join(30)

    def pause(self) -> None:
        """SIGSTOP: it stands still, and its connections stay open."""
        self._signal(signal.SIGSTOP)

    def resume(self) -> None:
        self._signal(signal.SIGCONT)

    def _signal(self, number: signal.Signals) -> None:
        assert self._process.pid is not None
        os.kill(self._process.pid, number)

    def stop(self) -> int | None:
        """SIGTERM; returns the exit code."""
        self._process.terminate()
        self._process.join(30)
        return self._process.exitcode

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        error_type: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.kill()


def _end_with_the_test() -> None:
    test = multiprocessing.parent_process()
    assert test is not None
    test.join()
    os.kill(os.getpid(), signal.SIGKILL)


def _run(environ: dict[str, str], out: Path, err: Path) -> None:
    threading.Thread(target=_end_with_the_test, daemon=True).start()
    shorten({**SERVICE, **DELIVERY})
    jobs = cast("dict[str, Job]", JOBS)
    for name in ("feed", "webhooks"):
        jobs[name] = replace(jobs[name], every_seconds=0.2)
    run_here(("schedule",), environ, out, err)
