"""Wakes the loader when the collector has stored messages: a named pipe beside the spool.

Without it the loader would look at the spool ten times a second. A wake-up may be lost and may be
needless; the loader still looks from time to time. Where the file system has no named pipes, there
are no wake-ups.
"""

import os
import select
import stat
import threading
from contextlib import suppress
from pathlib import Path
from typing import Final

SUFFIX: Final = ".wake"
READ_BYTES: Final = 4096


def pipe_path(spool: Path) -> Path:
    """The named pipe of a spool."""
    return spool.with_name(spool.name + SUFFIX)


class WakeUpSender:
    """The collector's end."""

    def __init__(self, spool: Path) -> None:
        self._path = pipe_path(spool)
        self._descriptor: int | None = None

    def send(self) -> None:
        """Wake the loader, if there is one."""
        with suppress(OSError):
            if self._descriptor is None:
                self._descriptor = _open_pipe(self._path, os.O_WRONLY)
            try:
                os.write(self._descriptor, b"\0")
            except BlockingIOError:
                pass  # so full that a wake-up is on its way
            except OSError:  # the loader has ended; the next one opens the pipe again
                self.close()

    def close(self) -> None:
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None


class WakeUpReceiver:
    """The loader's end. It also wakes when ``stop`` is set."""

    def __init__(self, spool: Path, stop: threading.Event) -> None:
        self._stop = stop
        self._stop_reader, self._stop_writer = os.pipe()
        self._descriptor: int | None = None
        path = pipe_path(spool)
        with suppress(OSError):
            with suppress(FileExistsError):
                os.mkfifo(path, 0o600)
            # With a writer of its own it never reads an end.
            self._descriptor = _open_pipe(path, os.O_RDWR)
        threading.Thread(target=self._pass_stop_on, name="wake-up", daemon=True).start()

    @property
    def is_working(self) -> bool:
        """Whether wake-ups can come."""
        return self._descriptor is not None

    def wait(self, timeout_seconds: float) -> None:
        """Wait for a wake-up, at most so long. Several are one."""
        descriptors = [self._stop_reader]
        if self._descriptor is not None:
            descriptors.append(self._descriptor)
        ready, _, _ = select.select(descriptors, [], [], timeout_seconds)
        if self._descriptor in ready:
            with suppress(BlockingIOError):
                os.read(self._descriptor, READ_BYTES)

    def _pass_stop_on(self) -> None:
        self._stop.wait()
        os.close(self._stop_writer)


def _open_pipe(path: Path, flags: int) -> int:
    """Open a named pipe, without waiting for the other end. Raises OSError for any other file."""
    descriptor = os.open(path, flags | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOFOLLOW)
    if not stat.S_ISFIFO(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise FileExistsError(path)
    return descriptor
