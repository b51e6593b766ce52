"""What every test stands on: which servers this machine has.

Postgres and Valkey come with the wheels. A test that needs Debian's Redis or coturn says so with a
mark; where those are missing it is left out, and the header says so. Under CI it stays and fails.

Owns where tests keep their files: in memory, where the machine has room (TMPDIR decides if set).
"""

import gc
import os
import shutil
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Final

import pytest
from hypothesis import settings

from tests.books import Books, cloned, make_template
from tests.servers import PostgresServer

NEEDS: Final[Mapping[str, Sequence[str]]] = {
    "needs_redis": ("redis-server",),
    "needs_coturn": ("turnserver", "turnutils_uclient", "turnutils_peer"),
}

MEMORY: Final = Path("/dev/shm")  # noqa: S108  # a place for directories with names of their own
ROOM: Final = 6 << 30
"""Bytes that must be free there: what several workers' servers need is a third of it."""

# A database is hundreds of files: cloning one costs thirty times less where no disk has them.
if "TMPDIR" not in os.environ and MEMORY.is_dir() and shutil.disk_usage(MEMORY).free > ROOM:
    os.environ["TMPDIR"] = tempfile.tempdir = str(MEMORY)

# The processes that tests start would else compile all their modules, each of them.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
sys.dont_write_bytecode = False

# Garbage is looked for again once the tests are known: what importing made stays.
gc.disable()

# How long an example takes is the machine's affair: no test fails because others are at work.
settings.register_profile("accounting", deadline=None)
settings.load_profile("accounting")


def missing_needs() -> set[str]:
    """The marks whose programs aren't all installed; none under CI, which must have them."""
    if os.environ.get("CI"):
        return set()
    return {
        mark
        for mark, programs in NEEDS.items()
        if not all(shutil.which(program) for program in programs)
    }


def pytest_configure(config: pytest.Config) -> None:
    for mark, programs in NEEDS.items():
        config.addinivalue_line(
            "markers", f"{mark}: runs where {', '.join(programs)} are installed"
        )


def pytest_collection_finish() -> None:
    gc.freeze()
    gc.enable()


def pytest_report_header() -> list[str]:
    return [
        f"left out: tests marked {mark} ({', '.join(NEEDS[mark])} not installed here)"
        for mark in sorted(missing_needs())
    ]


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    missing = missing_needs()
    left_out = [item for item in items if any(item.get_closest_marker(mark) for mark in missing)]
    if left_out:
        config.hook.pytest_deselected(items=left_out)
        items[:] = [item for item in items if item not in left_out]


@pytest.fixture(scope="session")
def postgres_server() -> Iterator[PostgresServer]:
    """One Postgres for all tests of this worker, with the template database in it.

    For tests that leave it running: one that stops or kills a server starts its own.
    """
    with PostgresServer() as server:
        make_template(server)
        yield server


@pytest.fixture
def books(postgres_server: PostgresServer, tmp_path: Path) -> Iterator[Books]:
    """Empty books: a database of their own, cloned from the template."""
    with cloned(postgres_server) as name:
        made = Books(postgres_server, name, tmp_path)
        yield made
        made.close()
