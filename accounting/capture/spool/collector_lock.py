"""One collector a spool: its lock, and in it a word on whether the disk ended the last one.

Owns that file. It has its full size from the beginning, so that the word needs no room on a disk
that is full. Must not know why it matters: that is the collector's.
"""

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from accounting.errors import SpoolError

LOCK_FILE_BYTES = 64
DISK_MARKER = b"disk"


class LastExit:
    """How the collector before this one ended, and later this one, for the next."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self.disk_failed = os.pread(descriptor, len(DISK_MARKER), 0) == DISK_MARKER
        self._write(DISK_MARKER if self.disk_failed else b"")

    def record_disk_failure(self) -> None:
        """The spool can't be written: the next one is to know."""
        self.disk_failed = True
        self._write(DISK_MARKER)

    def clear(self) -> None:
        """What that end cost is on record."""
        if self.disk_failed:
            self.disk_failed = False
            self._write(b"")

    def _write(self, word: bytes) -> None:
        # On a disk that copies what it overwrites even this may fail: the gap keeps its other name.
        with suppress(OSError):
            os.pwrite(self._descriptor, word.ljust(LOCK_FILE_BYTES), 0)


@contextmanager
def lock_spool(path: Path) -> Iterator[LastExit]:
    """Hold the lock of a spool's collector. Raises SpoolError when another process has it."""
    lock = path.with_name(f"{path.name}.lock")
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        descriptor = os.open(lock, os.O_RDWR | os.O_CREAT, 0o600)
    except OSError as error:
        raise SpoolError(f"{lock} can't be opened: {error.strerror}") from error
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise SpoolError(
                f"another collector writes the spool {path}: end it, or give this one its own"
                " ACCOUNTING_SOURCE"
            ) from None
        yield LastExit(descriptor)
    finally:
        os.close(descriptor)
