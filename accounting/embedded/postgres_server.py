"""The embedded Postgres: its process, its socket, its address.

It listens on no network. It trusts everyone who can open its socket: its own user and root. This
runs the binaries directly, as the wheel's ``get_server`` counts its users in a file that survives a
kill, and gives crash recovery only ten seconds.
"""

import os
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final
from urllib.parse import quote

import structlog

from accounting.embedded import child
from accounting.embedded.machine_memory import machine_memory_bytes
from accounting.embedded.owner_lock import OwnerLock
from accounting.embedded.postgres_cluster import DATABASE, SUPERUSER, find_binaries, make_cluster
from accounting.embedded.server_user import ServerUser
from accounting.errors import ServerError, StopRequested
from accounting.waiting import wait_until

log = structlog.get_logger()

PORT: Final = 5432  # only a part of the socket's name
MAX_SOCKET_PATH_BYTES: Final = 107 if os.uname().sysname == "Linux" else 103  # sockaddr_un, - NUL
RECOVERY_LOG_SECONDS: Final = 10.0
OWNER_LOG_SECONDS: Final = 10.0
OWNER_QUIET_SECONDS: Final = 1.0
"""An owner that starts or ends its server in this time is waited for without a word."""
OLD_BACKENDS_MESSAGE: Final = "pre-existing shared memory block"
"""The backends of a killed postmaster end some time after it; until then no other one starts."""
OLD_BACKENDS_TIMEOUT_SECONDS: Final = 60.0
OLD_BACKENDS_RETRY_SECONDS: Final = 0.2
STOP_STEPS: Final = ((signal.SIGINT, 60.0), (signal.SIGQUIT, 10.0), (signal.SIGKILL, 10.0))
"""Fast shutdown, with time for its checkpoint; then immediate, which costs a recovery."""

SETTINGS: Final[Mapping[str, str]] = {
    "listen_addresses": "",
    "port": str(PORT),
    "unix_socket_permissions": "0700",
    "fsync": "on",
    "timezone": "UTC",
    "log_timezone": "UTC",
    "max_logical_replication_workers": "0",  # and no launcher of them
    # Their tables are in memory from the start, a kilobyte and more for each.
    "max_connections": "50",
    "max_pred_locks_per_transaction": "10",
    "max_wal_senders": "2",
    "max_worker_processes": "4",
    "io_max_concurrency": "16",
    # Rows hold usernames: the log has errors, but neither statements nor values.
    "log_min_messages": "warning",
    "log_min_error_statement": "panic",
    "log_error_verbosity": "terse",
    "log_checkpoints": "off",
    "log_autovacuum_min_duration": "-1",
}
"""Passed at every start, so that they override the cluster's own configuration."""

MEBIBYTE: Final = 1 << 20
MEMORY_SETTINGS: Final[Sequence[tuple[int, Mapping[str, str]]]] = (
    (
        768 * MEBIBYTE,
        {
            "shared_buffers": "32MB",
            "wal_buffers": "1MB",
            "max_wal_size": "256MB",
            "min_wal_size": "32MB",
            "work_mem": "2MB",
            "maintenance_work_mem": "16MB",
            "autovacuum_max_workers": "1",
            "max_connections": "30",
            "max_parallel_workers_per_gather": "0",
            "max_worker_processes": "2",
            "io_max_concurrency": "8",
            "io_workers": "1",
        },
    ),
    (
        1536 * MEBIBYTE,
        {
            "shared_buffers": "64MB",
            "wal_buffers": "2MB",
            "max_wal_size": "1GB",
            "maintenance_work_mem": "32MB",
            "autovacuum_max_workers": "2",
            "io_workers": "1",
        },
    ),
)
"""By memory of the machine, up to so many bytes: docs/operations.md#a-small-machine."""

LARGE_SETTINGS: Final[Mapping[str, str]] = {
    # The settle and roll-up jobs rewrite the same pages every other second.
    "shared_buffers": "256MB",
    "max_wal_size": "4GB",
    "wal_buffers": "2MB",  # a thirty-second of shared_buffers else, all of it in memory at once
}
"""With more memory than that."""


def settings_for(memory_bytes: int) -> Mapping[str, str]:
    """The settings on a machine with so much memory."""
    for most_bytes, settings in MEMORY_SETTINGS:
        if memory_bytes <= most_bytes:
            return {**SETTINGS, **settings}
    return {**SETTINGS, **LARGE_SETTINGS}


@dataclass(frozen=True, slots=True, kw_only=True)
class EmbeddedPostgres:
    """A running embedded Postgres, started by this process or by another one of the service."""

    pid: int
    cluster: Path
    socket_dir: Path
    log_path: Path
    owner_lock: OwnerLock

    def url(self, role: str | None = None, database: str = DATABASE) -> str:
        """A libpq URL for the socket; without a role, as the superuser. It has no password."""
        user = quote(role or SUPERUSER, safe="")
        host = quote(str(self.socket_dir), safe="/")
        return f"postgresql://{user}@/{quote(database, safe='')}?host={host}&port={PORT}"

    def is_running(self) -> bool:
        """Whether its process runs."""
        return child.runs_in(self.pid, self.cluster)

    def has_ended(self) -> bool:
        """Whether the process that was started has ended."""
        return child.has_ended(self.pid)


