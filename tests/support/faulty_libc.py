"""The faults of a machine that its processes see in the C library: clock, names and disk.

A C compiler builds faulty_libc.c, which the processes of a machine preload. Nothing else on the
real machine changes.
"""

import mmap
import shutil
import struct
import subprocess
from enum import IntEnum
from pathlib import Path
from typing import Final

LENGTH: Final = 64
NAMES: Final = ("redis.test", "postgres.test")
REDIS_NAME, POSTGRES_NAME = NAMES
ADDRESSES: Final = ("127.0.0.1", "127.0.0.2")
CLOCK_AT: Final = 0
DISK_AT: Final = 8
HOSTS_AT: Final = 16


class Disk(IntEnum):
    """What a disk answers."""

    HAS_ROOM = 0
    IS_FULL = 1
    """To a write, after half of it."""
    IS_FULL_LATE = 2
    """Only when a file is synced."""


def compiler() -> str | None:
    """The path of a C compiler."""
    return shutil.which("cc")


def build(directory: Path) -> Path:
    """Compile the library into a directory, and return its path."""
    library = directory / "faulty_libc.so"
    source = Path(__file__).with_name("faulty_libc.c")
    program = compiler()
    assert program is not None
    subprocess.run(
        [program, "-O1", "-shared", "-fPIC", "-o", library, source, "-ldl"],
        check=True,
        capture_output=True,
    )
    return library


class FaultyMachine:
    """The file that tells the processes of a machine what is wrong with it."""

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(bytes(mmap.PAGESIZE))
        self.path = path
        with path.open("r+b") as file:
            self._memory = mmap.mmap(file.fileno(), mmap.PAGESIZE)
        for place, name in enumerate(NAMES):
            self._write(HOSTS_AT + 2 * LENGTH * place, name)
            self.set_address(name, ADDRESSES[0])

    def environment(self, library: Path) -> dict[str, str]:
        """The variables of the machine's processes."""
        return {"LD_PRELOAD": str(library), "FAULTY_MACHINE": str(self.path)}

    def set_clock(self, error_microseconds: int) -> None:
        """Set by how much the time of day is wrong."""
        struct.pack_into("=q", self._memory, CLOCK_AT, error_microseconds * 1000)

    def set_disk(self, disk: Disk) -> None:
        struct.pack_into("=q", self._memory, DISK_AT, disk)

    def set_address(self, name: str, address: str) -> None:
        """Resolve a name to an address; to none if it is empty."""
        self._write(HOSTS_AT + 2 * LENGTH * NAMES.index(name) + LENGTH, address)

    def set_right(self) -> None:
        """A right clock, and a disk with room."""
        self.set_clock(0)
        self.set_disk(Disk.HAS_ROOM)

    def _write(self, place: int, text: str) -> None:
        self._memory[place : place + LENGTH] = text.encode().ljust(LENGTH, b"\0")
