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

file_bytes = 64
disk_word = b"disk"


class LastEnd:
    """How the collector before this one ended, and later this one, for the next."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self.was_disk = os.pread(descriptor, len(disk_word), 0) == disk_word
        self._write(disk_word if self.was_disk else b"")

    def note_disk(self) -> None:
        """The spool can't be written: the next one is to know."""
        self.was_disk = True
        self._write(disk_word)

    def forget(self) -> None:
        """What that end cost is on record."""
        if self.was_disk:
            self.was_disk = False
            self._write(b"")

    def _write(self, word: bytes) -> None:
        # On a disk that copies what it overwrites even this may fail: the gap keeps its other name.
        with suppress(OSError):
            os.pwrite(self._descriptor, word.ljust(file_bytes), 0)


@contextmanager
def alone(path: Path) -> Iterator[LastEnd]:
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
        yield LastEnd(descriptor)
    finally:
        os.close(descriptor)
