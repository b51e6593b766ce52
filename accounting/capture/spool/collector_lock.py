"""Lock file of a spool's collector; also records that the last one ended at a disk error.

The file has its full size from the beginning, so that the record needs no space on a full disk.
"""

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final

from accounting.errors import SpoolError

LOCK_FILE_BYTES: Final = 64
DISK_MARKER: Final = b"disk"


class LastExit:
    """How the previous collector ended, and a record of how this one does."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self.disk_failed = os.pread(descriptor, len(DISK_MARKER), 0) == DISK_MARKER
        self._write(DISK_MARKER if self.disk_failed else b"")

    def record_disk_failure(self) -> None:
        """Record that the spool can't be written, for the next collector."""
        self.disk_failed = True
        self._write(DISK_MARKER)

    def clear(self) -> None:
        """Clear the record: the spool has a gap for it."""
        if self.disk_failed:
            self.disk_failed = False
            self._write(b"")

    def _write(self, marker: bytes) -> None:
        # Fails on a full copy-on-write file system: the gap then gets another cause.
        with suppress(OSError):
            os.pwrite(self._descriptor, marker.ljust(LOCK_FILE_BYTES), 0)


@contextmanager
def lock_spool(path: Path) -> Iterator[LastExit]:
    """Hold the collector's lock on a spool. Raises SpoolError when another process holds it."""
    lock_path = path.with_name(f"{path.name}.lock")
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        descriptor = os.open(lock_path, os.O_RDWR | os.O_CREAT, 0o600)
    except OSError as error:
        raise SpoolError(f"{lock_path} can't be opened: {error.strerror}") from error
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