@dataclass(frozen=True, slots=True)
class _Layout:
    """The paths of the embedded Postgres."""

    home: Path

    @classmethod
    def in_data_dir(cls, data_dir: Path) -> "_Layout":
        return cls(data_dir.resolve() / "postgres")

    @property
    def cluster(self) -> Path:
        return self.home / "data"

    @property
    def log_file(self) -> Path:
        return self.home / "server.log"

    @property
    def owner_lock(self) -> OwnerLock:
        return OwnerLock(self.home / "owner.lock")

    def read_pid_file(self) -> list[str]:
        """Pid, directory, start, port, socket directory, address, memory key, status.

        Postgres writes them one after another. Empty when it doesn't run.
        """
        try:
            return (self.cluster / "postmaster.pid").read_text().splitlines()
        except FileNotFoundError:
            return []

    def postmaster_pid(self) -> int | None:
        """The pid of the postmaster on this cluster, also of one that another process started."""
        lines = self.read_pid_file()
        pid = int(lines[0]) if lines and lines[0].isdigit() else 0
        return pid if child.runs_in(pid, self.cluster) else None

    def handle(self, pid: int, socket_dir: Path) -> EmbeddedPostgres:
        return EmbeddedPostgres(
            pid=pid,
            cluster=self.cluster,
            socket_dir=socket_dir,
            log_path=self.log_file,
            owner_lock=self.owner_lock,
        )


@contextmanager
def run_postgres(
    data_dir: Path,
    *,
    settings: Mapping[str, str] | None = None,
    owner_timeout_seconds: float = 30.0,
    cancelled: Callable[[], bool] = lambda: False,
) -> Iterator[EmbeddedPostgres]:
    """Run the embedded Postgres of a data directory until the block ends.

    Makes the cluster and its database when there are none; stops a server that a killed process
    left behind; waits for crash recovery without a limit. ``settings`` override SETTINGS (tests
    turn fsync off). Waits ``owner_timeout_seconds`` for another owner that stops. Both waits end
    when ``cancelled()`` is true. Enter it from the main thread: the server ends with the thread
    that started it.

    Raises StopRequested when it was cancelled before the server was ready; ConfigurationError when
    the wheel is missing; ServerError with the end of the server's log when it does not start, or
    when another process owns it.
    """
    binaries = find_binaries()
    user = ServerUser.for_servers()
    layout = _Layout.in_data_dir(data_dir)
    with child.os_errors_as_server_error("prepare the directory of the embedded Postgres"):
        child.make_server_directory(layout.home, user, binaries / "postgres")
    with layout.owner_lock.hold("Postgres", owner_timeout_seconds, cancelled):
        with child.os_errors_as_server_error("prepare the embedded Postgres"):
            _stop_leftover(layout)
            if not layout.cluster.exists():
                make_cluster(layout.cluster, binaries, user)
        with _socket_dir(layout, user) as socket_dir:
            process = _start(layout, binaries, user, socket_dir, settings or {}, cancelled)
            try:
                with child.bounded_log(layout.log_file):
                    yield layout.handle(process.pid, socket_dir)
            finally:
                layout.owner_lock.announce_stop()
                _stop(process)


def has_postgres(data_dir: Path) -> bool:
    """Whether the data directory has an embedded Postgres, or a process is about to make one."""
    layout = _Layout.in_data_dir(data_dir)
    with child.os_errors_as_server_error("look for the embedded Postgres"):
        return layout.cluster.exists() or layout.owner_lock.owner_pid() is not None


def running_postgres(data_dir: Path) -> EmbeddedPostgres | None:
    """The embedded Postgres that a process of the service runs on this data directory, if any."""
    layout = _Layout.in_data_dir(data_dir)
    with child.os_errors_as_server_error("look for the embedded Postgres"):
        if layout.owner_lock.owner_pid() is None:
            return None  # a server without an owner is about to end
        lines = layout.read_pid_file()
        pid = layout.postmaster_pid()
    if pid is None or len(lines) < 8 or lines[7].strip() != "ready":
        return None
    return layout.handle(pid, Path(lines[4]))


@contextmanager
def attach_or_start(
    data_dir: Path, *, cancelled: Callable[[], bool] = lambda: False
) -> Iterator[EmbeddedPostgres]:
    """The embedded Postgres of a running ``up``, or one that runs until the block ends.

    Connections to the former break when ``up`` ends. An owner that starts or ends its server is
    waited for, with a line in the log from time to time. Raises StopRequested when ``cancelled()``
    is true meanwhile.
    """
    _wait_for_owner(data_dir, cancelled)
    running = running_postgres(data_dir)
    if running is not None:
        yield running
        return
    with run_postgres(data_dir, cancelled=cancelled) as own:
        yield own


