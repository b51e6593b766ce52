"""The title of a process: what ``ps`` shows as its arguments."""

import ctypes
from contextlib import suppress
from pathlib import Path
from typing import Final

ARGUMENTS_BEGIN: Final = 45
ARGUMENTS_END: Final = 46
"""Fields of /proc/PID/stat after the program's name: addresses of the arguments, proc(5)."""


def set_process_title(*words: str) -> None:
    """Show these words as the arguments of this process; cut where they were shorter.

    A forked process has the arguments of its parent otherwise. Does nothing except on Linux. Python
    copied the arguments when it started, so nothing else reads them.
    """
    with suppress(OSError, IndexError, ValueError):
        fields = Path("/proc/self/stat").read_text().rpartition(")")[2].split()
        begin, end = int(fields[ARGUMENTS_BEGIN]), int(fields[ARGUMENTS_END])
        size = end - begin
        if 0 < begin < end and Path("/proc/self/cmdline").stat():
            title = b"".join(word.encode() + b"\0" for word in words)
            # The last byte stays NUL: Linux would show the environment after it otherwise.
            ctypes.memmove(begin, title[: size - 1].ljust(size, b"\0"), size)
