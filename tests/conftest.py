"""Servers, databases and temporary files of the tests.

The wheels bring Postgres and Valkey. A test that needs Debian's Redis or coturn has a marker;
where the programs are not installed, pytest deselects it and the header says so. In CI it runs and
fails.
"""

import atexit
import gc
import os
import shutil
import sys
import tempfile
import zoneinfo
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from functools import cache
from pathlib import Path
from typing import Final

import pytest
from hypothesis import settings

from accounting.db.engine import Engine, open_engine
from tests.support import short_waits
from tests.support.billing_scenarios import close_and_adjust_november, close_november
from tests.support.books import (
    WRITER,
    Books,
    BooksTemplate,
    CopiedFrom,
    books_template,
    cloned_database,
    copied_books,
    make_template,
)
from tests.support.sample_books import open_sample_books
from tests.support.scenario_player import ScenarioPlayer
from tests.support.servers import PostgresServer
from tests.support.system_postgres import find_program
from tests.support.truncate import empty_database

zoneinfo.reset_tzpath(to=())  # the data of the package tzdata, as the service

REQUIRED_PROGRAMS: Final[Mapping[str, Sequence[str]]] = {
    "needs_redis": ("redis-server",),
    "needs_postgres": ("initdb", "postgres"),
    "needs_pgbouncer": ("pgbouncer",),
    "needs_compiler": ("cc",),
    "needs_openssl": ("openssl",),
    "needs_zsh": ("zsh",),
    "needs_fish": ("fish",),
    "needs_chromium": ("chromium",),
    "needs_sshd": ("sshd", "ssh-keygen"),
    "needs_systemd": ("systemd-analyze",),
    "needs_logrotate": ("logrotate",),
    "needs_prometheus": ("prometheus", "promtool"),
    "needs_azurite": ("azurite-blob",),
    "needs_coturn": ("turnserver", "turnutils_uclient", "turnutils_peer"),
}

NEEDS_ROOT: Final = "needs_root"
"""Of tests that make namespaces: containers without an engine, and a systemd of their own."""

MEMORY_DIRECTORY: Final = Path("/dev/shm")  # noqa: S108  # each run makes its own directory there
MIN_FREE_BYTES: Final = 6 << 30
"""Three times the space that the servers of several workers use."""
EXIT_STATUSES: Final[list[int]] = []
"""The exit status of this session, if it failed."""


def use_temporary_directory() -> None:
    """Put all files of this run below one directory, which is removed unless a test fails.

    It lies in memory where there is room: a database has hundreds of files, and cloning it in
    memory is thirty times faster than on a disk. It is not pytest's default directory, which
    another run of the same user would close to the account that the servers run as.
    """
    has_room = (
        MEMORY_DIRECTORY.is_dir() and shutil.disk_usage(MEMORY_DIRECTORY).free > MIN_FREE_BYTES
    )
    parent = os.environ.get("TMPDIR") or (MEMORY_DIRECTORY if has_room else None)
    os.environ["TMPDIR"] = tempfile.tempdir = tempfile.mkdtemp(prefix="ta-tests-", dir=parent)
    atexit.register(remove_temporary_directory)  # runs after pytest's own exit handlers


def remove_temporary_directory() -> None:
    if not EXIT_STATUSES:
        shutil.rmtree(os.environ["TMPDIR"], ignore_errors=True)


IS_WORKER: Final = "PYTEST_XDIST_WORKER" in os.environ
if not IS_WORKER:
    use_temporary_directory()

# Without bytecode files each process that a test starts would compile all modules.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
sys.dont_write_bytecode = False

# pytest_collection_finish() freezes the imported objects and enables the collector.
gc.disable()

# The time of an example depends on the load of the machine, so it has no deadline.
settings.register_profile("accounting", deadline=None)
settings.load_profile("accounting")


def unavailable_markers() -> set[str]:
    """The markers that this machine can't serve; in CI none, so that their tests fail."""
    if os.environ.get("CI"):
        return set()
    unavailable = {
        mark
        for mark, programs in REQUIRED_PROGRAMS.items()
        if not all(find_program(program) for program in programs)
    }
    return unavailable if os.geteuid() == 0 else unavailable | {NEEDS_ROOT}


