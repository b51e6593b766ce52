"""The service's own processes: parts started, watched, started again, and ended in order.

Owns no part's work. A part is ``python -m accounting <command>``; its settings go by environment,
so that no secret stands in the arguments of a process.
"""

import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from types import FrameType
from typing import Final

import structlog

from accounting.embedded.child import tie_to_parent

log = structlog.get_logger()

ENDINGS: Final = (signal.SIGTERM, signal.SIGINT)
LONGEST_BACKOFF_SECONDS: Final = 10.0
STEADY_SECONDS: Final = 30.0
"""A part that ran so long is started again at once when it ends."""


def start_part() -> Callable[[], None]:
    """What a part runs before its program: tied to us, and deaf until it can end in order.

    A part takes a second to begin; a signal that comes before :func:`stop_on_signals` waits for it
    instead of ending the part with its work undone.
    """
    tie = tie_to_parent(signal.SIGTERM)

    def prepare() -> None:
        signal.pthread_sigmask(signal.SIG_BLOCK, ENDINGS)
        tie()

    return prepare


def stop_on_signals() -> threading.Event:
    """An event that SIGTERM and SIGINT set. A second signal ends the process at once."""
    stop = threading.Event()

    def end(number: int, _frame: FrameType | None) -> None:
        if stop.is_set():
            os._exit(128 + number)
        stop.set()

    for ending in ENDINGS:
        signal.signal(ending, end)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, ENDINGS)
    return stop


class Part:
    """One process of the service. Used from one thread, the one that made it."""

    def __init__(self, command: str, environment: Mapping[str, str] | None = None) -> None:
        self.command = command
        self._environment = {**os.environ, **(environment or {})}
        self._process: subprocess.Popen[bytes] | None = None
        self._started = 0.0
        self._due = 0.0
        self._backoff = 0.0

    def start(self) -> None:
        """Start it, in a process group of its own: Ctrl-C reaches us, who end it in order."""
        self._process = subprocess.Popen(
            [sys.executable, "-m", "accounting", self.command],
            env=self._environment,
            stdin=subprocess.DEVNULL,
            process_group=0,
            preexec_fn=start_part(),  # noqa: PLW1509  # two system calls, no lock
        )
        self._started = time.monotonic()
        log.debug("part started", part=self.command, pid=self._process.pid)

    def keep_running(self) -> None:
        """Start it again when it ended: at once if it had run steadily, else with backoff."""
        now = time.monotonic()
        if self._process is not None:
            code = self._process.poll()
            if code is None:
                return
            steady = now - self._started > STEADY_SECONDS
            self._backoff = (
                0.0 if steady else min(max(0.5, self._backoff * 2), LONGEST_BACKOFF_SECONDS)
            )
            self._due = now + self._backoff * random.uniform(0.5, 1.0)  # noqa: S311
            self._process = None
            log.error("a part ended, starting it again", part=self.command, code=code)
        if now >= self._due:
            self.start()

    def stop(self, patience_seconds: float) -> None:
        """Let it drain and end; kill it when it takes longer than that."""
        process, self._process = self._process, None
        if process is None:
            return
        process.terminate()
        try:
            code = process.wait(patience_seconds)
        except subprocess.TimeoutExpired:
            log.error("a part does not end, killing it", part=self.command)
            process.kill()
            process.wait()
            return
        if code:
            log.warning("a part ended with an error", part=self.command, code=code)


def watch(parts: Sequence[Part], stop: threading.Event, until: Callable[[], bool]) -> None:
    """Keep parts running until ``stop`` is set or ``until()`` is true."""
    while not stop.wait(0.2) and not until():
        for part in parts:
            part.keep_running()


def wait_until(condition: Callable[[], bool], seconds: float) -> bool:
    """Whether the condition came true within so many seconds."""
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.05)
    return True
