"""Where an export's files are written: a local directory, an object store, or an SFTP server.

In every place a file appears whole or not at all. Of two exports of one file at once a local
directory refuses the second; elsewhere nothing can be locked, and the later one replaces the other.
"""

from collections.abc import Iterator
from contextlib import AbstractContextManager
from typing import Protocol

from accounting.export.atomic_file import ByteSink


class Draft(ByteSink, Protocol):
    """A file that nobody sees yet."""

    def finish(self) -> None:
        """Bring all bytes to the place, as far as that leaves them invisible."""

    def publish(self) -> None:
        """Give the file its name: it appears whole, in place of an earlier one."""


class Place(Protocol):
    """A directory of files. Names are relative to it, with ``/`` between their parts.

    Raises AccountingError where the disk or the store refuses something.
    """

    def location(self, name: str) -> str:
        """The path or URL of a file."""

    def draft(self, name: str) -> AbstractContextManager[Draft]:
        """A draft of a file, in directories that are made for it; dropped unless published."""

    def chunks(self, name: str) -> Iterator[bytes]:
        """The content of a file. Raises FileNotFoundError."""

    def remove(self, name: str) -> None:
        """Remove a file, durably, if it exists."""

    def stamp(self, name: str) -> object:
        """A value that differs once another file was published under the name."""


def read_file(place: Place, name: str) -> bytes | None:
    """The content of a small file; None if there is none."""
    try:
        return b"".join(place.chunks(name))
    except FileNotFoundError:
        return None