def _wait_for_owner(data_dir: Path, cancelled: Callable[[], bool]) -> None:
    """Wait until an owner's server is ready, or there is no owner."""
    owner_lock = _Layout.in_data_dir(data_dir).owner_lock

    def is_over() -> bool:
        pid = owner_lock.owner_pid()
        return pid is None or running_postgres(data_dir) is not None or cancelled()

    seconds = OWNER_QUIET_SECONDS
    with child.os_errors_as_server_error("look for the embedded Postgres"):
        while not wait_until(is_over, seconds):
            log.warning(
                "waiting for the embedded Postgres: the process that runs it is alive, and the "
                "server does not accept connections",
                owner=owner_lock.owner_pid(),
                directory=str(data_dir),
            )
            seconds = OWNER_LOG_SECONDS
    if cancelled():
        raise StopRequested("stopped while it waited for the embedded Postgres")


@contextmanager
def _socket_dir(layout: _Layout, user: ServerUser) -> Iterator[Path]:
    """A directory for the socket, open only to the server's user.

    It is in the data directory, or in /tmp where that path is too long for a socket, or has a
    comma, at which libpq would split it.
    """
    directory = layout.home / "run"
    path = os.fsencode(directory / f".s.PGSQL.{PORT}")
    is_usable = len(path) <= MAX_SOCKET_PATH_BYTES and b"," not in path
    with child.os_errors_as_server_error("make the directory of the embedded Postgres' socket"):
        if is_usable:
            directory.mkdir(mode=0o700, exist_ok=True)
        else:
            directory = Path(tempfile.mkdtemp(prefix="turn-accounting-", dir="/tmp"))
        user.chown(directory)
    try:
        yield directory
    finally:
        if not is_usable:
            shutil.rmtree(directory, ignore_errors=True)


def _start(
    layout: _Layout,
    binaries: Path,
    user: ServerUser,
    socket_dir: Path,
    overrides: Mapping[str, str],
    cancelled: Callable[[], bool],
) -> subprocess.Popen[bytes]:
    """Start the postmaster; return once it accepts connections, however long recovery takes."""
    quoted_dir = str(socket_dir).replace('"', '""')
    settings = {
        **settings_for(machine_memory_bytes()),
        "unix_socket_directories": f'"{quoted_dir}"',
        **overrides,
    }
    arguments = [word for name, value in settings.items() for word in ("-c", f"{name}={value}")]
    deadline = time.monotonic() + OLD_BACKENDS_TIMEOUT_SECONDS
    while True:
        with (
            child.os_errors_as_server_error("start the embedded Postgres"),
            child.open_log(layout.log_file) as output,
        ):
            process = child.spawn(
                [binaries / "postgres", "-D", layout.cluster, *arguments],
                user=user,
                output=output,
                death_signal=signal.SIGINT,
            )
        try:
            if _wait_until_ready(layout, process, cancelled):
                return process
        except BaseException:
            _stop(process)
            raise
        log_tail = child.log_tail(layout.log_file)
        if OLD_BACKENDS_MESSAGE not in log_tail or time.monotonic() > deadline:
            raise ServerError(
                f"the embedded Postgres did not start (code {process.returncode}); "
                f"its log {layout.log_file} ends:\n{log_tail}"
            )
        log.info("waiting for the processes of a killed Postgres to end")
        if cancelled():
            raise StopRequested("stopped while the processes of a killed Postgres end")
        time.sleep(OLD_BACKENDS_RETRY_SECONDS)


def _wait_until_ready(
    layout: _Layout, process: subprocess.Popen[bytes], cancelled: Callable[[], bool]
) -> bool:
    """Wait until it accepts connections (true) or has ended (false). Raises StopRequested."""

    def is_ready() -> bool:
        lines = layout.read_pid_file()
        return len(lines) > 7 and lines[7].strip() == "ready" and lines[0] == str(process.pid)

    def is_over() -> bool:
        return is_ready() or process.poll() is not None or cancelled()

    while not wait_until(is_over, RECOVERY_LOG_SECONDS):
        log.info("waiting for the embedded Postgres to recover", log=str(layout.log_file))
    if cancelled() and not is_ready():
        raise StopRequested("stopped while the embedded Postgres started")
    return process.poll() is None


def _stop(process: subprocess.Popen[bytes]) -> None:
    child.stop_server("Postgres", lambda: process.poll() is None, process.send_signal, STOP_STEPS)


def _stop_leftover(layout: _Layout) -> None:
    """Stop the postmaster of a killed owner, before another one starts on its cluster."""
    pid = layout.postmaster_pid()
    if pid is None:
        return
    log.warning("stopping an embedded Postgres whose owner is gone", pid=pid)
    child.stop_server(
        "Postgres",
        lambda: child.runs_in(pid, layout.cluster),
        lambda number: child.send_signal(pid, number),
        STOP_STEPS,
    )