@pytest.hookimpl(tryfirst=True)
def pytest_configure(config: pytest.Config) -> None:
    if not IS_WORKER and config.option.basetemp is None:
        # Short, because the path of a socket is limited to about 100 characters.
        config.option.basetemp = Path(os.environ["TMPDIR"], "tests")
    short_waits.shorten(short_waits.CAPTURE)
    for mark, programs in REQUIRED_PROGRAMS.items():
        config.addinivalue_line("markers", f"{mark}: needs {', '.join(programs)}")
    config.addinivalue_line("markers", f"{NEEDS_ROOT}: needs to be run by root")


def pytest_collection_finish() -> None:
    gc.freeze()
    gc.enable()


def pytest_sessionfinish(exitstatus: int) -> None:
    if exitstatus:
        EXIT_STATUSES.append(exitstatus)


def pytest_report_header() -> list[str]:
    return [
        f"deselected: tests marked {mark} (it is not root)"
        if mark == NEEDS_ROOT
        else f"deselected: tests marked {mark} ({', '.join(REQUIRED_PROGRAMS[mark])} not installed)"
        for mark in sorted(unavailable_markers())
    ]


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    unavailable = unavailable_markers()
    deselected = [
        item for item in items if any(item.get_closest_marker(mark) for mark in unavailable)
    ]
    if deselected:
        config.hook.pytest_deselected(items=deselected)
        items[:] = [item for item in items if item not in deselected]


@pytest.fixture(scope="session")
def postgres_server() -> Iterator[PostgresServer]:
    """The Postgres server of this worker, with the template database.

    A test that stops or kills a server starts its own.
    """
    with PostgresServer() as server:
        make_template(server)
        yield server


@pytest.fixture
def books(postgres_server: PostgresServer, tmp_path: Path) -> Iterator[Books]:
    """Empty books in their own database, cloned from the template."""
    with cloned_database(postgres_server) as name:
        books = Books(postgres_server, name, tmp_path)
        yield books
        books.close()


@pytest.fixture(scope="session")
def copied_from(
    postgres_server: PostgresServer, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[CopiedFrom]:
    """Copies, in a directory, what a function makes of empty books; it is called once."""
    with ExitStack() as stack:

        @cache
        def template(fill: Callable[[Books], object]) -> BooksTemplate:
            directory = tmp_path_factory.mktemp("template")
            return stack.enter_context(books_template(postgres_server, directory, fill))

        yield lambda fill, directory: copied_books(postgres_server, template(fill), directory)


@pytest.fixture
def november_books(copied_from: CopiedFrom, tmp_path: Path) -> Iterator[Books]:
    """Books as ``close_november`` makes them."""
    with copied_from(close_november, tmp_path) as books:
        yield books


@pytest.fixture
def adjusted_books(copied_from: CopiedFrom, tmp_path: Path) -> Iterator[Books]:
    """Books as ``close_and_adjust_november`` makes them."""
    with copied_from(close_and_adjust_november, tmp_path) as books:
        yield books


@pytest.fixture(scope="session")
def sample_books(
    postgres_server: PostgresServer, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Books]:
    """Sample books, made once per worker. Read only: a test that changes any uses ``books``."""
    with open_sample_books(postgres_server, tmp_path_factory.mktemp("sample")) as books:
        yield books


@pytest.fixture(scope="session")
def shared_database(postgres_server: PostgresServer) -> Iterator[str]:
    """The name of a database that tests empty before they use it."""
    with cloned_database(postgres_server) as name:
        yield name


@pytest.fixture(scope="session")
def shared_engine(postgres_server: PostgresServer, shared_database: str) -> Iterator[Engine]:
    """One engine for all tests, so that its connections keep their prepared statements."""
    engine = open_engine(postgres_server.url(WRITER, shared_database))
    yield engine
    engine.dispose()


@pytest.fixture
def shared_books(
    postgres_server: PostgresServer, shared_database: str, shared_engine: Engine, tmp_path: Path
) -> Iterator[Books]:
    """Empty books in the shared database, for tests that need no clone."""
    empty_database(postgres_server, shared_database)
    books = Books(postgres_server, shared_database, tmp_path, shared_engine=shared_engine)
    yield books
    books.close()


@pytest.fixture(scope="session")
def scenario_player(
    postgres_server: PostgresServer, shared_database: str, shared_engine: Engine
) -> ScenarioPlayer:
    return ScenarioPlayer(postgres_server, shared_database, shared_engine)
