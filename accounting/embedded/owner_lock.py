"""The lock on an embedded server's directory: its owner may start, stop and repair that server."""

import errno
import fcntl
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import structlog

from accounting.errors import ServerError
from accounting.waiting import wait_until

log = structlog.get_logger()
_STOPPING: Final = b" stopping"


@dataclass(frozen=True, slots=True)
class OwnerLock:
    """A lock file that has the owner's pid, and whether it stops.

    The kernel releases the lock when the owner ends.
    """

    path: Path

    def owner_pid(self) -> int | None:
        """The pid of the process that holds the lock, 0 when it wrote none yet; None when free."""
        try:
            descriptor = os.open(self.path, os.O_RDONLY)
        except (FileNotFoundError, NotADirectoryError):
            return None
        try:
            return None if _try_lock(descriptor, fcntl.LOCK_SH) else _read_pid(descriptor)
        finally:
            os.close(descriptor)

    @contextmanager
    def hold(
        self, server_name: str, timeout_seconds: float, cancelled: Callable[[], bool]
    ) -> Iterator[None]:
        """Hold the lock until the block ends. Waits for an owner that stops.

        Raises ServerError with the owner's pid when it does not stop, at once; and when the lock
        isn't free after the timeout, or when ``cancelled()`` becomes true earlier.
        """
        descriptor = os.open(self.path, os.O_RDWR | os.O_CREAT, 0o600)
        try:
            if not _try_lock(descriptor, fcntl.LOCK_EX):
                if _is_stopping(descriptor):
                    log.info("waiting for the embedded server's owner to end", server=server_name)
                    wait_until(
                        lambda: cancelled() or _try_lock(descriptor, fcntl.LOCK_EX),
                        timeout_seconds,
                    )
                if not _try_lock(descriptor, fcntl.LOCK_EX):
                    raise ServerError(
                        f"the embedded {server_name} in {self.path.parent} is run by process "
                        f"{_read_pid(descriptor)}: stop that one first, or use another data "
                        "directory"
                    )
            os.ftruncate(descriptor, 0)
            os.pwrite(descriptor, str(os.getpid()).encode(), 0)
            yield
        finally:
            os.close(descriptor)

    def announce_stop(self) -> None:
        """Say that this process, the owner, is about to release the lock."""
        with suppress(OSError):  # another process then does not wait
            self.path.write_bytes(b"%d%s" % (os.getpid(), _STOPPING))


def _read_pid(descriptor: int) -> int:
    return int(os.pread(descriptor, 32, 0).removesuffix(_STOPPING) or b"0")


def _is_stopping(descriptor: int) -> bool:
    return os.pread(descriptor, 32, 0).endswith(_STOPPING)


def _try_lock(descriptor: int, mode: int) -> bool:
    try:
        fcntl.flock(descriptor, mode | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno not in {errno.EWOULDBLOCK, errno.EACCES}:
            raise
        return False
    return True
