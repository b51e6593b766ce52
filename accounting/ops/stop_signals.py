"""Stop signals: SIGTERM and SIGINT set an event, and so does the end of the parent process.

A thread sets the event. The handler of a signal runs between two instructions of the main thread,
which may hold the event's lock at that moment: a handler that sets the event would wait for itself.
So the handlers do nothing. Python's own handler, in C, writes the number of the signal into a pipe
(``signal.set_wakeup_fd``), and the thread reads it there.

A child process of the service inherits the reading end of another pipe, whose writing end only the
fork server has, which closes it when the parent has ended, however that came about.
"""

import atexit
import os
import select
import signal
import threading
import time
from collections.abc import Mapping
from types import FrameType
from typing import Final

import structlog

log = structlog.get_logger()

STOP_SIGNALS: Final = (signal.SIGTERM, signal.SIGINT)

PARENT_VARIABLE: Final = "TURN_ACCOUNTING_PARENT"
"""``<descriptor>:<seconds>``: the pipe, and how long an orphan may drain before it exits."""


def stop_on_signals() -> threading.Event:
    """An event that is set by SIGTERM, by SIGINT, and in a child by the end of its parent.

    A signal that comes again changes nothing, except SIGINT: it ends the process at once. Call it
    once in a process, in the main thread.
    """
    stop = threading.Event()
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
    for stop_signal in STOP_SIGNALS:
        signal.signal(stop_signal, _ignore)
    parent = _take_parent()
    threading.Thread(
        target=_watch, args=(reader, parent, stop), name="stop-signals", daemon=True
    ).start()
    signal.pthread_sigmask(signal.SIG_UNBLOCK, STOP_SIGNALS)
    # The interpreter restores the default actions when it ends: another signal would kill it then.
    atexit.register(_ignore_from_now_on)
    return stop


def parent_variable(reader: int, drain_seconds: float) -> Mapping[str, str]:
    """The variable that gives a child its end of the pipe, and how long it may drain."""
    return {PARENT_VARIABLE: f"{reader}:{drain_seconds:g}"}


def _ignore(_number: int, _frame: FrameType | None) -> None:
    """A handler: with one, Python writes the signal's number into the pipe."""


def _ignore_from_now_on() -> None:
    for stop_signal in STOP_SIGNALS:
        signal.signal(stop_signal, signal.SIG_IGN)


def _take_parent() -> tuple[int, float] | None:
    """The pipe to the parent and the seconds to drain; None in a process that has no such parent.

    The variable goes, so that no other program that this process starts takes the pipe for its own.
    """
    text = os.environ.pop(PARENT_VARIABLE, None)
    if text is None:
        return None
    descriptor, _, seconds = text.partition(":")
    return int(descriptor), float(seconds)


def _watch(reader: int, parent: tuple[int, float] | None, stop: threading.Event) -> None:
    """Set ``stop`` at a signal and at the end of the parent; end the process when it must."""
    poll = select.poll()
    poll.register(reader, select.POLLIN)
    parent_reader, drain_seconds = parent or (-1, 0.0)
    if parent is not None:
        poll.register(parent_reader, select.POLLIN)
    deadline: float | None = None
    while True:
        timeout = None if deadline is None else max(0.0, deadline - time.monotonic()) * 1000
        ready = [descriptor for descriptor, _ in poll.poll(timeout)]
        if reader in ready:
            for number in os.read(reader, 4096):
                if number == signal.SIGINT and stop.is_set():
                    os._exit(128 + number)
                if number in STOP_SIGNALS:
                    stop.set()
        if parent_reader in ready:
            poll.unregister(parent_reader)
            if not stop.is_set():
                log.warning("the parent process has ended, stopping")
            stop.set()
            deadline = time.monotonic() + drain_seconds
        if deadline is not None and time.monotonic() >= deadline:
            log.error("an orphan process does not end in time, exiting")
            os._exit(1)
