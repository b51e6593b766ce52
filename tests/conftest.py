"""What every test stands on: which servers this machine has.

Postgres and Valkey come with the wheels. A test that needs Debian's Redis or coturn says so with a
mark; where those are missing it is left out, and the header says so. Under CI it stays and fails.

Owns where tests keep their files.
"""

import atexit
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

from tests.support.books import Books, cloned_database, make_template
from tests.support.servers import PostgresServer

NEEDS: Final[Mapping[str, Sequence[str]]] = {
    "needs_redis": ("redis-server",),
    "needs_coturn": ("turnserver", "turnutils_uclient", "turnutils_peer"),
}

MEMORY: Final = Path("/dev/shm")  # noqa: S108  # a place for directories with names of their own
ROOM: Final = 6 << 30
"""Bytes that must be free there: what several workers' servers need is a third of it."""
FAILED: Final[list[int]] = []


def in_a_place_of_their_own() -> None:
    """Let all files of this run lie below one directory; it goes when nothing failed.

    In memory where there is room: a database is hundreds of files, and cloning one costs thirty
    times less where no disk has them. Of its own, because another run of the same user would close
    pytest's directory to the user that the servers run as.
    """
    has_room = MEMORY.is_dir() and shutil.disk_usage(MEMORY).free > ROOM
    place = os.environ.get("TMPDIR") or (MEMORY if has_room else None)
    os.environ["TMPDIR"] = tempfile.tempdir = tempfile.mkdtemp(prefix="ta-tests-", dir=place)
    atexit.register(leave_it)  # after what pytest itself does at its end


def leave_it() -> None:
    if not FAILED:
        shutil.rmtree(os.environ["TMPDIR"], ignore_errors=True)


IS_WORKER: Final = "PYTEST_XDIST_WORKER" in os.environ
if not IS_WORKER:
    in_a_place_of_their_own()

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


@pytest.hookimpl(tryfirst=True)
def pytest_configure(config: pytest.Config) -> None:
    if not IS_WORKER and config.option.basetemp is None:
        # Short: a socket's path has a hundred characters.
        config.option.basetemp = Path(os.environ["TMPDIR"], "tests")
    for mark, programs in NEEDS.items():
        config.addinivalue_line(
            "markers", f"{mark}: runs where {', '.join(programs)} are installed"
        )


def pytest_collection_finish() -> None:
    gc.freeze()
    gc.enable()


def pytest_sessionfinish(exitstatus: int) -> None:
    if exitstatus:
        FAILED.append(exitstatus)


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
    with cloned_database(postgres_server) as name:
        made = Books(postgres_server, name, tmp_path)
        yield made
        made.close()
