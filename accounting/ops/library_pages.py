"""The memory of libraries' files that this process has read: released once all is imported."""

import ctypes
import re
from contextlib import suppress
from pathlib import Path
from typing import Final

MADV_DONTNEED: Final = 4  # <sys/mman.h>
MAPPING: Final = re.compile(
    r"^(?P<begin>[0-9a-f]+)-(?P<end>[0-9a-f]+) r-.p \S+ \S+ [1-9]\d* +/.*\n(?:[A-Z].*\n)*?"
    r"Anonymous: +0 kB\n",
    re.MULTILINE,
)
"""In /proc/self/smaps, proc(5): a file, not writable, of which this process has no page changed."""


def release_library_pages() -> None:
    """Release the pages of libraries that only importing them needed, 10 MB.

    They stay in the machine's cache of files, and come back when they are used. Does nothing except
    on Linux.
    """
    with suppress(OSError, AttributeError):
        madvise = ctypes.CDLL(None).madvise
        madvise.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)
        for mapping in MAPPING.finditer(Path("/proc/self/smaps").read_text()):
            begin, end = int(mapping["begin"], 16), int(mapping["end"], 16)
            madvise(begin, end - begin, MADV_DONTNEED)
