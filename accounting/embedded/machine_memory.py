"""The memory that this machine, or the container, has."""

import os
from pathlib import Path
from typing import Final

CONTAINER_LIMITS: Final = (
    Path("/sys/fs/cgroup/memory.max"),
    Path("/sys/fs/cgroup/memory/memory.limit_in_bytes"),
)
"""Of a container, in both versions of Linux' control groups."""


def machine_memory_bytes() -> int:
    """Bytes of memory: of the machine, or of the container where it may use less."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    for path in CONTAINER_LIMITS:
        try:
            limit = path.read_text().strip()
        except OSError:
            continue
        if limit.isdigit():  # else "max"
            memory = min(memory, int(limit))
    return memory
