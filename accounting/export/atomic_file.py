"""Replace files all at once: write a draft, sync it, rename it."""

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from hashlib import sha256
from pathlib import Path
from typing import BinaryIO, Protocol

from accounting.errors import AccountingError


class ByteSink(Protocol):
    """A destination of bytes."""

    def write(self, data: bytes, /) -> int: ...

    def flush(self) -> None: ...


class HashingWriter:
    """Passes bytes on; has their number and SHA-256. File-like enough for pyarrow."""

    closed = False

    def __init__(self, sink: ByteSink) -> None:
        self._sink = sink
        self._sha256 = sha256()
        self.size = 0

    def write(self, data: bytes) -> int:
        self._sha256.update(data)
        self._sink.write(data)
        self.size += len(data)
        return len(data)

    def tell(self) -> int:
        return self.size

    def flush(self) -> None:
        self._sink.flush()

    def close(self) -> None:
        """Leave the sink open: its owner closes it."""

    def hexdigest(self) -> str:
        return self._sha256.hexdigest()


@contextmanager
def locked_draft(path: Path) -> Iterator[tuple[Path, BinaryIO]]:
    """A draft of a file, locked against other exports of it; removed unless the caller renames it.

    The draft of a killed export is overwritten. Raises AccountingError while it is locked.
    """
    draft = path.with_name(f".{path.name}.draft")
    while True:
        file = draft.open("ab")
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.close()
            raise AccountingError(f"{path}: another export writes it now") from None
        if _is_same_file(draft, file):
            break
        file.close()  # the previous owner of the lock has renamed or removed it
    with file:
        file.truncate(0)
        try:
            yield draft, file
        finally:
            if _is_same_file(draft, file):
                draft.unlink()


def _is_same_file(path: Path, file: BinaryIO) -> bool:
    try:
        return path.stat().st_ino == os.fstat(file.fileno()).st_ino
    except FileNotFoundError:
        return False


def sync_file(file: BinaryIO) -> None:
    """Write a file's buffers to disk."""
    file.flush()
    os.fsync(file.fileno())


def sync_directory(directory: Path) -> None:
    """Write a directory's entries to disk."""
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def disk_errors(path: Path) -> Iterator[None]:
    """Turn an OSError, such as that of a full disk, into an AccountingError."""
    try:
        yield
    except OSError as error:
        raise AccountingError(f"{path}: can't be written: {error.strerror or error}") from error
