"""The arenas of malloc: glibc gives each thread its own, and none gives its pages back."""

import ctypes
import sys
from typing import Final

M_ARENA_MAX: Final = -8  # <malloc.h>


def limit_arenas(count: int) -> None:
    """Let the threads of this process share so many. Does nothing except with glibc."""
    if sys.platform == "linux" and hasattr(libc := ctypes.CDLL(None), "mallopt"):
        libc.mallopt(M_ARENA_MAX, count)
